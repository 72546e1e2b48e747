//! Downloads large files into the cache: streamed, resumed, retried and checked.
//!
//! A download grows in `downloads-v1/<key>.part` and is moved to its shelf only when its SHA-256 is right.
//! What an interrupted run left is hashed again and continued with a `Range` request. Two processes that want
//! the same file take turns on a lock and the second finds the work done. Proxies come from the usual
//! environment variables (`HTTPS_PROXY`, `NO_PROXY`), certificates from the system or `SSL_CERT_FILE`.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use reqwest::{Client, Response, StatusCode, header};

use crate::{
    cache::{BUFFER, Cache, CacheError, Content, Shelf},
    digest::{Digest, Hasher},
    progress::{Bar, Progress},
    retry,
};

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
    #[error("cannot download `{url}`: the server answers {status}")]
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
    Digest {
        /// The URL.
        url: String,
        /// What came.
        found: Digest,
        /// What was expected.
        expected: Digest,
    },
    /// The file is larger than any real one.
    #[error("`{url}` is larger than {limit} bytes: refused")]
    TooLarge {
        /// The URL.
        url: String,
        /// The limit.
        limit: u64,
    },
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
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

/// Downloads a file with a known digest, unless the cache has it.
pub async fn fetch(
    client: &Client,
    cache: &Cache,
    url: &str,
    expected: Digest,
    progress: &Progress,
) -> Result<Content, DownloadError> {
    let mut part = Part::open(cache, Shelf::Files, expected).await?;
    if let Some(content) = part.done()? {
        return Ok(content);
    }
    let bar = progress.bytes(&format!("downloading {}", last_segment(url)), 0);
    let mut attempt = 1;
    loop {
        let (error, asked) = match transfer(client, url, &mut part, &bar).await {
            Ok(()) => break,
            Err(Failed::Final(error)) => return Err(error),
            Err(Failed::Again(error, asked)) => (error, asked),
        };
        tracing::warn!(attempt, error = %error, "the download broke off; it will be continued");
        if !retry::pause(attempt, asked).await {
            return Err(error);
        }
        attempt += 1;
    }
    part.finish(expected).map_err(|error| match error {
        PartError::Digest(found) => DownloadError::Digest { url: redacted(url), found, expected },
        PartError::Cache(error) => error.into(),
    })
}

enum Failed {
    Final(DownloadError),
    Again(DownloadError, Option<Duration>),
}

async fn transfer(client: &Client, url: &str, part: &mut Part, bar: &Bar) -> Result<(), Failed> {
    let network = |source: reqwest::Error| {
        Failed::Again(DownloadError::Network { url: redacted(url), source: source.without_url() }, None)
    };
    let stalled = |_| Failed::Again(DownloadError::Stalled { url: redacted(url) }, None);
    let mut request = client.get(url);
    if part.length() > 0 {
        request = request.header(header::RANGE, format!("bytes={}-", part.length()));
    }
    let answer = tokio::time::timeout(retry::STALL_TIMEOUT, request.send()).await.map_err(stalled)?;
    let mut response = answer.map_err(network)?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT if starts_at(&response) == Some(part.length()) => {}
        StatusCode::OK => part.restart().map_err(|error| Failed::Final(error.into()))?,
        // What is there already is more than the file has: it cannot be its beginning.
        StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT => {
            part.restart().map_err(|error| Failed::Final(error.into()))?;
            let status = response.status();
            return Err(Failed::Again(DownloadError::Status { url: redacted(url), status }, None));
        }
        status => {
            let error = DownloadError::Status { url: redacted(url), status };
            let asked = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let asked = asked.and_then(|value| retry::retry_after(value, SystemTime::now()));
            let again = retry::worth_retrying(status.as_u16());
            return Err(if again { Failed::Again(error, asked) } else { Failed::Final(error) });
        }
    }
    if let Some(rest) = response.content_length() {
        bar.expect(part.length() + rest);
    }
    bar.set(part.length());
    loop {
        let chunk = tokio::time::timeout(retry::STALL_TIMEOUT, response.chunk()).await.map_err(stalled)?;
        let Some(chunk) = chunk.map_err(network)? else { return Ok(()) };
        part.write(&chunk).map_err(|error| Failed::Final(error.into()))?;
        bar.advance(chunk.len() as u64);
        if part.length() > LIMIT {
            return Err(Failed::Final(DownloadError::TooLarge { url: redacted(url), limit: LIMIT }));
        }
    }
}

fn starts_at(response: &Response) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// A URL as it may be shown: credentials and signed query parameters stay out of logs.
pub fn redacted(url: &str) -> String {
    let Ok(mut parsed) = reqwest::Url::parse(url) else { return "<not a URL>".to_owned() };
    // Neither can fail for the http URLs that get here.
    let _ = parsed.set_username("");
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

/// A partly downloaded file, locked against other processes.
#[derive(Debug)]
pub struct Part {
    cache: Cache,
    shelf: Shelf,
    expected: Digest,
    path: PathBuf,
    file: File,
    hasher: Hasher,
}

/// Why a finished download cannot be kept.
#[derive(Debug)]
pub enum PartError {
    /// It is something else.
    Digest(Digest),
    /// The cache failed.
    Cache(CacheError),
}

impl Part {
    /// Opens what is there and takes its lock. Waits while another process downloads the same file.
    pub async fn open(cache: &Cache, shelf: Shelf, expected: Digest) -> Result<Self, CacheError> {
        let path = cache.download_path(&format!("{shelf:?} {expected}"));
        let fault = |source| cache.fault("open", &path, source);
        let file = loop {
            let mut options = OpenOptions::new();
            let file =
                options.read(true).write(true).create(true).truncate(false).open(&path).map_err(fault)?;
            let locked = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(source)) => return Err(fault(source)),
            };
            // A file that another process has finished and moved away is no longer behind this name.
            let current =
                std::fs::metadata(&path).ok().map(|meta| std::os::unix::fs::MetadataExt::ino(&meta));
            let ours = std::os::unix::fs::MetadataExt::ino(&file.metadata().map_err(fault)?);
            if locked && current == Some(ours) {
                break file;
            }
            if !locked {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let mut part = Self {
            cache: cache.clone(),
            shelf,
            expected,
            path: path.clone(),
            file,
            hasher: Hasher::default(),
        };
        part.rehash().map_err(fault)?;
        Ok(part)
    }

    fn rehash(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = self.file.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            self.hasher.update(&buffer[..count]);
        }
    }

    /// Whether the whole file is on its shelf already; drops the empty part file then.
    pub fn done(&self) -> Result<Option<Content>, CacheError> {
        let path = self.cache.path(self.shelf, &self.expected);
        let Ok(meta) = std::fs::metadata(&path) else { return Ok(None) };
        if meta.len() == 0 && self.expected != Digest::of(b"") {
            return Ok(None);
        }
        std::fs::remove_file(&self.path).map_err(|source| self.cache.fault("remove", &self.path, source))?;
        Ok(Some(Content { digest: self.expected, size: meta.len() }))
    }

    /// Bytes that are there.
    pub fn length(&self) -> u64 {
        self.hasher.length()
    }

    /// Forgets what is there.
    pub fn restart(&mut self) -> Result<(), CacheError> {
        self.hasher = Hasher::default();
        let emptied = self.file.set_len(0).and_then(|()| io::Seek::rewind(&mut self.file));
        emptied.map_err(|source| self.cache.fault("empty", &self.path, source))
    }

    /// Appends bytes. The write blocks; at a few hundred kilobytes of page cache that is microseconds.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|source| self.cache.fault("write", &self.path, source))
    }

    /// Checks the digest and puts the file on its shelf; a wrong one is removed.
    pub fn finish(self, expected: Digest) -> Result<Content, PartError> {
        let size = self.hasher.length();
        let found = self.hasher.finish();
        if found != expected {
            // Best effort: the next run finds a wrong digest again at worst.
            let _ = std::fs::remove_file(&self.path);
            return Err(PartError::Digest(found));
        }
        let target = self.cache.path(self.shelf, &expected);
        let fault = |source| PartError::Cache(self.cache.fault("keep", &target, source));
        self.file.sync_all().map_err(fault)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o444);
        self.file.set_permissions(mode).map_err(fault)?;
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(fault)?;
        }
        std::fs::rename(&self.path, &target).map_err(fault)?;
        Ok(Content { digest: expected, size })
    }
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
    }

    #[tokio::test]
    async fn an_interrupted_download_is_continued_and_a_wrong_one_removed() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let expected = Digest::of(b"spark");
        let mut part = Part::open(&cache, Shelf::Files, expected).await.unwrap();
        part.write(b"spa").unwrap();
        drop(part);
        let mut part = Part::open(&cache, Shelf::Files, expected).await.unwrap();
        assert_eq!(part.length(), 3);
        part.write(b"rk").unwrap();
        let content = part.finish(expected).unwrap();
        assert_eq!(content, Content { digest: expected, size: 5 });
        let again = Part::open(&cache, Shelf::Files, expected).await.unwrap();
        assert_eq!(again.done().unwrap(), Some(content));

        let other = Digest::of(b"other");
        let mut part = Part::open(&cache, Shelf::Files, other).await.unwrap();
        part.write(b"wrong").unwrap();
        assert!(matches!(part.finish(other), Err(PartError::Digest(found)) if found == Digest::of(b"wrong")));
        assert_eq!(Part::open(&cache, Shelf::Files, other).await.unwrap().length(), 0);
    }
}
