//! Talking to registries: names, credentials, tokens and pulls. The only file that knows `oci-client`.
//!
//! Pulls and token requests go through `oci-client`. Uploads are in `publish/upload.rs`: the library reads
//! whole layers into memory and has no retries, so it only lends its tokens there.
//!
//! HTTPS is used everywhere except for hosts that the user lists with `--plain-http`. A loopback address is
//! no exception: what listens there may still be anything, and credentials are sent to it.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use bytes::Bytes;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use futures_util::TryStreamExt as _;
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{BlobResponse, ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};

use crate::{
    cache::{Cache, CacheError, Content, Shelf},
    checksum::Checksum,
    digest::Digest,
    progress::Bar,
    retry,
    sources::part::{Part, PartError},
};

/// A credential helper that asks a person something would wait for ever.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// Manifests that a base image may have: OCI and Docker, single and multi-platform.
const MANIFEST_TYPES: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// A repository on a registry, without tag or digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repository {
    host: String,
    endpoint: String,
    path: String,
}

impl Repository {
    /// The registry as references spell it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The registry as it is reached (`index.docker.io` for `docker.io`).
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The path on the registry.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for Repository {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The grammar of the library takes capitals when it adds the default registry itself.
        if text.contains(|letter: char| letter.is_ascii_uppercase()) {
            return Err(format!("`{text}`: repository name must be lowercase"));
        }
        let reference: Reference = text.parse().map_err(|error| format!("`{text}`: {error}"))?;
        if reference.digest().is_some() || reference.tag() != Some("latest") || text.ends_with(":latest") {
            return Err(format!("`{text}` has a tag or digest: tags come from the key `tag`"));
        }
        Ok(Self {
            host: reference.registry().to_owned(),
            endpoint: reference.resolve_registry().to_owned(),
            path: reference.repository().to_owned(),
        })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

/// Whether a text is an image reference.
pub fn check_reference(text: &str) -> Result<(), String> {
    text.parse::<Reference>().map(|_| ()).map_err(|error| format!("`{text}`: {error}"))
}

/// Why a registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name is no reference.
    #[error("{0}")]
    Name(String),
    /// Credentials cannot be read.
    #[error("cannot get credentials for `{host}`: {reason}")]
    Credentials {
        /// The registry.
        host: String,
        /// What went wrong.
        reason: String,
    },
    /// A request failed.
    #[error("`{host}` does not {action}{}", hint(host, source))]
    Request {
        /// The registry.
        host: String,
        /// What it was asked.
        action: String,
        /// Its answer.
        #[source]
        source: Box<OciDistributionError>,
    },
    /// Something has another digest than it should.
    #[error("`{what}` from `{host}` has the digest `{found}`")]
    Digest {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// What came.
        found: String,
    },
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// A registry without TLS answers a TLS greeting with nonsense: say what to do.
fn hint(host: &str, source: &OciDistributionError) -> String {
    match source {
        OciDistributionError::RequestError(error) if error.is_connect() => plain_http_hint(host),
        _ => String::new(),
    }
}

/// What to do about a registry that cannot be reached with TLS.
pub fn plain_http_hint(host: &str) -> String {
    format!(" (if it speaks plain HTTP, add `--plain-http {host}`)")
}

/// How to reach registries.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Hosts (with port, as in references) that are spoken to without TLS.
    pub plain_http: Vec<String>,
    /// A Docker `config.json` to use instead of the user's.
    pub docker_config: Option<PathBuf>,
}

/// A client for any number of registries.
pub struct Registry {
    oci: Client,
    settings: Settings,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What an `Authorization` header is made of.
#[derive(Clone)]
pub enum Authorization {
    /// None is asked for.
    Anonymous,
    /// User and password.
    Basic(String, String),
    /// A token for one repository.
    Bearer(String),
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic(..) => "Basic(..)",
            Self::Bearer(_) => "Bearer(..)",
        })
    }
}

impl Registry {
    /// A client that has talked to nobody yet.
    pub fn new(settings: Settings) -> Self {
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(settings.plain_http.clone()),
            read_timeout: Some(retry::STALL_TIMEOUT),
            connect_timeout: Some(retry::CONNECT_TIMEOUT),
            user_agent: concat!("hearth/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        Self { oci: Client::new(config), settings }
    }

    /// The URL of something in a repository.
    pub fn url(&self, repository: &Repository, rest: &str) -> String {
        let plain = self.settings.plain_http.iter().any(|host| host == repository.endpoint());
        let scheme = if plain { "http" } else { "https" };
        format!("{scheme}://{}/v2/{}/{rest}", repository.endpoint(), repository.path())
    }

    /// Asks for the right to push to a repository; a new token each time.
    pub async fn authorize_push(&self, repository: &Repository) -> Result<Authorization, RegistryError> {
        let credentials = self.credentials(repository.endpoint()).await?;
        let reference =
            Reference::with_tag(repository.host.clone(), repository.path.clone(), "latest".to_owned());
        let mut attempt = 1;
        let token = loop {
            match self.oci.auth(&reference, &credentials, RegistryOperation::Push).await {
                Ok(token) => break token,
                Err(error) if transient(&error) && retry::pause(attempt, None).await => attempt += 1,
                Err(source) => return Err(request(repository.host(), "let us in".to_owned(), source)),
            }
        };
        Ok(match (token, credentials) {
            (Some(token), _) => Authorization::Bearer(token),
            (None, RegistryAuth::Basic(user, password)) => Authorization::Basic(user, password),
            (None, _) => Authorization::Anonymous,
        })
    }

    /// Reads a manifest (any kind) and its digest.
    pub async fn manifest(&self, image: &str) -> Result<(Bytes, Digest), RegistryError> {
        let reference = parse(image)?;
        let credentials = self.credentials(reference.resolve_registry()).await?;
        let mut attempt = 1;
        let bytes = loop {
            match self.oci.pull_manifest_raw(&reference, &credentials, MANIFEST_TYPES).await {
                Ok((bytes, _)) => break bytes,
                Err(error) if transient(&error) && retry::pause(attempt, None).await => attempt += 1,
                Err(source) => return Err(request(reference.registry(), format!("give `{image}`"), source)),
            }
        };
        let found = Digest::of(&bytes);
        match reference.digest() {
            Some(expected) if expected != found.to_string() => {
                let host = reference.registry().to_owned();
                let found = found.to_string();
                Err(RegistryError::Digest { host, what: image.to_owned(), found })
            }
            _ => Ok((bytes, found)),
        }
    }

    /// Brings a blob of an image into the cache, resuming what an earlier attempt left.
    pub async fn blob(
        &self,
        cache: &Cache,
        image: &str,
        digest: Digest,
        bar: &Bar,
    ) -> Result<Content, RegistryError> {
        let reference = parse(image)?;
        let credentials = self.credentials(reference.resolve_registry()).await?;
        self.oci.store_auth_if_needed(reference.resolve_registry(), &credentials).await;
        let mut part = Part::open(cache, Shelf::Blobs, Checksum::Sha256(digest)).await?;
        if let Some(content) = part.done()? {
            bar.advance(content.size);
            return Ok(content);
        }
        let mut attempt = 1;
        while let Err(error) = self.transfer(&reference, digest, &mut part, bar).await {
            match error {
                Transfer::Cache(error) => return Err(error.into()),
                Transfer::Request(error) if transient(&error) && retry::pause(attempt, None).await => {
                    attempt += 1;
                }
                Transfer::Request(source) => {
                    return Err(request(reference.registry(), format!("give the blob `{digest}`"), source));
                }
            }
        }
        part.finish().map_err(|error| match error {
            PartError::Cache(error) => error.into(),
            PartError::Checksum(found) => RegistryError::Digest {
                host: reference.registry().to_owned(),
                what: digest.to_string(),
                found: found.to_string(),
            },
        })
    }

    async fn transfer(
        &self,
        reference: &Reference,
        digest: Digest,
        part: &mut Part,
        bar: &Bar,
    ) -> Result<(), Transfer> {
        let name = digest.to_string();
        let answer = self.oci.pull_blob_stream_partial(reference, name.as_str(), part.length(), None).await;
        let mut stream = match answer.map_err(Transfer::Request)? {
            BlobResponse::Partial(stream) => stream.stream,
            BlobResponse::Full(stream) => {
                part.restart().map_err(Transfer::Cache)?;
                stream.stream
            }
        };
        while let Some(chunk) = stream.try_next().await.map_err(|error| Transfer::Request(error.into()))? {
            part.write(&chunk).map_err(Transfer::Cache)?;
            bar.advance(chunk.len() as u64);
        }
        Ok(())
    }

    async fn credentials(&self, endpoint: &str) -> Result<RegistryAuth, RegistryError> {
        let server = if endpoint == "index.docker.io" { "https://index.docker.io/v1/" } else { endpoint };
        let (server, config) = (server.to_owned(), self.settings.docker_config.clone());
        let fail = |reason: String| RegistryError::Credentials { host: endpoint.to_owned(), reason };
        let lookup = tokio::task::spawn_blocking(move || look_up(&server, config.as_deref()));
        let found = tokio::time::timeout(HELPER_TIMEOUT, lookup)
            .await
            .map_err(|_| fail(format!("its helper did not answer in {} s", HELPER_TIMEOUT.as_secs())))?
            .map_err(|error| fail(error.to_string()))?
            .map_err(|error| fail(error.to_string()))?;
        match found {
            None => Ok(RegistryAuth::Anonymous),
            Some(DockerCredential::UsernamePassword(user, password)) => Ok(RegistryAuth::Basic(user, password)),
            Some(DockerCredential::IdentityToken(_)) => Err(fail(
                "they are an identity token, which is not supported: log in with user and password or an access token"
                    .to_owned(),
            )),
        }
    }
}

enum Transfer {
    Cache(CacheError),
    Request(OciDistributionError),
}

/// `--docker-config`, else the user's Docker configuration, else that of podman and buildah
/// (`REGISTRY_AUTH_FILE`). No entry for the host means anonymous access; an unreadable file that the user
/// named is an error.
fn look_up(
    server: &str,
    config: Option<&Path>,
) -> Result<Option<DockerCredential>, CredentialRetrievalError> {
    use CredentialRetrievalError::{ConfigNotFound, ConfigReadError, NoCredentialConfigured};
    if let Some(path) = config {
        let file = std::fs::File::open(path).map_err(|_| ConfigReadError)?;
        return match docker_credential::get_credential_from_reader(std::io::BufReader::new(file), server) {
            Err(NoCredentialConfigured) => Ok(None),
            other => other.map(Some),
        };
    }
    for found in [docker_credential::get_credential(server), docker_credential::get_podman_credential(server)]
    {
        match found {
            Ok(credential) => return Ok(Some(credential)),
            Err(NoCredentialConfigured | ConfigNotFound | ConfigReadError) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn parse(image: &str) -> Result<Reference, RegistryError> {
    image.parse().map_err(|error| RegistryError::Name(format!("`{image}`: {error}")))
}

fn request(host: &str, action: String, source: OciDistributionError) -> RegistryError {
    RegistryError::Request { host: host.to_owned(), action, source: Box::new(source) }
}

/// Whether the same request may succeed a moment later.
fn transient(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(error) => {
            !error.is_builder() && !error.is_connect() || error.is_timeout()
        }
        OciDistributionError::IoError(_) => true,
        OciDistributionError::ServerError { code, .. } => retry::worth_retrying(*code),
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|error| matches!(error.code, OciErrorCode::Toomanyrequests))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_names_without_tag() {
        let repository = |text: &str| text.parse::<Repository>();
        let hub = repository("docker.io/library/spark").unwrap();
        assert_eq!(
            (hub.host(), hub.endpoint(), hub.path()),
            ("docker.io", "index.docker.io", "library/spark")
        );
        let local = repository("127.0.0.1:5000/a/b").unwrap();
        assert_eq!(local.to_string(), "127.0.0.1:5000/a/b");
        for text in ["", "UPPER/x", "a/b:tag", "a/b:latest", "a b", "registry.example.com/a@sha256:00"] {
            assert!(repository(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_listed_hosts_are_spoken_to_without_tls() {
        let settings = Settings { plain_http: vec!["127.0.0.1:5000".to_owned()], docker_config: None };
        let registry = Registry::new(settings);
        let url = |text: &str| registry.url(&text.parse().unwrap(), "blobs/uploads/");
        assert_eq!(url("127.0.0.1:5000/a"), "http://127.0.0.1:5000/v2/a/blobs/uploads/");
        assert_eq!(url("127.0.0.1:5001/a"), "https://127.0.0.1:5001/v2/a/blobs/uploads/");
    }

    #[test]
    fn credentials_are_found_by_host_and_a_named_file_must_be_readable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, r#"{"auths": {"registry.example.com": {"auth": "dXNlcjpzZWNyZXQ="}}}"#)
            .unwrap();
        let found = look_up("registry.example.com", Some(&path)).unwrap();
        assert_eq!(found, Some(DockerCredential::UsernamePassword("user".into(), "secret".into())));
        assert_eq!(look_up("other.example.com", Some(&path)).unwrap(), None);
        assert!(look_up("registry.example.com", Some(&directory.path().join("missing"))).is_err());
        assert_eq!(format!("{:?}", Authorization::Basic("user".into(), "secret".into())), "Basic(..)");
    }
}
