//! A Docker `config.json`: the file that `docker login` writes and Kubernetes pull secrets hold. `auths` with a
//! password, an identity token or a registry token; `credHelpers` and `credsStore` name programs, which `helper` runs.

use std::{
    collections::HashMap,
    fs::Metadata,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use parking_lot::Mutex;
use serde::Deserialize;

use super::Login;
use crate::types::RegistryHost;

/// Shortest time between two checks of a file for changes.
const LOOK_EVERY: Duration = Duration::from_secs(2);

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

/// The credentials in the file, by registry.
#[derive(Clone, Debug, Default)]
pub struct DockerConfig {
    logins: HashMap<RegistryHost, Login>,
    helpers: HashMap<RegistryHost, String>,
    store: Option<String>,
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
pub(super) enum Source {
    /// The file itself.
    Login(Login),
    /// A program: `docker-credential-<name>`.
    Helper(String),
}

impl DockerConfig {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
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
        let mut helpers = HashMap::new();
        for (entry, name) in raw.cred_helpers {
            helpers.insert(registry_of(&entry)?, program(&name)?);
        }
        let store = raw.creds_store.filter(|name| !name.is_empty()).map(|name| program(&name)).transpose()?;
        Ok(Self { logins, helpers, store })
    }

    /// The registries with credentials in the file.
    pub fn registries(&self) -> impl Iterator<Item = &RegistryHost> {
        self.logins.keys().chain(self.helpers.keys())
    }

    /// Whether a credential store may have credentials for any registry.
    pub fn has_store(&self) -> bool {
        self.store.is_some()
    }

    /// Docker's order: a registry's own helper, the file, the store of all others.
    pub(super) fn source(&self, registry: &RegistryHost) -> Option<Source> {
        if let Some(helper) = self.helpers.get(registry) {
            return Some(Source::Helper(helper.clone()));
        }
        if let Some(login) = self.logins.get(registry) {
            return Some(Source::Login(login.clone()));
        }
        self.store.clone().map(Source::Helper)
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

/// A file that is read again when it changes, which `docker login` and mounted secrets do.
#[derive(Debug)]
pub struct DockerFile {
    path: PathBuf,
    state: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    stamp: Option<Stamp>,
    looked: Instant,
    config: Arc<DockerConfig>,
}

/// Changes whenever the file is written or swapped.
type Stamp = (u64, u64, i64, i64);

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

impl DockerFile {
    /// Reads the file for the first time.
    pub fn open(path: &Path) -> Result<Self, CredentialsError> {
        let stamp = std::fs::metadata(path).ok().as_ref().map(stamp);
        let config = Arc::new(DockerConfig::read(path)?);
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(Loaded { stamp, looked: Instant::now(), config }),
        })
    }

    /// The current configuration. A file that becomes unreadable keeps its last content. Blocks for a `stat`,
    /// rarely for a small read.
    pub fn config(&self) -> Arc<DockerConfig> {
        let mut state = self.state.lock();
        if state.looked.elapsed() < LOOK_EVERY {
            return state.config.clone();
        }
        state.looked = Instant::now();
        let now = std::fs::metadata(&self.path).ok().as_ref().map(stamp);
        if now.is_some() && now != state.stamp {
            match DockerConfig::read(&self.path) {
                Ok(config) => {
                    tracing::info!(path = %self.path.display(), "credentials changed: read them again");
                    state.config = Arc::new(config);
                    state.stamp = now;
                }
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "cannot use changed credentials: keeping the earlier ones");
                }
            }
        }
        state.config.clone()
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
    let decoded = BASE64_STANDARD.decode(encoded.trim()).map_err(|_| wrong())?;
    let decoded = String::from_utf8(decoded).map_err(|_| wrong())?;
    let (user, secret) = decoded.split_once(':').ok_or_else(wrong)?;
    Ok(Some(Login::Password { user: user.to_owned(), secret: secret.trim_end_matches('\0').to_owned() }))
}

/// Keys may be hosts or URLs; that of Docker Hub is the URL of its first API.
fn registry_of(entry: &str) -> Result<RegistryHost, CredentialsError> {
    let bare = entry.trim_start_matches("https://").trim_start_matches("http://");
    let host = bare.split('/').next().unwrap_or_default();
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    host.parse().map_err(|_| CredentialsError::Entry { entry: entry.to_owned() })
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
            BASE64_STANDARD.encode("me:se:cret")
        );
        let config = DockerConfig::parse(text.as_bytes()).unwrap();
        let source = |host: &str| config.source(&host.parse().unwrap());
        assert_eq!(source("docker.io"), password("me", "se:cret"));
        assert_eq!(source("r.test:5000"), password("u", "p"));
        assert_eq!(source("empty.test"), None);
        assert_eq!(source("id.test"), Some(Source::Login(Login::IdentityToken("i".into()))));
        assert_eq!(source("bearer.test"), Some(Source::Login(Login::RegistryToken("b".into()))));
        assert_eq!(source("helped.test"), Some(Source::Helper("ecr-login".into())));
        assert_eq!(config.registries().count(), 5);
        let config = DockerConfig::parse(br#"{"credsStore":"pass"}"#).unwrap();
        assert_eq!(config.source(&"any.test".parse().unwrap()), Some(Source::Helper("pass".into())));
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
    fn a_changed_file_is_read_again_and_a_broken_one_keeps_its_last_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let write = |secret: &str| {
            std::fs::write(
                &path,
                format!(r#"{{"auths":{{"r.test":{{"username":"u","password":"{secret}"}}}}}}"#),
            )
            .unwrap();
        };
        write("one");
        let file = DockerFile::open(&path).unwrap();
        let now = || {
            file.state.lock().looked -= LOOK_EVERY;
            file.config().source(&"r.test".parse().unwrap())
        };
        assert_eq!(now(), password("u", "one"));
        write("second");
        assert_eq!(now(), password("u", "second"));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(now(), password("u", "second"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(now(), password("u", "second"));
    }
}
