//! Talking to registries: names, credentials, tokens and pulls. The only module that knows `oci-client`.
//!
//! Pulls and token requests go through `oci-client`. Uploads are in `publish/upload.rs`: the library reads
//! whole layers into memory and has no retries, so it only lends its tokens there.
//!
//! HTTPS is used everywhere except for hosts that the user lists with `--plain-http`. A loopback address is
//! no exception: what listens there may still be anything, and credentials are sent to it.

mod credentials;
mod name;

use std::{collections::BTreeSet, fmt, path::PathBuf};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
pub use oci::Repository;
use oci::{
    ImageName, Login, RegistryHost,
    media_type::{DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST},
};
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{BlobResponse, ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use reqwest::Url;

use self::name::{any_of, endpoint, reference};
use crate::{
    cache::{Cache, CacheError, Content, Shelf},
    checksum::Checksum,
    digest::Digest,
    fetch::part::{Part, PartError},
    progress::{Bar, waiting},
    retry::{self, Failed},
};

/// Manifests that a base image may have: OCI and Docker, single and multi-platform.
const MANIFEST_TYPES: &[&str] = &[INDEX, MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// Questions under way at once: as many as uploads.
const PARALLEL: usize = 4;

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
        OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. } => {
            login_hint(host)
        }
        _ => String::new(),
    }
}

/// What to do about a registry that asks for credentials.
pub fn login_hint(host: &str) -> String {
    format!(" (log in with `docker login {host}`, or name a file with credentials with --docker-config)")
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

/// A client and what it shows to one repository.
struct Access {
    client: Client,
    auth: RegistryAuth,
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
        Self { oci: client(&settings), settings }
    }

    /// The URL of something in a repository.
    pub fn url(&self, repository: &Repository, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.origin(&repository.registry), repository.name)
    }

    /// The root of a registry's URLs.
    fn origin(&self, registry: &RegistryHost) -> String {
        let endpoint = endpoint(registry);
        let plain = self.settings.plain_http.iter().any(|host| host == endpoint);
        format!("{}://{endpoint}", if plain { "http" } else { "https" })
    }

    /// Logs in where the user has credentials.
    async fn access(
        &self,
        repository: &Repository,
        operation: RegistryOperation,
    ) -> Result<Access, RegistryError> {
        let Repository { registry, name } = repository;
        let fail = |reason| RegistryError::Credentials { host: registry.to_string(), reason };
        let login = credentials::find(repository, self.settings.docker_config.as_deref()).await;
        let auth = match login.map_err(fail)? {
            None => RegistryAuth::Anonymous,
            Some(Login::Password { user, secret }) => RegistryAuth::Basic(user, secret),
            Some(Login::RegistryToken(token)) => RegistryAuth::Bearer(token),
            Some(Login::IdentityToken(token)) => {
                let action = if operation == RegistryOperation::Push { "pull,push" } else { "pull" };
                let scope = format!("repository:{name}:{action}");
                let origin = Url::parse(&self.origin(registry)).map_err(|error| fail(error.to_string()))?;
                let token = credentials::exchange(&origin, &token, &scope).await;
                let auth = RegistryAuth::Bearer(token.map_err(fail)?);
                // The library remembers one login for each registry, but this one is for a single repository.
                return Ok(Access { client: client(&self.settings), auth });
            }
        };
        Ok(Access { client: self.oci.clone(), auth })
    }

    /// Asks for the right to push to a repository; a new token each time.
    pub async fn authorize_push(&self, repository: &Repository) -> Result<Authorization, RegistryError> {
        let reference = any_of(repository);
        let access = self.access(repository, RegistryOperation::Push).await?;
        let what = format!("`{}` to let us in", repository.registry);
        let token = retry::retried(&what, async || {
            let token = access.client.auth(&reference, &access.auth, RegistryOperation::Push);
            waiting(&what, token).await.map_err(failed)
        });
        let token = token.await.map_err(|source| request(&repository.registry, "let us in", source))?;
        Ok(match (token, access.auth) {
            (Some(token), _) => Authorization::Bearer(token),
            (None, RegistryAuth::Basic(user, password)) => Authorization::Basic(user, password),
            (None, _) => Authorization::Anonymous,
        })
    }

    /// Reads a manifest (any kind) and its digest.
    pub async fn manifest(&self, image: &str) -> Result<(Bytes, Digest), RegistryError> {
        let name = parse(image)?;
        let (reference, registry) = (reference(&name), &name.repository.registry);
        let access = self.access(&name.repository, RegistryOperation::Pull).await?;
        let what = format!("the manifest of `{image}`");
        let manifest = retry::retried(&what, async || {
            let manifest = access.client.pull_manifest_raw(&reference, &access.auth, MANIFEST_TYPES);
            waiting(&what, manifest).await.map_err(failed)
        });
        let manifest = manifest.await;
        let (bytes, _) = manifest.map_err(|source| request(registry, &format!("give `{image}`"), source))?;
        if let Some(oci::Reference::Digest(expected)) = name.reference {
            expected.verify(&bytes).map_err(|error| RegistryError::Digest {
                host: registry.to_string(),
                what: image.to_owned(),
                found: error.found.to_string(),
            })?;
        }
        let found = Digest::of(&bytes);
        Ok((bytes, found))
    }

    /// Which of these blobs a repository has.
    pub async fn has(
        &self,
        repository: &Repository,
        blobs: &BTreeSet<Digest>,
    ) -> Result<BTreeSet<Digest>, RegistryError> {
        let reference = any_of(repository);
        let access = self.access(repository, RegistryOperation::Pull).await?;
        access.client.store_auth_if_needed(endpoint(&repository.registry), &access.auth).await;
        let ask = async |digest: Digest| {
            let name = digest.to_string();
            let what = format!("looking for `{name}`");
            let there = retry::retried(&what, async || {
                access.client.blob_exists(&reference, &name).await.map_err(failed)
            });
            let there =
                there.await.map_err(|source| request(&repository.registry, "say what it has", source));
            Ok::<_, RegistryError>(there?.then_some(digest))
        };
        let mut blobs = blobs.iter().copied();
        let Some(first) = blobs.next() else { return Ok(BTreeSet::new()) };
        // The first question fetches the token that all others use.
        let mut found: BTreeSet<Digest> = ask(first).await?.into_iter().collect();
        let rest: Vec<Option<Digest>> = stream::iter(blobs.map(ask)).buffered(PARALLEL).try_collect().await?;
        found.extend(rest.into_iter().flatten());
        Ok(found)
    }

    /// Brings a blob of an image into the cache, resuming what an earlier attempt left.
    pub async fn blob(
        &self,
        cache: &Cache,
        image: &str,
        digest: Digest,
        bar: &Bar,
    ) -> Result<Content, RegistryError> {
        let repository = parse(image)?.repository;
        let reference = any_of(&repository);
        let access = self.access(&repository, RegistryOperation::Pull).await?;
        access.client.store_auth_if_needed(endpoint(&repository.registry), &access.auth).await;
        let mut part = Part::open(cache, Shelf::Blobs, Checksum::Sha256(digest)).await?;
        if let Some(content) = part.done()? {
            bar.advance(content.size);
            return Ok(content);
        }
        retry::retried(&format!("the transfer of `{digest}`"), async || {
            let transferred = transfer(&access.client, &reference, digest, &mut part, bar).await;
            transferred.map_err(|error| {
                let again = matches!(&error, Transfer::Request(error) if transient(error));
                let error = match error {
                    Transfer::Cache(error) => error.into(),
                    Transfer::Request(source) => {
                        request(&repository.registry, &format!("give the blob `{digest}`"), source)
                    }
                };
                Failed::of(error, |_| again)
            })
        })
        .await?;
        part.finish().map_err(|error| match error {
            PartError::Cache(error) => error.into(),
            PartError::Checksum(found) => RegistryError::Digest {
                host: repository.registry.to_string(),
                what: digest.to_string(),
                found: found.to_string(),
            },
        })
    }
}

fn client(settings: &Settings) -> Client {
    Client::new(ClientConfig {
        protocol: ClientProtocol::HttpsExcept(settings.plain_http.clone()),
        read_timeout: Some(retry::STALL_TIMEOUT),
        connect_timeout: Some(retry::CONNECT_TIMEOUT),
        user_agent: concat!("hearth/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
}

enum Transfer {
    Cache(CacheError),
    Request(OciDistributionError),
}

async fn transfer(
    client: &Client,
    reference: &Reference,
    digest: Digest,
    part: &mut Part,
    bar: &Bar,
) -> Result<(), Transfer> {
    let name = digest.to_string();
    let answer = client.pull_blob_stream_partial(reference, name.as_str(), part.length(), None);
    let answer = waiting(&format!("the blob {name} of `{}`", reference.registry()), answer).await;
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

fn parse(image: &str) -> Result<ImageName, RegistryError> {
    image.parse().map_err(|error| RegistryError::Name(format!("`{image}` is no image: {error}")))
}

fn request(host: &RegistryHost, action: &str, source: OciDistributionError) -> RegistryError {
    RegistryError::Request { host: host.to_string(), action: action.to_owned(), source: Box::new(source) }
}

fn failed(error: OciDistributionError) -> Failed<OciDistributionError> {
    Failed::of(error, transient)
}

/// Whether the same request may succeed a moment later.
fn transient(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(error) => match error.status() {
            Some(status) => retry::worth_retrying(status.as_u16()),
            None => !error.is_builder() && !error.is_connect() || error.is_timeout(),
        },
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
    fn only_listed_hosts_are_spoken_to_without_tls() {
        let settings = Settings { plain_http: vec!["127.0.0.1:5000".to_owned()], docker_config: None };
        let registry = Registry::new(settings);
        let url = |text: &str| registry.url(&text.parse().unwrap(), "blobs/uploads/");
        assert_eq!(url("127.0.0.1:5000/a"), "http://127.0.0.1:5000/v2/a/blobs/uploads/");
        assert_eq!(url("127.0.0.1:5001/a"), "https://127.0.0.1:5001/v2/a/blobs/uploads/");
    }

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(format!("{:?}", Authorization::Basic("user".into(), "secret".into())), "Basic(..)");
    }
}
