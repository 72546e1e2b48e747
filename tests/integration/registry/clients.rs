//! Real clients against the kit's registry. They check every digest themselves.

use std::{path::Path, process::Stdio, time::Duration};

use kit::{
    pull::Puller,
    registry::{Access, Bearer, FakeUpstream, Fault, Kind, Layer, On},
};
use tokio::process::Command;

/// Runs `skopeo copy`; `false` when skopeo is not installed.
async fn skopeo_copy(from: &str, to: &str, options: &[&str]) -> bool {
    let options = [
        &["copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--preserve-digests", "--quiet"],
        options,
    ]
    .concat();
    let mut command = Command::new("skopeo");
    command
        .args(["--insecure-policy"])
        .args(options)
        .args([from, to])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let Ok(child) = command.stderr(Stdio::piped()).spawn() else { return false };
    let output = tokio::time::timeout(Duration::from_mins(1), child.wait_with_output()).await;
    let output = output.expect("skopeo ends within a minute").expect("skopeo was started");
    assert!(output.status.success(), "skopeo {from} {to}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

async fn files_equal(upstream: &FakeUpstream, dir: &Path, digests: impl Iterator<Item = &str>) {
    for digest in digests {
        let copy =
            tokio::fs::read(dir.join(digest.trim_start_matches("sha256:"))).await.expect("skopeo wrote it");
        let path = upstream.blob_file(digest).expect("the registry has it");
        assert!(copy == tokio::fs::read(path).await.expect("readable"), "{digest}");
    }
}

#[tokio::test]
async fn skopeo_copies_an_image_from_registry_to_registry_and_to_disk() {
    let user = ("ann".to_owned(), "secret".to_owned());
    let (source, target) = (FakeUpstream::start().await, FakeUpstream::start().await);
    target.access(Access::Bearer(Bearer { user: Some(user), ..Bearer::default() }));
    let image = source.image("team/app", "v1", [Layer::random(1, 3_000_000), Layer::random(2, 70_000)]).await;
    let from = format!("docker://{}/team/app:v1", source.address());
    let to = format!("docker://{}/mirror/app:v1", target.address());
    if !skopeo_copy(&from, &to, &["--dest-creds=ann:secret"]).await {
        return;
    }
    assert_eq!(target.resolve("mirror/app", "v1").as_deref(), Some(image.digest.as_str()));
    assert!(!target.log().kind(Kind::Token).is_empty(), "the bearer handshake took place");
    let dir = tempfile::tempdir().expect("temporary folders are available");
    let local = format!("dir:{}", dir.path().display());
    skopeo_copy(&to, &local, &["--src-creds=ann:secret"]).await;
    files_equal(&target, dir.path(), image.blobs()).await;
}

#[tokio::test]
async fn a_second_push_mounts_or_skips_what_is_there() {
    let (source, target) = (FakeUpstream::start().await, FakeUpstream::start().await);
    source.image("team/app", "v1", [Layer::random(3, 500_000)]).await;
    let from = format!("docker://{}/team/app:v1", source.address());
    let to = format!("docker://{}/mirror/app:v1", target.address());
    if !skopeo_copy(&from, &to, &[]).await {
        return;
    }
    let mark = target.log().len();
    skopeo_copy(&from, &to, &[]).await;
    let uploads = target.log().since(mark).kind(Kind::Upload);
    assert!(uploads.is_empty(), "{}", uploads.describe());
}

#[tokio::test]
async fn the_kits_own_client_pulls_through_an_index_and_resumes_a_cut_blob() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image("team/app", "one", [Layer::random(4, 900_000)]).await;
    upstream.index("v1", &image);
    upstream.fault(On::blob().reference(&image.layers[0].0).whole(), Fault::Cut(400_000)).times(1);
    let pulled =
        Puller::new(&upstream.url(), None).pull("team/app", "v1", |_| ()).await.expect("the pull recovers");
    assert_eq!(pulled.blobs, image.blobs().collect::<Vec<_>>());
    assert_eq!(pulled.requests, 6, "tag, index, manifest, config, layer, rest of the layer");
    let log = upstream.log();
    let rest = log.blob_gets().filter(|entry| entry.range() == Some("bytes=400000-"));
    assert_eq!(rest.len(), 1, "{}", log.describe());
}

#[tokio::test]
async fn the_kits_own_client_refuses_wrong_bytes() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image("team/app", "v1", [Layer::random(5, 10_000)]).await;
    upstream.fault(On::blob().reference(&image.layers[0].0), Fault::Corrupt(kit::registry::Where::Last));
    let error =
        Puller::new(&upstream.url(), None).pull("team/app", "v1", |_| ()).await.expect_err("wrong bytes");
    assert!(format!("{error:#}").contains("other bytes"), "{error:#}");
}
