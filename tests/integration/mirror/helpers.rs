//! Credential programs that fail or hang: never "no credentials", and nobody else's trouble.

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use kit::{
    agent::{Agent, AgentConfig, manifest_path},
    registry::{Access, FakeUpstream, Layer},
};

use super::REPOSITORY;

const ANSWER: &str = r#"{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Registry","auth":{"*.test":{"username":"ann","password":"secret"}}}"#;

/// A kubelet plugin that does as `script` says, for all registries below `test`; the `credentials` of an agent with it.
fn plugin(directory: &Path, script: &str) -> String {
    let program = directory.join("provider");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("writable");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("ours");
    let config = directory.join("providers.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: provider\n  matchImages: [\"*.test\"]\n  defaultCacheDuration: 1h\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n";
    std::fs::write(&config, text).expect("writable");
    let (config, programs) = (config.display(), directory.display());
    format!("credentials: {{ kubeletConfig: \"{config}\", kubeletBinDir: \"{programs}\" }}")
}

async fn private() -> FakeUpstream {
    let upstream = FakeUpstream::start().await;
    upstream.image(REPOSITORY, "v1", [Layer::random(1, 1_000)]).await;
    upstream.access(Access::Basic("ann".to_owned(), "secret".to_owned()));
    upstream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_fails_is_503_and_run_again_after_seconds() {
    let directory = tempfile::tempdir().expect("temporary folders are available");
    let well = directory.path().join("well");
    let upstream = private().await;
    let credentials =
        plugin(directory.path(), &format!("test -e '{}' || exit 3; printf '%s' '{ANSWER}'", well.display()));
    let config = AgentConfig::default()
        .registry("registry.test", &[&upstream.url()], "private: agent")
        .with(&credentials);
    let agent = Agent::start(&config).await;
    for _ in 0..3 {
        let answer = agent.head(&manifest_path(REPOSITORY, "v1")).await;
        assert_eq!(answer.status(), 503, "a failure is not \"no credentials\"");
    }
    std::fs::write(&well, "").expect("writable");
    let healed = async {
        while agent.head(&manifest_path(REPOSITORY, "v1")).await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), healed).await.expect("it is run again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_public_is_served_although_a_program_fails() {
    let directory = tempfile::tempdir().expect("temporary folders are available");
    let upstream = private().await;
    upstream.access(Access::Bearer(kit::registry::Bearer::default()));
    let credentials = plugin(directory.path(), "exit 3");
    let config = AgentConfig::default()
        .registry("registry.test", &[&upstream.url()], "private: agent")
        .with(&credentials);
    let agent = Agent::start(&config).await;
    assert_eq!(agent.head(&manifest_path(REPOSITORY, "v1")).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_hangs_for_one_registry_costs_another_nothing() {
    let directory = tempfile::tempdir().expect("temporary folders are available");
    let began = directory.path().join("began");
    let (slow, quick) = (private().await, private().await);
    let script = format!(
        "if grep -q slow.test; then touch '{}'; exec sleep 60; fi; printf '%s' '{ANSWER}'",
        began.display()
    );
    let config = AgentConfig::default()
        .registry("slow.test", &[&slow.url()], "private: agent")
        .registry("quick.test", &[&quick.url()], "private: agent")
        .with(&plugin(directory.path(), &script));
    let agent = Agent::start(&config).await;
    let path = |registry: &str| format!("/v2/{REPOSITORY}/manifests/v1?ns={registry}");
    let hung = async { agent.head(&path("slow.test")).await.status() };
    let other = async {
        while !began.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        agent.head(&path("quick.test")).await.status()
    };
    // The other one is served while the first still hangs.
    let (hung, other) = (std::pin::pin!(hung), std::pin::pin!(other));
    match futures_util::future::select(other, hung).await {
        futures_util::future::Either::Left((status, hung)) => {
            assert_eq!(status, 200);
            assert_eq!(hung.await, 503);
        }
        futures_util::future::Either::Right((status, _)) => panic!("the hung one was first: {status}"),
    }
}
