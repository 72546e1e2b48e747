//! The mirror as clients see it: one agent in process, one fake upstream, real HTTP between them.

mod auth;
mod damage;
mod disk;
mod eviction;
mod faults;
mod handover;
mod helpers;
mod limits;
mod listings;
mod manifests;
mod odd;
mod outage;
mod patience;
mod pauses;
mod pieces;
mod property;
mod ranges;
mod readers;
mod restart;
mod routes;
mod runtime;
mod streaming;
mod wire;

use std::time::Duration;

use kit::{
    agent::{Agent, AgentConfig},
    registry::FakeUpstream,
};
use reqwest::Response;
use serde_json::Value;

/// Repository of most tests.
const REPOSITORY: &str = "team/app";

/// Longest time to the header of any answer, whatever happens upstream: the default of `limits`, and some for the machine.
const HEADER_LIMIT: Duration = Duration::from_millis(5_800);

/// An agent in front of an upstream.
async fn start() -> (FakeUpstream, Agent) {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    (upstream, agent)
}

/// The first answer that is not 503, as a client gets it that keeps trying.
async fn when_available(request: impl Fn() -> reqwest::RequestBuilder) -> Response {
    let trying = async {
        loop {
            let response = request().send().await.expect("an answer");
            if response.status() != 503 {
                return response;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), trying).await.expect("503 does not last")
}

/// Waits for a blob's file: a client has its last byte a moment before it lies in its place.
async fn when_there(path: &std::path::Path) {
    let there = async {
        while !path.is_file() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), there).await.expect("it comes");
}

/// Status and error code of an answer, which must have the error body of the distribution protocol.
async fn refusal(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json", "status {status}");
    let text = response.text().await.expect("an error body arrives whole");
    let body: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let error = &body["errors"][0];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{text}");
    (status, error["code"].as_str().unwrap_or_default().to_owned())
}
