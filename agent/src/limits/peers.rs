/// Of `peers/dns.rs`.
pub(crate) mod dns {
    use std::time::Duration;

    /// Interval between two lookups.
    pub(crate) const EVERY: Duration = Duration::from_secs(10);

    /// Longest wait for the resolver.
    pub(crate) const LIMIT: Duration = Duration::from_secs(5);

    /// Agents whose identity is requested at the same time.
    pub(crate) const AT_ONCE: usize = 64;

    /// Addresses whose identity is requested again, a few each time: another agent may use one of them now.
    pub(crate) const AGAIN: usize = 16;
}

/// Of `peers/health.rs`.
pub(crate) mod health {
    use std::time::Duration;

    /// Pause after the first failure.
    pub(crate) const FIRST: Duration = Duration::from_secs(1);

    /// Longest pause, after many failures.
    pub(crate) const LONGEST: Duration = Duration::from_mins(5);

    /// Pause after "busy".
    pub(crate) const BUSY: Duration = Duration::from_millis(500);

    /// Pause after wrong bytes.
    pub(crate) const WRONG_BYTES: Duration = Duration::from_mins(10);

    /// Peers in the table before those whose pause is over are dropped.
    pub(crate) const MOST: usize = 16_384;
}

/// Of `peers/speed.rs`.
pub(crate) mod speed {
    use std::time::Duration;

    /// A node below this share of the median speed of others is slow.
    pub(crate) const SHARE: f64 = 0.3;

    /// Other peers whose speed must be known before this node calls itself slow.
    pub(crate) const ENOUGH: usize = 4;

    /// Shortest time over which bytes are counted for a speed.
    pub(crate) const WINDOW: Duration = Duration::from_millis(250);

    /// Bytes of a window that do not count: the burst of a limited link after a pause, and what lay in buffers.
    pub(crate) const BURST: u64 = 256 * 1024;

    /// A longer pause inside a window makes the window useless as a measure of the link.
    pub(crate) const PAUSE: Duration = Duration::from_millis(400);

    /// Windows measured before this node calls itself slow.
    pub(crate) const WINDOWS: u32 = 3;

    /// A node that only waits for others gets little too. So its link must have been full: so many peers were sending pieces
    /// at once during [`WINDOWS`] windows in a row, ...
    pub(crate) const AT_ONCE: usize = 4;

    /// ... or so many peers seemed dead within this time: on some full links, packets of other connections are lost.
    pub(crate) const SILENT_PEERS: usize = 2;

    pub(crate) const SILENT_SPAN: Duration = Duration::from_secs(5);

    /// After this time an earlier speed counts half: links change.
    pub(crate) const HALF_LIFE: Duration = Duration::from_mins(1);

    /// For how long a speed that a peer reported counts.
    pub(crate) const MEMORY: Duration = Duration::from_mins(5);

    /// Peers remembered.
    pub(crate) const MOST: usize = 16_384;

    /// Reports of other peers between two computations of the median.
    pub(crate) const RENEW: u32 = 8;
}

/// Of `peers/quorum.rs`.
pub(crate) mod quorum {
    /// Peers asked for a vote per vote that is needed: some have no record of the tag, some are gone.
    pub(crate) const CHOSEN_PER_VOTE: usize = 3;
}

/// Of `peers/wire.rs`.
pub(crate) mod wire {
    /// Longest name of a peer or zone that is accepted.
    pub(crate) const LONGEST: usize = 253;
}

/// Of `peers/client.rs`.
pub(crate) mod client {
    use std::time::Duration;

    /// Longest wait for a connection: peers are a few milliseconds away, and a dead peer delays many requests.
    pub const CONNECT: Duration = Duration::from_millis(300);

    /// The same from a node whose link is slow and full: packets queue, and every peer seems unreachable.
    pub const SLOW_CONNECT: Duration = Duration::from_secs(5);

    /// For how long a peer holds a request for a piece that is arriving, before it answers "not yet".
    pub const HOLD: Duration = Duration::from_secs(1);

    /// Longest wait for the header of a response beyond [`HOLD`].
    pub const HEADER: Duration = Duration::from_secs(1);

    /// How much longer the header may take on a slow and full link.
    pub const SLOW_HEADER: Duration = Duration::from_secs(5);

    /// How much longer than usual nothing may arrive on such a node before a wait ends: requests take so much longer, and what
    /// the link still carries for requests that have ended comes first.
    pub(crate) const SLOW_SILENCE: Duration = SLOW_CONNECT.saturating_add(SLOW_HEADER);

    /// Longest silence inside a body.
    pub(crate) const IDLE: Duration = Duration::from_secs(3);

    /// Longest wait for a manifest or a tag resolution: the peer may have to request it from the registry first.
    pub(crate) const RESOLVE: Duration = Duration::from_secs(2);

    /// Most bytes of an answer about a peer or a tag.
    pub(crate) const MAX_ANSWER_BYTES: usize = 16 * 1024;
}

/// Of `peers/uploads.rs`.
pub(crate) mod uploads {
    use std::time::Duration;

    /// Bytes that may go out at once after a quiet time, as time at the configured rate.
    pub(crate) const BURST: Duration = Duration::from_millis(100);

    /// Requests that may wait at once for a piece or for a place; further ones are answered "busy".
    pub(crate) const WAITING: usize = 1_024;

    /// An upload that takes this long, and this many times the usual duration, gives its place to another. Uploads
    /// without a place are bounded by the number of connections.
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

    /// Pieces that a node may request beyond the first one it misses.
    pub const WINDOW: u64 = 128;

    /// Nodes that read a blob from the registry.
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

    /// A slow peer is used once in so many requests.
    pub(crate) const AGAIN: u32 = 16;

    /// Weight of the newest rate.
    pub(crate) const WEIGHT: f64 = 0.3;

    /// Reports between two computations of the median.
    pub(crate) const RENEW: u32 = 8;

    /// How long a transfer is measured before it is called slow.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

    /// Peers in the table; further ones count as fast.
    pub(crate) const MOST: usize = 16_384;
}

/// Of `peers/plan.rs`.
pub(crate) mod plan {
    /// Uploads from which on a parent redirects further requests to its own parents. Loads are never even, and a node
    /// whose link is slow has this many waiting when others have none (figures: `bench/results/sim-forest.json`).
    pub const QUEUE: usize = 8;
}

/// Of `peers/tls.rs`.
pub(crate) mod enrol {
    use std::time::Duration;

    /// First pause between two looks at a request for a certificate, and after a failure; each is twice the one before.
    pub(crate) const FIRST: Duration = Duration::from_secs(1);
    /// Longest such pause: without a controller, 1,000 nodes send 8 requests a second.
    pub(crate) const LONGEST: Duration = Duration::from_mins(2);
    /// How often the published authorities are read.
    pub(crate) const LOOK: Duration = Duration::from_mins(15);
    /// Pause after a refused request.
    pub(crate) const DENIED: Duration = Duration::from_mins(10);
    /// A request without an answer is worth a warning after this time.
    pub(crate) const WARN: Duration = Duration::from_secs(30);
}

pub(crate) mod tls {
    use std::time::Duration;

    /// How often the files are read again. Kubernetes updates a changed secret in a pod within about a minute.
    pub(crate) const RELOAD: Duration = Duration::from_secs(30);
}
