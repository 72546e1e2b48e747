/// Of `swarm/exchange.rs`.
pub(crate) mod exchange {
    use std::time::Duration;

    /// Requests that a download has under way for its own sake.
    pub(crate) const ASKS: usize = 16;

    /// So many when this node is slow: more only wait for each other ([`super::turns::SLOW_TURNS`]).
    pub(crate) const LEAF_ASKS: usize = 2;

    /// A slow node whose link is in use waits so long for a byte of one blob before it reads that blob from the registry, over the
    /// same link.
    pub(crate) const LEAF_WAIT: Duration = Duration::from_mins(5);

    /// So many more for pieces that a reader is about to need.
    pub(crate) const URGENT: usize = 4;

    /// How often the download is looked at when nothing happens.
    pub(crate) const TICK: Duration = Duration::from_millis(100);

    /// For how long a download that only serves others stays after the last request.
    pub(crate) const LINGER: Duration = Duration::from_secs(20);

    /// Rounds in which a piece was brought by nobody, without a new byte, before the rest is left to upstream.
    pub(crate) const ROUNDS: u32 = 3;

    /// How long one piece may take when peers are asked whether they answer again.
    pub(crate) const PROBE: Duration = Duration::from_secs(3);

    /// Pause after such a round.
    pub(crate) const PAUSE: Duration = Duration::from_millis(200);
}

/// Of `swarm/piece_hashes.rs`.
pub(crate) mod piece_hashes {
    /// Hashes remembered: some 4 MiB of memory, 64 GiB of content and more.
    pub(crate) const MOST: usize = 65_536;
}

/// Of `swarm/cross_check.rs`.
pub(crate) mod cross_check {
    use std::time::Duration;

    /// Readers of a segment, in their order, that read it once more for others, and a single piece of it.
    pub(crate) const SEGMENT_READERS: usize = 3;

    pub(crate) const PIECE_READERS: usize = 5;

    /// Segments checked at once.
    pub(crate) const AT_ONCE: usize = 8;

    /// Pause before a peer that is still reading is requested once more.
    pub(crate) const PAUSE: Duration = Duration::from_millis(250);

    /// Longest wait for one peer's second read.
    pub(crate) const LONGEST: Duration = Duration::from_mins(1);
}

/// Of `swarm/piece/mod.rs`.
pub(crate) mod piece {
    use std::time::Duration;

    /// Longest time that one peer is asked for one piece, however alive it is.
    pub(crate) const LONGEST: Duration = Duration::from_mins(5);

    /// Peers asked whether they have a piece when everything else has failed.
    pub(crate) const SOUGHT: usize = 256;

    /// Missing pieces that are looked at for a usable parent.
    pub(crate) const PROBED: usize = 16;

    /// So many at once, for so long, until so many have it.
    pub(crate) const SOUGHT_AT_ONCE: usize = 32;

    pub(crate) const SEEKING: Duration = Duration::from_secs(2);

    pub(crate) const HOLDERS: usize = 8;
}

/// Of `swarm/piece/take.rs`.
pub(crate) mod take {
    use std::time::Duration;

    /// Bytes gathered before a write.
    pub(crate) const BATCH: usize = 512 * 1024;

    /// Longest time for gathering them. What trickles in is to be seen, by this node's clients and by peers behind it: who
    /// sees nothing for [`PeersConfig::wait`](crate::config::PeersConfig) goes upstream.
    pub(crate) const GATHER: Duration = Duration::from_millis(250);

    /// Readers of a segment that are asked for its hashes, one after the other.
    pub(crate) const VOUCHING: usize = 3;

    /// Peers asked to confirm a hash that no reader names.
    pub(crate) const CONFIRMING: usize = 3;
}

/// Of `swarm/mod.rs`.
pub(crate) mod turns {
    /// See [`Inner::slow_turns`]. Two keep a link full. With more, connections and headers are lost on it, and each piece takes
    /// longer than its sender waits.
    pub(crate) const SLOW_TURNS: usize = 2;
}

/// Of `swarm/evidence.rs`.
pub(crate) mod evidence {
    use std::time::Duration;

    /// Wrong blobs remembered at once.
    pub(crate) const MOST: usize = 64;

    /// For how long.
    pub(crate) const MEMORY: Duration = Duration::from_mins(10);
}
