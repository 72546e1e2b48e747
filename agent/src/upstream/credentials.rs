//! Credentials from a Docker `config.json` (`auths`): the file that `docker login` and Kubernetes pull secrets use.

use std::{collections::HashMap, fmt, path::Path};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;

use crate::types::RegistryHost;

/// A user's name and secret. Never shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) secret: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

/// Why credentials could not be read. Never quotes the file's content.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("cannot read it")]
    Read(#[source] std::io::Error),
    /// It is not such a file.
    #[error("it is not a Docker config.json: syntax or type error at line {line}, column {column}")]
    Syntax {
        /// Line of the error.
        line: usize,
        /// Column of the error.
        column: usize,
    },
    /// One entry's `auth` is not `base64(user:secret)`.
    #[error("`auths` entry `{entry}` has an `auth` that is not base64 of `user:password`")]
    Auth {
        /// The entry's key.
        entry: String,
    },
    /// One entry's key is no registry.
    #[error("`auths` entry `{entry}` does not name a registry")]
    Entry {
        /// The entry's key.
        entry: String,
    },
}

/// Logins by registry.
#[derive(Clone, Debug, Default)]
pub struct DockerConfig(HashMap<RegistryHost, Login>);

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    auths: HashMap<String, RawAuth>,
}

#[derive(Deserialize)]
struct RawAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl DockerConfig {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
        #[expect(clippy::disallowed_methods, reason = "read once, before the runtime serves anyone")]
        let bytes = std::fs::read(path).map_err(CredentialsError::Read)?;
        Self::parse(&bytes)
    }

    /// Reads a document.
    pub fn parse(bytes: &[u8]) -> Result<Self, CredentialsError> {
        let raw: RawConfig = serde_json::from_slice(bytes)
            .map_err(|error| CredentialsError::Syntax { line: error.line(), column: error.column() })?;
        let mut logins = HashMap::new();
        for (entry, auth) in raw.auths {
            let Some(login) = login(&entry, auth)? else { continue };
            logins.insert(registry_of(&entry)?, login);
        }
        Ok(Self(logins))
    }

    /// The registries it has logins for.
    pub fn registries(&self) -> impl Iterator<Item = &RegistryHost> {
        self.0.keys()
    }

    pub(super) fn login(&self, registry: &RegistryHost) -> Option<&Login> {
        self.0.get(registry)
    }
}

/// Entries without a secret (left behind by credential stores) are no logins.
fn login(entry: &str, auth: RawAuth) -> Result<Option<Login>, CredentialsError> {
    if let (Some(user), Some(secret)) = (auth.username, auth.password) {
        return Ok(Some(Login { user, secret }));
    }
    let Some(encoded) = auth.auth.filter(|encoded| !encoded.is_empty()) else { return Ok(None) };
    let wrong = || CredentialsError::Auth { entry: entry.to_owned() };
    let decoded = BASE64_STANDARD.decode(encoded.trim()).map_err(|_| wrong())?;
    let decoded = String::from_utf8(decoded).map_err(|_| wrong())?;
    let (user, secret) = decoded.split_once(':').ok_or_else(wrong)?;
    Ok(Some(Login { user: user.to_owned(), secret: secret.trim_end_matches('\0').to_owned() }))
}

/// Keys may be hosts or URLs; Docker Hub's is a URL of its first API.
fn registry_of(entry: &str) -> Result<RegistryHost, CredentialsError> {
    let bare = entry.trim_start_matches("https://").trim_start_matches("http://");
    let host = bare.split('/').next().unwrap_or_default();
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    host.parse().map_err(|_| CredentialsError::Entry { entry: entry.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_found_by_registry_whatever_form_the_key_has() {
        let text = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}},"r.test:5000":{{"username":"u","password":"p"}},"empty.test":{{}}}}}}"#,
            BASE64_STANDARD.encode("me:se:cret")
        );
        let config = DockerConfig::parse(text.as_bytes()).unwrap();
        let login = |host: &str| {
            config.login(&host.parse().unwrap()).map(|login| (login.user.clone(), login.secret.clone()))
        };
        assert_eq!(login("docker.io"), Some(("me".into(), "se:cret".into())));
        assert_eq!(login("r.test:5000"), Some(("u".into(), "p".into())));
        assert_eq!(login("empty.test"), None);
        assert_eq!(config.registries().count(), 2);
    }

    #[test]
    fn errors_name_the_place_and_never_the_secret() {
        for text in [
            r#"{"auths":{"r.test":{"auth":"hunter2!"}}}"#,
            "{\"auths\":\n 7hunter2}",
            r#"{"auths":{"a b":{"auth":"YTpodW50ZXIy"}}}"#,
        ] {
            let error = DockerConfig::parse(text.as_bytes()).unwrap_err();
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
        }
        let login = Login { user: "u".into(), secret: "hunter2".into() };
        assert!(!format!("{login:?}").contains("hunter2"));
    }
}
