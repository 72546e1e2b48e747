//! The status page in a real browser: while an image is pulled the bar moves, and the image appears.
//!
//! The browser writes the page as it is after a moment; its clock runs ahead while it waits for nothing. The pictures lie in
//! `target/page` after the test.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kit::{
    agent::{Agent, AgentConfig, REGISTRY},
    cluster::{peer_config, places},
    pull::Puller,
    registry::{FakeUpstream, Layer},
};
use regex::Regex;
use tokio::process::Command;

const REPOSITORY: &str = "data/spark";
const TOKEN: &str = "a-token-of-this-test";

/// Bytes of the layer, and of it in a second: it arrives while the browser looks several times.
const LAYER: u64 = 24 << 20;
const RATE: u64 = 1 << 20;

/// Longest time for one look.
const LOOK: Duration = Duration::from_mins(1);

struct Browser {
    home: tempfile::TempDir,
    address: String,
}

impl Browser {
    /// Runs the browser once and gives what it printed.
    async fn run(&self, fragment: &str, arguments: &[String]) -> String {
        let mut command = Command::new("chromium");
        command.args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]);
        command.args(["--virtual-time-budget=3000", "--disable-background-networking", "--no-proxy-server"]);
        command.arg(format!("--user-data-dir={}", self.home.path().display()));
        command.args(arguments).arg(format!("http://{}/{fragment}", self.address)).kill_on_drop(true);
        let output = tokio::time::timeout(LOOK, command.output()).await.expect("in time").expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The page as it is now.
    async fn look(&self, fragment: &str) -> String {
        self.run(fragment, &["--dump-dom".to_owned()]).await
    }

    async fn picture(&self, fragment: &str, size: &str, more: &[&str], to: &Path) {
        let mut arguments = vec![format!("--screenshot={}", to.display()), format!("--window-size={size}")];
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        self.run(fragment, &arguments).await;
        assert!(fs::metadata(to).is_ok_and(|file| file.len() > 10_000), "a picture with something on it");
    }
}

/// Bytes that the page says have arrived, and how many there will be.
fn arriving(page: &str) -> (u64, u64) {
    let tag = Regex::new(r#"<progress id="arriving-bar"[^>]*>"#).expect("a pattern");
    let tag = tag.find(page).expect("the page has the bar").as_str();
    let number = |name: &str| {
        let pattern = Regex::new(&format!(r#" {name}="(\d+)""#)).expect("a pattern");
        pattern.captures(tag).and_then(|found| found[1].parse().ok()).unwrap_or(0)
    };
    (number("value"), number("max"))
}

fn pictures() -> PathBuf {
    let target = std::env::current_exe().expect("it runs");
    let target = target.ancestors().nth(3).expect("it lies in target/PROFILE/deps").join("page");
    fs::create_dir_all(&target).expect("writable");
    target
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_a_pull_while_it_happens() {
    let upstream = FakeUpstream::start().await;
    upstream.rate_per_connection(RATE);
    upstream.image(REPOSITORY, "3.5.9", [Layer::random(1, LAYER)]).await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let token = home.path().join("token");
    fs::write(&token, TOKEN).expect("writable");
    let admin = format!("admin: {{ listen: 127.0.0.1:0, tokenFile: {} }}", token.display());
    let config = AgentConfig::for_upstream(&upstream).with(&admin).with("fetch: { blobConnections: 1 }");
    let agent = Agent::start(&config).await;
    let browser = Browser { home, address: agent.addresses.admin.to_string() };
    let idle = browser.look("").await;
    assert!(idle.contains("no request has come yet") && idle.contains(">live<"), "{idle}");
    let url = agent.url();
    let pull = tokio::spawn(async move {
        Puller::new(&url, Some(REGISTRY)).pull(REPOSITORY, "3.5.9", |_| ()).await.expect("the pull succeeds")
    });
    let named = format!("#token={TOKEN}");
    let until = Instant::now() + Duration::from_mins(2);
    let first = loop {
        let (have, size) = arriving(&browser.look("").await);
        if have > 0 && size >= LAYER {
            break have;
        }
        assert!(Instant::now() < until && !pull.is_finished(), "the page has not shown the download");
    };
    let page = browser.look(&named).await;
    let (second, size) = arriving(&page);
    assert!(second > first && second < size, "the bar moves: {first}, then {second} of {size}");
    assert!(
        page.contains(&format!("{REGISTRY}/{REPOSITORY} sha256:")) && page.contains(", registry, 1 client<"),
        "{page}"
    );
    let folder = pictures();
    browser.picture(&named, "1100,900", &[], &folder.join("light.png")).await;
    pull.await.expect("it ends");
    let done = browser.look(&named).await;
    assert!(done.contains(&format!("<td>{REGISTRY}/{REPOSITORY}:3.5.9</td>")), "the image appears: {done}");
    assert!(done.contains("<td>complete</td>"), "{done}");
    let explained = browser.look(&format!("{named}&explain={REGISTRY}/{REPOSITORY}:3.5.9")).await;
    assert!(explained.contains("It is complete on this node"), "{explained}");
    let hidden = browser.look("").await;
    assert!(!hidden.contains(REPOSITORY), "names need the token: {hidden}");
    browser
        .picture(&named, "1100,900", &["--blink-settings=preferredColorScheme=0"], &folder.join("dark.png"))
        .await;
    browser.picture(&named, "390,844", &[], &folder.join("phone.png")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_the_cluster_as_nodes_by_image_sets() {
    let upstream = FakeUpstream::start().await;
    upstream.image(REPOSITORY, "3.5.9", [Layer::random(1, 1 << 20)]).await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let token = home.path().join("token");
    fs::write(&token, TOKEN).expect("writable");
    let admin = format!("admin: {{ listen: 127.0.0.1:0, tokenFile: {} }}", token.display());
    let base = AgentConfig::for_upstream(&upstream).with(&admin);
    let images = format!("images: [\"{REGISTRY}/{REPOSITORY}:3.5.9\"]");
    let with_set = base.clone().with(&format!("prepull: {{ sets: [{{ name: spark, {images} }}] }}"));
    // Nothing listens in the third place.
    let places = places(3);
    let first = Agent::start(&peer_config(&with_set, &places[0], &places, "")).await;
    let second = Agent::start(&peer_config(&base, &places[1], &places, "")).await;
    let browser = Browser { home, address: second.addresses.admin.to_string() };
    let named = format!("#token={TOKEN}");
    let until = Instant::now() + Duration::from_mins(2);
    let page = loop {
        let page = browser.look(&named).await;
        if page.contains("1 of 1</td>") {
            break page;
        }
        assert!(Instant::now() < until, "the set of the other node is not shown: {page}");
    };
    assert!(page.contains("2 of 3 nodes answer"), "{page}");
    assert!(page.contains("<td class=\"\">node-00</td>") && page.contains(">does not answer</td>"), "{page}");
    let hidden = browser.look("").await;
    assert!(hidden.contains("2 of 3 nodes answer") && !hidden.contains("node-00"), "{hidden}");
    browser.picture(&named, "1100,900", &[], &pictures().join("cluster.png")).await;
    drop(first);
}
