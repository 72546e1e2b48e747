//! Mutual TLS between peers: each presents a certificate for the name that all peers share, signed by one authority,
//! and requires the same of the other side.
//!
//! Peers connect to addresses, which change and are in no certificate, so the name is that of the cluster (usually of
//! the headless service), and both sides check it: an authority that also signs for other services does not make them
//! peers. Only TLS 1.3 is used, and sessions are not resumed, so that the certificate is checked on every connection.
//!
//! The files are read again while the agent runs. New connections use the newest usable files; unusable files change
//! nothing and are logged. Files that the agent itself requests from the cluster (`enrol`) may be absent at first: until they
//! are there, no connection is made or accepted.
//!
//! Certificates that name their node are bound to it: a peer is accepted only if it has the certificate of a node that the
//! membership has at that address, so one taken-over node cannot speak for others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use tokio_util::sync::CancellationToken;

use super::Membership;
use crate::{certificates::Facts, limits::peers::tls::RELOAD};

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {problem}")]
pub struct TlsError {
    /// The configuration key of the file.
    pub key: &'static str,
    /// The file's path, and what is wrong with it.
    pub problem: String,
}

impl TlsError {
    fn new(key: &'static str, path: &Path, problem: &str) -> Self {
        Self { key, problem: format!("`{}` {problem}", path.display()) }
    }
}

/// Where a peer's certificate, key and trusted authorities are.
#[derive(Clone, Debug)]
pub struct Files {
    /// PEM: this peer's certificate, and the intermediate ones.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// PEM: the trusted authorities.
    pub ca: PathBuf,
    /// The name for which every peer's certificate must be valid.
    pub name: ServerName<'static>,
    /// Whether each certificate names its node, which must be the one at the peer's address.
    pub by_node: bool,
}

/// Names of the nodes at each address.
type Nodes = Arc<RwLock<BTreeMap<IpAddr, BTreeSet<String>>>>;

/// The content of the files, ready for use.
struct Material {
    server: Arc<ServerConfig>,
    client: ClientConfig,
}

/// A peer's side of mutual TLS.
pub struct Tls {
    files: Files,
    /// The bytes of the files when they were read last, and the configuration made from them.
    current: Mutex<Option<(Contents, Material)>>,
    nodes: Nodes,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    pub fn open(files: Files) -> Result<Self, TlsError> {
        let this = Self::empty(files);
        this.reload().map(|_| this)
    }

    /// Reads the files if they are there: they may come later.
    pub fn awaiting(files: Files) -> Self {
        let this = Self::empty(files);
        if let Err(error) = this.reload() {
            tracing::debug!(%error, "no certificate for peers yet");
        }
        this
    }

    fn empty(files: Files) -> Self {
        Self { files, current: Mutex::default(), nodes: Nodes::default() }
    }

    /// The TLS configuration for outgoing connections; `None` while there are no usable files.
    pub(super) fn client(&self) -> Option<ClientConfig> {
        self.current.lock().as_ref().map(|(_, material)| material.client.clone())
    }

    /// The TLS configuration for an incoming connection; `None` while there are no usable files.
    pub fn server(&self) -> Option<Arc<ServerConfig>> {
        self.current.lock().as_ref().map(|(_, material)| material.server.clone())
    }

    /// Whether there are usable files.
    pub(super) fn is_usable(&self) -> bool {
        self.current.lock().is_some()
    }

    /// Sets which nodes are at which address.
    pub(super) fn expect(&self, membership: &Membership) {
        let mut nodes = BTreeMap::<IpAddr, BTreeSet<String>>::new();
        for peer in membership.others() {
            nodes.entry(peer.address.ip().to_canonical()).or_default().insert(peer.name.clone());
        }
        *self.nodes.write() = nodes;
    }

    /// Reads the files again; `true` when they have changed and are used now.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let contents = Contents::read(&self.files)?;
        if self.current.lock().as_ref().is_some_and(|(before, _)| *before == contents) {
            return Ok(false);
        }
        let material = contents.material(&self.files, &self.nodes)?;
        *self.current.lock() = Some((contents, material));
        Ok(true)
    }

    /// Reads the files regularly until `stop`, and reports changes.
    pub(super) async fn follow(self: Arc<Self>, changed: impl Fn(), stop: &CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(RELOAD)).await.is_some() {
            let this = self.clone();
            match tokio::task::spawn_blocking(move || this.reload()).await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => {
                    changed();
                    tracing::info!("certificates for peers changed: new connections use them");
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot use the changed certificates for peers: keeping the earlier ones");
                }
                Err(_) => return,
            }
        }
    }
}

/// The bytes of the three files.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

impl Contents {
    fn read(files: &Files) -> Result<Self, TlsError> {
        let read = |key, path: &Path| {
            #[expect(
                clippy::disallowed_methods,
                reason = "before the runtime serves anyone, or on a blocking thread"
            )]
            let bytes = std::fs::read(path);
            bytes.map_err(|error| TlsError::new(key, path, &format!("cannot be read: {error}")))
        };
        Ok(Self {
            certificate: read("peer.tls.certificate", &files.certificate)?,
            key: read("peer.tls.key", &files.key)?,
            ca: read("peer.tls.ca", &files.ca)?,
        })
    }

    fn material(&self, files: &Files, nodes: &Nodes) -> Result<Material, TlsError> {
        let wrong = |key, path: &Path, problem: String| TlsError::new(key, path, &problem);
        let certificates = |key, path: &Path, pem: &[u8]| {
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let found = read.map_err(|error| wrong(key, path, format!("is not usable PEM: {error}")))?;
            if found.is_empty() { Err(wrong(key, path, "contains no certificate".into())) } else { Ok(found) }
        };
        let chain = certificates("peer.tls.certificate", &files.certificate, &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| {
            wrong("peer.tls.key", &files.key, format!("contains no private key: {error}"))
        })?;
        let mut roots = RootCertStore::empty();
        for authority in certificates("peer.tls.ca", &files.ca, &self.ca)? {
            roots.add(authority).map_err(|error| {
                wrong("peer.tls.ca", &files.ca, format!("is not a certificate authority: {error}"))
            })?;
        }
        let own = chain[0].clone();
        valid_for(&own, &files.name).map_err(|error| {
            let name = files.name.to_str();
            wrong(
                "peer.tls.certificate",
                &files.certificate,
                format!("is not valid for `{name}` (`peer.tls.name`): {error}"),
            )
        })?;
        let nodes = files.by_node.then(|| nodes.clone());
        configurations(chain, key, Arc::new(roots), &files.name, nodes).map_err(|error| {
            wrong("peer.tls.certificate", &files.certificate, format!("cannot be used with its key: {error}"))
        })
    }
}

fn configurations(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    name: &ServerName<'static>,
    nodes: Option<Nodes>,
) -> Result<Material, rustls::Error> {
    let other = |error: rustls::client::VerifierBuilderError| rustls::Error::General(error.to_string());
    let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
    let of_clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(other)?;
    let of_servers =
        WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build().map_err(other)?;
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Peer { inner: of_clients, name: name.clone(), nodes: None }))
        .with_single_cert(chain.clone(), key.clone_key())?;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Peer { inner: of_servers, name: name.clone(), nodes }))
        .with_client_auth_cert(chain, key)?;
    client.resumption = Resumption::disabled();
    Ok(Material { server: Arc::new(server), client })
}

fn valid_for(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), rustls::Error> {
    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)
}

/// Whether the certificate is that of a node which the membership has at this address. An address that is in no membership is one
/// that is being asked who it is.
fn is_at(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
    address: &ServerName<'_>,
    nodes: &Nodes,
) -> Result<(), rustls::Error> {
    let ServerName::IpAddress(address) = address else { return Ok(()) };
    let nodes = nodes.read();
    let Some(expected) = nodes.get(&IpAddr::from(*address).to_canonical()) else { return Ok(()) };
    let facts = Facts::read(certificate).map_err(|error| rustls::Error::General(error.to_string()))?;
    match facts.node(&name.to_str()) {
        Some(node) if expected.contains(node) => Ok(()),
        _ => Err(CertificateError::NotValidForName.into()),
    }
}

/// Signatures are independent of names; the traits of both sides need the same methods.
macro_rules! signatures_as_usual {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.inner.verify_tls12_signature(message, certificate, signed)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.inner.verify_tls13_signature(message, certificate, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.inner.supported_verify_schemes()
        }
    };
}

/// The usual checks of a certificate, with the peers' common name instead of the dialled one.
#[derive(Debug)]
struct Peer<V: ?Sized> {
    name: ServerName<'static>,
    /// For certificates that name their node: the nodes that may be at each address.
    nodes: Option<Nodes>,
    inner: Arc<V>,
}

impl ServerCertVerifier for Peer<WebPkiServerVerifier> {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        address: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(certificate, between, &self.name, ocsp, now)?;
        self.nodes.as_ref().map_or(Ok(()), |nodes| is_at(certificate, &self.name, address, nodes))?;
        Ok(verified)
    }

    signatures_as_usual!();
}

impl ClientCertVerifier for Peer<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(certificate, between, now)?;
        valid_for(certificate, &self.name)?;
        Ok(verified)
    }

    signatures_as_usual!();
}
