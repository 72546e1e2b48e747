//! Requests this node's certificate for peers from the cluster, and renews it. The controller signs ([`crate::certificates`]).
//!
//! The files are in the data directory, so a restart needs no API server: `identity.pem` (certificate and key, one file, so
//! that they always belong together) and `authority.pem`. Without a certificate this node has no peers.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
        core::v1::ConfigMap,
    },
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use rustls::pki_types::ServerName;

use super::tls::{Files, Tls};
use crate::{
    certificates::{
        AUTHORITY, BUNDLE, CertificateError, SIGNER, USAGES,
        authority::LIFE,
        own::{OwnKey, Renewal, renewal},
    },
    kubernetes::{connect, has_code, within},
    limits::peers::enrol::{DENIED, FIRST, LONGEST, LOOK, WARN},
    types::chain,
};

/// Longest part of the node's name in the name of a request, which has at most 253 characters.
const NODE_IN_NAME: usize = 200;

/// How this node gets its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// The name that all peers share.
    pub name: String,
    /// This node's name in the cluster.
    pub node: String,
    /// Namespace of the controller.
    pub namespace: String,
    /// URL of the API server; `None` means the cluster in which this process runs.
    pub api: Option<String>,
    /// Where the files are.
    pub directory: PathBuf,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the API server refuses or does not answer")]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("cannot write `{0}`")]
    Write(PathBuf, #[source] io::Error),
    #[error("the controller has published no authorities (`ConfigMap` `{AUTHORITY}`): does it run?")]
    NoAuthority,
    #[error("the request was refused: {0}")]
    Denied(String),
}

/// A request that is under way.
#[derive(Debug)]
struct Pending {
    key: OwnKey,
    request: String,
    since: Timestamp,
    pause: Duration,
}

impl Enrolment {
    /// The files, for connections to and from peers of this name.
    pub fn files(&self, name: ServerName<'static>) -> Files {
        Files {
            certificate: self.identity(),
            key: self.identity(),
            ca: self.authority(),
            name,
            by_node: true,
        }
    }

    /// The certificate and its key.
    fn identity(&self) -> PathBuf {
        self.directory.join("identity.pem")
    }

    /// The trusted authorities.
    fn authority(&self) -> PathBuf {
        self.directory.join("authority.pem")
    }

    /// Runs until the caller stops it; `changed` is called when there is another certificate or authority.
    pub(super) async fn run(&self, tls: &Arc<Tls>, changed: impl Fn()) {
        let client = connect(self.api.as_deref(), "certificates of peers").await;
        let (mut pending, mut pause) = (None, FIRST);
        loop {
            let wait = match self.step(&client, &mut pending).await {
                Ok(wait) => {
                    pause = FIRST;
                    wait
                }
                Err(error @ Trouble::Denied(_)) => {
                    tracing::error!(%error, "no certificate for peers: this node pulls from registries only");
                    DENIED
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot renew the certificate for peers: retrying");
                    pause = (pause * 2).min(LONGEST);
                    pause
                }
            };
            reload(tls, &changed).await;
            tokio::time::sleep(wait).await;
        }
    }

    /// Does what is due, and says when to look again.
    async fn step(&self, client: &Client, pending: &mut Option<Pending>) -> Result<Duration, Trouble> {
        let bundle = self.bundle(client).await?;
        self.put(&self.authority(), &bundle).await?;
        let file = read(&self.identity()).await;
        let due = renewal(file.as_deref(), bundle.as_bytes(), &self.name, &self.node, Timestamp::now());
        if let Renewal::In(left) = due {
            return Ok(left.min(LOOK));
        }
        if pending.is_none() {
            *pending = Some(self.request(client).await?);
        }
        let Some(asked) = pending.as_mut() else { return Ok(FIRST) };
        match self.answer(client, asked).await {
            Ok(Some(certificate)) => {
                let file = asked.key.file(&certificate);
                *pending = None;
                self.put(&self.identity(), &file).await?;
                tracing::info!(node = self.node, "received a certificate for peers");
                Ok(FIRST)
            }
            Ok(None) => {
                asked.pause = (asked.pause * 2).min(LONGEST);
                if Timestamp::now() > asked.since + WARN {
                    tracing::warn!(
                        request = asked.request,
                        "no certificate for peers yet: does the controller run, and may it sign (`kubectl get csr`)?"
                    );
                }
                Ok(asked.pause)
            }
            Err(error) => {
                // Requests that are over are removed by the cluster after a while.
                if matches!(&error, Trouble::Denied(_))
                    || matches!(&error, Trouble::Api(error) if has_code(error, &[404]))
                {
                    *pending = None;
                }
                Err(error)
            }
        }
    }

    async fn bundle(&self, client: &Client) -> Result<String, Trouble> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &self.namespace);
        let found = within(maps.get_opt(AUTHORITY)).await?;
        found.and_then(|map| map.data?.remove(BUNDLE)).ok_or(Trouble::NoAuthority)
    }

    async fn request(&self, client: &Client) -> Result<Pending, Trouble> {
        let key = OwnKey::new()?;
        let mut node = self.node.clone();
        node.truncate(NODE_IN_NAME);
        let object = CertificateSigningRequest {
            metadata: ObjectMeta {
                generate_name: Some(format!("hearth-peer-{node}-")),
                ..ObjectMeta::default()
            },
            spec: CertificateSigningRequestSpec {
                request: ByteString(key.request(&self.name, &self.node)?),
                signer_name: SIGNER.to_owned(),
                expiration_seconds: i32::try_from(LIFE.as_secs()).ok(),
                usages: Some(USAGES.map(str::to_owned).to_vec()),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
        let made = within(requests.create(&PostParams::default(), &object)).await?;
        let request = made.metadata.name.unwrap_or_default();
        Ok(Pending { key, request, since: Timestamp::now(), pause: FIRST })
    }

    /// The certificate, or nothing yet.
    async fn answer(&self, client: &Client, pending: &Pending) -> Result<Option<String>, Trouble> {
        let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
        let status = within(requests.get(&pending.request)).await?.status.unwrap_or_default();
        let refusal =
            status.conditions.iter().flatten().find(|one| ["Denied", "Failed"].contains(&&*one.type_));
        if let Some(refusal) = refusal {
            return Err(Trouble::Denied(refusal.message.clone().unwrap_or_default()));
        }
        Ok(status.certificate.map(|pem| String::from_utf8_lossy(&pem.0).into_owned()))
    }

    /// Writes a file whole or not at all, when its content is another.
    async fn put(&self, path: &Path, content: &str) -> Result<(), Trouble> {
        if read(path).await.as_deref() == Some(content.as_bytes()) {
            return Ok(());
        }
        let (directory, to, content) = (self.directory.clone(), path.to_owned(), content.to_owned());
        let write = move || {
            std::fs::create_dir_all(&directory)?;
            // Only this user may read it: that is how temporary files are made.
            let mut file = tempfile::NamedTempFile::new_in(&directory)?;
            file.write_all(content.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&to).map_err(|error| error.error).map(drop)
        };
        let written = tokio::task::spawn_blocking(write).await;
        written
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|error| Trouble::Write(path.to_owned(), error))
    }
}

async fn read(path: &Path) -> Option<Vec<u8>> {
    tokio::fs::read(path).await.ok()
}

/// Uses the files that are there now.
async fn reload(tls: &Arc<Tls>, changed: &impl Fn()) {
    let this = tls.clone();
    if let Ok(Ok(true)) = tokio::task::spawn_blocking(move || this.reload()).await {
        changed();
    }
}
