//! `hearth lock`: inputs stay what they were, layers of images that are there stay where they are.

use std::fs::{self, File};

use kit::registry::FakeUpstream;
use serde_json::Value;

use kit::build_fixture::{Fixture, finish, report, write_base, write_spark};

fn edit(fixture: &Fixture, from: &str, to: &str) {
    let text = fs::read_to_string(fixture.path("hearth.yaml")).expect("readable");
    assert!(text.contains(from), "`{from}` is in the specification");
    fs::write(fixture.path("hearth.yaml"), text.replace(from, to)).expect("writable");
}

fn lock(fixture: &Fixture, arguments: &[&str]) -> Value {
    let mut command = fixture.subcommand("lock", arguments);
    report(&finish(command.args(["--output", "json"])))
}

/// Exit code and message of a `hearth lock` that must fail.
fn refused(fixture: &Fixture, arguments: &[&str]) -> (Option<i32>, String) {
    let output = finish(&mut fixture.subcommand("lock", arguments));
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn manifest(built: &Value, tag: &str) -> String {
    let images = built["images"].as_array().expect("a list");
    let image =
        images.iter().find(|image| image["reference"].as_str().is_some_and(|name| name.ends_with(tag)));
    image.expect("it was built")["manifest"].as_str().expect("a digest").to_owned()
}

fn second_release(fixture: &Fixture) {
    write_spark(File::create(fixture.path("pyspark-3.5.8.tar.gz")).expect("writable"), "3.5.8", &[]);
    edit(fixture, "[\"3.5.9\"]", "[\"3.5.8\", \"3.5.9\"]");
}

#[test]
fn a_lock_changes_nothing_by_itself_and_is_the_same_when_made_again() {
    let fixture = Fixture::new();
    let unlocked = fixture.build(&[]);
    assert_eq!(lock(&fixture, &[])["inputs"], 2);
    let written = fs::read(fixture.path("hearth.lock")).expect("it was written");
    assert!(lock(&fixture, &["--check"])["changes"].as_array().is_some_and(Vec::is_empty));
    assert!(lock(&fixture, &[])["changes"].as_array().is_some_and(Vec::is_empty));
    assert_eq!(fixture.build(&["--locked"])["images"], unlocked["images"]);
    // Elsewhere, with another cache, it is the same file.
    let other = Fixture::new();
    lock(&other, &["--jobs", "1"]);
    assert_eq!(fs::read(other.path("hearth.lock")).expect("it was written"), written);
}

#[test]
fn a_lock_is_current_when_it_is_written() {
    // The layer with x alone, which a has, would fit b as well; b has a layer with its own copy of x.
    let variants = "variants:\n  a: { files: [{ text: x, to: /opt/x }] }\n  \
                    b: { files: [{ text: x, to: /opt/x }, { text: y, to: /opt/y }] }\n  c: {}\n";
    let fixture = Fixture::new();
    fixture.spec("registry.test/data/spark", "{ rootfs: base.tar }", variants);
    edit(&fixture, "-python{python}", "-python{python}-{variant}");
    let unlocked = fixture.build(&[]);
    lock(&fixture, &[]);
    let written = fs::read(fixture.path("hearth.lock")).expect("it was written");
    lock(&fixture, &["--check"]);
    assert_eq!(fixture.build(&["--locked"])["images"], unlocked["images"]);
    lock(&fixture, &[]);
    assert_eq!(fs::read(fixture.path("hearth.lock")).expect("it was written"), written);
}

#[test]
fn a_plan_notices_that_nodes_have_layers_of_another_codec() {
    let fixture = Fixture::new();
    lock(&fixture, &[]);
    fs::rename(fixture.path("hearth.lock"), fixture.path("old.lock")).expect("writable");
    let against = || {
        let mut plan = fixture.subcommand("plan", &["--against", "old.lock", "--output", "json"]);
        report(&finish(&mut plan))["against"].clone()
    };
    let same = against();
    assert_eq!((&same["otherCodec"], &same["uniqueBytes"]), (&false.into(), &0.into()), "{same}");
    edit(&fixture, "axes:", "compression: zstd\naxes:");
    let other = against();
    assert_eq!((&other["otherCodec"], &other["images"][0]["baseIsNew"]), (&true.into(), &true.into()));
    assert!(other["uniqueBytes"].as_u64() > Some(6_000_000), "every layer is new: {other}");
    // What was never compressed is estimated, and the estimate is near what a build comes to.
    fixture.build(&[]);
    let exact = against();
    for key in ["/uniqueCompressed", "/images/0/baseCompressed"] {
        let size = |report: &Value| {
            let size = report.pointer(key).expect(key);
            (size["bytes"].as_u64().expect("a number"), size["estimated"] == true)
        };
        let ((guess, first), (real, second)) = (size(&other), size(&exact));
        assert!(first && !second, "{key}: {other} {exact}");
        assert!(guess.abs_diff(real) * 10 < real, "{key}: {guess} for {real}");
    }
}

#[test]
fn an_added_release_leaves_the_locked_images_alone() {
    const OLD: &str = "3.5.9-java17-python3.11";
    let fixture = Fixture::new();
    lock(&fixture, &[]);
    fs::copy(fixture.path("hearth.lock"), fixture.path("old.lock")).expect("writable");
    let before = manifest(&fixture.build(&[]), OLD);
    second_release(&fixture);

    let (code, message) = fixture.failure(&[]);
    assert!(
        code == 2 && message.contains("`spark 3.5.8`") && message.contains("run `hearth lock`"),
        "{message}"
    );
    let (code, message) = refused(&fixture, &["--check"]);
    assert!(code == Some(1) && message.contains("stale"), "{message}");
    let changes = lock(&fixture, &[])["changes"].to_string();
    assert!(changes.contains("`spark 3.5.8` is new"), "{changes}");
    assert_eq!(manifest(&fixture.build(&[]), OLD), before);

    // What nodes with the old image need for the new ones.
    let mut plan = fixture.subcommand("plan", &["--against", "old.lock", "--output", "json"]);
    let against = report(&finish(&mut plan))["against"].clone();
    assert_eq!(against["images"][1]["tag"], OLD);
    assert_eq!((&against["images"][1]["layers"], &against["images"][1]["bytes"]), (&0.into(), &0.into()));
    assert!(against["images"][0]["bytes"].as_u64() > Some(0), "{against}");

    // Grouped anew, the old image is another one: that is what the lock prevents. Its inputs stay.
    let changes = lock(&fixture, &["--regroup"])["changes"].to_string();
    assert!(changes.contains("layers are new") && !changes.contains("is new"), "{changes}");
    let regrouped = manifest(&fixture.build(&["--locked"]), OLD);
    assert_ne!(regrouped, before);
    fs::remove_file(fixture.path("hearth.lock")).expect("removable");
    assert_eq!(manifest(&fixture.build(&[]), OLD), regrouped);
}

#[test]
fn an_input_that_is_not_what_was_locked_is_refused_until_it_is_upgraded() {
    let fixture = Fixture::new();
    lock(&fixture, &[]);
    let spark = |text: &Value| text["inputs"]["spark 3.5.9"].clone();
    let read = || -> Value {
        serde_json::from_slice(&fs::read(fixture.path("hearth.lock")).expect("readable")).expect("JSON")
    };
    let before = read();
    write_base(File::create(fixture.path("base.tar")).expect("writable"), &["usr/bin/tini"]);
    for (code, message) in [fixture.failure(&[]), {
        let (code, message) = refused(&fixture, &[]);
        (code.expect("it ends by itself"), message)
    }] {
        assert!(code == 1 && message.contains("--upgrade 'base base.tar'"), "{message}");
    }
    let (code, message) = refused(&fixture, &["--upgrade", "bse"]);
    assert!(code == Some(2) && message.contains("`base base.tar`, `spark 3.5.9`"), "{message}");
    lock(&fixture, &["--upgrade", "base base.tar"]);
    let after = read();
    assert_ne!(before["inputs"], after["inputs"]);
    assert_eq!(spark(&before), spark(&after));
    fixture.build(&["--locked"]);
}

#[test]
fn a_lock_that_does_not_fit_is_refused() {
    let fixture = Fixture::new();
    let (code, message) = fixture.failure(&["--locked"]);
    assert!(code == 2 && message.contains("hearth.lock"), "{message}");
    lock(&fixture, &[]);
    let text = fs::read_to_string(fixture.path("hearth.yaml")).expect("readable");
    fs::write(fixture.path("hearth.yaml"), format!("{text}compression: gzip\n")).expect("writable");
    let (code, message) = fixture.failure(&[]);
    assert!(code == 2 && message.contains("zstd-") && message.contains("gzip-"), "{message}");
    fs::write(fixture.path("hearth.lock"), "{").expect("writable");
    let (code, message) = fixture.failure(&[]);
    assert!(code == 2 && message.contains("hearth.lock"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_build_asks_no_server_and_follows_no_moved_tag() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let (fixture, plain) = (Fixture::new(), ["--plain-http", &host]);
    let run = async |name: &'static str, more: &[&str]| {
        let mut command = fixture.subcommand(name, &plain);
        command.args(more).args(["--output", "json"]);
        report(&tokio::task::spawn_blocking(move || finish(&mut command)).await.expect("it does not panic"))
    };
    fixture.spec(&format!("{host}/data/base"), "{ rootfs: base.tar }", "");
    run("build", &["--push"]).await;
    let base = format!("{{ image: \"{host}/data/base:3.5.9-java17-python3.11\" }}");
    fixture.spec(&format!("{host}/data/spark"), &base, "");
    run("lock", &["--cache-dir", "fresh"]).await;
    let mark = upstream.log().len();
    let first = run("build", &["--cache-dir", "fresh"]).await;
    assert_eq!(upstream.log().len(), mark, "everything is in the cache: {}", upstream.log().describe());

    // The tag moves; the lock does not.
    fixture.spec(&format!("{host}/data/base"), "{ rootfs: base.tar }", "labels: { moved: \"yes\" }\n");
    fs::rename(fixture.path("hearth.lock"), fixture.path("kept.lock")).expect("movable");
    run("build", &["--push"]).await;
    fixture.spec(&format!("{host}/data/spark"), &base, "");
    fs::rename(fixture.path("kept.lock"), fixture.path("hearth.lock")).expect("movable");
    let again = run("build", &["--cache-dir", "another"]).await;
    assert_eq!(again["images"], first["images"]);
}
