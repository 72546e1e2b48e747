//! Credential helpers: programs of the user's that are asked for a password.
//!
//! `docker-credential-NAME get` reads the registry from standard input and writes `{"Username": .., "Secret": ..}`; the user
//! `<token>` means that the secret is an identity token (github.com/docker/docker-credential-helpers). A helper that asks a
//! person something, or a network that does not answer, would wait for ever: it is ended after a limit.

use std::{collections::HashMap, io, process::Stdio, time::Duration};

use serde::Deserialize;
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
};

use super::login::Login;
use crate::progress::waiting;

/// Helpers of clouds fetch a token, which takes seconds.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// The user that marks an identity token.
const TOKEN: &str = "<token>";

/// What a Docker configuration says about helpers.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Helpers {
    cred_helpers: HashMap<String, String>,
    creds_store: String,
}

impl Helpers {
    /// The helper for one registry.
    pub(super) fn of(&self, server: &str) -> Option<&str> {
        self.cred_helpers.get(server).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The helper for every registry that has no entry of its own.
    pub(super) fn store(&self) -> Option<&str> {
        Some(self.creds_store.as_str()).filter(|name| !name.is_empty())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks a helper, within `limit`; `Err` says what went wrong and what to try.
pub(super) async fn ask(name: &str, server: &str, limit: Duration) -> Result<Login, String> {
    let program = format!("docker-credential-{name}");
    if name.contains('/') {
        return Err(format!("the helper `{name}` in the Docker configuration is not the name of a program"));
    }
    run(&program, server, limit).await
}

async fn run(program: &str, server: &str, limit: Duration) -> Result<Login, String> {
    let mut command = Command::new(program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().map_err(|error| format!("cannot start the helper `{program}`: {error}"))?;
    let what = format!("the credential helper `{program}`");
    let answer = waiting(&what, conversation(child, server));
    let output = tokio::time::timeout(limit, answer)
        .await
        .map_err(|_| {
            let seconds = limit.as_secs();
            format!(
                "the helper `{program}` did not answer in {seconds} s and was stopped: \
                 see what `echo {server} | {program} get` waits for"
            )
        })?
        .map_err(|error| format!("cannot talk to the helper `{program}`: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // The helpers of Docker say this on standard output when they have nothing.
        if text.contains("credentials not found") {
            return Ok(Login::None);
        }
        // Standard output may hold a secret.
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the helper `{program}` failed ({}): {}", output.status, message.trim()));
    }
    let answer: Answer = serde_json::from_str(&text)
        .map_err(|_| format!("the helper `{program}` answers with something else than user and secret"))?;
    Ok(match answer.username.as_str() {
        TOKEN => Login::IdentityToken(answer.secret),
        _ => Login::Password(answer.username, answer.secret),
    })
}

async fn conversation(mut child: Child, server: &str) -> io::Result<std::process::Output> {
    if let Some(mut input) = child.stdin.take() {
        // A helper that does not read its input answers or fails; either shows below.
        let _ = input.write_all(server.as_bytes()).await;
    }
    child.wait_with_output().await
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;

    fn helper(directory: &Path, script: &str) -> String {
        let path = directory.join("docker-credential-test");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_helper_gives_a_password_a_token_nothing_or_a_reason() {
        let directory = tempfile::tempdir().unwrap();
        let password = Login::Password("me".to_owned(), "secret".to_owned());
        for (script, expected) in [
            (r#"read s; [ "$s" = r.test ] && echo '{"Username":"me","Secret":"secret"}'"#, Ok(password)),
            (r#"echo '{"Username":"<token>","Secret":"t"}'"#, Ok(Login::IdentityToken("t".to_owned()))),
            ("echo credentials not found in native keychain; exit 1", Ok(Login::None)),
            ("echo no session >&2; exit 1", Err("no session")),
            ("echo secret", Err("something else than user and secret")),
        ] {
            let found = run(&helper(directory.path(), script), "r.test", TIMEOUT).await;
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(*found, expected, "{script}"),
                (Err(problem), Err(expected)) => assert!(problem.contains(expected), "{problem}"),
                _ => panic!("{script}: {found:?}"),
            }
        }
        assert!(run("/nowhere/docker-credential-x", "r.test", TIMEOUT).await.is_err());
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_ended_at_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().join("pid");
        let program = helper(directory.path(), &format!("echo $$ > {}; exec sleep 1000", mark.display()));
        let problem = run(&program, "r.test", Duration::from_secs(1)).await.unwrap_err();
        assert!(problem.contains("did not answer in 1 s and was stopped"), "{problem}");
        let pid = fs::read_to_string(mark).unwrap();
        // Killed at once; gone, or a zombie that waits for its parent.
        let state = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        while !state().is_empty() && !state().contains(") Z ") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
