//! A server that speaks S3: moto's.

use std::{net::SocketAddr, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::Daemon;

/// A store on loopback whose content is in its memory. It takes any credentials.
#[derive(Debug)]
pub struct S3 {
    _daemon: Daemon,
    address: SocketAddr,
    _own: tempfile::TempDir,
}

impl S3 {
    /// Starts one and waits until it listens.
    pub async fn start() -> Result<Self> {
        let own = tempfile::Builder::new().prefix("hearth-s3-").tempdir()?;
        let mut command = Command::new("moto_server");
        command.args(["-H", "127.0.0.1", "-p", "0"]).env("PYTHONUNBUFFERED", "1");
        let mut daemon = Daemon::start(&mut command, &own.path().join("log"))?;
        let address = daemon.ready(async |printed| listening(printed)).await?;
        Ok(Self { _daemon: daemon, address, _own: own })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts an object into a bucket, which is made when it is not there.
    pub async fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) -> Result<()> {
        let client = reqwest::Client::new();
        // Signed by nobody: moto reads the account from the header's form only.
        let who = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        for (path, body) in [(bucket.to_owned(), Vec::new()), (format!("{bucket}/{key}"), bytes)] {
            let url = format!("http://{}/{path}", self.address);
            let put = client.put(url).header("Authorization", who).body(body).send();
            let answer = put.await.context("the S3 server does not answer")?;
            ensure!(answer.status().is_success(), "the S3 server refuses `{path}`: {}", answer.status());
        }
        Ok(())
    }
}

/// The address in the line ` * Running on http://127.0.0.1:40123`.
fn listening(printed: &str) -> Option<SocketAddr> {
    let rest = printed.split_once("Running on http://")?.1;
    // The line is whole only when the next one has begun.
    let (address, _) = rest.split_once(|c: char| c.is_whitespace())?;
    address.parse().ok()
}
