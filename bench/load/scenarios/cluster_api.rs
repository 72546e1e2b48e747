//! What agents cost the API server of a cluster of 5,000 nodes: requests a minute, and bytes of watches.
//!
//! One real agent and one real controller run against the kit's API server, which holds 5,000 nodes and `NodeCache`s. The
//! other nodes' agents are played: their `NodeCache`s change as theirs would while an image comes to all of them. What the
//! agent asks and is sent is what each of 5,000 agents would; what the controller does comes once.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use kit::{
    agent::{Agent, AgentConfig, REGISTRY},
    controller::Controller,
    kubernetes::{FakeApi, Record},
    registry::{FakeUpstream, Layer},
};
use serde_json::{Value, json};

use crate::{Arguments, report::Report};

/// Nodes of the cluster.
const NODES: usize = 5_000;

/// Nodes without a real agent.
const PLAYED: usize = NODES - 1;

/// The controller's name at the API server.
const CONTROLLER: &str = "controller";

/// How long it is watched at rest, and while an image comes.
const SPAN: Duration = Duration::from_mins(1);

/// Time until a new agent is at rest: it says once whether its runtime pulls through it, at the latest after 30 s.
const SETTLED: Duration = Duration::from_secs(45);

/// States that a node's image goes through while it comes; each is a write.
const STEPS: [(&str, u32); 5] =
    [("Pulling", 0), ("Pulling", 30), ("Pulling", 60), ("Pulling", 90), ("Ready", 100)];

pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    for _ in 0..arguments.rounds {
        round(report).await?;
    }
    Ok(())
}

async fn round(report: &mut Report) -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.image("team/spark", "3.5", [Layer::random(1, 1 << 20)]).await;
    let api = FakeApi::start().await;
    api.install_hearth();
    api.seed(node("real"));
    let image = format!("{REGISTRY}/team/spark:3.5");
    for n in 0..PLAYED {
        api.seed(node(&name(n)));
        api.seed(cache(n, &image, ("Waiting", 0)));
    }
    let config = |url: String| {
        AgentConfig::for_upstream(&upstream)
            .with_log("warn")
            .with(&format!("kubernetes: {{ imageSets: true, api: \"{url}\", node: real }}"))
    };
    let controller = Controller::start(&config(api.url_for(CONTROLLER)));
    wait_for(&api, "the lease", |api| api.get("Lease", "hearth", "hearth-controller").is_some()).await?;
    let agent = Agent::start(&config(api.url())).await;
    tokio::time::sleep(SETTLED).await;

    let rest = watch(&api, SPAN, || ()).await;
    api.seed(json!({
        "apiVersion": "hearth.dev/v1alpha1", "kind": "ImageSet", "metadata": {"name": "spark"},
        "spec": {"images": [image], "pullPolicy": "IfChanged", "pin": true},
    }));
    let mut played = 0;
    // All of them pass all steps within the span.
    let busy = watch(&api, SPAN, || {
        for _ in 0..PLAYED * STEPS.len() / 60 {
            api.seed(cache(played % PLAYED, &image, STEPS[(played / PLAYED).min(STEPS.len() - 1)]));
            played += 1;
        }
    })
    .await;
    figures(report, &rest, &busy);
    controller.stop().await;
    agent.stop().await;
    Ok(())
}

/// What happened in a span.
struct Seen {
    records: Vec<Record>,
    sets_bytes: u64,
    caches_bytes: u64,
}

async fn watch(api: &FakeApi, span: Duration, mut second: impl FnMut()) -> Seen {
    let (log, sets, caches) =
        (api.log().len(), api.watched_bytes("imagesets"), api.watched_bytes("nodecaches"));
    for _ in 0..span.as_secs() {
        second();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Seen {
        records: api.log().split_off(log),
        sets_bytes: api.watched_bytes("imagesets") - sets,
        caches_bytes: api.watched_bytes("nodecaches") - caches,
    }
}

fn figures(report: &mut Report, rest: &Seen, busy: &Seen) {
    #[expect(clippy::cast_precision_loss, reason = "counts and bytes of a minute")]
    let number = |count: usize| count as f64;
    for (seen, names) in [
        (
            rest,
            [
                "agent_calls_per_minute_at_rest",
                "leader_calls_per_minute_at_rest",
                "agent_watch_bytes_per_minute_at_rest",
                "leader_watch_bytes_per_minute_at_rest",
                "cluster_calls_per_minute_at_rest",
            ],
        ),
        (
            busy,
            [
                "agent_calls_per_minute_in_rollout",
                "leader_calls_per_minute_in_rollout",
                "agent_watch_bytes_per_minute_in_rollout",
                "leader_watch_bytes_per_minute_in_rollout",
                "cluster_calls_per_minute_in_rollout",
            ],
        ),
    ] {
        let leader = number(seen.records.iter().filter(|record| record.client == CONTROLLER).count());
        let agent = number(seen.records.len()) - leader;
        // Both watch the sets.
        #[expect(clippy::cast_precision_loss, reason = "bytes of a minute")]
        let (sets, caches) = (seen.sets_bytes as f64 / 2.0, seen.caches_bytes as f64);
        report.figure(names[0], agent);
        report.figure(names[1], leader);
        report.figure(names[2], sets);
        report.figure(names[3], caches);
        report.figure(names[4], agent * number(NODES) + leader);
        let mut kinds = BTreeMap::new();
        for Record { client, verb, plural, .. } in &seen.records {
            let who = if client == CONTROLLER { "leader" } else { "agent" };
            *kinds
                .entry(format!("{who}: {verb} {plural}, {}", names[0].rsplit('_').next().unwrap_or("")))
                .or_default() += 1;
        }
        for (kind, count) in kinds {
            report.detail(&kind, number(count));
        }
        let writes =
            seen.records.iter().filter(|record| record.plural == "imagesets" && record.verb == "patch");
        report.detail("writes of a set's status", number(writes.count()));
    }
}

fn name(n: usize) -> String {
    format!("node-{n:04}")
}

fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"pool": "spark", "kubernetes.io/os": "linux"}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn cache(n: usize, image: &str, (state, progress): (&str, u32)) -> Value {
    let name = name(n);
    json!({
        "apiVersion": "hearth.dev/v1alpha1", "kind": "NodeCache", "metadata": {"name": name},
        "spec": {"nodeName": name},
        "status": {
            "agentVersion": "0.1.0", "imagesDesired": 1, "imagesReady": u32::from(progress == 100), "imagesFailed": 0,
            "disk": {"usedBytes": 1_u64 << 30}, "updated": "2026-01-01T00:00:00Z",
            "sets": [{"name": "spark", "observedGeneration": 1, "images": [{
                "image": image, "state": state, "here": progress == 100, "progress": progress,
                "digest": format!("sha256:{}", "ab".repeat(32)),
            }]}],
        },
    })
}

async fn wait_for(api: &FakeApi, what: &str, there: impl Fn(&FakeApi) -> bool) -> Result<()> {
    let waiting = async {
        while !there(api) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), waiting)
        .await
        .with_context(|| format!("{what} within a minute"))
}
