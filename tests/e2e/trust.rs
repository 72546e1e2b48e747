//! Ways to a registry that are not a plain connection: TLS of an authority of one's own, client certificates, IPv6,
//! and a proxy that the environment names. nginx speaks TLS in front of the upstream.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    agent::blob_path,
    certificates::Authority,
    process::AgentProcess,
    registry::{FakeUpstream, sha256},
    runtime::Daemon,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use crate::support::REGISTRY;

const REPOSITORY: &str = "team/app";

/// An authority, a server certificate for the loopback addresses and a client certificate, all of this test's own.
struct Certificates(Authority);

impl Certificates {
    fn make(directory: &Path) -> Result<Self> {
        let authority = Authority::new(directory, "ca")?;
        for name in ["server", "client"] {
            authority.sign(name, "IP:127.0.0.1,IP:::1,DNS:localhost")?;
        }
        Ok(Self(authority))
    }

    fn path(&self, name: &str) -> String {
        self.0.path(name).display().to_string()
    }
}

/// nginx with TLS in front of the upstream, on IPv4 and IPv6; asks for a client certificate.
struct Tls {
    port: u16,
    _nginx: Daemon,
}

impl Tls {
    async fn start(directory: &Path, certificates: &Certificates, upstream: SocketAddr) -> Result<Self> {
        let port = std::net::TcpListener::bind("[::1]:0")?.local_addr()?.port();
        let shown = directory.display();
        // Without root the line means nothing.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let (chain, key, authority) =
            (certificates.path("server.pem"), certificates.path("server.key"), certificates.path("ca.pem"));
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {shown}/{kind};\n"))
            .concat();
        let config = format!(
            "{user}\ndaemon off;\npid {shown}/pid;\nerror_log {shown}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n\
             {temporary}server {{\nlisten 127.0.0.1:{port} ssl;\nlisten [::1]:{port} ssl;\n\
             ssl_certificate {chain};\nssl_certificate_key {key};\n\
             ssl_client_certificate {authority};\nssl_verify_client on;\n\
             location / {{ proxy_pass http://{upstream}; }}\n}}\n}}\n"
        );
        let path = directory.join("nginx.conf");
        fs::write(&path, config)?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(directory).arg("-e").arg(directory.join("error.log")).arg("-c").arg(&path);
        let mut nginx = Daemon::start(&mut command, &directory.join("nginx.log"))?;
        nginx.ready(async |_| TcpStream::connect(("::1", port)).await.ok().map(drop)).await?;
        Ok(Self { port, _nginx: nginx })
    }
}

/// A proxy that only knows `CONNECT`, and notes to where.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = asked.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A connection that breaks fails the pull that it belongs to.
                tokio::spawn(tunnel(client, noted.clone()));
            }
        });
        Ok(Self { address, asked, task })
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tunnel(mut client: TcpStream, asked: Arc<Mutex<Vec<String>>>) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let mut words = head.split(' ');
    ensure!(words.next() == Some("CONNECT"), "not CONNECT: {head}");
    let target = words.next().context("CONNECT names its target")?.to_owned();
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(target.clone());
    let mut server = TcpStream::connect(target).await?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// Everything that these tests need, and the blob that is fetched.
struct Stage {
    directory: tempfile::TempDir,
    certificates: Certificates,
    tls: Tls,
    _upstream: FakeUpstream,
    digest: String,
}

impl Stage {
    async fn set() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hearth-trust-").tempdir()?;
        let upstream = FakeUpstream::start().await;
        let digest = upstream.random_blob(REPOSITORY, 1, 3 << 20).await;
        let certificates = Certificates::make(directory.path())?;
        let tls = Tls::start(directory.path(), &certificates, upstream.address()).await?;
        Ok(Self { directory, certificates, tls, _upstream: upstream, digest })
    }

    /// An agent that reads the registry through `endpoint`, with more lines in the registry's entry.
    async fn agent(&self, endpoint: &str, more: &str, environment: &[(&str, &str)]) -> Result<AgentProcess> {
        let data = tempfile::Builder::new().prefix("data-").tempdir_in(self.directory.path())?.keep();
        let config = data.with_extension("yaml");
        let mut file = fs::File::create(&config)?;
        write!(
            file,
            "dataDir: {}\nmirror: {{ listen: \"[::1]:0\" }}\npeer: {{ listen: \"127.0.0.1:0\" }}\n\
             admin: {{ listen: \"127.0.0.1:0\" }}\nlog: {{ format: json }}\nlimits: {{ firstHeader: 2s }}\n\
             registries:\n  - host: {REGISTRY}\n    endpoints: [\"{endpoint}\"]\n{more}",
            data.display()
        )?;
        AgentProcess::start_with(&config, environment).await
    }

    /// Trusts the authority and shows the client's certificate.
    fn trust(&self) -> String {
        let [ca, certificate, key] =
            ["ca.pem", "client.pem", "client.key"].map(|name| self.certificates.path(name));
        format!("    tls: {{ ca: {ca}, certificate: {certificate}, key: {key} }}\n")
    }

    /// The status of the blob's answer; a success must be the right bytes.
    async fn fetch(&self, agent: &AgentProcess) -> Result<u16> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{}{}", agent.addresses.mirror, blob_path(REPOSITORY, &self.digest));
        let response = client.get(url).send().await?;
        let status = response.status().as_u16();
        let body = response.bytes().await?;
        ensure!(status != 200 || sha256(&body) == self.digest, "other bytes than the blob's");
        Ok(status)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_own_authority_and_a_client_certificate_open_a_registry_over_both_protocol_versions() -> Result<()>
{
    let stage = Stage::set().await?;
    for host in ["127.0.0.1", "[::1]"] {
        let endpoint = format!("https://{host}:{}", stage.tls.port);
        let agent = stage.agent(&endpoint, &stage.trust(), &[]).await?;
        ensure!(agent.addresses.mirror.is_ipv6(), "the mirror listens where it was told to");
        assert_eq!(stage.fetch(&agent).await?, 200, "{endpoint}: {}", agent.log());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_authority_or_a_missing_client_certificate_is_not_talked_round() -> Result<()> {
    let stage = Stage::set().await?;
    let endpoint = format!("https://127.0.0.1:{}", stage.tls.port);
    let agent = stage.agent(&endpoint, "", &[]).await?;
    assert_eq!(stage.fetch(&agent).await?, 503, "{}", agent.log());
    assert!(agent.log().contains("certificate"), "the log says why: {}", agent.log());

    let only_trust = format!("    tls: {{ ca: {} }}\n", stage.certificates.path("ca.pem"));
    let agent = stage.agent(&endpoint, &only_trust, &[]).await?;
    assert_eq!(stage.fetch(&agent).await?, 503, "nginx answers 400 without a certificate: {}", agent.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environments_proxy_is_used_except_where_it_says_not_to() -> Result<()> {
    let stage = Stage::set().await?;
    let proxy = Proxy::start().await?;
    let target = format!("127.0.0.1:{}", stage.tls.port);
    let endpoint = format!("https://{target}");
    let url = format!("http://{}", proxy.address);

    let agent = stage.agent(&endpoint, &stage.trust(), &[("HTTPS_PROXY", &url)]).await?;
    assert_eq!(stage.fetch(&agent).await?, 200, "{}", agent.log());
    // How many connections are open at once is not the proxy's matter.
    let through = proxy.asked();
    assert!(!through.is_empty() && through.iter().all(|asked| *asked == target), "{through:?}");

    let environment = [("HTTPS_PROXY", url.as_str()), ("NO_PROXY", "localhost,127.0.0.0/8")];
    let agent = stage.agent(&endpoint, &stage.trust(), &environment).await?;
    assert_eq!(stage.fetch(&agent).await?, 200, "{}", agent.log());
    assert_eq!(proxy.asked(), through, "no further connection went through the proxy");
    Ok(())
}
