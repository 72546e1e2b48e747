//! `hearth build --push`: to the real registry, and to one that misbehaves.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use base64::Engine as _;
use http::Method;
use kit::{
    registry::{Access, Bearer, FakeUpstream, Fault, Kind, On, Profile},
    runtime::{DockerRegistry, Login, missing},
};
use serde_json::Value;

use kit::build_fixture::{Fixture, finish, layers, report, skipped};

const TAG: &str = "3.5.9-java17-python3.11";

/// Runs a push beside the test's own server.
async fn push(fixture: &Fixture, host: &str, more: &[&str]) -> (Option<i32>, Value, String) {
    let mut command = fixture.command(&["--push", "--plain-http", host, "--output", "json"]);
    command.args(more);
    let output = tokio::task::spawn_blocking(move || finish(&mut command)).await.expect("it does not panic");
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), report, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs a push that must succeed.
async fn pushed(fixture: &Fixture, host: &str, more: &[&str]) -> Value {
    let (code, report, log) = push(fixture, host, more).await;
    assert_eq!(code, Some(0), "{log}");
    report
}

fn count(report: &Value, key: &str) -> usize {
    report["push"][key].as_array().map(Vec::len).expect("something was pushed")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_registry_takes_an_image_and_is_not_sent_it_twice() {
    if !missing(&["docker-registry"]).is_empty() {
        skipped("docker-registry is not installed");
        return;
    }
    let storage = tempfile::tempdir().expect("temporary folders are available");
    let registry = DockerRegistry::start(storage.path()).await.expect("it starts");
    let host = registry.address().to_string();
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    let first = pushed(&fixture, &host, &[]).await;
    assert_eq!((count(&first, "uploaded"), count(&first, "skipped")), (4, 0));
    let second = pushed(&fixture, &host, &[]).await;
    assert_eq!((count(&second, "uploaded"), count(&second, "skipped")), (0, 4));
    let url = format!("http://{host}/v2/data/spark/manifests/{TAG}");
    let request =
        reqwest::Client::new().head(url).header("Accept", "application/vnd.oci.image.manifest.v1+json");
    let answer = request.send().await.expect("it answers");
    assert_eq!(
        answer.headers()["docker-content-digest"],
        first["images"][0]["manifest"].as_str().expect("text")
    );
    registry.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_registry_is_a_base_and_its_layers_stay_as_they_are() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/base"), "{ rootfs: base.tar }", "");
    let lower = pushed(&fixture, &host, &[]).await;
    let base = format!("{{ image: \"{host}/data/base:{TAG}\" }}");
    fixture.spec(&format!("{host}/data/spark"), &base, "");
    // A cut and a throttled answer on the way are none of the user's business.
    upstream.fault(On::blob().get(), Fault::Cut(1000)).times(1);
    upstream.fault(On::manifest().get(), Fault::status(503)).times(1);
    let upper = pushed(&fixture, &host, &["--cache-dir", "fresh"]).await;
    let sent: Vec<&str> =
        upper["push"]["uploaded"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    let base_layer = layers(&lower, "digest").remove(0);
    assert!(!sent.contains(&base_layer.as_str()), "the registry has it in another repository: {sent:?}");
    let (lower, upper) = (layers(&lower, "digest"), layers(&upper, "digest"));
    assert_eq!(upper[..lower.len()], lower[..]);

    upstream.fault(On::blob().get(), Fault::Corrupt(kit::registry::Where::Middle));
    let (code, _, message) = push(&fixture, &host, &["--cache-dir", "another"]).await;
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("digest"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_outlasts_faults_and_sends_manifests_last_and_tags_after_them() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    upstream.fault(On::kind(Kind::Upload), Fault::too_many(Some("1"))).times(1);
    upstream.fault(On::kind(Kind::Upload), Fault::status(502)).skip(3).times(2);
    upstream.fault(On::kind(Kind::Manifest), Fault::status(503)).times(1);
    let first = pushed(&fixture, &host, &[]).await;
    assert_eq!(count(&first, "uploaded"), 4);
    let log = upstream.log();
    let writes: Vec<(Kind, String)> = log
        .iter()
        .filter(|entry| entry.method == Method::PUT)
        .map(|entry| (entry.target.kind, entry.target.reference.clone()))
        .collect();
    let first_manifest = writes.iter().position(|(kind, _)| *kind == Kind::Manifest).expect("one was sent");
    assert!(writes[first_manifest..].iter().all(|(kind, _)| *kind == Kind::Manifest), "{writes:?}");
    assert_eq!(writes.last().map(|(_, name)| name.as_str()), Some(TAG));
    assert!(writes[first_manifest].1.starts_with("sha256:"), "{writes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_refuses_large_bodies_gets_chunks() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    upstream.limit_bodies(4_500_000);
    pushed(&fixture, &host, &["--jobs", "1"]).await;
    let log = upstream.log();
    assert!(log.iter().any(|entry| entry.method == Method::PATCH), "{}", log.describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_connection_is_a_whole_request_again_at_every_registry() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let fixture = Fixture::new();
    for (at, profile) in Profile::ALL.into_iter().enumerate() {
        upstream.profile(profile);
        fixture.spec(&format!("{host}/data/spark{at}"), "{ rootfs: base.tar }", "");
        let dropped = upstream.fault(On::kind(Kind::Upload).put(), Fault::Reset).times(2);
        let done = pushed(&fixture, &host, &["--sbom"]).await;
        assert!(dropped.hits() == 2 && count(&done, "uploaded") > 0, "{profile:?}: {done:#}");
        let log = upstream.log();
        assert!(log.iter().all(|entry| entry.method != Method::PATCH), "{profile:?}: {}", log.describe());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_as_long_as_the_registry_asks_and_lost_ones_are_noticed() {
    const LENGTH: &str = "4400000";
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    // The largest layer has five million bytes that cannot be compressed.
    upstream.limit_bodies(4_500_000);
    let asked = Fault::Header("oci-chunk-min-length", Some(LENGTH.to_owned()));
    let longer = upstream.fault(On::kind(Kind::Upload).post(), asked);
    pushed(&fixture, &host, &[]).await;
    let log = upstream.log();
    let chunks = log.iter().filter(|entry| entry.method == Method::PATCH);
    let lengths: Vec<&str> = chunks.filter_map(|entry| entry.header("content-length")).collect();
    assert!(lengths.len() == 2 && lengths[0] == LENGTH, "{lengths:?}");
    longer.clear();

    // This registry drops every chunk but the first, and says so only in `Range`.
    upstream.profile(Profile::Ecr);
    fixture.spec(&format!("{host}/data/other"), "{ rootfs: base.tar }", "");
    let (code, _, message) = push(&fixture, &host, &[]).await;
    assert!(code == Some(1) && message.contains("loses chunks"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_cuts_large_bodies_without_an_answer_gets_chunks() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    // Three times for each of the four blobs.
    upstream.fault(On::kind(Kind::Upload).put(), Fault::Reset).times(12);
    pushed(&fixture, &host, &[]).await;
    let log = upstream.log();
    assert!(log.iter().any(|entry| entry.method == Method::PATCH), "{}", log.describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_to_push_is_checked_before_anything_is_built() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let user = ("ci".to_owned(), "secret".to_owned());
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    for access in [
        Access::Basic(user.0.clone(), user.1.clone()),
        Access::Bearer(Bearer { user: Some(user), ..Bearer::default() }),
    ] {
        upstream.access(access);
        let (code, _, message) = push(&fixture, &host, &[]).await;
        assert_eq!(code, Some(1), "{message}");
        assert!(message.contains(&format!("docker login {host}")), "{message}");
        assert!(!fixture.path("dist").exists() && !message.contains("unpacking"), "{message}");
    }
    upstream.access(Access::Open);
    upstream.fault(On::kind(Kind::Upload), Fault::status(403));
    let (_, _, message) = push(&fixture, &host, &[]).await;
    assert!(message.contains("do not allow to push") && !fixture.path("dist").exists(), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_registry_is_mentioned_while_it_is_slow() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    upstream.fault(On::kind(Kind::Upload), Fault::Delay(Duration::from_secs(6))).times(1);
    let (code, _, message) = push(&fixture, &host, &[]).await;
    assert_eq!(code, Some(0), "{message}");
    assert!(message.contains("still waiting for") && message.contains(&host), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_helper_that_fails_is_named_and_a_good_one_used() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    upstream.access(Access::Basic("ci".to_owned(), "secret".to_owned()));
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    fs::write(fixture.path("config.json"), r#"{"auths": {}, "credsStore": "test"}"#).expect("writable");
    let path = fixture.path("docker-credential-test");
    let push = async |script: &str| {
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let mut command =
            fixture.command(&["--push", "--plain-http", &host, "--docker-config", "config.json"]);
        let search = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{search}", fixture.path("").display()));
        let output =
            tokio::task::spawn_blocking(move || finish(&mut command)).await.expect("it does not panic");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, message) = push("echo expired session >&2; exit 1").await;
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("docker-credential-test") && message.contains("expired session"), "{message}");
    let (code, message) = push(r#"echo '{"Username":"ci","Secret":"secret"}'"#).await;
    assert_eq!(code, Some(0), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_used_where_they_belong_and_tokens_renewed() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let user = Some(("ci".to_owned(), "secret".to_owned()));
    upstream.access(Access::Bearer(Bearer { user, ..Bearer::default() }));
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    let (code, _, message) = push(&fixture, &host, &[]).await;
    assert_eq!(code, Some(1), "{message}");

    let config = format!("{{\"auths\": {{\"{host}\": {{\"auth\": \"Y2k6c2VjcmV0\"}}}}}}");
    fs::write(fixture.path("config.json"), config).expect("writable");
    upstream.fault(On::kind(Kind::Upload), Fault::ExpireTokens).skip(2).times(1);
    let done = pushed(&fixture, &host, &["--docker-config", "config.json"]).await;
    assert_eq!(count(&done, "uploaded"), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_exchanged_for_an_access_token_and_sent_to_nobody_else() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let user = Some(("ci".to_owned(), "secret".to_owned()));
    let identity_token = Some("refresh-me".to_owned());
    upstream.access(Access::Bearer(Bearer { user, identity_token, ..Bearer::default() }));
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/base"), "{ rootfs: base.tar }", "");
    let config = |token: &str| {
        let text = format!("{{\"auths\": {{\"{host}\": {{\"identitytoken\": \"{token}\"}}}}}}");
        fs::write(fixture.path("config.json"), text).expect("writable");
    };
    config("wrong");
    let (code, _, message) = push(&fixture, &host, &["--docker-config", "config.json"]).await;
    assert_eq!(code, Some(1), "{message}");
    assert!(
        message.contains("no access token for the identity token") && !message.contains("wrong"),
        "{message}"
    );
    config("refresh-me");
    upstream.fault(On::kind(Kind::Upload), Fault::ExpireTokens).skip(2).times(1);
    let done = pushed(&fixture, &host, &["--docker-config", "config.json"]).await;
    assert_eq!(count(&done, "uploaded"), 4);
    // One login, two repositories: the base is read with a token of its own.
    let base = format!("{{ image: \"{host}/data/base:{TAG}\" }}");
    fixture.spec(&format!("{host}/data/spark"), &base, "");
    pushed(&fixture, &host, &["--docker-config", "config.json", "--cache-dir", "fresh"]).await;
    let log = upstream.log();
    let sent: Vec<&str> = log.iter().filter_map(|entry| entry.authorization()).collect();
    assert!(sent.iter().all(|value| !value.contains("refresh-me")), "{sent:?}");
}

/// What a pipeline does: lock, build exactly that, and push to a registry that is not open.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_matrix_goes_to_a_closed_registry() {
    if !missing(&["docker-registry"]).is_empty() {
        skipped("docker-registry is not installed");
        return;
    }
    let storage = tempfile::tempdir().expect("temporary folders are available");
    let registry = DockerRegistry::start_closed(storage.path()).await.expect("it starts");
    let host = registry.address().to_string();
    let fixture = Fixture::new();
    let more = "compression: zstd\nplatform: linux/amd64\nvariants:\n  plain: {}\n  own:\n    user: \"1001:0\"\n    workingDirectory: /opt/app\n    \
                env: { CELL: \"{spark} on {java}\" }\n    files: [{ text: \"a b\", to: /opt/app/conf }, { path: app.py, to: /opt/app/ }]\n";
    fixture.spec(&format!("{host}/team/spark"), "{ rootfs: base.tar }", more);
    fs::write(fixture.path("app.py"), "print(1)\n").expect("writable");
    let text = fs::read_to_string(fixture.path("hearth.yaml")).expect("readable");
    fs::write(fixture.path("hearth.yaml"), text.replace("{python}\"", "{python}-{variant}\""))
        .expect("writable");
    report(&finish(fixture.subcommand("lock", &[]).args(["--output-format", "json"])));
    let config = |password: &str| {
        let login = base64::engine::general_purpose::STANDARD.encode(format!("{}:{password}", Login::USER));
        let text = format!("{{\"auths\": {{\"{host}\": {{\"auth\": \"{login}\"}}}}}}");
        fs::write(fixture.path("config.json"), text).expect("writable");
    };
    let arguments = ["--locked", "--docker-config", "config.json"];
    config("guessed");
    let (code, _, message) = push(&fixture, &host, &arguments).await;
    assert!(code == Some(1) && message.contains("401") && message.contains("docker login"), "{message}");
    assert!(!fixture.path("dist").exists(), "nothing was built");
    config(Login::PASSWORD);
    let done = pushed(&fixture, &host, &arguments).await;
    registry.stop();

    // What it holds, seen by somebody else.
    let registry = DockerRegistry::start(storage.path()).await.expect("it starts");
    for image in done["images"].as_array().expect("images were built") {
        let tag = image["reference"].as_str().and_then(|name| name.rsplit(':').next()).expect("a tag");
        let url = format!("http://{}/v2/team/spark/manifests/{tag}", registry.address());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let answer = reqwest::Client::new().get(url).header("Accept", kind).send().await.expect("it answers");
        assert_eq!(
            answer.headers()["docker-content-digest"],
            image["manifest"].as_str().expect("text"),
            "{tag}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_netrc_opens_the_servers_that_it_names() {
    let upstream = FakeUpstream::start().await;
    let fixture = Fixture::new();
    let archive = fs::read(fixture.path("pyspark-3.5.9.tar.gz")).expect("readable");
    let digest = upstream.blob("files", &archive).await;
    upstream.access(Access::Basic("me".to_owned(), "secret".to_owned()));
    let hex = digest.strip_prefix("sha256:").expect("a digest");
    let url = format!("{}/v2/files/blobs/{digest}", upstream.url());
    let text = fs::read_to_string(fixture.path("hearth.yaml")).expect("readable");
    let from = "{ path: \"pyspark-{spark}.tar.gz\" }";
    let text = text.replace(from, &format!("{{ url: \"{url}\", sha256: \"{hex}\" }}"));
    fs::write(fixture.path("hearth.yaml"), text).expect("writable");
    let build = async |machine: &str| {
        let netrc = format!("machine {machine} login me password secret\n");
        fs::write(fixture.path("netrc"), netrc).expect("writable");
        let mut command = fixture.command(&["--output", "json"]);
        command.env("NETRC", fixture.path("netrc"));
        tokio::task::spawn_blocking(move || finish(&mut command)).await.expect("it does not panic")
    };
    let refused = build("elsewhere.test").await;
    let message = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("401") && !message.contains("secret"), "{message}");
    report(&build("127.0.0.1").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_what_the_target_has_and_what_a_push_would_send() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    let plan = async |more: &[&str]| {
        let mut command = fixture.subcommand("plan", &["--plain-http", &host, "--output", "json"]);
        command.args(more);
        report(&tokio::task::spawn_blocking(move || finish(&mut command)).await.expect("it does not panic"))
    };
    let bytes = |target: &Value| {
        ["presentBytes", "mountBytes", "uploadBytes", "unbuiltBytes"]
            .map(|key| target[key].as_u64().expect(key))
    };
    let first = plan(&[]).await;
    let [present, _, upload, unbuilt] = bytes(&first["target"]);
    assert!(
        present == 0 && upload == 0 && unbuilt > 0,
        "a plan compresses nothing, the base included: {first:#}"
    );
    assert!(first["bases"][0]["unbuiltBytes"].as_u64() > Some(0), "{first:#}");
    let exact = plan(&["--exact"]).await;
    let [present, _, upload, unbuilt] = bytes(&exact["target"]);
    assert_eq!((present, unbuilt), (0, 0), "{exact:#}");
    assert!(!fixture.path("dist").exists(), "only the cache is written");

    let done = pushed(&fixture, &host, &[]).await;
    let layers: u64 = done["images"][0]["layers"]
        .as_array()
        .expect("an image was built")
        .iter()
        .filter_map(|layer| layer["size"].as_u64())
        .sum();
    assert_eq!(layers, upload, "what was predicted is what was sent");
    let pushed_target = plan(&[]).await;
    assert_eq!(bytes(&pushed_target["target"]), [layers, 0, 0, 0]);
    assert!(
        pushed_target["layers"].as_array().expect("a list").iter().all(|layer| layer["atTarget"] == true)
    );

    // On another base of the same registry the lower layers are mounted.
    fixture.spec(&format!("{host}/data/other"), &format!("{{ image: \"{host}/data/spark:{TAG}\" }}"), "");
    let [_, mount, ..] = bytes(&plan(&[]).await["target"]);
    assert_eq!(mount, layers);

    // Nobody who may not ask is kept from planning.
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    let before = upstream.log().len();
    let offline = plan(&["--offline"]).await;
    assert!(
        offline["target"]["unknown"].as_str().is_some_and(|why| why.contains("--offline")),
        "{offline:#}"
    );
    assert_eq!(upstream.log().len(), before);
    upstream.access(Access::Basic("ci".to_owned(), "secret".to_owned()));
    let closed = plan(&[]).await;
    assert!(closed["target"]["unknown"].as_str().is_some_and(|why| why.contains(&host)), "{closed:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_base_is_taken_from_the_cache_when_its_registry_must_not_be_asked() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/base"), "{ rootfs: base.tar }", "");
    pushed(&fixture, &host, &[]).await;
    fixture.spec(&format!("{host}/data/spark"), &format!("{{ image: \"{host}/data/base:{TAG}\" }}"), "");
    let run = async |name: &'static str, more: &[&str]| {
        let mut command = fixture.subcommand(name, &["--plain-http", &host]);
        command.args(more);
        let output =
            tokio::task::spawn_blocking(move || finish(&mut command)).await.expect("it does not panic");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let before = upstream.log().len();
    let (code, message) = run("build", &["--offline"]).await;
    assert!(
        code == Some(1) && message.contains("`hearth lock`"),
        "only a lock says what a tag meant: {message}"
    );
    let (code, message) = run("lock", &[]).await;
    assert_eq!(code, Some(0), "{message}");
    let asked = upstream.log().len();
    assert!(asked > before);
    for name in ["build", "plan", "lock"] {
        let (code, message) = run(name, &["--offline"]).await;
        assert_eq!(code, Some(0), "{name}: {message}");
    }
    let (code, message) = run("build", &["--offline", "--cache-dir", "empty"]).await;
    assert!(
        code == Some(1) && message.contains("--offline forbids") && message.contains("manifest"),
        "{message}"
    );
    assert_eq!(upstream.log().len(), asked, "{}", upstream.log().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_given_up_only_when_the_user_says_so() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    let mut command = fixture.command(&["--push"]);
    let output = tokio::task::spawn_blocking(move || finish(&mut command)).await.expect("it does not panic");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains(&format!("--plain-http {host}")), "{message}");
    assert!(upstream.log().is_empty(), "not one request was sent in the clear");
}
