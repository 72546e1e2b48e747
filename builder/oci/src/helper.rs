//! `docker-credential-*` programs: `get` with the registry on standard input, a JSON document on standard output
//! (docker-credential-helpers, "Development").

use std::{
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use crate::{Login, RegistryHost};

/// Most bytes read from a program.
const OUTPUT_LIMIT: u64 = 64 * 1024;

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

/// Why a helper did not answer. Never contains its output, which may hold a secret.
#[derive(Debug, thiserror::Error)]
#[error("credential helper `{program}` {reason}")]
pub struct HelperError {
    /// The program.
    pub program: String,
    /// What went wrong, as what follows the program's name.
    pub reason: String,
    /// What it wrote to standard error: for the person who started it.
    pub said: String,
}

/// The program of a helper's name.
pub fn program_of(name: &str) -> String {
    format!("docker-credential-{name}")
}

/// The login that a helper has for a registry; `None` when it has none.
pub async fn ask(name: &str, registry: &RegistryHost, limit: Duration) -> Result<Option<Login>, HelperError> {
    let (program, server) = (program_of(name), server_of(registry));
    let fail = |reason: String, said: String| HelperError { program: program.clone(), reason, said };
    let ended = run(Path::new(&program), &["get".to_owned()], &[], server.as_bytes(), limit).await;
    let ended = ended.map_err(|error| match error {
        RunError::TimedOut(_) => {
            let reason = format!("{error}: see what `echo {server} | {program} get` waits for");
            fail(reason, String::new())
        }
        _ => fail(error.to_string(), String::new()),
    })?;
    login_of(&ended).map_err(|reason| fail(reason, String::from_utf8_lossy(&ended.errors).trim().to_owned()))
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
    let document: Document = serde_json::from_slice(&ended.output)
        .map_err(|_| "answered with something other than a user and a secret".to_owned())?;
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
#[expect(missing_debug_implementations, reason = "the output may be a secret")]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, up to a limit.
    pub output: Vec<u8>,
    /// Its standard error, likewise.
    pub errors: Vec<u8>,
}

impl Ended {
    /// Why the program failed; never contains its output.
    pub fn failure(&self) -> String {
        format!("exited with {}", self.status)
    }
}

/// Why there is no exit status.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program could not be started.
    #[error("cannot be started: {0}")]
    Start(io::Error),
    /// Reading from it failed.
    #[error("failed to communicate: {0}")]
    Talk(io::Error),
    /// It ran for too long.
    #[error("did not answer within {0:?} and was stopped")]
    TimedOut(Duration),
}

/// Runs a program with input, and limits on time and output.
pub async fn run(
    program: &Path,
    arguments: &[String],
    environment: &[(String, String)],
    input: &[u8],
    limit: Duration,
) -> Result<Ended, RunError> {
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().cloned())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(RunError::Start)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input may still answer.
            let _ = stdin.write_all(input).await;
        }
    };
    let talk = async {
        let ((), output, errors) = tokio::join!(write, start_of(stdout), start_of(stderr));
        Ok(Ended { output: output?, errors: errors?, status: child.wait().await? })
    };
    match tokio::time::timeout(limit, talk).await {
        Ok(ended) => ended.map_err(RunError::Talk),
        Err(_) => Err(RunError::TimedOut(limit)),
    }
}

/// The first bytes of a stream, which is then closed.
async fn start_of(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(OUTPUT_LIMIT).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn ended(code: i32, output: &str) -> Ended {
        use std::os::unix::process::ExitStatusExt as _;
        Ended { status: ExitStatus::from_raw(code << 8), output: output.into(), errors: Vec::new() }
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
        let failed = ask("no-such-helper", &"r.test".parse().unwrap(), LIMIT).await.unwrap_err().to_string();
        assert!(failed.contains("`docker-credential-no-such-helper` cannot be started"), "{failed}");
    }

    #[tokio::test]
    async fn a_program_gets_its_input_and_its_failure_has_a_reason() {
        let run = async |program: &str, arguments: &[&str], environment: &[(String, String)]| {
            let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
            run(Path::new(program), &arguments, environment, b"hello", LIMIT).await
        };
        assert_eq!(run("cat", &[], &[]).await.unwrap().output, b"hello");
        let env = run("sh", &["-c", "printf %s \"$X\""], &[("X".into(), "y".into())]).await;
        assert_eq!(env.unwrap().output, b"y");
        assert!(run("false", &[], &[]).await.unwrap().failure().contains("exit status"));
        let missing = run("/no/such/program", &[], &[]).await.err().unwrap();
        assert!(missing.to_string().contains("cannot be started"), "{missing}");
        let failed = run("sh", &["-c", "echo no session >&2; exit 1"], &[]).await.unwrap();
        assert_eq!(failed.errors, b"no session\n");
        assert!(!failed.failure().contains("session"), "{}", failed.failure());
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended_at_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let (program, mark) = (directory.path().join("program"), directory.path().join("pid"));
        fs::write(&program, format!("#!/bin/sh\necho $$ > {}; exec sleep 1000\n", mark.display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let ended = run(&program, &[], &[], b"", Duration::from_secs(1)).await.err().unwrap().to_string();
        assert!(ended.contains("did not answer within 1s and was stopped"), "{ended}");
        let pid = fs::read_to_string(mark).unwrap();
        // Killed at once; gone, or a zombie that waits for its parent.
        let state = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        while !state().is_empty() && !state().contains(") Z ") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
