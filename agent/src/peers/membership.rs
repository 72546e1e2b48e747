//! The list of peers, each with a stable name, and this node's place in it.
//!
//! The ranking identifies a peer by its name (usually that of its node); its address may change at any time.
//! [`super::directory`] provides the list.

use std::net::SocketAddr;

use super::{
    layout::SLOTS,
    rank::{Ranking, Subject},
};

pub use crate::limits::peers::membership::SUBSTITUTES;

/// One agent of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// Stable over restarts and changes of address.
    pub name: String,
    /// Its zone; empty when there are none.
    pub zone: String,
    /// Address of its peer listener.
    pub address: SocketAddr,
}

/// A membership at one moment. This node is always in it.
#[derive(Clone, Debug)]
pub struct Membership {
    all: Vec<Peer>,
    ranking: Ranking,
    me: u32,
}

impl Membership {
    /// Sorts the peers by name, removes duplicates, and adds this node.
    pub fn new(found: impl IntoIterator<Item = Peer>, me: &Peer) -> Self {
        let mut membership: Vec<_> = found.into_iter().filter(|peer| peer.name != me.name).collect();
        membership.push(me.clone());
        membership.sort();
        membership.dedup_by(|later, first| later.name == first.name);
        let place = membership.iter().position(|peer| peer.name == me.name);
        let ranking = Ranking::new(membership.iter().map(|peer| (peer.name.as_str(), peer.zone.as_str())));
        let me =
            place.and_then(|place| u32::try_from(place).ok()).expect("it was put in, and 2^32 are enough");
        Self { all: membership, ranking, me }
    }

    /// All of them, sorted by name.
    pub fn all(&self) -> &[Peer] {
        &self.all
    }

    /// The peer at an index of the ranking.
    pub fn get(&self, place: u32) -> Option<&Peer> {
        self.all.get(place as usize)
    }

    /// This node's index.
    pub fn me(&self) -> u32 {
        self.me
    }

    /// Whether there is no other peer.
    pub fn is_alone(&self) -> bool {
        self.all.len() < 2
    }

    /// The ranking of the peers.
    pub fn ranking(&self) -> &Ranking {
        &self.ranking
    }

    /// The readers and their substitutes for every slot of a digest.
    pub fn fetchers(&self, subject: &Subject) -> Vec<Vec<u32>> {
        (0..SLOTS).map(|slot| self.ranking.fetchers(subject, slot, SUBSTITUTES)).collect()
    }

    /// Where to request content that is not divided (a manifest): the peers that rank before this node, highest
    /// first.
    pub fn resolvers(&self, subject: u64) -> Vec<&Peer> {
        let order = self.ranking.resolvers(subject, SUBSTITUTES);
        order.into_iter().take_while(|place| *place != self.me).filter_map(|place| self.get(place)).collect()
    }

    /// The peers that rank after this node, highest first.
    pub fn resolvers_after(&self, subject: u64) -> Vec<&Peer> {
        let order = self.ranking.resolvers(subject, SUBSTITUTES);
        let first = order.iter().position(|place| *place == self.me).map_or(0, |at| at + 1);
        order.into_iter().skip(first).filter_map(|place| self.get(place)).collect()
    }

    /// All peers except this node.
    pub fn others(&self) -> impl Iterator<Item = &Peer> {
        let me = self.me as usize;
        self.all.iter().enumerate().filter(move |(place, _)| *place != me).map(|(_, peer)| peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, port: u16) -> Peer {
        Peer { name: name.into(), zone: String::new(), address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    #[test]
    fn a_membership_holds_every_name_once_and_this_node_always() {
        let me = peer("b", 9);
        let membership = Membership::new([peer("c", 1), peer("a", 2), peer("a", 3), peer("b", 4)], &me);
        let names: Vec<_> = membership.all().iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(membership.get(membership.me()), Some(&me), "this node's own address is used");
        assert!(!membership.is_alone());
        assert_eq!(membership.others().count(), 2);
        assert!(Membership::new([], &me).is_alone());
    }

    #[test]
    fn a_manifest_is_requested_only_from_peers_that_rank_before_this_node() {
        let all: Vec<_> = ["a", "b", "c", "d"].map(|name| peer(name, 1)).into();
        for subject in 0..50 {
            let before: Vec<_> =
                all.iter().map(|me| Membership::new(all.clone(), me).resolvers(subject).len()).collect();
            let mut sorted = before.clone();
            sorted.sort_unstable();
            assert_eq!(
                sorted,
                [0, 1, 2, 3],
                "one peer fetches, the next requests it from that peer, and so on: {before:?}"
            );
        }
    }
}
