//! Small parts of uploads: bodies from disk, and what headers of answers say.

use std::{
    io::{self, Read},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use reqwest::{Response, Url, header};

use super::session::Moved;
use crate::{cache::BUFFER, digest::Digest};

/// The largest chunk that GHCR accepts.
const CHUNK: u64 = 4 << 20;

/// The longest chunk that a registry may ask for; those of object stores want 5 MiB.
const LONGEST_CHUNK: u64 = 1 << 30;

/// How long chunks are: [`CHUNK`], or what the registry asks for.
pub(super) fn chunk_length(answer: &Response) -> u64 {
    let asked =
        answer.headers().get("oci-chunk-min-length").and_then(|value| value.to_str().ok()?.parse().ok());
    asked.unwrap_or(CHUNK).clamp(CHUNK, LONGEST_CHUNK)
}

/// The last byte that a registry says it has of an upload (`Range: 0-LAST`).
pub(super) fn last_byte(answer: &Response) -> Option<u64> {
    let range = answer.headers().get(header::RANGE)?.to_str().ok()?;
    range.trim_start_matches("bytes=").split_once('-')?.1.parse().ok()
}

pub(super) fn with_digest(mut location: Url, digest: Digest) -> Url {
    location.query_pairs_mut().append_pair("digest", &digest.to_string());
    location
}

/// A part of a file as a stream. Reads block for a page-cache copy of a few hundred kilobytes.
pub(super) fn pieces(
    file: impl Read + Send + 'static,
    length: u64,
    moved: Arc<Moved>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((file, length), move |(mut file, left)| {
        let moved = moved.clone();
        async move {
            if left == 0 {
                return Ok(None);
            }
            let mut buffer = vec![0; BUFFER.min(usize::try_from(left).unwrap_or(BUFFER))];
            file.read_exact(&mut buffer)?;
            let count = buffer.len() as u64;
            moved.advance(count);
            Ok(Some((Bytes::from(buffer), (file, left - count))))
        }
    })
}
