/// Of `swarm/exchange.rs`.
pub(crate) mod exchange {
    use std::time::Duration;

    /// Requests for its own pieces that a download has open at once.
    pub(crate) const ASKS: usize = 16;

    /// The same when this node is slow: more of them only wait for each other ([`super::turns::SLOW_TURNS`]).
    pub(crate) const LEAF_ASKS: usize = 2;

    /// A slow node whose link is in use waits this long for a byte of one blob before it reads that blob from the
    /// registry, over the same link.
    pub(crate) const LEAF_WAIT: Duration = Duration::from_mins(5);

    /// Additional requests for pieces that a reader is about to need.
    pub(crate) const URGENT: usize = 4;

    /// How often the download is checked when nothing happens.
    pub(crate) const TICK: Duration = Duration::from_millis(100);

    /// For how long a download that only serves peers stays after the last request.
    pub(crate) const LINGER: Duration = Duration::from_secs(20);

    /// Rounds without a new byte in which no peer delivered a piece, before the rest is read from the registry.
    pub(crate) const ROUNDS: u32 = 3;

    /// How long one piece may take when peers are tested for whether they answer again.
    pub(crate) const PROBE: Duration = Duration::from_secs(3);

    /// The same on a slow node, whose link needs seconds for a piece.
    pub(crate) const LEAF_PROBE: Duration = Duration::from_secs(30);

    /// Pause after such a round.
    pub(crate) const PAUSE: Duration = Duration::from_millis(200);
}

/// Of `swarm/piece_hashes.rs`.
pub(crate) mod piece_hashes {
    /// Most hashes in the table: about 4 MiB of memory, for at least 64 GiB of content.
    pub(crate) const MOST: usize = 65_536;
}

/// Of `swarm/cross_check.rs`.
pub(crate) mod cross_check {
    use std::time::Duration;

    /// How many of a segment's readers, in their order, read it again for others; and how many read a single piece of
    /// it.
    pub(crate) const SEGMENT_READERS: usize = 3;

    pub(crate) const PIECE_READERS: usize = 5;

    /// Segments checked at once.
    pub(crate) const AT_ONCE: usize = 8;

    /// Pause before a second request to a peer that is still reading.
    pub(crate) const PAUSE: Duration = Duration::from_millis(250);

    /// Longest wait for one peer's second read.
    pub(crate) const LONGEST: Duration = Duration::from_mins(1);
}

/// Of `swarm/piece/mod.rs`.
pub(crate) mod piece {
    use std::time::Duration;

    /// Longest time for one request for one piece, even while its sender shows signs of life.
    pub(crate) const LONGEST: Duration = Duration::from_mins(5);

    /// Peers searched for a piece when everything else has failed.
    pub(crate) const SOUGHT: usize = 256;

    /// Missing pieces that are checked for a usable parent.
    pub(crate) const PROBED: usize = 16;

    /// The search: requests at once, longest time, and holders after which it ends.
    pub(crate) const SOUGHT_AT_ONCE: usize = 32;

    pub(crate) const SEEKING: Duration = Duration::from_secs(2);

    pub(crate) const HOLDERS: usize = 8;
}

/// Of `swarm/piece/earlier.rs`.
pub(crate) mod earlier {
    use std::time::Duration;

    /// Longest wait for the next readers of a segment, once per blob.
    pub(crate) const ANSWER: Duration = Duration::from_secs(1);
}

/// Of `swarm/piece/take.rs`.
pub(crate) mod take {
    use std::time::Duration;

    /// Bytes gathered before a write.
    pub(crate) const BATCH: usize = 512 * 1024;

    /// Longest time for gathering them. Bytes that arrive slowly must become visible to this node's clients and to
    /// its children: a node that sees no bytes for [`PeersConfig::wait`](crate::config::PeersConfig) uses the
    /// registry.
    pub(crate) const GATHER: Duration = Duration::from_millis(250);

    /// Readers of a segment from which its hashes are requested, one after the other.
    pub(crate) const VOUCHING: usize = 3;

    /// Peers that are requested to confirm a hash that no reader sends.
    pub(crate) const CONFIRMING: usize = 3;
}

/// Of `swarm/mod.rs`.
pub(crate) mod turns {
    /// See [`Inner::slow_turns`]. Two keep a link full. With more, connections and headers are lost, and each piece
    /// takes longer than its sender waits.
    pub(crate) const SLOW_TURNS: usize = 2;
}

/// Of `swarm/evidence.rs`.
pub(crate) mod evidence {
    use std::time::Duration;

    /// Most wrong blobs in the table.
    pub(crate) const MOST: usize = 64;

    /// For how long a wrong blob stays in the table.
    pub(crate) const MEMORY: Duration = Duration::from_mins(10);
}
