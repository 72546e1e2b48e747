//! The view of the cluster: what nodes report about themselves, on the admin listener of each.

use std::{
    fs,
    time::{Duration, Instant},
};

use kit::{
    agent::{Agent, AgentConfig},
    cluster::{peer_config, places},
    peer::{BadPeer, Manner},
};
use serde_json::Value;

use super::{REPOSITORY, config, pull, upstream};

const TOKEN: &str = "0123456789abcdef";

async fn view(agent: &Agent, token: Option<&str>) -> Value {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let mut request = client.get(format!("http://{}/api/v1/cluster", agent.addresses.admin));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let text = request.send().await.expect("it answers").text().await.expect("a body");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_is_seen_from_each_node_and_a_silent_peer_only_costs_its_own_row() {
    let (upstream, _) = upstream().await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let file = home.path().join("token");
    fs::write(&file, TOKEN).expect("writable");
    let image = format!("{}/{REPOSITORY}:v1", kit::agent::REGISTRY);
    let with = |more: &str| -> AgentConfig {
        let admin = format!("admin: {{ listen: 127.0.0.1:0, tokenFile: {} }}", file.display());
        config(&upstream).with(&admin).with(more)
    };
    let places = places(4);
    let _silent = BadPeer::start(&places[3], Manner::Stalls);
    let set = format!("prepull: {{ sets: [{{ name: spark, images: [\"{image}\"] }}] }}");
    let there = Agent::start(&peer_config(&with(&set), &places[0], &places, "")).await;
    let none = Agent::start(&peer_config(&with(""), &places[1], &places, "")).await;
    // Its set has one image that does not exist.
    let wanting = set.replace(":v1\"", ":v1\", \"registry.test/team/gone:v9\"");
    let lacks = Agent::start(&peer_config(&with(&wanting), &places[2], &places, "")).await;
    for agent in [&there, &lacks] {
        pull(agent).await;
    }
    let until = Instant::now() + Duration::from_mins(1);
    let named = loop {
        let named = view(&there, Some(TOKEN)).await;
        let key = named["sets"].as_object().and_then(|sets| sets.keys().next().cloned()).unwrap_or_default();
        let of = |at: usize| named["grid"][at]["state"]["sets"][&key].clone();
        if of(0)["here"] == 1 && of(2)["here"] == 1 && of(2)["failed"] == 1 {
            break named;
        }
        assert!(Instant::now() < until, "{named}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert_eq!((&named["nodes"], &named["answered"], &named["warm"]), (&4.into(), &3.into(), &2.into()));
    let (key, name) = named["sets"].as_object().and_then(|sets| sets.iter().next()).expect("one set");
    assert_eq!(name, "file/spark");
    let rows: Vec<_> = named["grid"].as_array().expect("rows").iter().map(|row| &row["node"]).collect();
    assert_eq!(rows, ["node-00", "node-01", "node-02", "node-03"]);
    let sets = |at: usize| &named["grid"][at]["state"]["sets"];
    assert_eq!(sets(1), &serde_json::json!({}));
    assert_eq!((&sets(2)[key]["here"], &sets(2)[key]["images"]), (&1.into(), &2.into()));
    assert!(named["grid"][3]["state"].is_null(), "{named}");
    // Another node knows the set by its name only when it has it too.
    let elsewhere = view(&none, Some(TOKEN)).await;
    assert_eq!(elsewhere["sets"][key], "");
    let open = view(&none, None).await.to_string();
    assert!(open.contains("\"answered\":3"), "{open}");
    for secret in ["node-", "spark", "grid", key] {
        assert!(!open.contains(secret), "`{secret}` is for the token: {open}");
    }
}
