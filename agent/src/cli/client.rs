//! The admin API as a client sees it, over the agent's Unix socket. The other end is `http/api.rs`.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use futures_util::stream;
use reqwest::{Method, Response, Url};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::{
    images::archive::{ImportOptions, Imported},
    types::{ImageName, root_cause},
};

/// The agent runs on this node: waiting longer for a connection does not help.
const CONNECT: Duration = Duration::from_secs(3);

/// Longest wait for an answer; a list of 10,000 images takes a second or two.
const ANSWER: Duration = Duration::from_mins(2);

/// Longest time without a byte sent before an import fails.
const STANDSTILL: Duration = Duration::from_mins(15);

/// Sends requests to one agent.
#[derive(Debug)]
pub(super) struct Client {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    base: Url,
    socket: PathBuf,
}

impl Client {
    /// Of the agent with this socket.
    pub(super) fn new(socket: &Path) -> anyhow::Result<Self> {
        // The host is only what HTTP asks for.
        let base = Url::parse("http://agent/").context("a constant URL")?;
        let http =
            reqwest::Client::builder().no_proxy().connect_timeout(CONNECT).unix_socket(socket).build()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, http, base, socket: socket.to_owned() })
    }

    /// Sends a request and returns its JSON response.
    pub(super) fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        names: &[&ImageName],
    ) -> anyhow::Result<T> {
        let request = self.request(method, path, names).timeout(ANSWER);
        self.runtime.block_on(async { parse(self.send(request).await?).await })
    }

    /// Sends an archive and waits until it is in the store.
    pub(super) fn import(
        &self,
        archive: impl Read + Send + 'static,
        options: &ImportOptions,
    ) -> anyhow::Result<Imported> {
        let names: Vec<_> = options.name.iter().collect();
        let path = if options.pin { "/api/v1/images?pin=true" } else { "/api/v1/images" };
        let request = self.request(Method::POST, path, &names);
        let pace = Arc::new(AtomicU64::new(0));
        let request = request.body(body(archive, pace.clone()));
        let sent = async { parse(self.send(request).await?).await };
        self.runtime.block_on(async {
            tokio::select! {
                imported = sent => imported,
                () = standstill(&pace) => bail!("the agent reads no data and does not answer"),
            }
        })
    }

    /// Receives images as a tar stream, with its size.
    pub(super) fn export(&self, names: &[ImageName]) -> anyhow::Result<(impl Read, Option<u64>)> {
        let names: Vec<_> = names.iter().collect();
        let request = self.request(Method::GET, "/api/v1/archive", &names);
        let response = self.runtime.block_on(self.send(request))?;
        let size = response.content_length();
        Ok((Download { runtime: &self.runtime, response, current: Bytes::new() }, size))
    }

    fn request(&self, method: Method, path: &str, names: &[&ImageName]) -> reqwest::RequestBuilder {
        let mut url = self.base.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(path);
        url.set_query(query);
        for name in names {
            url.query_pairs_mut().append_pair("name", &name.to_string());
        }
        self.http.request(method, url)
    }

    /// The response of a successful request, or the agent's error.
    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Response> {
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Err(self.not_running(&error)),
            Err(error) => return Err(error.without_url()).context("the agent did not answer"),
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        let parsed: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
        match parsed.as_ref().and_then(|document| document["error"].as_str()) {
            Some(problem) => bail!("{problem}"),
            None => bail!(
                "unexpected response {status}: the agent has another version, or another program listens at this address"
            ),
        }
    }

    fn not_running(&self, error: &reqwest::Error) -> anyhow::Error {
        let place = self.socket.display();
        let reason = root_cause(error);
        anyhow!(
            "no agent answers at `{place}` ({reason}): start it with `hearth-agent run`, give its socket with `--agent` or \
             its configuration with `--config`, run this command as root or as the agent's user, or add `--offline` if the \
             agent is stopped"
        )
    }
}

async fn parse<T: DeserializeOwned>(response: Response) -> anyhow::Result<T> {
    let bytes = response.bytes().await.context("the agent closed the connection during the response")?;
    serde_json::from_slice(&bytes).context("cannot parse the agent's response: it may have another version")
}

/// A request body from data that a thread reads. `pace` changes with every chunk.
fn body(mut archive: impl Read + Send + 'static, pace: Arc<AtomicU64>) -> reqwest::Body {
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(4);
    std::thread::spawn(move || {
        loop {
            let mut buffer = vec![0; 256 * 1024];
            let piece = match archive.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => {
                    buffer.truncate(read);
                    Ok(Bytes::from(buffer))
                }
                Err(error) => Err(error),
            };
            let last = piece.is_err();
            pace.fetch_add(1, Ordering::Relaxed);
            // When the receiver stops reading, it has sent its response already.
            if sender.blocking_send(piece).is_err() || last {
                return;
            }
        }
    });
    reqwest::Body::wrap_stream(stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    }))
}

/// Ends when nothing has moved for as long as an agent may need to sync an archive to a slow disk.
async fn standstill(pace: &AtomicU64) {
    let mut before = pace.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(STANDSTILL).await;
        let now = pace.load(Ordering::Relaxed);
        if now == before {
            return;
        }
        before = now;
    }
}

/// A response body as a reader.
struct Download<'a> {
    runtime: &'a tokio::runtime::Runtime,
    response: Response,
    current: Bytes,
}

impl Read for Download<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            // Timers can only be created inside of a runtime.
            let _runtime = self.runtime.enter();
            let next = tokio::time::timeout(ANSWER, self.response.chunk());
            let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "the agent stopped sending");
            let next = self.runtime.block_on(next).map_err(late)?;
            match next.map_err(std::io::Error::other)? {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}
