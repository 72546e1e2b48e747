//! Answers of `docker-credential-*` programs, kept for a time.

use std::time::Duration;

use oci::{Login, RegistryHost, helper};

use super::runs::{Answer, Runs};

/// Longest run of a program.
pub(super) const RUN_LIMIT: Duration = Duration::from_secs(10);

/// For how long a login is used.
const KEEP: Duration = Duration::from_mins(5);

/// For how long "no credentials" is used: some helpers answer that when they fail.
const KEEP_NONE: Duration = Duration::from_secs(10);

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
        let key = format!("{name} {registry}");
        self.0.get(&key, &[""], fresh, ask(name.to_owned(), registry.clone())).await
    }
}

async fn ask(name: String, registry: RegistryHost) -> Result<Answer<Option<Login>>, String> {
    let login = helper::ask(&name, &registry, RUN_LIMIT).await.map_err(|error| {
        tracing::warn!(program = error.program, %registry, reason = error.reason, "credential helper failed");
        error.to_string()
    })?;
    let keep = if login.is_some() { KEEP } else { KEEP_NONE };
    Ok(Answer { scope: String::new(), keep, value: login })
}
