//! A small pull client in the manner of containerd: `HEAD` for the tag, manifests by digest, then config and layers a
//! few at a time. It checks every digest and resumes a body that ended early, as real clients do.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::{Client, Response, StatusCode, header};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    agent::CLIENT,
    registry::{INDEX, MANIFEST, sha256},
};

/// Layers fetched at the same time: containerd's default per image.
const PARALLEL: usize = 3;
/// Tries without a new byte before a blob is given up: containerd's number.
const TRIES: u32 = 3;
/// A pull that hears nothing for so long has failed; a mirror never takes that long.
const SILENCE: Duration = Duration::from_secs(30);

/// News of a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The manifest is known: so many bytes of blobs are to come.
    Expect(u64),
    /// So many bytes of a blob arrived.
    Received(u64),
}

/// What one pull did.
#[derive(Clone, Debug, Default)]
pub struct Pulled {
    /// Digest the tag resolved to.
    pub digest: String,
    /// Digests of config and layers.
    pub blobs: Vec<String>,
    /// Body bytes received.
    pub bytes: u64,
    /// Requests sent.
    pub requests: u64,
    /// From start to end.
    pub elapsed: Duration,
}

/// Pulls images from one mirror or registry.
#[derive(Clone, Debug)]
pub struct Puller {
    client: Client,
    base: String,
    namespace: Option<String>,
}

struct Run<'a, F> {
    puller: &'a Puller,
    repository: &'a str,
    bytes: AtomicU64,
    requests: AtomicU64,
    progress: F,
}

impl Puller {
    /// A client of `base` (`http://host:port`). With a namespace it adds `?ns=`, as containerd does towards a mirror.
    pub fn new(base: &str, namespace: Option<&str>) -> Self {
        let client = Client::builder()
            .no_proxy()
            .user_agent(CLIENT)
            .read_timeout(SILENCE)
            .connect_timeout(SILENCE)
            .build()
            .expect("a client without TLS settings can be built");
        Self { client, base: base.to_owned(), namespace: namespace.map(str::to_owned) }
    }

    /// Pulls an image for `linux/amd64`. `progress` hears the size first and then of every piece.
    pub async fn pull(
        &self,
        repository: &str,
        tag: &str,
        progress: impl Fn(Progress) + Sync,
    ) -> anyhow::Result<Pulled> {
        let started = Instant::now();
        let run =
            Run { puller: self, repository, bytes: AtomicU64::new(0), requests: AtomicU64::new(0), progress };
        let digest =
            run.resolve(tag).await.with_context(|| format!("cannot resolve `{repository}:{tag}`"))?;
        let mut manifest = run.manifest(&digest).await?;
        if let Some(choices) = manifest["manifests"].as_array() {
            let chosen = choices.iter().find(|one| one["platform"]["architecture"] == "amd64");
            let digest =
                chosen.and_then(|one| one["digest"].as_str()).context("the index has no linux/amd64")?;
            manifest = run.manifest(digest).await?;
        }
        let descriptors =
            std::iter::once(&manifest["config"]).chain(manifest["layers"].as_array().into_iter().flatten());
        let wanted: Vec<(String, u64)> = descriptors
            .map(|one| Some((one["digest"].as_str()?.to_owned(), one["size"].as_u64()?)))
            .collect::<Option<_>>()
            .context("a descriptor lacks digest or size")?;
        (run.progress)(Progress::Expect(wanted.iter().map(|(_, size)| size).sum()));
        // Owned items: a borrowed one would tie the whole future to one lifetime, and it could not be spawned.
        stream::iter(wanted.clone())
            .map(|(digest, size)| run.blob(digest, size))
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;
        Ok(Pulled {
            digest,
            blobs: wanted.into_iter().map(|(digest, _)| digest).collect(),
            bytes: run.bytes.into_inner(),
            requests: run.requests.into_inner(),
            elapsed: started.elapsed(),
        })
    }

    fn url(&self, path: &str) -> String {
        let query = self.namespace.as_ref().map(|name| format!("?ns={name}")).unwrap_or_default();
        format!("{}{path}{query}", self.base)
    }
}

impl<F: Fn(Progress) + Sync> Run<'_, F> {
    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Response> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let response = request.send().await?;
        let status = response.status();
        if !status.is_success() {
            let url = response.url().clone();
            let body = response.text().await.unwrap_or_default();
            bail!("`{url}` was answered {status}: {}", body.chars().take(200).collect::<String>());
        }
        Ok(response)
    }

    fn manifest_request(&self, method: reqwest::Method, reference: &str) -> reqwest::RequestBuilder {
        let url = self.puller.url(&format!("/v2/{}/manifests/{reference}", self.repository));
        self.puller.client.request(method, url).header(header::ACCEPT, format!("{MANIFEST}, {INDEX}, */*"))
    }

    async fn resolve(&self, tag: &str) -> anyhow::Result<String> {
        let response = self.send(self.manifest_request(reqwest::Method::HEAD, tag)).await?;
        let digest = response.headers().get("docker-content-digest").context("no `Docker-Content-Digest`")?;
        Ok(digest.to_str()?.to_owned())
    }

    async fn manifest(&self, digest: &str) -> anyhow::Result<Value> {
        let bytes = self.send(self.manifest_request(reqwest::Method::GET, digest)).await?.bytes().await?;
        ensure!(sha256(&bytes) == digest, "manifest `{digest}` arrived with other bytes");
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(serde_json::from_slice(&bytes)?)
    }

    async fn blob(&self, digest: String, size: u64) -> anyhow::Result<()> {
        let mut hash = Sha256::new();
        let (mut have, mut tries) = (0, 0);
        while have < size || (size == 0 && tries == 0) {
            let before = have;
            let result = self.blob_from(&digest, &mut hash, &mut have).await;
            tries = if have > before { 0 } else { tries + 1 };
            if tries == TRIES {
                let error = result.err().unwrap_or_else(|| anyhow!("the body ended early"));
                return Err(error.context(format!("cannot read blob `{digest}` past byte {have}")));
            }
        }
        ensure!(have == size, "blob `{digest}` has {have} bytes, not {size}");
        ensure!(
            format!("sha256:{}", hex::encode(hash.finalize())) == digest,
            "blob `{digest}` arrived with other bytes"
        );
        Ok(())
    }

    /// Reads on from byte `have` until the body ends.
    async fn blob_from(&self, digest: &str, hash: &mut Sha256, have: &mut u64) -> anyhow::Result<()> {
        let url = self.puller.url(&format!("/v2/{}/blobs/{digest}", self.repository));
        let mut request = self.puller.client.get(url);
        if *have > 0 {
            request = request.header(header::RANGE, format!("bytes={have}-"));
        }
        let mut response = self.send(request).await?;
        ensure!(
            *have == 0 || response.status() == StatusCode::PARTIAL_CONTENT,
            "a resumption was answered in full"
        );
        while let Some(piece) = response.chunk().await? {
            hash.update(&piece);
            *have += piece.len() as u64;
            self.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
            (self.progress)(Progress::Received(piece.len() as u64));
        }
        Ok(())
    }
}
