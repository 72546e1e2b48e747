//! Requests to peers for manifests and tags, and the answers to theirs.
//!
//! Manifests: for each, the peer that ranks first reads it from the registry and the others get it from that peer, or
//! from the next one if it fails, so that a cluster costs one `GET`. The digest protects the bytes from any sender. A
//! request only goes to peers that rank before this node, even if their views of the membership differ: it cannot
//! circle.
//!
//! Tags: nothing protects them, so every node sends its own `HEAD` to the registry. Peers are used only while that
//! fails, and only when several of them agree ([`quorum`]). A peer answers with its record or its own `HEAD`, and
//! requests no manifest for that: registries count those.
//!
//! A peer's "not found" is never used: only the registry's counts.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use super::{error::FetchError, fetcher::Fetcher, tag_slot::Sources};
use crate::{
    peers::{
        Membership, Peer, Settled, TagAnswer,
        quorum::{self, Vote},
        rank,
    },
    types::{Digest, Repository, Tag},
    upstream::Manifest,
};

use crate::limits::download::peer_tags::{ANSWER, AT_ONCE, EVERYONE, RESOLVERS, VOTES};

impl Fetcher {
    /// Peers to request a manifest from: usable peers that rank before this node.
    fn before_this_node(&self, membership: &Membership, subject: u64) -> Vec<Peer> {
        let before = membership.resolvers(subject).into_iter();
        before.filter(|peer| self.0.peers.is_usable(peer)).take(RESOLVERS).cloned().collect()
    }

    /// A manifest from the peer that reads it for all nodes. Takes `peer.wait` at most when peers do not deliver it.
    pub(super) async fn manifest_of_peers(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<Manifest> {
        let membership = self.0.peers.membership()?;
        let asking = async {
            for peer in self.before_this_node(&membership, rank::key("manifest", &digest.to_string())) {
                let answer = self.0.peers.manifest(&peer, repository, digest, false).await;
                if let Some(Settled::Found((media_type, bytes))) = answer {
                    return Some(Manifest { digest: *digest, media_type, bytes });
                }
            }
            None
        };
        tokio::time::timeout(self.0.peers.config().wait, asking).await.ok().flatten()
    }

    /// A manifest that any peer has on its disk, or can still fetch.
    pub(super) async fn manifest_of_any_peer(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<Manifest> {
        for (peers, known) in self.last_resorts(rank::key("manifest", &digest.to_string()))? {
            let answers = stream::iter(peers)
                .map(|peer| async move { self.0.peers.manifest(&peer, repository, digest, known).await })
                .buffer_unordered(AT_ONCE);
            let found = answers.filter_map(|answer| std::future::ready(found(answer)));
            let first = async { std::pin::pin!(found).next().await };
            if let Ok(Some((media_type, bytes))) = tokio::time::timeout(EVERYONE, first).await {
                return Some(Manifest { digest: *digest, media_type, bytes });
            }
        }
        None
    }

    /// Which peers to request a manifest from when the registry does not answer this node: all of them for a copy on
    /// disk; then the peers that rank after this node, because they may reach the registry. They send no further peer
    /// requests.
    fn last_resorts(&self, subject: u64) -> Option<[(Vec<Peer>, bool); 2]> {
        let membership = self.0.peers.membership()?;
        let usable = |peer: &&Peer| self.0.peers.is_usable(peer);
        let after = membership.resolvers_after(subject).into_iter().filter(usable).cloned().collect();
        Some([(membership.others().filter(usable).cloned().collect(), true), (after, false)])
    }

    /// The digest that enough peers report for a tag that the registry cannot confirm now: from their records, else
    /// from their own requests to the registry.
    pub(super) async fn tag_of_peers(&self, repository: &Repository, tag: &Tag) -> Option<Vote> {
        let membership = self.0.peers.membership()?;
        let (mut votes, mut silent) = (Vec::new(), self.0.peers.voters(&membership));
        for known in [true, false] {
            silent = self.collect_votes(&mut votes, silent, repository, tag, known).await;
            let agreed = quorum::agreed(&votes, self.0.peers.config().tag_quorum);
            if agreed.is_some() {
                self.0.metrics.count_tag_resolution(true);
                return agreed;
            }
        }
        self.0.metrics.count_tag_resolution(false);
        None
    }

    /// One round of votes. Waits for all peers, within a limit, so that the fastest do not decide alone. Returns the
    /// peers that did not vote.
    async fn collect_votes(
        &self,
        votes: &mut Vec<Vote>,
        peers: Vec<Peer>,
        repository: &Repository,
        tag: &Tag,
        known: bool,
    ) -> Vec<Peer> {
        let mut silent = peers.clone();
        let answers = stream::iter(peers)
            .map(|peer| async move { (self.0.peers.tag(&peer, repository, tag, known).await, peer) })
            .buffer_unordered(AT_ONCE);
        let mut answers = std::pin::pin!(answers);
        let all = async {
            while let Some((answer, peer)) = answers.next().await {
                if let Some(vote) = found(answer).as_ref().and_then(vote) {
                    votes.push(vote);
                    silent.retain(|other| *other != peer);
                }
            }
        };
        // Late answers do not count in this round.
        let _ = tokio::time::timeout(VOTES, all).await;
        silent
    }

    /// A manifest for a peer. With `known`, from the disk only.
    pub async fn manifest_for_peer(
        &self,
        repository: &Repository,
        digest: &Digest,
        known: bool,
    ) -> Result<Manifest, FetchError> {
        if known {
            return self.known_manifest(repository, digest).await;
        }
        let (fetcher, repository, digest) = (self.clone(), repository.clone(), *digest);
        self.answer_in_time(async move { fetcher.manifest_by(&repository, &digest, Sources::Registry).await })
            .await
    }

    /// The digest that a tag resolves to, for a peer. With `known`, from the disk only. A digest that this node got
    /// from peers is not forwarded: it would count one vote several times.
    pub async fn tag_for_peer(
        &self,
        repository: &Repository,
        tag: &Tag,
        known: bool,
    ) -> Result<TagAnswer, FetchError> {
        let resolved = if known {
            self.known_tag(repository, tag).await?
        } else {
            let (fetcher, repository, tag) = (self.clone(), repository.clone(), tag.clone());
            self.answer_in_time(async move { fetcher.resolve_by(&repository, &tag, Sources::Registry).await })
                .await?
        };
        if resolved.unconfirmed {
            let reason = "this node has the tag's digest from peers, not from the registry".into();
            return Err(FetchError::NotNow { reason, retry_after: None });
        }
        Ok(TagAnswer {
            digest: resolved.info.digest.to_string(),
            media_type: resolved.info.media_type.as_str().to_owned(),
            size: resolved.info.size,
            age_ms: u64::try_from(resolved.age.as_millis()).unwrap_or(u64::MAX),
            stale: resolved.info.stale,
        })
    }

    /// Runs work that continues after the requesting peer was told to retry.
    async fn answer_in_time<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, FetchError>> + Send + 'static,
    ) -> Result<T, FetchError> {
        let task = self.0.tasks.spawn("answer", work);
        match tokio::time::timeout(ANSWER, task).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(FetchError::Stopping),
            Err(_) => {
                Err(FetchError::NotNow { reason: format!("no answer within {ANSWER:?}"), retry_after: None })
            }
        }
    }
}

/// The content of an answer, if there is any.
fn found<T>(answer: Option<Settled<T>>) -> Option<T> {
    match answer {
        Some(Settled::Found(found)) => Some(found),
        Some(Settled::Absent | Settled::NotNow) | None => None,
    }
}

fn vote(answer: &TagAnswer) -> Option<Vote> {
    Some(Vote { digest: answer.digest.parse().ok()?, age: Duration::from_millis(answer.age_ms) })
}
