//! What is simulated, and what came of it.

/// Names of zones.
const ZONES: [&str; 3] = ["a", "b", "c"];

/// Whom a node asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Its parent in the piece's tree.
    Forest,
    /// The piece's one owner: plain rendezvous hashing.
    Owner,
}

/// What is simulated.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) nodes: u32,
    pub(crate) rule: Rule,
    pub(crate) size: u64,
    /// Bytes a second of a node's link.
    pub(crate) link: u64,
    /// Bytes a second of one connection upstream.
    pub(crate) connection: u64,
    /// Share of the nodes that die on the way, each at a time of its own, or all halfway.
    pub(crate) lost: f64,
    pub(crate) lost_at_once: bool,
    /// Share of the nodes whose link is slower, and how many times.
    pub(crate) slow: f64,
    pub(crate) slower: u64,
    /// Share of the nodes that want the blob.
    pub(crate) taking: f64,
    /// Nodes begin within this many nanoseconds.
    pub(crate) spread: u64,
    /// Zones that the nodes are spread over, at most as many as [`ZONES`]; with one there is no label.
    pub(crate) zones: u32,
    pub(crate) seed: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// Longest time of a healthy, living node from its beginning to its last piece, over the time that its link needs, or
    /// upstream when that is what all wait for.
    pub(crate) last_over_bound: f64,
    pub(crate) median_over_bound: f64,
    /// Bytes read upstream over the blob.
    pub(crate) upstream: f64,
    /// Largest upload of a node over the blob.
    pub(crate) max_upload: f64,
    /// What a node that wants nothing received, on average, over the blob.
    pub(crate) bystander: f64,
    /// Most bytes that came into one zone from another, over the blob.
    pub(crate) crossings: f64,
}

impl World {
    /// The zone of a node.
    pub(crate) fn zone(&self, node: u32) -> &'static str {
        if self.zones < 2 { "" } else { ZONES[(node % self.zones) as usize % ZONES.len()] }
    }
}
