//! A Docker `config.json`: the file that `docker login` writes and Kubernetes pull secrets hold. `auths` with a
//! password, an identity token or a registry token; `credHelpers` and `credsStore` name programs, which
//! [`helper`](crate::helper) runs.

use std::{collections::HashMap, fmt, path::Path};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;

use crate::{RegistryHost, RepoName};

/// Some programs write `auth` without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A login for a registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Login {
    /// A user and a password.
    Password {
        /// The user name.
        user: String,
        /// The secret.
        secret: String,
    },
    /// A refresh token, to be exchanged for access tokens.
    IdentityToken(String),
    /// An access token.
    RegistryToken(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(..)",
            Self::IdentityToken(_) => "IdentityToken(..)",
            Self::RegistryToken(_) => "RegistryToken(..)",
        })
    }
}

/// Why credentials could not be read. Never contains the file's content.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("cannot read the file")]
    Read(#[source] std::io::Error),
    /// The file is not a Docker configuration.
    #[error("the file is not a Docker config.json: syntax or type error at line {line}, column {column}")]
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
    /// A helper's name is invalid.
    #[error("the name of credential helper `{name}` may only contain letters, digits, `-`, `_` and `.`")]
    Helper {
        /// The name.
        name: String,
    },
    /// An entry's key is not a registry.
    #[error("the key of `auths` entry `{entry}` is not a registry")]
    Entry {
        /// The entry's key.
        entry: String,
    },
}

/// The credentials in a configuration.
#[derive(Clone, Debug, Default)]
pub struct DockerConfig {
    logins: HashMap<RegistryHost, Vec<Scoped>>,
    helpers: HashMap<RegistryHost, String>,
    store: Option<String>,
}

/// A login for the repositories below a path; for all without one.
#[derive(Clone, Debug)]
struct Scoped {
    path: String,
    login: Login,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConfig {
    #[serde(default)]
    auths: HashMap<String, RawAuth>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct RawAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// The source of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The configuration itself.
    Login(Login),
    /// A program: `docker-credential-<name>`.
    Helper(String),
}

impl DockerConfig {
    /// Reads a file; every entry must be usable.
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
        let bytes = std::fs::read(path).map_err(CredentialsError::Read)?;
        Self::parse(&bytes)
    }

    /// Reads a document; every entry must be usable.
    pub fn parse(bytes: &[u8]) -> Result<Self, CredentialsError> {
        Self::parse_some(bytes, |_| true)
    }

    /// Reads what a document has for one registry; entries of others need not be usable.
    pub fn parse_for(bytes: &[u8], registry: &RegistryHost) -> Result<Self, CredentialsError> {
        Self::parse_some(bytes, |entry| registry_of(entry).is_ok_and(|(host, _)| host == *registry))
    }

    fn parse_some(bytes: &[u8], wanted: impl Fn(&str) -> bool) -> Result<Self, CredentialsError> {
        let raw: RawConfig = serde_json::from_slice(bytes)
            .map_err(|error| CredentialsError::Syntax { line: error.line(), column: error.column() })?;
        let mut logins: HashMap<_, Vec<Scoped>> = HashMap::new();
        for (entry, auth) in raw.auths.into_iter().filter(|(entry, _)| wanted(entry)) {
            let Some(login) = login(&entry, auth)? else { continue };
            let (host, path) = registry_of(&entry)?;
            logins.entry(host).or_default().push(Scoped { path, login });
        }
        let mut helpers = HashMap::new();
        for (entry, name) in raw.cred_helpers.into_iter().filter(|(entry, _)| wanted(entry)) {
            // Docker takes an empty name for none.
            if !name.is_empty() {
                helpers.insert(registry_of(&entry)?.0, program(&name)?);
            }
        }
        let store = raw.creds_store.filter(|name| !name.is_empty()).map(|name| program(&name)).transpose()?;
        Ok(Self { logins, helpers, store })
    }

    /// The registries with credentials in the configuration.
    pub fn registries(&self) -> impl Iterator<Item = &RegistryHost> {
        self.logins.keys().chain(self.helpers.keys())
    }

    /// Whether a credential store may have credentials for any registry.
    pub fn has_store(&self) -> bool {
        self.store.is_some()
    }

    /// Docker's order: a registry's own helper, the file, the store of all others. Of the entries in the file, the one with
    /// the longest path, as in podman and Kubernetes.
    pub fn source(&self, registry: &RegistryHost, name: &RepoName) -> Option<Source> {
        if let Some(helper) = self.helpers.get(registry) {
            return Some(Source::Helper(helper.clone()));
        }
        let covers = |entry: &&Scoped| {
            let rest = name.as_str().strip_prefix(entry.path.as_str());
            entry.path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let logins = self.logins.get(registry).into_iter().flatten();
        match logins.filter(covers).max_by_key(|entry| entry.path.len()) {
            Some(entry) => Some(Source::Login(entry.login.clone())),
            None => self.store.clone().map(Source::Helper),
        }
    }
}

/// Names become part of a program's name: other characters are rejected.
fn program(name: &str) -> Result<String, CredentialsError> {
    let ok = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if ok {
        Ok(name.to_owned())
    } else {
        Err(CredentialsError::Helper { name: name.chars().take(80).collect() })
    }
}

/// Entries without a secret (left behind by credential stores) are not logins.
fn login(entry: &str, auth: RawAuth) -> Result<Option<Login>, CredentialsError> {
    if let Some(token) = auth.registrytoken.filter(|token| !token.is_empty()) {
        return Ok(Some(Login::RegistryToken(token)));
    }
    if let Some(token) = auth.identitytoken.filter(|token| !token.is_empty()) {
        return Ok(Some(Login::IdentityToken(token)));
    }
    if let (Some(user), Some(secret)) = (auth.username, auth.password) {
        return Ok(Some(Login::Password { user, secret }));
    }
    let Some(encoded) = auth.auth.filter(|encoded| !encoded.is_empty()) else { return Ok(None) };
    let wrong = || CredentialsError::Auth { entry: entry.to_owned() };
    let decoded = BASE64.decode(encoded.trim()).map_err(|_| wrong())?;
    let decoded = String::from_utf8(decoded).map_err(|_| wrong())?;
    let (user, secret) = decoded.split_once(':').ok_or_else(wrong)?;
    Ok(Some(Login::Password { user: user.to_owned(), secret: secret.trim_end_matches('\0').to_owned() }))
}

/// Keys may be hosts, hosts with the path of repositories, or URLs; that of Docker Hub is the URL of its first API.
fn registry_of(entry: &str) -> Result<(RegistryHost, String), CredentialsError> {
    let bare = entry.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    let host = host.parse().map_err(|_| CredentialsError::Entry { entry: entry.to_owned() })?;
    // The version of an API is no path of repositories.
    let mut parts = path.trim_matches('/').split('/').peekable();
    parts.next_if(|part| matches!(*part, "v1" | "v2"));
    Ok((host, parts.collect::<Vec<_>>().join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "compared with what a look-up gives")]
    fn password(user: &str, secret: &str) -> Option<Source> {
        Some(Source::Login(Login::Password { user: user.into(), secret: secret.into() }))
    }

    #[test]
    fn logins_in_every_form_are_found_by_registry() {
        let text = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}},"r.test:5000":{{"username":"u","password":"p"}},
                "empty.test":{{}},"id.test":{{"auth":"","identitytoken":"i"}},"bearer.test":{{"registrytoken":"b"}}}},
                "credHelpers":{{"helped.test":"ecr-login"}}}}"#,
            BASE64.encode("me:se:cret")
        );
        let config = DockerConfig::parse(text.as_bytes()).unwrap();
        let source = |host: &str| config.source(&host.parse().unwrap(), &"team/app".parse().unwrap());
        assert_eq!(source("docker.io"), password("me", "se:cret"));
        assert_eq!(source("r.test:5000"), password("u", "p"));
        assert_eq!(source("empty.test"), None);
        assert_eq!(source("id.test"), Some(Source::Login(Login::IdentityToken("i".into()))));
        assert_eq!(source("bearer.test"), Some(Source::Login(Login::RegistryToken("b".into()))));
        assert_eq!(source("helped.test"), Some(Source::Helper("ecr-login".into())));
        assert_eq!(config.registries().count(), 5);
        let config = DockerConfig::parse(br#"{"credsStore":"pass"}"#).unwrap();
        assert_eq!(
            config.source(&"any.test".parse().unwrap(), &"a".parse().unwrap()),
            Some(Source::Helper("pass".into()))
        );
        assert!(matches!(
            DockerConfig::parse(br#"{"credsStore":"../x"}"#),
            Err(CredentialsError::Helper { .. })
        ));
    }

    #[test]
    fn errors_contain_the_place_and_never_the_secret() {
        for text in [
            r#"{"auths":{"r.test":{"auth":"hunter2!"}}}"#,
            "{\"auths\":\n 7hunter2}",
            r#"{"auths":{"a b":{"auth":"YTpodW50ZXIy"}}}"#,
        ] {
            let error = DockerConfig::parse(text.as_bytes()).unwrap_err();
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn the_longest_path_of_a_repository_counts() {
        let login = |user: &str| format!(r#"{{"username":"{user}","password":"p"}}"#);
        let text = format!(
            r#"{{"auths":{{"r.test":{},"r.test/team":{},"https://r.test/v2/team/app/":{},"only.test/x":{}}}}}"#,
            login("all"),
            login("team"),
            login("app"),
            login("x")
        );
        let config = DockerConfig::parse(text.as_bytes()).unwrap();
        for (host, name, user) in [
            ("r.test", "other", Some("all")),
            ("r.test", "teams/app", Some("all")),
            ("r.test", "team/other", Some("team")),
            ("r.test", "team/app", Some("app")),
            ("only.test", "x/y", Some("x")),
            ("only.test", "y", None),
        ] {
            let found = config.source(&host.parse().unwrap(), &name.parse().unwrap());
            assert_eq!(found, user.and_then(|user| password(user, "p")), "{host}/{name}");
        }
    }

    #[test]
    fn entries_of_other_registries_need_not_be_usable() {
        let text = br#"{"auths":{"a b":{"auth":"x"},"other.test":{"auth":"?"},"r.test":{"auth":"dTpw"}},
            "credHelpers":{"x.test":"../x","empty.test":""}}"#;
        let source = |host: &str| {
            let host = host.parse().unwrap();
            Ok::<_, CredentialsError>(
                DockerConfig::parse_for(text, &host)?.source(&host, &"a".parse().unwrap()),
            )
        };
        assert!(DockerConfig::parse(text).is_err());
        assert_eq!(source("r.test").unwrap(), password("u", "p"));
        assert_eq!(source("empty.test").unwrap(), None);
        assert!(source("other.test").is_err() && source("x.test").is_err());
    }

    #[test]
    fn a_login_never_shows_its_secret() {
        let login = Login::Password { user: "hunter1".into(), secret: "hunter2".into() };
        assert!(!format!("{login:?}{:?}", Login::IdentityToken("hunter2".into())).contains("hunter"));
    }
}
