/// Of `peers/dns.rs`.
pub(crate) mod dns {
    use std::time::Duration;

    /// Between two questions.
    pub(crate) const EVERY: Duration = Duration::from_secs(10);

    /// Longest wait for the resolver.
    pub(crate) const LIMIT: Duration = Duration::from_secs(5);

    /// Agents asked at once who they are.
    pub(crate) const AT_ONCE: usize = 64;

    /// Addresses that are asked again who they are, a few each time: another agent may have taken one over.
    pub(crate) const AGAIN: usize = 16;
}

/// Of `peers/health.rs`.
pub(crate) mod health {
    use std::time::Duration;

    /// After the first failure.
    pub(crate) const FIRST: Duration = Duration::from_secs(1);

    /// After many.
    pub(crate) const LONGEST: Duration = Duration::from_mins(5);

    /// After "busy".
    pub(crate) const BUSY: Duration = Duration::from_millis(500);

    /// After wrong bytes.
    pub(crate) const LIE: Duration = Duration::from_mins(10);

    /// Peers remembered before those whose time is over are dropped.
    pub(crate) const MOST: usize = 16_384;
}

/// Of `peers/speed.rs`.
pub(crate) mod speed {
    use std::time::Duration;

    /// A node below this share of the median speed of others is slow.
    pub(crate) const SHARE: f64 = 0.3;

    /// Other peers whose speed must be known before this node calls itself slow.
    pub(crate) const ENOUGH: usize = 4;

    /// Bytes are counted for so long at least before they are a speed.
    pub(crate) const WINDOW: Duration = Duration::from_millis(250);

    /// Bytes of a window that do not count: what a limited link lets through at once after a pause, and what lay in buffers.
    pub(crate) const BURST: u64 = 256 * 1024;

    /// A longer pause in the middle of a window makes it no measure of the link.
    pub(crate) const PAUSE: Duration = Duration::from_millis(400);

    /// Windows measured before this node calls itself slow.
    pub(crate) const WINDOWS: u32 = 3;

    /// A node whose link is full takes others for dead. One that only waits for others gets little too, and reaches all of them: so
    /// many peers must have seemed dead, within so long, before this node calls itself slow.
    pub(crate) const SILENT_PEERS: usize = 2;

    pub(crate) const SILENT_SPAN: Duration = Duration::from_secs(5);

    /// After so long an earlier speed counts half: links change.
    pub(crate) const HALF_LIFE: Duration = Duration::from_mins(1);

    /// For how long what a peer said of itself counts.
    pub(crate) const MEMORY: Duration = Duration::from_mins(5);

    /// Peers remembered.
    pub(crate) const MOST: usize = 16_384;

    /// Notes of other peers between two looks at their median.
    pub(crate) const RENEW: u32 = 8;
}

/// Of `peers/quorum.rs`.
pub(crate) mod quorum {
    /// Peers chosen for each one that has to agree: some do not know the tag, some are gone.
    pub(crate) const CHOSEN_PER_VOTE: usize = 3;
}

/// Of `peers/client.rs`.
pub(crate) mod client {
    use std::time::Duration;

    /// Longest wait for a connection: peers are a few milliseconds away, and a dead one is met on many paths.
    pub const CONNECT: Duration = Duration::from_millis(300);

    /// The same from a node whose link is slow and full: packets wait in front of it, and every peer seems to be away.
    pub const SLOW_CONNECT: Duration = Duration::from_secs(5);

    /// For how long a peer holds a request for a piece that is on its way, before it says so.
    pub const HOLD: Duration = Duration::from_secs(1);

    /// Longest wait for the header of an answer beyond [`HOLD`].
    pub const HEADER: Duration = Duration::from_secs(1);

    /// So much longer may the header of an answer take then.
    pub const SLOW_HEADER: Duration = Duration::from_secs(5);

    /// Longest silence inside a body.
    pub(crate) const IDLE: Duration = Duration::from_secs(3);

    /// Longest wait for a manifest or a tag resolution: the peer may have to request it from the registry first.
    pub(crate) const RESOLVE: Duration = Duration::from_secs(2);

    /// Answers about a peer or a tag are small.
    pub(crate) const MAX_ANSWER_BYTES: usize = 16 * 1024;
}

/// Of `peers/uploads.rs`.
pub(crate) mod uploads {
    use std::time::Duration;

    /// Bytes that may go out at once after a quiet time, as time at the configured rate.
    pub(crate) const BURST: Duration = Duration::from_millis(100);

    /// Requests that may wait for a piece or for their turn at once; further ones are told that this node is busy.
    pub(crate) const WAITING: usize = 1_024;

    /// A piece that takes so long, and so many times what pieces take as a rule, makes room for another. Those that are sent
    /// without a place are bounded by connections.
    pub(crate) const SLOW: Duration = Duration::from_secs(2);

    pub(crate) const TIMES: u32 = 4;
}

/// Of `peers/membership.rs`.
pub(crate) mod membership {
    /// Peers that can replace each other as readers of a segment. When all of them fail, the node requests it from the registry.
    pub const SUBSTITUTES: usize = 8;
}

/// Of `peers/layout.rs`.
pub(crate) mod layout {
    /// Pieces of a blob of middling size.
    pub(crate) const PIECES: u64 = 256;

    /// Bytes of the smallest and of the largest piece; the last one of a blob may be shorter.
    pub(crate) const PIECE: (u64, u64) = (1024 * 1024, 4 * 1024 * 1024);

    /// Pieces that a node may ask ahead of the first one it misses.
    pub const WINDOW: u64 = 128;

    /// Fetchers of a blob.
    pub const SLOTS: u64 = 8;

    /// Largest blob that peers share, in bytes.
    pub(crate) const LARGEST: u64 = 1 << 40;
}

/// Of `peers/pace.rs`.
pub(crate) mod pace {
    use std::time::Duration;

    /// A peer that sends at less than this share of the median rate is slow.
    pub(crate) const SHARE: f64 = 0.4;

    /// Peers whose rate has to be known before any of them is called slow.
    pub(crate) const ENOUGH: usize = 4;

    /// A slow peer is asked every so many times.
    pub(crate) const AGAIN: u32 = 16;

    /// What the newest rate weighs.
    pub(crate) const WEIGHT: f64 = 0.3;

    /// Notes between two looks at the median.
    pub(crate) const RENEW: u32 = 8;

    /// How long a transfer is watched before it is called slow.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

    /// Peers remembered; further ones are taken for fast.
    pub(crate) const MOST: usize = 16_384;
}

/// Of `peers/plan.rs`.
pub(crate) mod plan {
    /// Pieces under way to others from which on a parent sends whoever asks for one further up. Loads are never even, and a
    /// node whose link is slow has this many waiting when others have none (figures: `bench/results/sim-forest.json`).
    pub const QUEUE: usize = 8;
}

/// Of `peers/tls.rs`.
pub(crate) mod tls {
    use std::time::Duration;

    /// How often the files are read again. Kubernetes brings a changed secret into a pod within about a minute.
    pub(crate) const RELOAD: Duration = Duration::from_secs(30);
}
