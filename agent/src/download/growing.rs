//! A blob that is read while it arrives: when its first byte may be sent, and up to which byte the others may.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    error::FetchError,
    phase::{Phase, Progress},
    state::Download,
    subscribers::Subscriber,
};
use crate::{
    limits::download::reader::HELD_BACK,
    store::{Blob, Partial},
};

/// Blobs up to this size are sent only when they are verified, as configurations are.
const SMALL: u64 = HELD_BACK;

/// What can be read of a download.
#[derive(Debug)]
pub(super) enum Ready {
    /// The blob was in the store.
    Whole(Blob),
    /// The blob is arriving, or has arrived.
    Growing(Growing),
}

/// A blob that is arriving: its partial file and the download's progress.
#[derive(Debug)]
pub(crate) struct Growing {
    pub(super) partial: Arc<Partial>,
    progress: watch::Receiver<Progress>,
    pub(super) size: u64,
    subscriber: Subscriber,
}

/// Waits until bytes can be sent and a source has started to send; for a small blob or a configuration, until it is
/// verified.
pub(super) async fn ready(download: &Download, subscriber: Subscriber) -> Result<Ready, FetchError> {
    let mut progress = download.progress();
    loop {
        let phase = progress.borrow_and_update().phase.clone();
        if let Some(blob) = download.found() {
            return Ok(Ready::Whole(blob.clone()));
        }
        let sized = download.partial().and_then(|partial| Some((partial, partial.size()?)));
        if let Some((partial, size)) = sized
            && (subscriber.is_served_by(partial, size)
                || may_start(download, &phase, partial, size, subscriber.first(size)))
        {
            return Ok(Ready::Growing(Growing { partial: partial.clone(), progress, size, subscriber }));
        }
        if let Phase::Failed(error) = phase {
            return Err(error);
        }
        if progress.changed().await.is_err() {
            return Err(FetchError::Stopping);
        }
    }
}

/// Whether the response header may be sent: the byte at `first` can follow at once.
fn may_start(download: &Download, phase: &Phase, partial: &Partial, size: u64, first: u64) -> bool {
    match phase {
        Phase::Verified | Phase::Done => true,
        Phase::Streaming => {
            let whole_first = size <= SMALL || !download.may_be_layer();
            !whole_first && first < size.saturating_sub(HELD_BACK) && partial.end_from(first) > first
        }
        Phase::Connecting | Phase::Failed(_) => false,
    }
}

impl Growing {
    /// Waits until bytes after `position` may be sent, and returns the end of the sendable bytes. Ends because every
    /// download ends.
    pub(super) async fn wait_past(&mut self, position: u64) -> Result<u64, FetchError> {
        loop {
            let phase = self.progress.borrow_and_update().phase.clone();
            let until = sendable(&phase, self.partial.end_from(position), self.size);
            if until > position {
                self.subscriber.streams();
                return Ok(until);
            }
            if let Phase::Failed(error) = phase {
                return Err(error);
            }
            self.subscriber.reached(position);
            if self.progress.changed().await.is_err() {
                return Err(FetchError::Stopping);
            }
        }
    }
}

/// The end of the sendable bytes, when all bytes up to `end` have arrived. Pure.
fn sendable(phase: &Phase, end: u64, size: u64) -> u64 {
    match phase {
        Phase::Verified | Phase::Done => size,
        // The bytes are wrong, or not known to be right: nothing more is sent.
        Phase::Failed(FetchError::Corrupt { .. }) => 0,
        Phase::Connecting | Phase::Streaming | Phase::Failed(_) => end.min(size.saturating_sub(HELD_BACK)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Digest, Mismatch};

    #[test]
    fn the_end_is_held_back_until_the_digest_matched() {
        let size = 10 * HELD_BACK;
        assert_eq!(sendable(&Phase::Streaming, 100, size), 100);
        assert_eq!(sendable(&Phase::Streaming, size, size), size - HELD_BACK);
        assert_eq!(sendable(&Phase::Verified, size, size), size);
        assert_eq!(sendable(&Phase::Streaming, 50, 50), 0);
        assert_eq!(sendable(&Phase::Failed(FetchError::Stopping), size, size), size - HELD_BACK);
        let mismatch = Arc::new(Mismatch { expected: Digest::of(b"a"), found: Digest::of(b"b") });
        let corrupt = FetchError::Corrupt { registry: "r".parse().unwrap(), origins: Vec::new(), mismatch };
        assert_eq!(sendable(&Phase::Failed(corrupt), size, size), 0);
    }
}
