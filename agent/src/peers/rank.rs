//! The ranking of peers, for every piece of every blob: pure, and equal on every platform and version.
//!
//! ```text
//! key(kind, text) = first 8 bytes, big-endian, of SHA-256("hearth/" kind "/v1" 0x00 text)
//! mix(x)          = the finaliser of SplitMix64 over x + 0x9e3779b97f4a7c15
//! weight(s, i, m) = mix(mix(s + mix(i)) xor m)                       (additions modulo 2^64)
//!
//! piece p of a digest:    weight(key("piece", digest),  p, key("member", peer))
//! zone of slot i:         weight(key("zones", digest),  i, key("zone", zone))
//! fetcher of slot i:      weight(key("stripe", digest), i, key("member", peer))
//! who fetches a manifest: weight(key("manifest", digest), 0, key("member", peer))
//! ```
//!
//! A digest is its text, `sha256:...`. Test vectors are in `tests/integration/peers/vectors.rs`. A weight takes two
//! multiplications a round and no allocation, so that one look over 10,000 peers costs some 30 microseconds.
//!
//! For one piece, the peers of a zone, highest weight first, are a binary heap: rank `r` has its parent at `(r - 1) /
//! 2`. The first of each zone, its leaders, are a heap over zones in the same way; the zones' order is that of the
//! piece's slot. Every peer's [`Height`] is below its parent's, also when nodes have different lists of peers: a
//! request that only climbs cannot circle.
//!
//! A node that can choose its name can rank first for anything. That gives it work, and costs others time within
//! limits; it cannot change content (digests) or the digest that a tag resolves to ([`super::quorum`]).
//!
//! A slot's reader is the first of its highest zone, where the roots of all its pieces are: a piece crosses into each
//! other zone once. Its substitutes are the next of all zones, so that problems of one zone do not stop the slot.

use std::cmp::Reverse;

use sha2::{Digest as _, Sha256};

/// The value of a text in the ranking.
pub fn key(kind: &str, text: &str) -> u64 {
    let mut hasher = Sha256::new();
    for part in ["hearth/", kind, "/v1\0", text] {
        hasher.update(part.as_bytes());
    }
    let hash = hasher.finalize();
    u64::from_be_bytes(hash[..8].try_into().expect("a SHA-256 has 32 bytes"))
}

/// The weight of a peer (or zone) `m` for the `index`-th part of a subject.
pub fn weight(subject: u64, index: u64, m: u64) -> u64 {
    mix(mix(subject.wrapping_add(mix(index))) ^ m)
}

fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A piece, and the slot that it is read in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its number in the blob.
    pub piece: u64,
    /// The slot of its segment.
    pub slot: u64,
}

/// The rank of a peer for one piece. Compared first by zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Height {
    zone: u64,
    peer: u64,
}

/// The keys of one digest.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    piece: u64,
    zones: u64,
    segment: u64,
}

impl Subject {
    /// From a digest's text.
    pub fn of(digest: &str) -> Self {
        Self { piece: key("piece", digest), zones: key("zones", digest), segment: key("stripe", digest) }
    }

    /// The rank of a peer for a piece; needs no membership.
    pub fn height(&self, part: Part, peer: &str, zone: &str) -> Height {
        Height {
            zone: weight(self.zones, part.slot, key("zone", zone)),
            peer: weight(self.piece, part.piece, key("member", peer)),
        }
    }
}

/// The keys of all peers: computed once for each change of the membership.
#[derive(Clone, Debug, Default)]
pub struct Ranking {
    membership: Vec<Ranked>,
    zones: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Ranked {
    key: u64,
    zone: u32,
}

/// Orders by weight; equal weights (one in 2^64) by place in the membership, which is sorted by name.
type Order = (u64, Reverse<u32>);

impl Ranking {
    /// From the peers' names and zones, sorted by name. Indices below refer to this order.
    pub fn new<'a>(membership: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut ranking = Self::default();
        for (name, zone) in membership {
            let zone = key("zone", zone);
            let place = ranking.zones.iter().position(|known| *known == zone).unwrap_or_else(|| {
                ranking.zones.push(zone);
                ranking.zones.len() - 1
            });
            let zone = u32::try_from(place).unwrap_or(u32::MAX);
            ranking.membership.push(Ranked { key: key("member", name), zone });
        }
        ranking
    }

    /// Number of peers.
    pub fn len(&self) -> usize {
        self.membership.len()
    }

    /// Whether there are no peers.
    pub fn is_empty(&self) -> bool {
        self.membership.is_empty()
    }

    /// Where to request a piece, nearest first, up to the root; empty for the root itself. Linear in the number of
    /// peers.
    pub fn ancestors(&self, subject: &Subject, part: Part, me: u32) -> Vec<u32> {
        let Some(own) = self.membership.get(me as usize) else { return Vec::new() };
        let mut path = Vec::with_capacity(32);
        let mut above = self.above(subject, part.piece, me, *own);
        let mut rank = above.len();
        while rank > 0 {
            let parent = (rank - 1) / 2;
            let (_, found, _) = above.select_nth_unstable_by(parent, |a, b| b.cmp(a));
            path.push(found.1.0);
            above.truncate(parent);
            rank = parent;
        }
        if self.zones.len() > 1 {
            let zones = self.zones_above(subject, part.slot, own.zone);
            path.extend(zones.into_iter().filter_map(|zone| self.leader(subject, part.piece, zone)));
        }
        path
    }

    /// Whether two peers are of one zone.
    pub fn are_neighbours(&self, one: u32, other: u32) -> bool {
        let zone = |at: u32| self.membership.get(at as usize).map(|peer| peer.zone);
        zone(one) == zone(other)
    }

    /// Peers of the same zone that rank higher.
    fn above(&self, subject: &Subject, piece: u64, me: u32, own: Ranked) -> Vec<Order> {
        let mine = (weight(subject.piece, piece, own.key), Reverse(me));
        self.ranked(subject.piece, piece, own.zone).filter(|order| *order > mine).collect()
    }

    fn ranked(&self, subject: u64, index: u64, zone: u32) -> impl Iterator<Item = Order> {
        let membership = (0_u32..).zip(&self.membership).filter(move |(_, peer)| peer.zone == zone);
        membership.map(move |(at, peer)| (weight(subject, index, peer.key), Reverse(at)))
    }

    /// The zones on the way to the root's, nearest first.
    fn zones_above(&self, subject: &Subject, slot: u64, own: u32) -> Vec<u32> {
        let own = self.zone_order(subject, slot, own);
        let mut above: Vec<_> = self.zone_orders(subject, slot).filter(|zone| *zone > own).collect();
        above.sort_unstable_by(|a, b| b.cmp(a));
        let (mut rank, mut path) = (above.len(), Vec::new());
        while rank > 0 {
            rank = (rank - 1) / 2;
            path.push(above[rank].1.0);
        }
        path
    }

    fn zone_order(&self, subject: &Subject, slot: u64, zone: u32) -> Order {
        (weight(subject.zones, slot, self.zones[zone as usize]), Reverse(zone))
    }

    fn zone_orders(&self, subject: &Subject, slot: u64) -> impl Iterator<Item = Order> {
        let count = u32::try_from(self.zones.len()).unwrap_or(u32::MAX);
        (0..count).map(move |zone| self.zone_order(subject, slot, zone))
    }

    fn leader(&self, subject: &Subject, piece: u64, zone: u32) -> Option<u32> {
        self.ranked(subject.piece, piece, zone).max().map(|order| order.1.0)
    }

    /// At most `most` peers for a slot: the reader and its substitutes, highest weight first.
    pub fn fetchers(&self, subject: &Subject, slot: u64, most: usize) -> Vec<u32> {
        let mut order = self.first(subject.segment, slot, most);
        if self.zones.len() > 1 {
            let zone = self.zone_orders(subject, slot).max().map(|order| order.1.0);
            let first = zone.and_then(|zone| self.ranked(subject.segment, slot, zone).max());
            if let Some((_, Reverse(first))) = first {
                order.retain(|peer| *peer != first);
                order.insert(0, first);
                order.truncate(most);
            }
        }
        order
    }

    /// The first `most` peers for content that is not divided (a manifest), highest weight first.
    pub fn resolvers(&self, subject: u64, most: usize) -> Vec<u32> {
        self.first(subject, 0, most)
    }

    fn first(&self, subject: u64, index: u64, most: usize) -> Vec<u32> {
        let mut all: Vec<Order> = (0_u32..)
            .zip(&self.membership)
            .map(|(at, peer)| (weight(subject, index, peer.key), Reverse(at)))
            .collect();
        if most < all.len() {
            all.select_nth_unstable_by(most, |a, b| b.cmp(a));
            all.truncate(most);
        }
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.into_iter().map(|order| order.1.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(count: usize) -> Vec<String> {
        let mut names: Vec<_> = (0..count).map(|at| format!("node-{at}")).collect();
        names.sort();
        names
    }

    /// The order of one zone, computed the slow way.
    fn heap_path(order: &[u32], me: u32) -> Vec<u32> {
        let mut rank = order.iter().position(|at| *at == me).unwrap();
        let mut path = Vec::new();
        while rank > 0 {
            rank = (rank - 1) / 2;
            path.push(order[rank]);
        }
        path
    }

    proptest! {
        #[test]
        fn the_path_follows_the_heap_and_always_climbs(count in 1_usize..60, zones in 1_usize..5, piece in 0_u64..1000) {
            let part = Part { piece, slot: piece / 16 % 8 };
            let names = names(count);
            let zone = |at: usize| format!("zone-{}", at % zones);
            let zoned: Vec<_> = names.iter().enumerate().map(|(at, name)| (name.clone(), zone(at))).collect();
            let ranking = Ranking::new(zoned.iter().map(|(name, zone)| (name.as_str(), zone.as_str())));
            let subject = Subject::of("sha256:00");
            let height = |at: u32| {
                let (name, zone) = &zoned[at as usize];
                subject.height(part, name, zone)
            };
            let all = u32::try_from(count).unwrap();
            let root = (0..all).max_by_key(|at| height(*at)).unwrap();
            for me in 0..all {
                let path = ranking.ancestors(&subject, part, me);
                let mut below = height(me);
                for above in &path {
                    prop_assert!(height(*above) > below, "a parent ranks higher");
                    below = height(*above);
                }
                prop_assert_eq!(*path.last().unwrap_or(&me), root);
                if zones == 1 {
                    let mut order: Vec<u32> = (0..all).collect();
                    order.sort_by_key(|at| Reverse(height(*at)));
                    prop_assert_eq!(path, heap_path(&order, me));
                }
            }
        }

        #[test]
        fn a_weight_does_not_depend_on_the_other_peers(count in 2_usize..40, gone in 0_usize..40, slot in 0_u64..8) {
            let names = names(count);
            let subject = Subject::of("sha256:11");
            let all = Ranking::new(names.iter().map(|name| (name.as_str(), "")));
            let left: Vec<_> = names.iter().enumerate().filter(|(at, _)| *at != gone % count).map(|(_, name)| name.as_str()).collect();
            let fewer = Ranking::new(left.iter().map(|name| (*name, "")));
            let before = all.fetchers(&subject, slot, count).into_iter().map(|at| names[at as usize].as_str());
            let before: Vec<_> = before.filter(|name| left.contains(name)).collect();
            let after: Vec<_> = fewer.fetchers(&subject, slot, count).into_iter().map(|at| left[at as usize]).collect();
            prop_assert_eq!(before, after);
        }
    }

    #[test]
    fn a_piece_crosses_into_every_other_zone_once() {
        let names = names(60);
        let zone = |at: u32| ["a", "b", "c"][at as usize % 3];
        let ranking = Ranking::new((0_u32..).zip(&names).map(|(at, name)| (name.as_str(), zone(at))));
        let subject = Subject::of("sha256:22");
        for piece in 0..200 {
            let part = Part { piece, slot: piece / 16 % 8 };
            let fetcher = ranking.fetchers(&subject, part.slot, 8)[0];
            let crossings = (0..60).filter(|me| {
                let above = ranking.ancestors(&subject, part, *me).first().copied();
                // The root gets it from the reader of the segment.
                zone(above.unwrap_or(fetcher)) != zone(*me)
            });
            assert_eq!(crossings.count(), 2, "two zones besides the fetcher's");
        }
    }
}
