//! The agent's command line: a wrong configuration ends with exit code 2 and says where and what.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use kit::{
    agent::Agent,
    process::{AgentProcess, binary},
};

/// A configuration that is taken for good starts an agent, which would run for ever.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn agent(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binary("hearth-agent").expect("the binary is built"));
    command.args(arguments).envs(environment.iter().copied());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let until = Instant::now() + LIMIT;
    while child.try_wait().expect("it is our child").is_none() {
        if Instant::now() > until {
            child.kill().expect("it runs");
            let output = child.wait_with_output().expect("it is our child");
            panic!("{arguments:?} runs on:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().expect("it is our child")
}

/// Runs a command against a running agent.
pub(crate) fn command(agent: &Agent, arguments: &[&str]) -> Output {
    let socket = agent.socket().display().to_string();
    self::agent(&[arguments, &["--agent", &socket]].concat(), &[])
}

/// What a command printed that succeeded as it should.
pub(crate) fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command complained about that failed as it should.
pub(crate) fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn run_with(dir: &Path, yaml: &str) -> (Option<i32>, String) {
    let path = dir.join("agent.yaml");
    std::fs::write(&path, yaml).expect("writable");
    let output = agent(&["run", "--config", &path.to_string_lossy()], &[]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_wrong_configuration_names_file_line_and_key_and_ends_with_two() {
    let dir = tempfile::tempdir().expect("temporary folders are available");
    let good = "registries:\n  - host: registry.test\n";
    for (yaml, line, needles) in [
        (format!("{good}dataDri: /x\n"), 3, &["dataDri", "dataDir"][..]),
        (format!("{good}mirror:\n  listen: nowhere\n"), 4, &["mirror.listen"]),
        (format!("{good}limits:\n  firstHeader: soon\n"), 4, &["firstHeader", "soon"]),
        (format!("{good}limits:\n  connections: 0\n"), 4, &["connections"]),
        (format!("{good}log:\n  format: xml\n"), 4, &["format", "xml"]),
        (format!("{good}    endpoints: [\"ftp://x\"]\n"), 3, &["endpoints", "ftp://x"]),
        (format!("{good}    endpoints: [\"http://user:pw@x\"]\n"), 3, &["endpoints", "credentials"]),
        (format!("{good}    privat: agent\n"), 3, &["privat", "private"]),
        (format!("{good}  - host: registry.test\n"), 3, &["registry.test"]),
        ("registries:\n  - endpoints: [\"http://x\"]\n".to_owned(), 2, &["host"]),
        ("registries: [\n".to_owned(), 1, &[]),
        ("registries: 7\n".to_owned(), 1, &["registries"]),
    ] {
        let (code, stderr) = run_with(dir.path(), &yaml);
        assert_eq!(code, Some(2), "{yaml}\n{stderr}");
        let at = format!("agent.yaml:{line}:");
        assert!(stderr.contains(&at), "`{at}` is missing for\n{yaml}\n{stderr}");
        for needle in needles {
            assert!(stderr.contains(needle), "`{needle}` is missing for\n{yaml}\n{stderr}");
        }
        assert!(!stderr.contains("pw@"), "a password is shown: {stderr}");
        assert_eq!(stderr.trim().lines().count(), 1, "{stderr}");
    }
}

#[test]
fn a_configuration_without_registries_or_without_a_file_ends_with_two() {
    let dir = tempfile::tempdir().expect("temporary folders are available");
    let (code, stderr) = run_with(dir.path(), "dataDir: /nowhere\n");
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("registries"), "{stderr}");
    let output = agent(&["run", "--config", "/nowhere/agent.yaml"], &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("/nowhere/agent.yaml"), "{stderr}");
}

#[test]
fn credentials_without_a_policy_for_private_images_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().expect("temporary folders are available");
    let docker = dir.path().join("config.json");
    std::fs::write(&docker, r#"{"auths":{"registry.test":{"auth":"YTpodW50ZXIy"}}}"#).expect("writable");
    let yaml = format!(
        "credentials: {{ dockerConfig: {} }}\nregistries:\n  - host: registry.test\n",
        docker.display()
    );
    let (code, stderr) = run_with(dir.path(), &yaml);
    assert_eq!(code, Some(2), "{stderr}");
    for needle in ["registry.test", "private", "decline", "agent"] {
        assert!(stderr.contains(needle), "`{needle}`: {stderr}");
    }
    assert!(!stderr.contains("hunter2") && !stderr.contains("YTpo"), "{stderr}");
}

#[test]
fn flags_and_environment_are_checked_like_the_file_and_named() {
    for (arguments, environment, needles) in [
        (
            &["run", "--registries", "[{host: registry.test}]", "--mirror-listen", "nowhere"][..],
            &[][..],
            &["mirror-listen"][..],
        ),
        (
            &["run", "--registries", "[{host: registry.test}]"],
            &[("HEARTH_LIMITS_IDLE", "soon")],
            &["HEARTH_LIMITS_IDLE", "soon"],
        ),
        (&["run", "--no-such-flag"], &[], &["no-such-flag"]),
        (&["rum"], &[], &["rum"]),
        (&[], &[], &["Usage"]),
    ] {
        let output = agent(arguments, environment);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        for needle in needles {
            assert!(stderr.contains(needle), "{arguments:?}: `{needle}`: {stderr}");
        }
    }
}

#[test]
fn an_address_that_is_taken_is_a_failure_with_its_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let dir = tempfile::tempdir().expect("temporary folders are available");
    let yaml = format!(
        "dataDir: {}\nmirror: {{ listen: \"{address}\" }}\nadmin: {{ listen: 127.0.0.1:0 }}\nregistries:\n  - host: registry.test\n",
        dir.path().join("data").display()
    );
    let (code, stderr) = run_with(dir.path(), &yaml);
    assert_eq!(code, Some(1), "{stderr}");
    for needle in ["mirror.listen", &address, "in use"] {
        assert!(stderr.contains(needle), "`{needle}`: {stderr}");
    }
}

#[test]
fn explain_prints_every_key_with_default_and_meaning() {
    let output = agent(&["config", "--explain"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout);
    for key in hearth_agent::config::KEYS {
        let row = text.lines().find(|line| line.contains(&format!("`{}`", key.path)));
        let row = row.unwrap_or_else(|| panic!("`{}` is missing:\n{text}", key.path));
        assert!(row.contains(key.default) && row.contains(key.meaning), "{row}");
        assert!(!key.meaning.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_without_a_slash_lies_in_the_current_directory() {
    let dir = tempfile::tempdir().expect("temporary folders are available");
    let config = "registries: [{ host: registry.test }]\ndataDir: data\nlog: { format: json }\n\
                  mirror: { listen: 127.0.0.1:0 }\nadmin: { listen: 127.0.0.1:0 }\n";
    let path = dir.path().join("agent.yaml");
    std::fs::write(&path, config).expect("writable");
    let mut command = Command::new(binary("hearth-agent").expect("the binary is built"));
    command.args(["run", "--config"]).arg(&path).current_dir(dir.path());
    let mut agent = AgentProcess::start_by(command).await.expect("it starts");
    assert!(dir.path().join("data").is_dir(), "{}", agent.log());
    agent.terminate().expect("it runs");
    assert!(agent.wait().await.expect("it ends").success(), "{}", agent.log());
}
