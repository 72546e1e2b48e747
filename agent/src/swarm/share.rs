//! Answers peers' requests for pieces: from the disk, from a running download, or from one that is started for them.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::context::Swarm;
use crate::{
    download::{Asked, ContentReader, Download, Landed, Phase, PieceSource, Source},
    peers::{
        HOLD,
        layout::Layout,
        plan::{self, Answer, ResponderState, Role},
        rank::Subject,
        wire::{AnnouncedHash, PieceAsk},
    },
    store::Partial,
};

/// The answer to a peer.
#[derive(Debug)]
pub enum Share {
    /// The bytes, their number, and their hash if this node has it.
    Here(Box<ContentReader>, u64, Option<AnnouncedHash>),
    /// The piece is arriving.
    Held {
        /// Rises with every sign of life.
        life: u64,
        /// Rises while bytes arrive.
        moved: u64,
    },
    /// This node takes no part: use the next peer.
    NoPart,
    /// The registry has no ranges.
    NoRanges,
    /// Busy, or the piece is not available.
    Unable,
    /// This node does not serve the registry.
    NotServed,
}

impl Swarm {
    /// Answers a request for a piece, at the latest after [`HOLD`].
    pub async fn share(&self, ask: &PieceAsk) -> Share {
        if !self.0.fetcher.serves(&ask.repository) {
            return Share::NotServed;
        }
        if let Some(speed) = ask.speed {
            self.0.peers.note_speed(&ask.peer, speed);
        }
        let layout = Layout::new(ask.size);
        if layout.is_too_large() || ask.piece >= layout.pieces() {
            return Share::NoPart;
        }
        let deadline = Instant::now() + HOLD;
        // A download may end between the lookup and the request.
        for _ in 0..3 {
            match self.share_once(ask, &layout, deadline).await {
                Some(share) => return share,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        Share::Unable
    }

    async fn share_once(&self, ask: &PieceAsk, layout: &Layout, deadline: Instant) -> Option<Share> {
        let bytes = layout.bytes(ask.piece);
        match self.0.store.blob(&ask.digest).await {
            Ok(Some(blob)) if blob.size() == ask.size => {
                if self.is_too_loaded(ask, false) {
                    return Some(Share::NoPart);
                }
                let hash = self.hash_of(&ask.digest, layout, ask.piece).await;
                let reader = ContentReader::of_store(Source::Whole(blob), bytes.clone());
                return Some(Share::Here(Box::new(reader), bytes.end - bytes.start, hash));
            }
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => return Some(Share::Unable),
        }
        let download = self.0.fetcher.download(&ask.digest);
        if let Some(landed) = download.as_ref().and_then(|download| landed(download, ask, layout)) {
            return Some(if self.is_too_loaded(ask, self.0.peers.is_slow()) {
                Share::NoPart
            } else {
                self.share_landed(landed, ask, layout).await
            });
        }
        let waiting = self.0.peers.uploads().wait();
        let state = ResponderState {
            has: false,
            fetching: download.as_ref().is_some_and(|download| download.wants_whole()),
            higher: self.is_higher(ask, layout),
            relays: self.0.peers.config().relay && self.0.peers.is_on(),
            full: waiting.is_none(),
            loaded: false,
            slow: self.0.peers.is_slow(),
        };
        let source = match plan::answer(ask.role, &state) {
            Answer::NoPart => return Some(Share::NoPart),
            Answer::Busy => return Some(Share::Unable),
            Answer::Read if ask.whole => PieceSource::WholeRegistry,
            Answer::Read => PieceSource::Registry,
            Answer::Send | Answer::Wait | Answer::Relay => PieceSource::Peers,
        };
        if source != PieceSource::Peers && self.reads_nothing_alone(ask) {
            return Some(Share::NoRanges);
        }
        let Some(download) = self.0.fetcher.carry(&ask.digest, &ask.repository, ask.size) else {
            return Some(Share::Unable);
        };
        self.wait_for_piece(&download, ask, layout, source, deadline).await
    }

    async fn share_landed(&self, partial: Arc<Partial>, ask: &PieceAsk, layout: &Layout) -> Share {
        let (bytes, changes) = (layout.bytes(ask.piece), partial.changes());
        let hash = self.hash_of(&ask.digest, layout, ask.piece).await;
        let landed = Landed::new(partial, ask.size, changes);
        let reader = ContentReader::of_store(Source::Landed(landed), bytes.clone());
        Share::Here(Box::new(reader), bytes.end - bytes.start, hash)
    }

    /// Whether the piece has arrived, but a peer further up should send it.
    fn is_too_loaded(&self, ask: &PieceAsk, slow: bool) -> bool {
        let loaded = self.0.peers.uploads().queue() >= plan::QUEUE;
        let state = ResponderState { has: true, loaded, slow, ..ResponderState::default() };
        plan::answer(ask.role, &state) != Answer::Send
    }

    /// Whether the registry has no ranges and the requester does not know it yet.
    fn reads_nothing_alone(&self, ask: &PieceAsk) -> bool {
        !ask.whole && !self.0.upstream.has_ranges(&ask.repository.registry)
    }

    fn is_higher(&self, ask: &PieceAsk, layout: &Layout) -> bool {
        let (subject, me) = (Subject::of(&ask.digest.to_string()), self.0.peers.config());
        let part = layout.part(ask.piece);
        let height = |name: &str, zone: &str| subject.height(part, name, zone);
        height(&me.name, &me.zone) > height(&ask.peer, &ask.zone)
    }

    async fn wait_for_piece(
        &self,
        download: &Arc<Download>,
        ask: &PieceAsk,
        layout: &Layout,
        source: PieceSource,
        deadline: Instant,
    ) -> Option<Share> {
        let mut progress = download.progress();
        let before = match download.ask_piece(ask.piece, source) {
            Asked::Ended => return None,
            Asked::Unhandled => return Some(Share::Unable),
            Asked::After(failures) => failures,
        };
        loop {
            let phase = progress.borrow_and_update().phase.clone();
            if let Some(landed) = landed(download, ask, layout) {
                return Some(self.share_landed(landed, ask, layout).await);
            }
            if matches!(phase, Phase::Failed(_)) || download.peer_requests.failures(ask.piece) > before {
                let ranges = ask.whole || self.0.upstream.has_ranges(&ask.repository.registry);
                return Some(if ranges || ask.role != Role::Source {
                    Share::Unable
                } else {
                    Share::NoRanges
                });
            }
            if matches!(phase, Phase::Done) {
                return None;
            }
            match tokio::time::timeout_at(deadline, progress.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Some(Share::Unable),
                Err(_) => {
                    let bytes = download.partial().map_or(0, |partial| partial.total());
                    let life = download.peer_requests.activity().wrapping_add(bytes);
                    return Some(Share::Held {
                        life,
                        moved: self.0.fetcher.movement(&ask.digest).unwrap_or(0),
                    });
                }
            }
        }
    }
}

/// The partial blob, when the piece has arrived.
fn landed(download: &Download, ask: &PieceAsk, layout: &Layout) -> Option<Arc<Partial>> {
    let partial = download.partial().filter(|partial| partial.size() == Some(ask.size))?;
    let here = partial.gaps(layout.bytes(ask.piece)).is_empty();
    here.then(|| partial.clone())
}
