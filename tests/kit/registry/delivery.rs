//! How an answer's body reaches the wire: from memory or straight from a file, at a pace, with the blemishes a test
//! asked for. Both writers (hyper for honest answers, raw for broken ones) pull from the same [`Flow`].

use std::{io, os::unix::fs::FileExt, path::PathBuf, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::time::Instant;

use super::log::Entry;

/// One blocking read of a blob file.
const READ: usize = 256 << 10;
/// The largest piece handed to the connection at once.
const PIECE: usize = 64 << 10;

/// What the body is made of.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Bytes(Bytes),
    File { path: PathBuf, start: u64, length: u64 },
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { length, .. } => *length,
        }
    }
}

/// A complete answer before delivery. `Content-Length` is not among the headers: delivery adds what it will claim.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
}

impl Reply {
    pub(super) fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), content: Content::Bytes(Bytes::new()) }
    }

    /// An error with the body of the distribution protocol.
    pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Self {
        let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string();
        Self::new(status).header(header::CONTENT_TYPE, "application/json").bytes(body)
    }

    /// Adds a header; a value that is no header value is a mistake in the test and panics.
    pub(super) fn header(mut self, name: impl header::IntoHeaderName, value: &str) -> Self {
        self.headers.insert(name, HeaderValue::from_str(value).expect("header values in tests are ASCII"));
        self
    }

    pub(super) fn bytes(mut self, bytes: impl Into<Bytes>) -> Self {
        self.content = Content::Bytes(bytes.into());
        self
    }
}

/// How a connection ends after a broken answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum End {
    #[default]
    Fin,
    Reset,
}

/// What `Content-Length` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Declared {
    #[default]
    Exact,
    /// Off by so much.
    Off(i64),
    /// Not there: chunked transfer.
    Absent,
}

/// Pace and blemishes of one delivery.
#[derive(Clone, Debug, Default)]
pub(super) struct Delivery {
    /// Bytes per second.
    pub(super) rate: Option<u64>,
    /// Pause once after so many bytes.
    pub(super) stall: Option<(u64, Duration)>,
    /// Flip the byte at this offset of the body.
    pub(super) corrupt: Option<u64>,
    /// Stop after so many bytes.
    pub(super) cut: Option<u64>,
    /// Send so many bytes past the end.
    pub(super) extra: usize,
    pub(super) declared: Declared,
    pub(super) end: End,
    /// Send with `Content-Encoding: gzip`.
    pub(super) gzip: bool,
}

impl Delivery {
    /// Whether hyper would refuse to send this.
    pub(super) fn needs_raw(&self) -> bool {
        self.cut.is_some() || self.extra > 0 || matches!(self.declared, Declared::Off(_))
    }
}

/// The bytes of one body, in order and in time.
pub(super) struct Flow {
    content: Content,
    delivery: Delivery,
    entry: Arc<Entry>,
    position: u64,
    buffer: Bytes,
    started: Instant,
    encoder: Option<flate2::write::GzEncoder<Vec<u8>>>,
    done: bool,
}

impl Flow {
    pub(super) fn new(content: Content, delivery: Delivery, entry: Arc<Entry>) -> Self {
        let encoder =
            delivery.gzip.then(|| flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        Self {
            content,
            delivery,
            entry,
            position: 0,
            buffer: Bytes::new(),
            started: Instant::now(),
            encoder,
            done: false,
        }
    }

    /// The next bytes to send, or `None` at the (perhaps early) end. Counts them as sent.
    pub(super) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let piece = match self.next_plain().await {
            Ok(Some(piece)) => Some(self.encode(piece)),
            Ok(None) => self.finish(),
            Err(error) => return Some(Err(error)),
        }?;
        self.entry.add_sent(piece.len());
        if self.position == self.content.len() && self.encoder.is_none() && self.delivery.extra == 0 {
            self.entry.set_finished();
        }
        Some(Ok(piece))
    }

    fn encode(&mut self, piece: Bytes) -> Bytes {
        let Some(encoder) = &mut self.encoder else { return piece };
        io::Write::write_all(encoder, &piece).expect("writing to memory");
        io::Write::flush(encoder).expect("writing to memory");
        Bytes::from(std::mem::take(encoder.get_mut()))
    }

    fn finish(&mut self) -> Option<Bytes> {
        if self.done || self.position < self.content.len() {
            return None;
        }
        self.done = true;
        self.entry.set_finished();
        if let Some(encoder) = self.encoder.take() {
            return Some(Bytes::from(encoder.finish().expect("writing to memory")));
        }
        (self.delivery.extra > 0).then(|| Bytes::from(vec![b'x'; self.delivery.extra]))
    }

    async fn next_plain(&mut self) -> io::Result<Option<Bytes>> {
        let mut stop = self.content.len().min(self.delivery.cut.unwrap_or(u64::MAX));
        if let Some((after, pause)) = self.delivery.stall {
            if self.position >= after {
                self.delivery.stall = None;
                tokio::time::sleep(pause).await;
            } else {
                stop = stop.min(after);
            }
        }
        if self.position >= stop {
            return Ok(None);
        }
        if self.buffer.is_empty() {
            self.buffer = self.read().await?;
        }
        let room = usize::try_from(stop - self.position).unwrap_or(usize::MAX);
        let mut piece = self.buffer.split_to(self.pace().min(room).min(self.buffer.len()));
        if let Some(offset) = self.delivery.corrupt.and_then(|at| at.checked_sub(self.position)) {
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            if offset < piece.len() {
                let mut broken = BytesMut::from(piece.as_ref());
                broken[offset] ^= 0xff;
                piece = broken.freeze();
            }
        }
        self.position += piece.len() as u64;
        if let Some(rate) = self.delivery.rate {
            // The piece leaves when a link of this speed would have carried its last byte.
            let due = Duration::from_nanos(self.position.saturating_mul(1_000_000_000) / rate.max(1));
            tokio::time::sleep_until(self.started + due).await;
        }
        Ok(Some(piece))
    }

    /// Bytes per piece: about twenty pieces a second when paced slowly.
    fn pace(&self) -> usize {
        let piece = self.delivery.rate.map_or(PIECE as u64, |rate| (rate / 20).clamp(1, PIECE as u64));
        usize::try_from(piece).unwrap_or(PIECE)
    }

    async fn read(&self) -> io::Result<Bytes> {
        match &self.content {
            Content::Bytes(bytes) => Ok(bytes.slice(usize::try_from(self.position).unwrap_or(usize::MAX)..)),
            Content::File { path, start, length } => {
                let (path, offset) = (path.clone(), start + self.position);
                let want = usize::try_from(length - self.position).unwrap_or(READ).min(READ);
                tokio::task::spawn_blocking(move || {
                    let mut buffer = vec![0; want];
                    std::fs::File::open(&path)?.read_exact_at(&mut buffer, offset)?;
                    Ok(Bytes::from(buffer))
                })
                .await
                .map_err(io::Error::other)?
            }
        }
    }
}
