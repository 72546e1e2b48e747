//! `docker-credential-*` programs: `get` with the registry on standard input, a JSON document on standard output
//! (docker-credential-helpers, "Development").

use std::{
    collections::HashMap,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    sync::Mutex,
};

use super::Login;
use crate::types::RegistryHost;

/// Longest run of a program.
pub(super) const RUN_LIMIT: Duration = Duration::from_secs(10);

/// Most bytes taken from a program.
const OUTPUT_LIMIT: u64 = 64 * 1024;

/// For how long an answer is used; also a "no credentials".
const KEEP: Duration = Duration::from_mins(5);

/// The user name that marks a secret as an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Answers of helper programs by registry. The lock is held while a program runs: it is asked once for all who wait.
#[derive(Debug, Default)]
pub(super) struct Helpers(Mutex<HashMap<RegistryHost, (Instant, Option<Login>)>>);

impl Helpers {
    pub(super) async fn login(&self, name: &str, registry: &RegistryHost, fresh: bool) -> Option<Login> {
        let mut known = self.0.lock().await;
        if let Some((asked, login)) =
            known.get(registry).filter(|(asked, _)| !fresh && asked.elapsed() < KEEP)
        {
            tracing::trace!(age = ?asked.elapsed(), "credential helper not asked again");
            return login.clone();
        }
        let program = PathBuf::from(format!("docker-credential-{name}"));
        let login = match run(&program, &["get".to_owned()], &[], server_of(registry).as_bytes()).await {
            Ok(output) => parse(&output),
            Err(reason) => {
                tracing::warn!(program = %program.display(), %registry, reason, "credential helper failed");
                None
            }
        };
        known.insert(registry.clone(), (Instant::now(), login.clone()));
        login
    }
}

/// Docker Hub's entry has the name of its first API.
fn server_of(registry: &RegistryHost) -> String {
    match registry.as_str() {
        "docker.io" => "https://index.docker.io/v1/".to_owned(),
        other => other.to_owned(),
    }
}

fn parse(output: &[u8]) -> Option<Login> {
    let answer: Answer = serde_json::from_slice(output).ok()?;
    if answer.secret.is_empty() {
        return None;
    }
    Some(if answer.username == TOKEN_USER {
        Login::IdentityToken(answer.secret)
    } else {
        Login::Password { user: answer.username, secret: answer.secret }
    })
}

/// Runs a program with something to read, within a limit of time and output. The reason never holds what it printed.
pub(super) async fn run(
    program: &PathBuf,
    arguments: &[String],
    environment: &[(String, String)],
    input: &[u8],
) -> Result<Vec<u8>, String> {
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
        Ok(Ok((output, status))) if status.success() => Ok(output),
        Ok(Ok((_, status))) => Err(format!("ended with {status}")),
        Ok(Err(error)) => Err(format!("cannot be talked to: {error}")),
        Err(_) => Err(format!("did not answer within {RUN_LIMIT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_passwords_or_identity_tokens() {
        assert_eq!(
            parse(br#"{"ServerURL":"r","Username":"u","Secret":"s"}"#),
            Some(Login::Password { user: "u".into(), secret: "s".into() })
        );
        assert_eq!(parse(br#"{"Username":"<token>","Secret":"s"}"#), Some(Login::IdentityToken("s".into())));
        assert_eq!(parse(b"credentials not found in native keychain"), None);
        assert_eq!(parse(br#"{"Username":"u","Secret":""}"#), None);
    }

    #[tokio::test]
    async fn a_program_gets_its_input_and_its_failure_has_a_reason() {
        let cat = run(&PathBuf::from("cat"), &[], &[], b"hello").await;
        assert_eq!(cat.as_deref(), Ok(b"hello".as_slice()));
        let env = run(
            &PathBuf::from("sh"),
            &["-c".into(), "printf %s \"$X\"".into()],
            &[("X".into(), "y".into())],
            b"",
        )
        .await;
        assert_eq!(env.as_deref(), Ok(b"y".as_slice()));
        assert!(run(&PathBuf::from("false"), &[], &[], b"").await.unwrap_err().contains("exit status"));
        assert!(
            run(&PathBuf::from("/no/such/program"), &[], &[], b"")
                .await
                .unwrap_err()
                .contains("cannot be started")
        );
    }
}
