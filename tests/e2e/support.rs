//! What the tests share: the image, an upstream that has it, and an agent in front of that.

mod image;

pub use image::Image;

use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use kit::disk::SmallDisk;
use kit::process::{Addresses, AgentProcess};
use kit::runtime::{CountingProxy, DockerRegistry};
use reqwest::StatusCode;

/// The upstream's name in image references. It resolves nowhere: whoever goes round the agent fails.
pub const REGISTRY: &str = "registry.test";

/// `docker-registry` with the image, behind a proxy that counts.
pub struct Upstream {
    registry: DockerRegistry,
    pub proxy: CountingProxy,
}

impl Upstream {
    pub async fn start(storage: &Path, bytes_per_second: Option<u64>) -> Result<Self> {
        let registry = DockerRegistry::start(storage).await?;
        let proxy = CountingProxy::start(registry.address(), bytes_per_second).await?;
        Ok(Self { registry, proxy })
    }

    /// The registry itself, past the proxy.
    pub fn registry(&self) -> &DockerRegistry {
        &self.registry
    }

    /// From here on connections to it are refused.
    pub fn stop(self) {
        self.registry.stop();
    }

    /// Upstream gave `image` about once, however many connections were used, and refused nothing.
    pub fn assert_was_read_once(&self, image: &Image) {
        let size: u64 = image.config_and_layers().iter().map(|blob| blob.size).sum();
        let left: u64 = self.proxy.blob_gets().iter().map(|get| get.bytes).sum();
        // What was under way on a connection that was given up has left as well.
        assert!(left >= size && left <= size + size / 10, "{left} of {size} bytes left upstream");
        let refused =
            self.proxy.exchanges().into_iter().filter(|exchange| exchange.status >= StatusCode::BAD_REQUEST);
        assert_eq!(refused.map(|exchange| exchange.path).collect::<Vec<_>>(), [""; 0]);
    }
}

/// A `hearth-agent run` that knows one registry, with an empty store.
pub struct Agent {
    /// Where its mirror listens.
    pub mirror: SocketAddr,
    /// Where its metrics are.
    pub admin: SocketAddr,
    process: Option<AgentProcess>,
    _disk: Option<SmallDisk>,
    directory: tempfile::TempDir,
}

impl Agent {
    /// `upstream` is where it finds what clients ask of [`REGISTRY`].
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        Self::start_with(upstream, None).await
    }

    /// Its store lies on a disk of so many bytes.
    pub async fn start_on_small_disk(upstream: SocketAddr, bytes: u64) -> Result<Self> {
        Self::start_with(upstream, Some(bytes)).await
    }

    async fn start_with(upstream: SocketAddr, disk: Option<u64>) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hearth-agent-").tempdir()?;
        let config = directory.path().join("agent.yaml");
        let text = format!(
            "dataDir: {}\n\
             mirror: {{ listen: \"127.0.0.1:0\" }}\n\
             peer: {{ listen: \"127.0.0.1:0\" }}\n\
             admin: {{ listen: \"127.0.0.1:0\" }}\n\
             log: {{ format: json }}\n\
             store: {{ minFree: \"0\" }}\n\
             registries:\n  - host: {REGISTRY}\n    endpoints: [\"http://{upstream}\"]\n",
            directory.path().join("data").display(),
        );
        fs::write(&config, text)?;
        let data = directory.path().join("data");
        let disk = disk.map(|bytes| SmallDisk::mount(&data, bytes)).transpose()?;
        let process = AgentProcess::start(&config).await?;
        let Addresses { mirror, admin } = process.addresses;
        Ok(Self { mirror, admin, process: Some(process), _disk: disk, directory })
    }

    /// `http://` and the address of the mirror.
    pub fn url(&self) -> String {
        format!("http://{}", self.mirror)
    }
}

impl Agent {
    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("data/agent.sock")
    }

    /// `kill -9`.
    pub async fn kill(mut self) -> Result<()> {
        self.process.take().context("it was killed before")?.kill().await
    }
}

impl Drop for Agent {
    #[expect(clippy::print_stderr, reason = "shown for a failed test only, which it explains")]
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            eprintln!("the agent's log:\n{}", process.log());
        }
    }
}

/// Fails unless the two files have the same bytes.
pub fn assert_same_bytes(one: &Path, other: &Path) -> Result<()> {
    let open =
        |path: &Path| fs::File::open(path).with_context(|| format!("cannot open `{}`", path.display()));
    let (mut left, mut right) = (open(one)?, open(other)?);
    ensure!(left.metadata()?.len() == right.metadata()?.len(), "`{}` has another size", one.display());
    let (mut expected, mut found) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = left.read(&mut expected)?;
        if read == 0 {
            return Ok(());
        }
        right.read_exact(&mut found[..read])?;
        ensure!(expected[..read] == found[..read], "`{}` differs from `{}`", one.display(), other.display());
    }
}

/// A tar archive with one file: clients unpack what they pull.
pub fn archive(content: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut header = [0; BLOCK];
    let size = format!("{:011o}\0", content.len());
    let name = format!("file-{}", content.len());
    let fields: [(usize, &[u8]); 8] = [
        (0, name.as_bytes()),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, size.as_bytes()),
        (136, b"00000000000\0"),
        (156, b"0"),
        (257, b"ustar\x0000"),
    ];
    for (at, bytes) in fields {
        header[at..at + bytes.len()].copy_from_slice(bytes);
    }
    // Summed up with its own field as spaces.
    let sum = header.iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = [&header, content].concat();
    archive.resize(archive.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    archive
}
