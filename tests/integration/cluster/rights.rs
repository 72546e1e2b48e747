//! `doctor` asks the API server whether the agent's account may do what the agent does.

use kit::{
    agent::{Agent, AgentConfig},
    kubernetes::{FakeApi, Rule},
    registry::FakeUpstream,
};
use serde_json::{Value, json};

use super::shipped_rules_without_secrets;
use crate::cli::agent as hearth_agent;

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_each_right_that_the_account_lacks() {
    let upstream = FakeUpstream::start().await;
    let mut api = FakeApi::start().await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let keys = format!(
        "kubernetes: {{ imageSets: true, api: \"{0}\" }}\npeer: {{ service: hearth/peers, name: n1 }}",
        api.url()
    );
    let config = AgentConfig::for_upstream(&upstream).with(&keys);
    let file = config.write(home.path()).expect("writable").display().to_string();
    let socket = agent.socket().display().to_string();
    let doctor = || -> Value {
        let arguments = ["doctor", "--no-pull", "-o", "json", "--config", &file, "--agent", &socket];
        let checks: Value = serde_json::from_slice(&hearth_agent(&arguments, &[]).stdout).expect("JSON");
        let all = checks["checks"].as_array().expect("a list");
        all.iter().find(|check| check["check"] == "cluster").expect("it is checked").clone()
    };
    api.role("", shipped_rules_without_secrets());
    let well = doctor();
    assert_eq!(well["outcome"], "ok", "the roles that we ship are enough: {well}");
    assert!(well["found"].as_str().is_some_and(|found| found.contains("all 12 rights")), "{well}");
    let old = json!({"rules": [
        {"apiGroups": ["hearth.dev"], "resources": ["imagesets"], "verbs": ["list", "watch"]},
        {"apiGroups": ["hearth.dev"], "resources": ["nodecaches"], "verbs": ["create", "patch"]},
        {"apiGroups": [""], "resources": ["nodes", "nodes/status"], "verbs": ["get", "patch"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]});
    api.role("", Rule::of_role(&old));
    let lacks = doctor();
    assert_eq!(lacks["outcome"], "failed");
    let expected = "the account may not: patch nodecaches/status.hearth.dev, patch events.events.k8s.io";
    assert_eq!(lacks["found"], expected);
    api.stop().await;
    let away = doctor();
    assert_eq!(away["outcome"], "failed");
    let found = away["found"].as_str().expect("text");
    assert!(found.starts_with("the API server cannot be asked: ") && found.contains("refused"), "{found}");
}
