//! What agents cost the API server of a cluster of 5,000 nodes: requests a minute, and bytes of watches.
//!
//! One real follower and one real leader run against the kit's API server, which holds 5,000 `NodeCache`s. The other
//! nodes' agents are played: their `NodeCache`s change as theirs would while an image comes to all of them. What the
//! follower asks and is sent is what each of 5,000 agents would; what the leader does comes once.

use std::time::Duration;

use anyhow::{Context, Result};
use kit::{
    agent::{Agent, AgentConfig, REGISTRY},
    kubernetes::{FakeApi, Record},
    registry::{FakeUpstream, Layer},
};
use serde_json::{Value, json};

use crate::{Arguments, report::Report};

/// Nodes of the cluster.
const NODES: usize = 5_000;

/// How long it is watched at rest, and while an image comes.
const SPAN: Duration = Duration::from_mins(1);

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
    for node in ["real-1", "real-2"] {
        api.seed(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": {"pool": "spark"}}}));
    }
    let image = format!("{REGISTRY}/team/spark:3.5");
    for n in 0..NODES - 2 {
        api.seed(cache(n, &image, ("Waiting", 0)));
    }
    let agent = |node: &str| {
        AgentConfig::for_upstream(&upstream)
            .with_log("warn")
            .with(&format!("kubernetes: {{ imageSets: true, api: \"{}\", node: {node} }}", api.url()))
    };
    let leader = Agent::start(&agent("real-1")).await;
    wait_for(&api, "the lease", |api| api.get("Lease", "hearth", "hearth-leader").is_some()).await?;
    let follower = Agent::start(&agent("real-2")).await;
    tokio::time::sleep(Duration::from_secs(15)).await;

    let rest = watch(&api, SPAN, || ()).await;
    api.seed(json!({
        "apiVersion": "hearth.dev/v1alpha1", "kind": "ImageSet", "metadata": {"name": "spark"},
        "spec": {"images": [image], "pullPolicy": "IfChanged", "pin": true},
    }));
    let mut played = 0;
    // All of them pass all steps within the span.
    let busy = watch(&api, SPAN, || {
        for _ in 0..(NODES - 2) * STEPS.len() / 60 {
            api.seed(cache(played % (NODES - 2), &image, STEPS[(played / (NODES - 2)).min(STEPS.len() - 1)]));
            played += 1;
        }
    })
    .await;
    figures(report, &rest, &busy);
    leader.stop().await;
    follower.stop().await;
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

/// Of the two agents one leads: what only the leader asks is counted apart.
fn figures(report: &mut Report, rest: &Seen, busy: &Seen) {
    #[expect(clippy::cast_precision_loss, reason = "counts and bytes of a minute")]
    let number = |count: usize| count as f64;
    let of_leader = |record: &&Record| match record.plural.as_str() {
        "leases" => record.verb != "get",
        "imagesets" => record.verb == "patch",
        "nodecaches" => matches!(record.verb, "list" | "watch"),
        "events" | "pods" => true,
        other => other.starts_with("spark") || other.starts_with("scheduled"),
    };
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
        let leader = number(seen.records.iter().filter(of_leader).count());
        // Both agents do what every agent does.
        let agent = number(seen.records.len()) / 2.0 - leader / 2.0;
        #[expect(clippy::cast_precision_loss, reason = "bytes of a minute")]
        let (sets, caches) = (seen.sets_bytes as f64 / 2.0, seen.caches_bytes as f64);
        report.figure(names[0], agent);
        report.figure(names[1], leader);
        report.figure(names[2], sets);
        report.figure(names[3], caches);
        report.figure(names[4], agent * number(NODES) + leader);
        let writes =
            seen.records.iter().filter(|record| record.plural == "imagesets" && record.verb == "patch");
        report.detail("writes of a set's status", number(writes.count()));
    }
}

fn cache(n: usize, image: &str, (state, progress): (&str, u32)) -> Value {
    let name = format!("node-{n:04}");
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
