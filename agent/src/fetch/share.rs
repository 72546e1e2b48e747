//! Answering members: a piece from the disk, from a flight under way, or from one that begins for their sake.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    ContentReader, Fetcher,
    desk::Errand,
    flight::{Asked, Flight, Phase},
    reader::{Landed, Source},
};
use crate::{
    peers::{
        HOLD,
        layout::Layout,
        plan::{self, Answer, Role, Standing},
        rank::Subject,
        wire::{PieceAsk, PieceHash},
    },
    store::Partial,
    types::Repository,
};

/// What a member is told.
#[derive(Debug)]
pub enum Share {
    /// The bytes, how many, and what they hash to where this node can say.
    Here(Box<ContentReader>, u64, Option<PieceHash>),
    /// On its way.
    Held {
        /// Rises with every sign of life.
        life: u64,
        /// Rises while bytes arrive.
        moved: u64,
    },
    /// Ask the next one.
    NoPart,
    /// Upstream has no ranges.
    NoRanges,
    /// Busy, or it could not be had.
    Unable,
    /// This node does not serve the registry.
    NotServed,
}

impl Fetcher {
    /// Whether this node serves a registry at all.
    pub fn serves(&self, repository: &Repository) -> bool {
        self.0.upstream.serves(&repository.registry).is_some()
    }

    /// Answers a request for a piece, at the latest after [`HOLD`].
    pub async fn share(&self, ask: &PieceAsk) -> Share {
        if !self.serves(&ask.repository) {
            return Share::NotServed;
        }
        if let Some(speed) = ask.speed {
            self.0.peers.note_speed(&ask.member, speed);
        }
        let layout = Layout::new(ask.size);
        if layout.is_too_large() || ask.piece >= layout.pieces() {
            return Share::NoPart;
        }
        let deadline = Instant::now() + HOLD;
        // A flight may end between being found and being asked.
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
        let flight = self.flight(&ask.digest);
        if let Some(landed) = flight.as_ref().and_then(|flight| landed(flight, ask, layout)) {
            return Some(if self.is_too_loaded(ask, self.0.peers.is_slow()) {
                Share::NoPart
            } else {
                self.share_landed(landed, ask, layout).await
            });
        }
        let waiting = self.0.peers.uploads().wait();
        let standing = Standing {
            has: false,
            fetching: flight.as_ref().is_some_and(|flight| flight.wants_whole()),
            higher: self.is_higher(ask, layout),
            relays: self.0.peers.config().relay && self.0.peers.is_on(),
            full: waiting.is_none(),
            loaded: false,
            slow: self.0.peers.is_slow(),
        };
        let errand = match plan::answer(ask.role, &standing) {
            Answer::NoPart => return Some(Share::NoPart),
            Answer::Busy => return Some(Share::Unable),
            Answer::Read if ask.whole => Errand::ReadAll,
            Answer::Read => Errand::Read,
            Answer::Send | Answer::Wait | Answer::Relay => Errand::Climb,
        };
        if errand != Errand::Climb && self.reads_nothing_alone(ask) {
            return Some(Share::NoRanges);
        }
        let Some(flight) = self.relay(ask) else { return Some(Share::Unable) };
        self.wait_for_piece(&flight, ask, layout, errand, deadline).await
    }

    async fn share_landed(&self, partial: Arc<Partial>, ask: &PieceAsk, layout: &Layout) -> Share {
        let (bytes, changes) = (layout.bytes(ask.piece), partial.changes());
        let hash = self.hash_of(&ask.digest, layout, ask.piece).await;
        let landed = Landed::new(partial, ask.size, changes);
        let reader = ContentReader::of_store(Source::Landed(landed), bytes.clone());
        Share::Here(Box::new(reader), bytes.end - bytes.start, hash)
    }

    /// The piece is here, and others further up are to send it.
    fn is_too_loaded(&self, ask: &PieceAsk, slow: bool) -> bool {
        let loaded = self.0.peers.uploads().queue() >= plan::QUEUE;
        let standing = Standing { has: true, loaded, slow, ..Standing::default() };
        plan::answer(ask.role, &standing) != Answer::Send
    }

    /// Upstream is known to have no ranges, and whoever asks does not know it yet.
    fn reads_nothing_alone(&self, ask: &PieceAsk) -> bool {
        if ask.whole {
            self.0.upstream.note_no_ranges(&ask.repository.registry);
        }
        !ask.whole && !self.0.upstream.has_ranges(&ask.repository.registry)
    }

    fn is_higher(&self, ask: &PieceAsk, layout: &Layout) -> bool {
        let (subject, me) = (Subject::of(&ask.digest.to_string()), self.0.peers.config());
        let part = layout.part(ask.piece);
        let height = |name: &str, zone: &str| subject.height(part, name, zone);
        height(&me.name, &me.zone) > height(&ask.member, &ask.zone)
    }

    async fn wait_for_piece(
        &self,
        flight: &Arc<Flight>,
        ask: &PieceAsk,
        layout: &Layout,
        errand: Errand,
        deadline: Instant,
    ) -> Option<Share> {
        let mut progress = flight.progress();
        let before = match flight.ask_piece(ask.piece, errand) {
            Asked::Ended => return None,
            Asked::ByNobody => return Some(Share::Unable),
            Asked::After(failures) => failures,
        };
        loop {
            let phase = progress.borrow_and_update().phase.clone();
            if let Some(landed) = landed(flight, ask, layout) {
                return Some(self.share_landed(landed, ask, layout).await);
            }
            if matches!(phase, Phase::Failed(_)) || flight.desk.failures(ask.piece) > before {
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
                    let bytes = flight.partial().map_or(0, |partial| partial.total());
                    let life = flight.desk.activity().wrapping_add(bytes);
                    return Some(Share::Held { life, moved: self.movement(&ask.digest).unwrap_or(0) });
                }
            }
        }
    }
}

/// The piece, when a flight has it.
fn landed(flight: &Flight, ask: &PieceAsk, layout: &Layout) -> Option<Arc<Partial>> {
    let partial = flight.partial().filter(|partial| partial.size() == Some(ask.size))?;
    let here = partial.gaps(layout.bytes(ask.piece)).is_empty();
    here.then(|| partial.clone())
}
