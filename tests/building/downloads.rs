//! What `hearth build` downloads: resumed, checked, side by side; and its help.

use std::{fs, process::Command, time::Duration};

use hearth_builder::fetch::download::PARALLEL;
use kit::{
    build_fixture::{Fixture, finish, report},
    process::binary,
    registry::{FakeUpstream, Fault, On},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_download_is_resumed_where_it_broke_off_and_checked() {
    // The object store side of the fake registry serves any blob with ranges: good enough for a file server.
    let upstream = FakeUpstream::start().await;
    let fixture = Fixture::new();
    let archive = fs::read(fixture.path("pyspark-3.5.9.tar.gz")).expect("readable");
    let digest = upstream.blob("files", &archive).await;
    let hex = digest.strip_prefix("sha256:").expect("a digest").to_owned();
    let url = format!("{}/v2/files/blobs/{digest}", upstream.url());
    let valid = fs::read_to_string(fixture.path("hearth.yaml")).expect("the specification can be read");
    let from = "{ path: \"pyspark-{spark}.tar.gz\" }";
    let spec = |sha256: &str| valid.replace(from, &format!("{{ url: \"{url}\", sha256: \"{sha256}\" }}"));
    let build = async |name: &str, text: String| {
        fs::write(fixture.path(name), text).expect("writable");
        let mut command = fixture.command(&["-f", name, "--output", "json"]);
        tokio::task::spawn_blocking(move || finish(&mut command)).await.expect("it does not panic")
    };
    upstream.fault(On::blob().get(), Fault::Cut(1_000_000)).times(1);
    upstream.fault(On::blob().get(), Fault::too_many(Some("1"))).times(1);
    let remote = report(&build("url.yaml", spec(&hex)).await);
    let ranges: Vec<String> =
        upstream.log().iter().filter_map(|entry| entry.range().map(str::to_owned)).collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert!(ranges.iter().all(|range| range.starts_with("bytes=") && range != "bytes=0-"), "{ranges:?}");
    assert_eq!(remote["images"], fixture.build(&[])["images"]);

    let wrong = "1".repeat(64);
    let output = build("wrong.yaml", spec(&wrong)).await;
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("has the digest") && message.contains("sha256:1111"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_downloaded_side_by_side_and_no_more_than_the_bound() {
    const FILES: usize = 20;
    let upstream = FakeUpstream::start().await;
    let fixture = Fixture::new();
    let mut files = vec!["files:".to_owned()];
    for at in 0..FILES {
        let digest = upstream.blob("files", format!("file {at}").as_bytes()).await;
        let hex = digest.strip_prefix("sha256:").expect("a digest");
        let url = format!("{}/v2/files/blobs/{digest}", upstream.url());
        files.push(format!("  - {{ url: \"{url}\", sha256: \"{hex}\", to: /opt/files/{at} }}"));
    }
    fixture.spec("registry.test/data/spark", "{ rootfs: base.tar }", &files.join("\n"));
    upstream.fault(On::blob().get(), Fault::Delay(Duration::from_secs(1)));
    let mut command = fixture.command(&["--output", "json"]);
    report(&tokio::task::spawn_blocking(move || finish(&mut command)).await.expect("it does not panic"));
    let log = upstream.log().blob_gets();
    assert_eq!(log.len(), FILES, "each once: {}", log.describe());
    let under_way = |at: &kit::registry::Entry| {
        log.iter().filter(|other| other.at <= at.at && other.last_byte_at() > at.at).count()
    };
    let most = log.iter().map(under_way).max().expect("there were requests");
    assert!((8..=PARALLEL).contains(&most), "{most} at once: {}", log.describe());
}

#[test]
fn help_shows_examples() {
    let output =
        finish(Command::new(binary("hearth").expect("the binary is built")).args(["build", "--help"]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("Examples:") && text.contains("--plain-http"), "{text}");
    let output = finish(Command::new(binary("hearth").expect("the binary is built")).arg("--version"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("hearth "), "{text}");
}
