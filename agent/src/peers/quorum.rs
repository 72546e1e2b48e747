//! Decides when peers' answers about a tag count: only several together. Pure except for the salt.
//!
//! A digest protects content, but nothing protects a tag, so one peer's answer counts for nothing. While the registry
//! cannot be read, a digest counts when enough peers of a random choice report it. The choice depends on a secret of
//! this process: an attacker cannot pick names, or wait for tags, to get more nodes into it. It uses addresses,
//! because with `peer.dns` peers choose their own names.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use super::Peer;
use crate::types::Digest;

use crate::limits::peers::quorum::CHOSEN_PER_VOTE;

/// The last digest of a tag that one peer had, confirmed by the registry or imported there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The manifest's digest.
    pub digest: Digest,
    /// Time since the registry confirmed it.
    pub age: Duration,
}

/// The peers whose votes count for this node.
pub(super) fn chosen<'a>(
    peers: impl Iterator<Item = &'a Peer>,
    salt: &RandomState,
    quorum: usize,
) -> Vec<Peer> {
    let mut all: Vec<_> = peers.map(|peer| (salt.hash_one(peer.address), peer)).collect();
    all.sort_unstable();
    all.truncate(quorum.saturating_mul(CHOSEN_PER_VOTE));
    all.into_iter().map(|(_, peer)| peer.clone()).collect()
}

/// The result of the votes: the digest with the most votes, if these are at least `quorum` and no other digest has as
/// many. At least `quorum` voters report an age up to the returned one, so that fewer cannot make the digest look
/// younger.
pub fn agreed(votes: &[Vote], quorum: usize) -> Option<Vote> {
    let mut ages: HashMap<Digest, Vec<Duration>> = HashMap::new();
    for vote in votes {
        ages.entry(vote.digest).or_default().push(vote.age);
    }
    let most = ages.values().map(Vec::len).max()?;
    let mut first = ages.into_iter().filter(|(_, ages)| ages.len() == most);
    let (digest, mut ages) = first.next()?;
    if first.next().is_some() {
        return None;
    }
    ages.sort_unstable();
    ages.get(quorum.max(1) - 1).map(|age| Vote { digest, age: *age })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn votes(text: &str) -> Vec<Vote> {
        let vote = |(age, name): (u64, char)| Vote {
            digest: Digest::of(name.to_string().as_bytes()),
            age: Duration::from_secs(age),
        };
        (1..).zip(text.chars()).map(vote).collect()
    }

    #[test]
    fn a_digest_counts_when_enough_agree_and_no_other_has_as_many() {
        // Each letter is one peer's vote; the n-th reports an age of n seconds.
        for (given, quorum, expected) in [
            ("", 2, None),
            ("a", 1, Some(('a', 1))),
            ("aa", 3, None),
            ("aaa", 3, Some(('a', 3))),
            ("ababa", 3, Some(('a', 5))),
            ("aaaa", 3, Some(('a', 3))),
            ("aaabbb", 3, None),
            ("aaabbbb", 3, Some(('b', 6))),
            ("abcdefg", 2, None),
            ("ab", 0, None),
        ] {
            let expected = expected.map(|(name, age)| Vote {
                digest: Digest::of(name.to_string().as_bytes()),
                age: Duration::from_secs(age),
            });
            assert_eq!(agreed(&votes(given), quorum), expected, "{given} {quorum}");
        }
    }

    #[test]
    fn the_choice_is_bounded_stable_and_different_in_every_process() {
        let peers: Vec<_> = (1..=200)
            .map(|at| Peer {
                name: format!("node-{at}"),
                zone: String::new(),
                address: SocketAddr::from(([10, 0, 0, at], 5051)),
            })
            .collect();
        let salt = RandomState::new();
        let first = chosen(peers.iter(), &salt, 3);
        assert_eq!(first.len(), 9);
        assert_eq!(chosen(peers.iter(), &salt, 3), first);
        assert_ne!(chosen(peers.iter(), &RandomState::new(), 3), first, "one in 10^15");
        let renamed: Vec<_> =
            peers.iter().map(|peer| Peer { name: format!("evil-{}", peer.name), ..peer.clone() }).collect();
        let addresses = |peers: &[Peer]| peers.iter().map(|peer| peer.address).collect::<Vec<_>>();
        assert_eq!(addresses(&chosen(renamed.iter(), &salt, 3)), addresses(&first), "names change nothing");
        assert_eq!(chosen(peers[..2].iter(), &salt, 3).len(), 2);
    }
}
