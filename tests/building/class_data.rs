//! The archive of class data: when it is made, when it is not, and what a lock says about it. Java and Spark are shell scripts
//! here; tests/e2e has real ones.

use std::{
    fmt::Write as _,
    fs::{self, File},
    process::Stdio,
};

use kit::build_fixture::{Fixture, finish, layers, printed, report, wait, write_base_with_python};

use crate::bytecode::{file, warnings, without_unshare};

const ARCHIVE: &str = "opt/spark/hearth/classes.jsa";
const LIST: &str = "opt/spark/hearth/classes.list";

/// "Trains": three processes load a class each, and one that no archive can have.
const SUBMIT: &str = r#"for number in 3 1 2; do
  printf 'java/lang/Object id: 0\norg/Class%s id: 1\njdk/proxy2/$Proxy%s id: 2\n' $number $number > "$HEARTH_TRAINING/$number.classes"
done"#;

/// "Archives" a list by copying it behind 4 MiB: a smaller group of files would get no layer of its own.
const JAVA: &str = r#"for option in "$@"; do
  case $option in
    -XX:SharedClassListFile=*) list=${option#*=} ;;
    -XX:SharedArchiveFile=*) archive=${option#*=} ;;
  esac
done
filling=................
for step in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do filling=$filling$filling; done
echo "archive of $# options $filling" > "$archive"
while read -r line; do echo "$line" >> "$archive"; done < "$list""#;

/// A base with a real bash, and a Spark and a Java that are these scripts.
fn fixture(submit: &str, java: &str, more: &str) -> Fixture {
    let fixture = Fixture::new();
    write_base_with_python(File::create(fixture.path("base.tar")).expect("writable"), "exit 1");
    specify(&fixture, submit, java, more);
    fixture
}

fn specify(fixture: &Fixture, submit: &str, java: &str, more: &str) {
    let mut files = String::from("files:\n  - { path: /bin/bash, to: /usr/bin/bash, mode: \"0755\" }\n");
    let libraries = printed("ldd", &["/bin/bash"]);
    for library in libraries.split_whitespace().filter(|word| word.starts_with("/lib/")) {
        writeln!(files, "  - {{ path: {library}, to: {library} }}").expect("texts are writable");
    }
    for (path, body) in [
        ("/usr/bin/id", "echo root"),
        ("/usr/bin/tini", "shift 2\nexec \"$@\""),
        ("/opt/spark/bin/spark-submit", submit),
        ("/usr/lib/jvm/java-17/bin/java", java),
    ] {
        let text = format!("#!/bin/sh\n{body}\n").replace('\n', "\n      ");
        let head = format!("  - to: {path}\n    mode: \"0755\"\n    text: |");
        writeln!(files, "{head}\n      {}", text.trim_end()).expect("texts are writable");
    }
    let more = format!("bytecode: false\n{files}{more}");
    fixture.spec("registry.test/data/spark", "{ rootfs: base.tar }", &more);
}

const ON: &str = "jvm: { classDataSharing: true }\n";

#[test]
fn the_classes_of_all_processes_are_archived_in_a_layer_of_their_own() {
    let first = fixture(SUBMIT, JAVA, ON);
    let built = first.build(&[]);
    let archive = file(&first, &built, ARCHIVE).unwrap_or_else(|| panic!("{built:#}"));
    let classes = "java/lang/Object\norg/Class1\norg/Class2\norg/Class3\n";
    assert_eq!(archive.split_once('\n').map(|(_, list)| list), Some(classes));
    assert_eq!(file(&first, &built, LIST).as_deref(), Some(classes));
    assert!(layers(&built, "label").iter().any(|label| label == "class data of Java"), "{built:#}");
    let path = file(&first, &built, "opt/spark/hearth/classes.path").expect("it is in a layer");
    let (java, path) = path.trim().split_once('\n').expect("two lines");
    assert_eq!(java, "/usr/lib/jvm/java-17");
    let jars: Vec<&str> = path.split(':').collect();
    assert!(jars.len() == 3 && jars.is_sorted() && jars[0].starts_with("/opt/spark/jars/hadoop"), "{path}");
    let second = fixture(SUBMIT, JAVA, ON);
    assert_eq!(second.build(&[])["images"], built["images"], "the same bytes on another machine");
    assert_eq!(first.build(&[])["images"], built["images"], "from the cache");
    let plan = finish(&mut first.subcommand("plan", &[]));
    assert!(String::from_utf8_lossy(&plan.stdout).contains("class data of Java"), "{plan:?}");
}

#[test]
fn an_application_jar_needs_no_other_archive() {
    let fixture = fixture(SUBMIT, JAVA, ON);
    let before = fixture.build(&[]);
    let archive = file(&fixture, &before, ARCHIVE).expect("it is in a layer");
    fs::write(fixture.path("app.jar"), "one").expect("writable");
    let more = "  - { path: app.jar, to: /opt/spark/jars/app.jar }\n";
    // Training would fail now.
    specify(&fixture, "exit 1", JAVA, &format!("{more}{ON}"));
    let after = fixture.build(&[]);
    assert_eq!(file(&fixture, &after, ARCHIVE), Some(archive), "{after:#}");
}

#[test]
fn an_image_without_the_archive_says_why_and_is_built() {
    let plain = fixture(SUBMIT, JAVA, "");
    let built = plain.build(&[]);
    assert_eq!(file(&plain, &built, ARCHIVE), None, "nobody has asked for it");
    assert!(!warnings(&built).contains("class data"), "{built:#}");

    let platform = if cfg!(target_arch = "aarch64") { "linux/amd64" } else { "linux/arm64" };
    let cases = [
        ("echo broken >&2\nexit 3", JAVA, "", "the training job failed"),
        ("true", JAVA, "", "0 of launcher, driver and executor left a list"),
        (SUBMIT, "echo no space >&2\nexit 1", "", "archiving class data failed"),
    ];
    for (submit, java, more, why) in cases {
        let fixture = fixture(submit, java, &format!("{ON}{more}"));
        let built = fixture.build(&[]);
        let said = warnings(&built);
        assert!(said.contains("without an archive of class data") && said.contains(why), "{built:#}");
        assert_eq!(file(&fixture, &built, ARCHIVE), None);
        assert_eq!(file(&fixture, &built, "opt/spark/hearth/bin/java"), None);
    }
    let foreign = Fixture::new();
    let more = format!("{ON}bytecode: false\nplatform: {platform}\n");
    foreign.spec("registry.test/data/spark", "{ rootfs: base.tar }", &more);
    let built = foreign.build(&[]);
    assert!(warnings(&built).contains(&format!("cannot run programs for {platform}")), "{built:#}");

    let command = fixture(SUBMIT, JAVA, ON);
    let built = report(&finish(&mut without_unshare(command.command(&["--output", "json"]))));
    assert!(warnings(&built).contains("`unshare` (util-linux) is not installed"), "{built:#}");
}

#[test]
fn a_lock_has_the_classes_so_that_other_machines_need_no_training() {
    let random = format!(
        "{SUBMIT}\nread -r salt < /proc/sys/kernel/random/uuid; echo \"org/$salt\" >> \"$HEARTH_TRAINING/1.classes\""
    );
    let fixture = fixture(&random, JAVA, ON);
    finish(&mut fixture.subcommand("lock", &[]));
    let built = fixture.build(&["--locked"]);
    let archive = file(&fixture, &built, ARCHIVE).expect("it is in a layer");
    let elsewhere = fixture.build(&["--locked", "--cache-dir", "fresh"]);
    assert_eq!(elsewhere["images"], built["images"], "the classes are those of the lock");
    assert_eq!(finish(&mut fixture.subcommand("lock", &["--check"])).status.code(), Some(0));
    finish(&mut fixture.subcommand("lock", &["--cache-dir", "third"]));
    let again = fixture.build(&["--locked"]);
    assert_eq!(again["images"], built["images"], "a lock that is made again keeps them");

    let lock = fs::read_to_string(fixture.path("hearth.lock")).expect("it was written");
    let name = lock.split('"').find(|text| text.starts_with("classes spark 3.5.9")).expect("it is an input");
    finish(&mut fixture.subcommand("lock", &["--upgrade", name, "--cache-dir", "fourth"]));
    let upgraded = fixture.build(&["--locked", "--cache-dir", "fourth"]);
    assert_ne!(file(&fixture, &upgraded, ARCHIVE), Some(archive), "it was trained anew");
}

#[test]
fn what_a_lock_has_is_made_or_found_or_the_build_fails() {
    let fixture = fixture(SUBMIT, JAVA, ON);
    finish(&mut fixture.subcommand("lock", &[]));
    let built = fixture.build(&["--locked"]);
    let mut command = without_unshare(fixture.command(&["--locked", "--cache-dir", "another"]));
    let output = wait(command.stderr(Stdio::piped()).spawn().expect("it starts"));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("is locked, but cannot be made here: `unshare`"), "{message}");
    let mut command = without_unshare(fixture.command(&["--locked", "--output", "json"]));
    assert_eq!(report(&finish(&mut command))["images"], built["images"], "the cache has it");
}

#[test]
fn a_lock_without_the_archive_keeps_images_without_it() {
    let fixture = fixture(SUBMIT, JAVA, ON);
    finish(&mut without_unshare(fixture.subcommand("lock", &[])));
    let built = fixture.build(&["--locked"]);
    assert_eq!(file(&fixture, &built, ARCHIVE), None);
    fs::remove_file(fixture.path("hearth.lock")).expect("it was written");
    assert!(file(&fixture, &fixture.build(&[]), ARCHIVE).is_some());
}

#[test]
fn a_java_that_archives_differently_each_time_is_noticed() {
    let random =
        format!("{JAVA}\nread -r salt < /proc/sys/kernel/random/uuid; echo \"$salt\" >> \"$archive\"");
    let fixture = fixture(SUBMIT, &random, ON);
    finish(&mut fixture.subcommand("lock", &[]));
    fixture.build(&["--locked"]);
    let (code, message) = fixture.failure(&["--locked", "--cache-dir", "fresh"]);
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("`classes spark 3.5.9 ") && message.contains("is locked"), "{message}");
}

#[test]
fn values_that_do_not_fit_are_named_with_their_place() {
    let cases = [
        ("jvm: { classDataSharing: often }\n", "hearth.yaml:12:"),
        ("jvm: { classDataSharin: true }\n", "did you mean `classDataSharing`?"),
        ("jvm: true\n", "hearth.yaml:12:"),
    ];
    for (more, expected) in cases {
        let fixture = Fixture::new();
        fixture.spec("registry.test/data/spark", "{ rootfs: base.tar }", more);
        let (code, message) = fixture.failure(&[]);
        assert_eq!(code, 2, "{message}");
        assert!(message.contains(expected), "{message}");
    }
}
