//! Many clients, one cold blob.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use reqwest::Url;
use sha2::{Digest as _, Sha256};

use crate::support::{Agent, REGISTRY, Upstream};

const CLIENTS: usize = 8;
const BLOB: usize = 256 << 20;
/// Two seconds for the blob: long enough that a client that waited for the whole would be seen.
const UPSTREAM_BYTES_PER_SECOND: u64 = 128 << 20;
const REPOSITORY: &str = "data/cold";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_clients_of_a_cold_blob_cost_upstream_one_request_and_none_of_them_waits_for_its_end()
-> Result<()> {
    let storage = tempfile::Builder::new().prefix("hearth-burst-").tempdir()?;
    let upstream = Upstream::start(storage.path(), Some(UPSTREAM_BYTES_PER_SECOND)).await?;
    let digest = push_blob(&upstream).await.context("cannot push the blob")?;
    let agent = Agent::start(upstream.proxy.address()).await?;
    let url = format!("{}/v2/{REPOSITORY}/blobs/{digest}?ns={REGISTRY}", agent.url());

    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(fetch(url.clone()))).collect();
    let mut first_bytes = Vec::new();
    for client in clients {
        let (first_byte, actual) = client.await??;
        assert_eq!(actual, digest, "what a client received");
        first_bytes.push(first_byte);
    }

    let gets = upstream.proxy.blob_gets();
    assert_eq!(gets.len(), 1, "upstream saw {gets:?}");
    let last_left = gets[0].done.context("the whole blob left upstream")?;
    for first_byte in first_bytes {
        assert!(
            first_byte < last_left,
            "a first byte came {:?} after the last had left upstream",
            first_byte - last_left
        );
    }
    Ok(())
}

/// Uploads `BLOB` bytes that compress badly and repeat nowhere, straight to the registry; gives their digest.
async fn push_blob(upstream: &Upstream) -> Result<String> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("blob");
    let digest = write_blob(&file)?;
    let registry = format!("http://{}", upstream.registry().address());
    let client = reqwest::Client::builder().no_proxy().build()?;
    let started =
        client.post(format!("{registry}/v2/{REPOSITORY}/blobs/uploads/")).send().await?.error_for_status()?;
    let location = started.headers().get("location").context("an upload has a location")?.to_str()?;
    let mut location = Url::parse(&registry)?.join(location)?;
    location.query_pairs_mut().append_pair("digest", &digest);
    let body = tokio::fs::File::open(&file).await?;
    let stored = client.put(location).header("content-length", BLOB).body(body).send().await?;
    ensure!(stored.status() == 201, "the upload was answered with {}", stored.status());
    Ok(digest)
}

fn write_blob(path: &Path) -> Result<String> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(BLOB);
    while bytes.len() < BLOB {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    fs::write(path, &bytes)?;
    Ok(format!("sha256:{}", hex::encode(Sha256::digest(&bytes))))
}

/// When the first byte came, and the digest of all of them.
async fn fetch(url: String) -> Result<(Instant, String)> {
    let client = reqwest::Client::builder().no_proxy().read_timeout(Duration::from_secs(30)).build()?;
    let mut response = client.get(url).send().await?.error_for_status()?;
    let mut first_byte = None;
    let mut hash = Sha256::new();
    while let Some(chunk) = response.chunk().await? {
        first_byte.get_or_insert_with(Instant::now);
        hash.update(&chunk);
    }
    Ok((first_byte.context("the blob is not empty")?, format!("sha256:{}", hex::encode(hash.finalize()))))
}
