//! `docker-registry`, the reference implementation, as an upstream.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::Daemon;
use crate::net::Net;

/// The only user of a registry that is not open.
#[derive(Debug, Clone, Copy)]
pub struct Login;

impl Login {
    /// The user.
    pub const USER: &str = "ci";
    /// The password.
    pub const PASSWORD: &str = "s3cret";
    /// The password by bcrypt, the only form that the registry reads.
    const HASH: &str = "$2b$05$FNtdoNHaqIj19.kz.v5ZWuScl8jPPdypOPHK1amkCWErplOdIu9Pq";
}

/// A registry on loopback that keeps its content in a directory which outlives it.
#[derive(Debug)]
pub struct DockerRegistry {
    daemon: Daemon,
    address: SocketAddr,
    _own: tempfile::TempDir,
}

impl DockerRegistry {
    /// Starts one on `storage` (made when missing) and waits until it listens.
    pub async fn start(storage: &Path) -> Result<Self> {
        Self::start_by(Command::new("docker-registry"), storage, "127.0.0.1:0", None).await
    }

    /// The same, for those who log in as [`Login`].
    pub async fn start_closed(storage: &Path) -> Result<Self> {
        Self::start_by(Command::new("docker-registry"), storage, "127.0.0.1:0", Some(Login)).await
    }

    /// The same on a node of a network, on a port of its address.
    pub async fn start_on(net: &Net, node: u8, storage: &Path, port: u16) -> Result<Self> {
        let address = format!("{}:{port}", Net::address(node));
        Self::start_by(net.on(node, "docker-registry"), storage, &address, None).await
    }

    async fn start_by(
        mut command: Command,
        storage: &Path,
        address: &str,
        login: Option<Login>,
    ) -> Result<Self> {
        let own = tempfile::Builder::new().prefix("hearth-registry-").tempdir()?;
        let config = own.path().join("config.yml");
        let mut text = serde_json::json!({
            "version": "0.1",
            "log": { "level": "info", "accesslog": { "disabled": true } },
            // A redirect-free store: every byte passes through the registry itself.
            "storage": {
                "filesystem": { "rootdirectory": storage, "maxthreads": 100 },
                "delete": { "enabled": true },
                "maintenance": { "uploadpurging": { "enabled": false } },
            },
            "http": { "addr": address },
        });
        if login.is_some() {
            let path = own.path().join("htpasswd");
            std::fs::write(&path, format!("{}:{}\n", Login::USER, Login::HASH))
                .context("cannot write the users")?;
            text["auth"] = serde_json::json!({ "htpasswd": { "realm": "tests", "path": path } });
        }
        std::fs::write(&config, text.to_string()).context("cannot write the registry's configuration")?;
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
        let mut daemon = Daemon::start(&mut command, &own.path().join("log"))?;
        let address = daemon.ready(async |printed| listening(printed)).await?;
        Ok(Self { daemon, address, _own: own })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it; its storage stays.
    pub fn stop(mut self) {
        self.daemon.stop();
    }
}

/// The address in the line `... msg="listening on 127.0.0.1:40123" ...`.
fn listening(printed: &str) -> Option<SocketAddr> {
    let rest = printed.split_once("listening on ")?.1;
    let end = rest.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit())?;
    rest[..end].parse().ok()
}
