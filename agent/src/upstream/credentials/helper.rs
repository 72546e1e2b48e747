//! `docker-credential-*` programs: `get` with the registry on standard input, a JSON document on standard output
//! (docker-credential-helpers, "Development").

use std::{
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use super::{
    Login,
    runs::{Answer, Runs},
};
use crate::types::RegistryHost;

/// Longest run of a program.
pub(super) const RUN_LIMIT: Duration = Duration::from_secs(10);

/// Most bytes read from a program.
const OUTPUT_LIMIT: u64 = 64 * 1024;

/// For how long a login is used.
const KEEP: Duration = Duration::from_mins(5);

/// For how long "no credentials" is used: some helpers answer that when they fail.
const KEEP_NONE: Duration = Duration::from_secs(10);

/// The output of a helper that has no credentials and exits with status 1 (`docker-credential-helpers`,
/// `credentials/error.go`); any other exit with status 1 is a failure.
const NOT_FOUND: &[u8] = b"credentials not found in native keychain";

/// The user name that marks a secret as an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    username: String,
    secret: String,
}

/// Logins of helper programs, by program and registry.
#[derive(Debug, Default)]
pub(super) struct Helpers(Runs<Option<Login>>);

impl Helpers {
    /// The login from a program for a registry, or why it did not answer.
    pub(super) async fn login(
        &self,
        name: &str,
        registry: &RegistryHost,
        fresh: bool,
    ) -> Result<Option<Login>, String> {
        let (key, program) = (format!("{name} {registry}"), format!("docker-credential-{name}"));
        let server = server_of(registry);
        self.0.get(&key, &[""], fresh, ask(program, server)).await
    }
}

async fn ask(program: String, server: String) -> Result<Answer<Option<Login>>, String> {
    let ended = run(&PathBuf::from(&program), &["get".to_owned()], &[], server.as_bytes()).await;
    let login = ended.and_then(|ended| login_of(&ended)).map_err(|reason| {
        tracing::warn!(program, server, reason, "credential helper failed");
        format!("credential helper `{program}` {reason}")
    })?;
    let keep = if login.is_some() { KEEP } else { KEEP_NONE };
    Ok(Answer { scope: String::new(), keep, value: login })
}

/// The name of Docker Hub's entry is that of its first API.
fn server_of(registry: &RegistryHost) -> String {
    match registry.as_str() {
        "docker.io" => "https://index.docker.io/v1/".to_owned(),
        other => other.to_owned(),
    }
}

/// A login, "no credentials", or neither.
fn login_of(ended: &Ended) -> Result<Option<Login>, String> {
    if !ended.status.success() {
        let none = ended.output.trim_ascii().starts_with(NOT_FOUND);
        return if none { Ok(None) } else { Err(ended.failure()) };
    }
    // Not the error's text: it may contain the answer.
    let document: Document =
        serde_json::from_slice(&ended.output).map_err(|_| "answered with invalid credentials".to_owned())?;
    if document.secret.is_empty() {
        return Ok(None);
    }
    Ok(Some(if document.username == TOKEN_USER {
        Login::IdentityToken(document.secret)
    } else {
        Login::Password { user: document.username, secret: document.secret }
    }))
}

/// The exit status and output of a program.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) output: Vec<u8>,
}

impl Ended {
    /// Why the program failed; never contains its output.
    pub(super) fn failure(&self) -> String {
        format!("exited with {}", self.status)
    }
}

/// Runs a program with input, and limits on time and output.
pub(super) async fn run(
    program: &PathBuf,
    arguments: &[String],
    environment: &[(String, String)],
    input: &[u8],
) -> Result<Ended, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().cloned())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot be started: {error}"))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let talk = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input may still answer.
            let _ = stdin.write_all(input).await;
        }
        let mut output = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(OUTPUT_LIMIT).read_to_end(&mut output).await?;
        }
        Ok::<_, std::io::Error>((output, child.wait().await?))
    };
    match tokio::time::timeout(RUN_LIMIT, talk).await {
        Ok(Ok((output, status))) => Ok(Ended { status, output }),
        Ok(Err(error)) => Err(format!("failed to communicate: {error}")),
        Err(_) => Err(format!("did not answer within {RUN_LIMIT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32, output: &str) -> Ended {
        use std::os::unix::process::ExitStatusExt as _;
        Ended { status: ExitStatus::from_raw(code << 8), output: output.into() }
    }

    #[test]
    fn answers_are_logins_no_credentials_or_failures() {
        let login = |code, output| login_of(&ended(code, output));
        assert_eq!(
            login(0, r#"{"ServerURL":"r","Username":"u","Secret":"s"}"#),
            Ok(Some(Login::Password { user: "u".into(), secret: "s".into() }))
        );
        let token = login(0, r#"{"Username":"<token>","Secret":"s"}"#);
        assert_eq!(token, Ok(Some(Login::IdentityToken("s".into()))));
        assert_eq!(login(0, r#"{"Username":"u","Secret":""}"#), Ok(None));
        assert_eq!(login(1, "credentials not found in native keychain\n"), Ok(None));
        for (code, output) in [
            (1, ""),
            (1, "hunter2: no route to host"),
            (3, r#"{"Username":"u","Secret":"hunter2"}"#),
            (0, "hunter2"),
        ] {
            let reason = login(code, output).expect_err(output);
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }

    #[tokio::test]
    async fn a_missing_program_is_a_failure_and_not_an_answer() {
        let helpers = Helpers::default();
        let failed = helpers.login("no-such-helper", &"r.test".parse().unwrap(), false).await.unwrap_err();
        assert!(failed.contains("`docker-credential-no-such-helper` cannot be started"), "{failed}");
    }

    #[tokio::test]
    async fn a_program_gets_its_input_and_its_failure_has_a_reason() {
        let run = async |program: &str, arguments: &[&str], environment: &[(String, String)]| {
            let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
            run(&PathBuf::from(program), &arguments, environment, b"hello").await
        };
        assert_eq!(run("cat", &[], &[]).await.unwrap().output, b"hello");
        let env = run("sh", &["-c", "printf %s \"$X\""], &[("X".into(), "y".into())]).await;
        assert_eq!(env.unwrap().output, b"y");
        assert!(run("false", &[], &[]).await.unwrap().failure().contains("exit status"));
        let missing = run("/no/such/program", &[], &[]).await.err().unwrap();
        assert!(missing.contains("cannot be started"), "{missing}");
    }
}
