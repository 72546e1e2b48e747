//! Monitoring: alerts tried by the real `promtool`, metrics of a real agent, and that no rule, dashboard or document names a metric
//! that the agent does not have.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use hearth_agent::metrics::{
    BlameLabels, ControllerMetrics, Kind, Metrics, PeerLabels, PeerOutcome, PeerWhat, PrepullLabels,
    PrepullStateLabels, RegistryLabels, UpstreamLabels,
};
use kit::{
    agent::{Agent, AgentConfig, REGISTRY},
    pull::Puller,
    registry::{FakeUpstream, Layer},
};
use serde_json::Value;

use super::{chart::chart, examples, folder, render};

const ALL: &str = r#"{"monitoring": {"podMonitor": {"enabled": true}, "prometheusRule": {"enabled": true}, "dashboard": {"enabled": true}}}"#;

fn promtool(arguments: &[&str], input: Option<&str>) -> Result<(), String> {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool is installed: `tests/setup tests`");
    let mut stdin = child.stdin.take().expect("it is piped");
    std::io::Write::write_all(&mut stdin, input.unwrap_or_default().as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// A series of every family that the agent has, in the text format.
fn exported() -> String {
    let metrics = Metrics::default();
    let registry = RegistryLabels { registry: "registry.test".to_owned() };
    let upstream =
        UpstreamLabels { registry: registry.registry.clone(), kind: Kind::blob, status: "200".to_owned() };
    metrics.upstream_requests.get_or_create(&upstream).inc();
    metrics.upstream_bytes.get_or_create(&registry).inc();
    metrics.mismatches.get_or_create(&registry).inc();
    metrics.rate_limit.get_or_create(&registry).set(1);
    metrics.rate_remaining.get_or_create(&registry).set(1);
    let peer = PeerLabels { what: PeerWhat::piece, outcome: PeerOutcome::found };
    metrics.peer_requests.get_or_create(&peer).inc();
    metrics.peer_wrong_pieces.get_or_create(&BlameLabels { peer: "a".to_owned() }).inc();
    metrics.prepulls.get_or_create(&PrepullLabels { outcome: "same" }).inc();
    metrics.prepull_images.get_or_create(&PrepullStateLabels { state: "Ready" }).set(1);
    let ours = metrics.plain_text();
    // What both have is listed once.
    let more = hearth_agent::metrics::plain(&ControllerMetrics::default().open_metrics());
    let more = more.split("# HELP ").filter(|family| family.starts_with("hearth_controller"));
    more.fold(ours, |all, family| format!("{all}# HELP {family}"))
}

/// One family of the exposition.
#[derive(Default)]
struct Family {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
}

fn families(text: &str) -> BTreeMap<String, Family> {
    let mut all: BTreeMap<String, Family> = BTreeMap::new();
    let label = regex::Regex::new(r#"([a-z_]+)=""#).expect("it is a pattern");
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help.clone_into(&mut all.entry(name.to_owned()).or_default().help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            kind.clone_into(&mut all.entry(name.to_owned()).or_default().kind);
        } else {
            let name = family_of(line, &all);
            let labels = label.captures_iter(line).map(|found| found[1].to_owned());
            all.entry(name).or_default().labels.extend(labels.filter(|label| label != "le"));
        }
    }
    all
}

/// The family of a sample: those of a histogram have names of their own.
fn family_of(sample: &str, known: &BTreeMap<String, Family>) -> String {
    let name = sample.split(['{', ' ']).next().unwrap_or_default();
    let parts = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
    let is_histogram = |family: &&str| known.get(*family).is_some_and(|family| family.kind == "histogram");
    parts.filter(is_histogram).unwrap_or(name).to_owned()
}

/// The names of our metrics in a text.
fn named(text: &str) -> BTreeSet<String> {
    let pattern = regex::Regex::new(r"\bhearth_[a-z_]+\b").expect("it is a pattern");
    pattern.find_iter(text).map(|found| found.as_str().to_owned()).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(folder().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn dashboard() -> Value {
    serde_json::from_str(&read("monitoring/hearth.json")).expect("the dashboard is JSON")
}

/// The expressions of all panels, with Grafana's variables replaced.
fn expressions() -> Vec<String> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("it has panels").clone();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions = targets.filter_map(|target| target["expr"].as_str());
    expressions
        .map(|one| one.replace("$__rate_interval", "5m").replace("$__range", "1h").replace("$instance", ".*"))
        .collect()
}

#[test]
fn the_picture_of_the_dashboard_shows_its_panels() {
    let (dashboard, picture) = (dashboard(), read("monitoring/dashboard.svg"));
    let titles = dashboard["panels"].as_array().into_iter().flatten().map(|panel| panel["title"].as_str());
    let labels = picture.split("aria-label=\"").skip(1).map(|rest| rest.split('"').next());
    assert!(labels.eq(titles), "draw it again: bench/dashboard record");
}

#[test]
fn alerts_fire_when_they_should_and_not_before() {
    let place = folder().join("monitoring/rules.test.yaml");
    promtool(&["test", "rules", &place.to_string_lossy()], None).unwrap_or_else(|said| panic!("{said}"));
    let tests: Value = serde_saphyr::from_str(&read("monitoring/rules.test.yaml")).expect("it is YAML");
    let rules: Value = serde_saphyr::from_str(&read("helm/hearth/files/rules.yaml")).expect("it is YAML");
    let tried = tests["tests"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|test| test["alert_rule_test"].as_array().into_iter().flatten());
    let fired: BTreeSet<_> = tried
        .filter(|one| one["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty()))
        .filter_map(|one| one["alertname"].as_str())
        .collect();
    let rules = rules["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|group| group["rules"].as_array().into_iter().flatten());
    let alerts: BTreeSet<_> = rules.filter_map(|rule| rule["alert"].as_str()).collect();
    assert!(alerts.len() >= 12, "{alerts:?}");
    assert_eq!(alerts, fired, "every alert has a case in which it fires");
}

#[test]
fn rules_and_dashboard_name_only_metrics_that_the_agent_exports() {
    let known: BTreeSet<_> = families(&exported()).into_keys().collect();
    // What the source registers is what `exported` makes a series of.
    let sources = ["metrics.rs", "metrics/controller.rs", "metrics/durations.rs"].map(|file| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/src").join(file);
        fs::read_to_string(path).expect("the source is there")
    });
    let source = sources.concat();
    let pattern = regex::Regex::new(r#"\.register\(\s*"([a-z_]+)""#).expect("it is a pattern");
    for found in pattern.captures_iter(&source) {
        let name = format!("hearth_{}", &found[1]);
        assert!(
            known.contains(&name) || known.contains(&format!("{name}_total")),
            "`{name}` has no series in this test"
        );
    }
    for (place, text) in [
        ("rules", read("helm/hearth/files/rules.yaml")),
        ("their tests", read("monitoring/rules.test.yaml")),
        ("dashboard", read("monitoring/hearth.json")),
    ] {
        let named = named(&text);
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(named.len() > 8 && unknown.is_empty(), "{place}: {unknown:?} of {named:?}");
    }
}

#[test]
fn every_panel_has_an_expression_that_prometheus_understands() {
    let expressions = expressions();
    assert!(expressions.len() >= 20, "{expressions:?}");
    assert!(expressions.iter().all(|one| !one.contains('$')), "{expressions:?}");
    let rules: Vec<_> = expressions
        .iter()
        .enumerate()
        .map(|(at, expr)| serde_json::json!({"record": format!("panel:{at}"), "expr": expr}))
        .collect();
    let home = tempfile::tempdir().expect("temporary folders are available");
    let file = home.path().join("rules.yaml");
    let text = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string();
    fs::write(&file, text).expect("writable");
    promtool(&["check", "rules", &file.to_string_lossy()], None).unwrap_or_else(|said| panic!("{said}"));
}

#[test]
fn kustomize_and_the_chart_install_the_same_monitoring() {
    let ours = render::kustomize(&folder().join("monitoring"));
    let charts = chart("hearth", ALL);
    let wrong: Vec<_> = ours.iter().chain(&charts).flat_map(examples::wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(ours.len(), 4);
    for object in &ours {
        let same = |one: &&Value| {
            one["kind"] == object["kind"] && one["metadata"]["name"] == object["metadata"]["name"]
        };
        let other = charts.iter().find(same).unwrap_or_else(|| panic!("the chart has {}", object["kind"]));
        for part in ["spec", "data"] {
            assert_eq!(object[part], other[part], "{}", object["kind"]);
        }
    }
    let often = chart("hearth", r#"{"monitoring": {"podMonitor": {"enabled": true, "interval": "15s"}}}"#);
    let often = often.iter().find(|one| one["kind"] == "PodMonitor").expect("there is one");
    assert_eq!(often["spec"]["podMetricsEndpoints"][0]["interval"], "15s");
    let map = ours.iter().find(|one| one["kind"] == "ConfigMap").expect("there is the dashboard");
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    assert_eq!(map["data"]["hearth.json"].as_str(), Some(&*read("monitoring/hearth.json")));
}

#[tokio::test]
async fn promtool_finds_nothing_wrong_with_what_an_agent_exports() {
    let upstream = FakeUpstream::start().await;
    upstream.image("team/spark", "v1", [Layer::random(1, 100_000)]).await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    Puller::new(&agent.url(), Some(REGISTRY))
        .pull("team/spark", "v1", |_| ())
        .await
        .expect("the pull succeeds");
    let scraped = agent.metrics().await.text().to_owned();
    for text in [scraped, exported()] {
        promtool(&["check", "metrics"], Some(&text)).unwrap_or_else(|said| panic!("{said}\n{text}"));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = family_of(line, &families(&text));
            assert!(families(&exported()).contains_key(&name), "`{name}` is not in the reference");
        }
    }
}

#[tokio::test]
async fn each_client_gets_the_format_that_it_accepts() {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    let address = format!("http://{}/metrics", agent.addresses.admin);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    // Of Prometheus 2 and 3, of curl, of one that knows the old format only.
    for (accepted, expected) in [
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text; version=1.0.0",
        ),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/plain;version=0.0.4", "text/plain; version=0.0.4"),
    ] {
        let response = client.get(&address).header("accept", accepted).send().await.expect("it answers");
        let format = response.headers()["content-type"].to_str().expect("it is text").to_owned();
        let text = response.text().await.expect("a body");
        assert!(format.starts_with(expected), "{accepted}: {format}");
        assert_eq!(text.ends_with("# EOF\n"), expected.starts_with("application"), "{accepted}: {text}");
        assert_eq!(
            text.contains("# TYPE hearth_served_bytes_total counter"),
            expected.starts_with("text"),
            "{accepted}: {text}"
        );
    }
}

#[test]
fn the_reference_of_metrics_is_current() {
    let mut table = String::from("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n");
    for (name, family) in families(&exported()) {
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let help = family.help.trim_end_matches('.');
        let labels = labels.join(", ");
        writeln!(table, "| `{name}` | {} | {labels} | {help} |", family.kind)
            .expect("writing to a string cannot fail");
    }
    let readme = read("README.md");
    let start = "<!-- generated from the agent's metrics: do not edit -->\n";
    let written = readme.split_once(start).and_then(|(_, rest)| rest.split_once("<!-- end -->"));
    let (written, _) = written.expect("the section is marked");
    assert!(written == table, "manifests/README.md is not current, it must have:\n{table}");
}
