//! Downloads files into the cache: streamed, resumed, retried and checked, from web servers and object stores.
//!
//! Everything that an image is made of and that lies on a server comes through here, except what registries serve.
//! A file is kept under its SHA-256 whatever checksum it was asked for with. Proxies come from the usual
//! environment variables (`HTTPS_PROXY`, `NO_PROXY`), certificates from the system or `SSL_CERT_FILE`.

use std::{fmt, sync::Arc, time::SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use reqwest::{Client, RequestBuilder, Response, StatusCode, header};
use tokio::sync::Semaphore;

use super::{
    logins::Logins,
    objects::{self, Object, ObjectError},
    part::{self, Part, PartError},
    pip,
};
use crate::{
    cache::{Cache, CacheError, Content, Shelf},
    checksum::Checksum,
    progress::{Bar, Progress, waiting},
    retry::{self, retried},
};

/// How an attempt at a download failed.
type Failed = retry::Failed<DownloadError>;

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The HTTP client cannot be made.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The server could not be reached or the transfer broke, after all attempts.
    #[error("cannot download `{url}`")]
    Network {
        /// The URL without credentials and query.
        url: String,
        /// The last failure.
        #[source]
        source: reqwest::Error,
    },
    /// The transfer stood still.
    #[error("cannot download `{url}`: no byte came for {} seconds", retry::STALL_TIMEOUT.as_secs())]
    Stalled {
        /// The URL.
        url: String,
    },
    /// The server refused.
    #[error("cannot download `{url}`: the server answers {status}{}", login_hint(*status))]
    Status {
        /// The URL.
        url: String,
        /// Its answer.
        status: StatusCode,
    },
    /// The file is not the one that was asked for.
    #[error(
        "`{url}` has the digest `{found}` instead of `{expected}`: it was changed or the digest is wrong"
    )]
    Checksum {
        /// The URL.
        url: String,
        /// What came.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// An object store does not give it.
    #[error("cannot download `{url}`")]
    Object {
        /// The URL.
        url: String,
        /// Why.
        #[source]
        source: ObjectError,
    },
    /// The file is larger than any real one.
    #[error("`{url}` is larger than {limit} bytes: refused")]
    TooLarge {
        /// The URL.
        url: String,
        /// The limit.
        limit: u64,
    },
    /// No server may be asked.
    #[error("`{url}` is not in the cache, and --offline forbids to download it")]
    Offline {
        /// The URL.
        url: String,
    },
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Transfers at once. Files come from a few servers, and each transfer that waits for one costs no more than a socket.
pub const PARALLEL: usize = 12;

/// What to do about a server that asks for a login.
fn login_hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            " (it may want a login: write one for its host into ~/.netrc, or name a file with NETRC)"
        }
        _ => "",
    }
}

/// No Spark distribution and no layer comes near this; an endless answer must not fill the disk.
pub const LIMIT: u64 = 32 << 30;

/// The HTTP client for downloads and uploads. Time-outs: connecting here, standing still at each transfer.
pub fn client() -> Result<Client, DownloadError> {
    let agent = concat!("hearth/", env!("CARGO_PKG_VERSION"));
    Client::builder()
        .user_agent(agent)
        .connect_timeout(retry::CONNECT_TIMEOUT)
        .build()
        .map_err(DownloadError::Client)
}

/// Downloads whatever an image is made of.
#[derive(Debug, Clone)]
pub struct Downloader<'a> {
    client: Client,
    cache: &'a Cache,
    progress: &'a Progress,
    offline: bool,
    logins: Arc<Logins>,
    slots: Arc<Semaphore>,
}

/// Something on a server, with user and password when it asks for them.
#[derive(Clone, Copy)]
pub struct Remote<'a> {
    /// Where it is.
    pub url: &'a str,
    /// Who asks.
    pub basic: Option<(&'a str, &'a str)>,
    /// Whether a package index has named it: the host may want the credentials of the index.
    pub of_index: bool,
}

impl fmt::Debug for Remote<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("url", &redacted(self.url)).finish_non_exhaustive()
    }
}

impl<'a> Remote<'a> {
    /// Something that everybody may read, or whoever the user's `netrc` knows.
    pub fn open(url: &'a str) -> Self {
        Self { url, basic: None, of_index: false }
    }

    /// Something that a package index has named.
    pub fn of_index(url: &'a str) -> Self {
        Self { of_index: true, ..Self::open(url) }
    }

    /// With the credentials that are known for it, unless it has some.
    fn known(self, logins: &'a Logins) -> Self {
        let login = logins.find(self.url).map(|login| (login.user.as_str(), login.password.as_str()));
        Self { basic: self.basic.or(login), ..self }
    }

    fn request(&self, client: &Client) -> RequestBuilder {
        let request = client.get(self.url);
        match self.basic {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }
}

impl<'a> Downloader<'a> {
    /// Nothing is asked yet; `offline`: nothing will be.
    pub fn new(cache: &'a Cache, progress: &'a Progress, offline: bool) -> Result<Self, DownloadError> {
        let logins = Arc::new(Logins::of_user());
        let slots = Arc::new(Semaphore::new(PARALLEL));
        Ok(Self { client: client()?, cache, progress, offline, logins, slots })
    }

    /// The user's logins, with that of pip's index where it matters.
    async fn logins(&self, remote: Remote<'_>) -> Arc<Logins> {
        let known = self.logins.clone();
        if !remote.of_index || known.find(remote.url).is_some() {
            return known;
        }
        match pip::index().await {
            None => known,
            Some(index) => {
                let mut logins = Logins::clone(&known);
                logins.add_index(&index);
                Arc::new(logins)
            }
        }
    }

    /// Downloads a file with a known checksum, unless the cache has it.
    pub async fn fetch(&self, remote: Remote<'_>, expected: Checksum) -> Result<Content, DownloadError> {
        if let Some(content) = part::known(self.cache, Shelf::Files, expected) {
            return Ok(content);
        }
        self.refuse_offline(remote.url)?;
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let mut part = Part::open(self.cache, Shelf::Files, expected).await?;
        if let Some(content) = part.done()? {
            return Ok(content);
        }
        let logins = self.logins(remote).await;
        let remote = remote.known(&logins);
        let what = format!("the download of `{}`", redacted(remote.url));
        let bar = self.progress.bytes(&format!("downloading {}", last_segment(remote.url)), 0);
        if objects::is_object(remote.url) {
            retried(&what, async || transfer_object(remote.url, &mut part, &bar).await).await?;
        } else {
            retried(&what, async || transfer(&self.client, remote, &mut part, &bar).await).await?;
        }
        part.finish().map_err(|error| match error {
            PartError::Checksum(found) => DownloadError::Checksum {
                url: redacted(remote.url),
                found: found.to_string(),
                expected: expected.to_string(),
            },
            PartError::Cache(error) => error.into(),
        })
    }

    /// Reads a small file into memory; `None` when the server does not have it. With `patient` a failure that may pass
    /// is waited out; without, there is another server to ask.
    pub async fn small(
        &self,
        remote: Remote<'_>,
        limit: usize,
        patient: bool,
    ) -> Result<Option<Vec<u8>>, DownloadError> {
        self.refuse_offline(remote.url)?;
        let remote = remote.known(&self.logins);
        let read = async || {
            let mut response = answer(&self.client, remote, None).await?;
            let mut bytes = Vec::new();
            while let Some(chunk) = chunk(&mut response, remote.url).await? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > limit {
                    let url = redacted(remote.url);
                    return Err(Failed::Final(DownloadError::TooLarge { url, limit: limit as u64 }));
                }
            }
            Ok(bytes)
        };
        let what = format!("the download of `{}`", redacted(remote.url));
        let bytes =
            if patient { retried(&what, read).await } else { read().await.map_err(Failed::into_error) };
        match bytes {
            Ok(bytes) => Ok(Some(bytes)),
            Err(DownloadError::Status { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn refuse_offline(&self, url: &str) -> Result<(), DownloadError> {
        if self.offline { Err(DownloadError::Offline { url: redacted(url) }) } else { Ok(()) }
    }
}

/// Asks for a file, from an offset when there is one; gives any answer with bytes in it.
async fn answer(client: &Client, remote: Remote<'_>, from: Option<u64>) -> Result<Response, Failed> {
    let url = remote.url;
    let mut request = remote.request(client);
    if let Some(from) = from {
        request = request.header(header::RANGE, format!("bytes={from}-"));
    }
    let what = format!("`{}`", redacted(url));
    let response =
        waiting(&what, bounded(request.send(), url)).await?.map_err(|error| network(url, error))?;
    let status = response.status();
    if status.is_success() || (from.is_some() && status == StatusCode::RANGE_NOT_SATISFIABLE) {
        return Ok(response);
    }
    let error = DownloadError::Status { url: redacted(url), status };
    let asked = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let asked = oci::retry::retry_after(asked, "", SystemTime::now());
    let again = retry::worth_retrying(status.as_u16());
    Err(if again { Failed::Again(error, asked) } else { Failed::Final(error) })
}

async fn chunk(response: &mut Response, url: &str) -> Result<Option<Bytes>, Failed> {
    bounded(response.chunk(), url).await?.map_err(|error| network(url, error))
}

fn network(url: &str, source: reqwest::Error) -> Failed {
    Failed::Again(DownloadError::Network { url: redacted(url), source: source.without_url() }, None)
}

fn stalled(url: &str) -> Failed {
    Failed::Again(DownloadError::Stalled { url: redacted(url) }, None)
}

async fn transfer(client: &Client, remote: Remote<'_>, part: &mut Part, bar: &Bar) -> Result<(), Failed> {
    let from = Some(part.length()).filter(|length| *length > 0);
    let mut response = answer(client, remote, from).await?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT if starts_at(&response) == Some(part.length()) => {}
        StatusCode::OK => part.restart().map_err(|error| Failed::Final(error.into()))?,
        // What is there already is more than the file has: it cannot be its beginning.
        status => {
            part.restart().map_err(|error| Failed::Final(error.into()))?;
            let url = redacted(remote.url);
            return Err(Failed::Again(DownloadError::Status { url, status }, None));
        }
    }
    if let Some(rest) = response.content_length() {
        bar.expect(part.length() + rest);
    }
    bar.set(part.length());
    while let Some(chunk) = chunk(&mut response, remote.url).await? {
        append(part, &chunk, remote.url, bar)?;
    }
    Ok(())
}

fn append(part: &mut Part, chunk: &[u8], url: &str, bar: &Bar) -> Result<(), Failed> {
    part.write(chunk).map_err(|error| Failed::Final(error.into()))?;
    bar.advance(chunk.len() as u64);
    if part.length() > LIMIT {
        return Err(Failed::Final(DownloadError::TooLarge { url: redacted(url), limit: LIMIT }));
    }
    Ok(())
}

async fn transfer_object(url: &str, part: &mut Part, bar: &Bar) -> Result<(), Failed> {
    let failed = |source: ObjectError| {
        let again = source.may_pass();
        let error = DownloadError::Object { url: redacted(url), source };
        if again { Failed::Again(error, None) } else { Failed::Final(error) }
    };
    let object = bounded(Object::find(url), url).await?.map_err(failed)?;
    if part.length() > object.size {
        part.restart().map_err(|error| Failed::Final(error.into()))?;
    }
    bar.expect(object.size);
    bar.set(part.length());
    let mut stream = bounded(object.read(part.length()), url).await?.map_err(failed)?;
    while let Some(chunk) = bounded(stream.try_next(), url).await?.map_err(failed)? {
        append(part, &chunk, url, bar)?;
    }
    Ok(())
}

/// Waits for a step of a transfer, but not for ever.
async fn bounded<T>(step: impl Future<Output = T>, url: &str) -> Result<T, Failed> {
    tokio::time::timeout(retry::STALL_TIMEOUT, step).await.map_err(|_| stalled(url))
}

fn starts_at(response: &Response) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// A URL as it may be shown: credentials and signed query parameters stay out of logs.
pub fn redacted(url: &str) -> String {
    let Ok(mut parsed) = reqwest::Url::parse(url) else { return "<not a URL>".to_owned() };
    // None can fail for the URLs that get here. A container of `abfs` stands where others have the user.
    if !objects::is_object(url) {
        let _ = parsed.set_username("");
    }
    let _ = parsed.set_password(None);
    parsed.set_query(None);
    parsed.set_fragment(None);
    parsed.to_string()
}

/// The file name in a URL.
pub fn last_segment(url: &str) -> String {
    let clean = redacted(url);
    clean.rsplit('/').next().unwrap_or(&clean).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_urls_are_not_shown() {
        let url = "https://user:secret@files.example.com/a/pyspark-3.5.9.tar.gz?X-Signature=abc#part";
        assert_eq!(redacted(url), "https://files.example.com/a/pyspark-3.5.9.tar.gz");
        assert_eq!(last_segment(url), "pyspark-3.5.9.tar.gz");
        assert_eq!(redacted("not a url"), "<not a URL>");
        let object = "abfs://container@account.dfs.core.windows.net/a";
        assert_eq!(redacted(object), object);
        assert_eq!(redacted("hdfs://user:secret@name:8020/a"), "hdfs://user@name:8020/a");
    }
}
