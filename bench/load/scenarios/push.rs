//! `push`: two Spark images on a base that the registry has in another repository, against skopeo, which copies the very
//! same images one after the other. Everything is built before; the registry is the reference one and empty but for the
//! base. What is sent is counted on the wire.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use kit::runtime::DockerRegistry;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::Command,
};

use super::{images, seconds};
use crate::{Arguments, machine::settle, report::Report};

const SPARKS: [&str; 2] = ["3.5.8", "3.5.9"];
/// The base's tag.
const BASE: &str = "bookworm";

pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let home = kit::fixtures::directory();
    std::fs::create_dir_all(&home)?;
    let work = tempfile::Builder::new().prefix("hearth-load-").tempdir_in(home)?;
    let world = World::prepare(work.path()).await?;
    for round in 0..arguments.rounds {
        let mut taken = [(0.0, 0.0); 2];
        for turn in 0..taken.len() {
            let index = (turn + round as usize) % taken.len();
            taken[index] = world.turn(index == 0).await?;
        }
        let [(hearth, hearth_bytes), (skopeo, skopeo_bytes)] = taken;
        report.detail("hearth s", hearth);
        report.detail("skopeo s", skopeo);
        report.detail("hearth MB", hearth_bytes / 1e6);
        report.detail("skopeo MB", skopeo_bytes / 1e6);
        report.figure("bytes_ratio_vs_skopeo", hearth_bytes / skopeo_bytes);
        report.figure("speedup_vs_skopeo", skopeo / hearth);
    }
    Ok(())
}

struct World {
    work: PathBuf,
    hearth: PathBuf,
}

impl World {
    async fn prepare(work: &Path) -> Result<Self> {
        for version in SPARKS {
            let link = work.join(format!("pyspark-{version}.tar.gz"));
            std::os::unix::fs::symlink(kit::fixtures::pyspark(version)?, link)?;
        }
        std::os::unix::fs::symlink(kit::fixtures::base_rootfs()?, work.join("base.tar"))?;
        std::fs::write(work.join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        let world = Self { work: work.to_owned(), hearth: kit::process::binary("hearth")? };
        let image = format!("base:{BASE}");
        for arguments in [
            &["init", "--layout", "base"][..],
            &["new", "--image", &image],
            &["raw", "add-layer", "--image", &image, "base.tar"],
        ] {
            images::run(Command::new("umoci").args(arguments).current_dir(work)).await?;
        }
        Ok(world)
    }

    fn specify(&self, repository: &str, base: &str) -> Result<()> {
        let text = format!(
            "apiVersion: hearth.dev/v1alpha1\nkind: ImageMatrix\nrepository: {repository}\n\
             tag: \"{{spark}}\"\nbase: {{ image: \"{base}\" }}\n\
             axes: {{ spark: [\"{}\"], java: [\"17\"], python: [\"3.11\"] }}\n\
             sources: {{ spark: {{ path: \"pyspark-{{spark}}.tar.gz\" }} }}\n",
            SPARKS.join("\", \"")
        );
        Ok(std::fs::write(self.work.join("hearth.yaml"), text)?)
    }

    async fn hearth(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.hearth);
        command.args(arguments).args(["--cache-dir", "cache"]);
        images::run(command.current_dir(&self.work)).await
    }

    async fn copy(&self, layout: &str, tag: &str, to: &str) -> Result<()> {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--quiet", "--dest-tls-verify=false", "--policy", "policy.json"]);
        skopeo.arg(format!("oci:{layout}:{tag}")).arg(format!("docker://{to}:{tag}"));
        images::run(skopeo.current_dir(&self.work)).await
    }

    /// Seconds and bytes of one push into a new registry.
    async fn turn(&self, hearth: bool) -> Result<(f64, f64)> {
        let storage = tempfile::Builder::new().prefix("registry-").tempdir_in(&self.work)?;
        let registry = DockerRegistry::start(storage.path()).await?;
        let meter = Meter::start(registry.address()).await?;
        let host = meter.address.to_string();
        let base = format!("{host}/bench/base");
        self.copy("base", BASE, &base).await?;
        self.specify(&format!("{host}/bench/spark"), &format!("{base}:{BASE}"))?;
        images::remove(&self.work.join("dist"))?;
        let build = ["build", "--plain-http", &host, "--to", "dist"];
        self.hearth(&build).await?;
        settle(1 << 30).await?;
        meter.sent().await;
        let started = Instant::now();
        if hearth {
            self.hearth(&[&build[..], &["--push"]].concat()).await?;
        } else {
            for tag in SPARKS {
                self.copy("dist", tag, &format!("{host}/bench/spark")).await?;
            }
        }
        let taken = seconds(started.elapsed());
        let sent = meter.sent().await;
        registry.stop();
        #[expect(clippy::cast_precision_loss, reason = "under a terabyte")]
        Ok((taken, sent as f64))
    }
}

/// In front of a registry: counts the bytes that clients send.
struct Meter {
    address: SocketAddr,
    sent: Arc<AtomicU64>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Meter {
    async fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("loopback has ports")?;
        let (address, sent) = (listener.local_addr()?, Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&sent);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, Arc::clone(&count)));
            }
        });
        Ok(Self { address, sent, accepting })
    }

    /// Bytes since the last question, when everything under way has passed.
    async fn sent(&self) -> u64 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.sent.swap(0, Ordering::Relaxed)
    }
}

async fn pass(client: TcpStream, server: SocketAddr, count: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(copy(from_client, to_server, Some(&count)), copy(from_server, to_client, None));
}

/// A connection that breaks is noticed at its ends.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, count: Option<&AtomicU64>) {
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if let Some(count) = count {
            count.fetch_add(read as u64, Ordering::Relaxed);
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
