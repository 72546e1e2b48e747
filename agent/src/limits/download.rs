/// Of `download/budget.rs`.
pub(crate) mod budget {
    use std::time::Duration;

    /// Longest wait for the owner of a registry's budget.
    pub(crate) const ANSWER: Duration = Duration::from_secs(2);

    /// Peers that are asked, one after the other, until one answers.
    pub(crate) const OWNERS: usize = 3;

    /// How long several answers of a registry are gathered for one report.
    pub(crate) const PAUSE: Duration = Duration::from_secs(1);

    /// For how long an owner may refuse before it is checked.
    pub(crate) const MOST_REFUSED: Duration = Duration::from_mins(5);

    /// For how long an owner that was wrong is not asked.
    pub(crate) const IGNORED: Duration = Duration::from_mins(10);
}

/// Of `download/downloader.rs`.
pub(crate) mod downloader {
    use std::time::Duration;

    /// How often requests are checked when they send no events.
    pub(crate) const TICK: Duration = Duration::from_millis(50);

    /// How long throughput is measured before another number of requests is tried.
    pub(crate) const WINDOW: Duration = Duration::from_millis(250);

    /// Pause after a request failed while others continue.
    pub(crate) const OTHERS_PAUSE: Duration = Duration::from_secs(1);
}

/// Of `download/range_request.rs`.
pub(crate) mod range_request {
    use std::time::Duration;

    /// Bytes gathered before a write when they are there without waiting.
    pub(crate) const BATCH: usize = 256 * 1024;

    /// A request that has had no response for this long gives its place among the transfers to another request.
    pub(crate) const SLOW_HEADER: Duration = Duration::from_secs(2);
}

/// Of `download/fetcher.rs`.
pub(crate) mod fetcher {
    use std::time::Duration;

    /// Longest wait for the directory of an agent that is ending and has a part of the blob. After that the blob is streamed from
    /// the registry.
    pub(crate) const HANDED_OVER: Duration = Duration::from_secs(2);
}

/// Of `download/passthrough.rs`.
pub(crate) mod passthrough {
    /// Largest content other than a layer that is verified in memory before its first byte leaves.
    pub(crate) const MAX_IN_MEMORY: u64 = 8 * 1024 * 1024;
}

/// Of `download/reader.rs`.
pub(crate) mod reader {
    use std::time::Duration;

    /// Bytes at the end of a growing blob that are held back until its digest matched, so that no client ever completes
    /// a wrong blob.
    pub(crate) const HELD_BACK: u64 = 64 * 1024;

    /// A reader's speed is measured over this many bytes.
    pub(crate) const PACE_BYTES: usize = 256 * 1024;

    /// A reader that takes longer for them (slower than 2.5 MiB/s) does not keep up: large buffers would only use
    /// memory.
    pub(crate) const PACE_TIME: Duration = Duration::from_millis(100);
}

/// Of `download/reservation.rs`.
pub(crate) mod reservation {
    /// How often a download makes room on a disk that is full although there was room at its beginning.
    pub(crate) const MAX_MADE: u32 = 3;

    /// How many more bytes a blob of unknown size is assumed to need.
    pub(crate) const UNKNOWN_SIZE: u64 = 256 * 1024 * 1024;
}

/// Of `download/manifests.rs`.
pub(crate) mod manifests {
    /// Room that is made for records and manifests on a full disk, in bytes.
    pub(crate) const SMALL_WRITE: u64 = 64 * 1024 * 1024;
}

/// Of `download/stillness.rs`.
pub(crate) mod stillness {
    use std::time::Duration;

    /// How often a download is checked for new bytes.
    pub const CHECK: Duration = Duration::from_millis(100);

    /// Longest wait even while bytes arrive: containerd cancels a pull without a byte after 5 minutes
    /// (`image_pull_progress_timeout`).
    pub(crate) const LONGEST: Duration = Duration::from_secs(270);
}

/// Of `download/tags.rs`.
pub(crate) mod tags {
    use std::time::Duration;

    /// After a failure of the registry, the last known digest is served without a request for this long.
    pub(crate) const FAILURE_PAUSE: Duration = Duration::from_secs(10);

    /// Most tags in memory. Above it the least recently used are dropped; the disk has them.
    pub(crate) const MAX_SLOTS: usize = 16_384;
}

/// Of `download/peer_tags.rs`.
pub(crate) mod peer_tags {
    use std::time::Duration;

    /// Peers that a manifest is requested from, one after the other, before the registry.
    pub(crate) const RESOLVERS: usize = 3;

    /// Peers requested at the same time for their copies on disk.
    pub(crate) const AT_ONCE: usize = 32;

    /// Longest time for requesting a manifest from all peers.
    pub(crate) const EVERYONE: Duration = Duration::from_secs(1);

    /// Longest time for one round of votes on a tag. Two rounds fit into what a client's wait leaves after the registry's
    /// share of it ([`Fetcher::ask_registry`]).
    pub(crate) const VOTES: Duration = Duration::from_millis(700);

    /// Longest time until a requesting peer is told to retry; the work continues, and the peer's next request finds
    /// its result.
    pub(crate) const ANSWER: Duration = Duration::from_millis(1_500);
}

/// Of `download/expected_hashes.rs`.
pub(crate) mod expected_hashes {
    /// After this many answers without the requested hash, a peer gets no more requests for hashes of this blob.
    pub(crate) const USELESS: u32 = 4;
}

/// Of `download/segments.rs`.
pub(crate) mod segments {
    use std::time::Duration;

    /// How often a connection is checked.
    pub(crate) const TICK: Duration = Duration::from_millis(250);
}

/// Of `download/memory.rs`.
pub(crate) mod memory {
    /// Most bytes in memory: four of the largest manifests, or thousands of usual ones.
    pub(crate) const MOST: usize = 16 * 1024 * 1024;
}

/// Of `download/schedule/mod.rs`.
pub(crate) mod schedule {
    use std::time::Duration;

    /// Spans start and end on multiples of this size, in bytes, so that peers and resumed downloads use the same
    /// boundaries.
    pub(crate) const PIECE: u64 = 4 * 1024 * 1024;

    /// A reader whose next byte is within this distance ahead of a request waits for that request.
    pub(crate) const NEAR: u64 = 2 * PIECE;

    /// A request with less than this left is not worth splitting.
    pub(crate) const SPLIT_FROM: u64 = 4 * PIECE;

    /// Minimum and maximum of what a request is given at once when there are several. Each costs a request, which
    /// some registries count; each is read back and hashed when the earlier ones are complete.
    pub(crate) const STRIDE: (u64, u64) = (4 * PIECE, 16 * PIECE);

    /// A request that waited for a byte for this long is hedged.
    pub(crate) const SILENT: Duration = Duration::from_secs(2);

    /// A request is also hedged when it is slower by this factor than the request that finished last, and needs more
    /// than [`SILENT`] to finish.
    pub(crate) const FAR_BEHIND: u64 = 4;
}

/// Of `download/negative_cache.rs`.
pub(crate) mod negative_cache {
    /// Entries at most.
    pub(crate) const MOST: usize = 4_096;
}

/// Of `download/recheck.rs`.
pub(crate) mod recheck {
    /// Bytes read at once.
    pub(crate) const CHUNK: usize = 1024 * 1024;
}

/// Of `download/growth.rs`.
pub(crate) mod growth {
    use std::time::Duration;

    /// A doubling must bring at least this factor to be followed by another.
    pub(crate) const WORTH_IT: f64 = 1.3;

    /// This many measurements in a row must show no gain before the number of connections stops growing: a single one
    /// may have met a pause of the disk or of another process.
    pub(crate) const CONVINCED: u32 = 3;

    /// One connection at this rate, in bytes per second, does not limit the download.
    pub(crate) const FAST_CONNECTION: f64 = 150e6;

    /// With less time than this left, another connection would come too late.
    pub(crate) const TOO_LATE: Duration = Duration::from_millis(600);
}

/// Of `download/descriptors.rs`.
pub(crate) mod descriptors {
    /// Descriptors remembered: some 4 MiB.
    pub(crate) const MOST: usize = 16_384;
}

/// Of `download/penalties.rs`.
pub(crate) mod penalties {
    use std::time::Duration;

    /// Wrong transfers after which an endpoint is not used for that digest.
    pub(crate) const WRONG_TRANSFERS: u32 = 2;

    /// For how long the endpoint is not used, and after which wrong transfers are forgotten.
    pub(crate) const MEMORY: Duration = Duration::from_secs(5);

    /// Digests remembered at most.
    pub(crate) const MOST: usize = 1_024;
}

/// Of `download/spoiled.rs`.
pub(crate) mod spoiled {
    use std::time::Duration;

    /// For how long a client may come back for the rest.
    pub(crate) const LIFETIME: Duration = Duration::from_hours(1);

    /// Most blobs, and most clients of one blob, in the table.
    pub(crate) const BLOBS: usize = 256;

    pub(crate) const CLIENTS: usize = 64;
}

/// Of `download/keep.rs`.
pub(crate) mod keep {
    /// A download fetches ahead of its readers within a window; a reader without a client reports its position every
    /// so many bytes.
    pub(crate) const STRIDE: u64 = 4 << 20;
}

/// Of `download/hashing.rs`.
pub(crate) mod hashing {
    /// Unhashed bytes from which hashing during the download is worth a thread.
    pub(crate) const BEHIND: u64 = 1024 * 1024;
}

/// Of `download/lifecycle.rs`.
pub(crate) mod lifecycle {
    use std::time::Duration;

    /// After peers failed, one of them is tried with one piece: first after this time, then after twice as long each
    /// time.
    pub(crate) const FIRST_PROBE: Duration = Duration::from_secs(2);

    pub(crate) const LONGEST_PROBE: Duration = Duration::from_secs(30);
}
