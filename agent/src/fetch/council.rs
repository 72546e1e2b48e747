//! Asking other members what a tag means and for manifests, so that the cluster asks upstream once.
//!
//! For each tag and each manifest one member stands first; it asks upstream, the others ask it, and when it is gone the
//! next. A question only goes to members that stand before the asker, whatever each knows of the membership: it
//! cannot go round in a circle. When upstream cannot answer, whatever any member last knew is good enough.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use super::{FetchError, Fetcher, ManifestInfo, tags::Resolved};
use crate::{
    peers::{Member, Members, Settled, TagMeaning, rank},
    types::{Digest, MediaType, Repository, Tag},
    upstream::Manifest,
};

/// Members asked one after the other before upstream is.
const RESOLVERS: usize = 3;

/// Members asked at the same time for what they last knew.
const AT_ONCE: usize = 32;

/// Longest time for asking everyone.
const EVERYONE: Duration = Duration::from_secs(1);

/// Longest time until a member that asks is told "not now"; the work goes on, and its next question finds it done.
const ANSWER: Duration = Duration::from_millis(1_500);

/// Whose word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Other members, then upstream.
    Members,
    /// Upstream: a member asks this node.
    Upstream,
}

impl Fetcher {
    /// Members to ask about a subject: those before this node that are thought to be there.
    fn council(&self, members: &Members, subject: u64) -> Vec<Member> {
        let before = members.resolvers(subject).into_iter();
        before.filter(|member| self.0.peers.is_usable(member)).take(RESOLVERS).cloned().collect()
    }

    /// A manifest from the member that fetches it for all.
    pub(super) async fn manifest_of_members(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Manifest>, FetchError> {
        let Some(members) = self.0.peers.members() else { return Ok(None) };
        let asking = async {
            for member in self.council(&members, rank::key("manifest", &digest.to_string())) {
                match self.0.peers.manifest(&member, repository, digest, false).await {
                    Some(Settled::Found((media_type, bytes))) => {
                        return Ok(Some(Manifest { digest: *digest, media_type, bytes }));
                    }
                    Some(Settled::Absent) => return Err(absent(&member, repository)),
                    Some(Settled::NotNow) | None => {}
                }
            }
            Ok(None)
        };
        tokio::time::timeout(self.0.peers.config().wait, asking).await.unwrap_or(Ok(None))
    }

    /// A manifest that any member has on its disk, or can still fetch.
    pub(super) async fn manifest_of_anyone(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<Manifest> {
        let subject = rank::key("manifest", &digest.to_string());
        for (members, known) in self.last_resorts(subject)? {
            let found = first(members, 1, |member| async move {
                match self.0.peers.manifest(&member, repository, digest, known).await {
                    Some(Settled::Found(found)) => Some(found),
                    Some(Settled::Absent | Settled::NotNow) | None => None,
                }
            });
            if let Some((media_type, bytes)) = found.await.into_iter().next() {
                return Some(Manifest { digest: *digest, media_type, bytes });
            }
        }
        None
    }

    /// What the member that resolves a tag for all says; `None` when nobody can confirm anything.
    pub(super) async fn tag_of_members(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<Resolved>, FetchError> {
        let Some(members) = self.0.peers.members() else { return Ok(None) };
        let subject = rank::key("tag", &format!("{repository}:{tag}"));
        let asking = async {
            for member in self.council(&members, subject) {
                match self.0.peers.tag(&member, repository, tag, false).await {
                    // What it could not confirm itself, the next one may.
                    Some(Settled::Found(meaning)) => match resolved(&meaning) {
                        Some(fresh) if !fresh.info.stale => return Ok(Some(fresh)),
                        _ => {}
                    },
                    Some(Settled::Absent) => return Err(absent(&member, repository)),
                    Some(Settled::NotNow) | None => {}
                }
            }
            Ok(None)
        };
        tokio::time::timeout(self.0.peers.config().wait, asking).await.unwrap_or(Ok(None))
    }

    /// The youngest meaning of a tag that any member knows, or can still find out.
    pub(super) async fn tag_of_anyone(&self, repository: &Repository, tag: &Tag) -> Option<Resolved> {
        let subject = rank::key("tag", &format!("{repository}:{tag}"));
        for (members, known) in self.last_resorts(subject)? {
            let found = first(members, usize::MAX, |member| async move {
                match self.0.peers.tag(&member, repository, tag, known).await {
                    Some(Settled::Found(meaning)) => resolved(&meaning),
                    Some(Settled::Absent | Settled::NotNow) | None => None,
                }
            });
            if let Some(youngest) = found.await.into_iter().min_by_key(|found| found.age) {
                return Some(youngest);
            }
        }
        None
    }

    /// Whom to ask when upstream does not answer this node: everyone for what they know; then those that stand after
    /// this node, for they may reach upstream where this node does not. These ask nobody else.
    fn last_resorts(&self, subject: u64) -> Option<[(Vec<Member>, bool); 2]> {
        let members = self.0.peers.members()?;
        let usable = |member: &&Member| self.0.peers.is_usable(member);
        let after = members.resolvers_after(subject).into_iter().filter(usable).cloned().collect();
        Some([(members.others().filter(usable).cloned().collect(), true), (after, false)])
    }

    /// A manifest for another member. With `known` from the disk alone.
    pub async fn manifest_for_member(
        &self,
        repository: &Repository,
        digest: &Digest,
        known: bool,
    ) -> Result<Manifest, FetchError> {
        if known {
            return self.known_manifest(repository, digest).await;
        }
        let (fetcher, repository, digest) = (self.clone(), repository.clone(), *digest);
        self.answer_in_time(async move { fetcher.manifest_by(&repository, &digest, Ask::Upstream).await })
            .await
    }

    /// What a tag means, for another member. With `known` from memory alone.
    pub async fn tag_for_member(
        &self,
        repository: &Repository,
        tag: &Tag,
        known: bool,
    ) -> Result<TagMeaning, FetchError> {
        let resolved = if known {
            self.known_tag(repository, tag).await?
        } else {
            let (fetcher, repository, tag) = (self.clone(), repository.clone(), tag.clone());
            self.answer_in_time(async move { fetcher.resolve_by(&repository, &tag, Ask::Upstream).await })
                .await?
        };
        Ok(TagMeaning {
            digest: resolved.info.digest.to_string(),
            media_type: resolved.info.media_type.as_str().to_owned(),
            size: resolved.info.size,
            age_ms: u64::try_from(resolved.age.as_millis()).unwrap_or(u64::MAX),
            stale: resolved.info.stale,
        })
    }

    /// Runs work that goes on when the asker has been told to wait.
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

/// Answers of the members that have one, until there are `enough` or time is up.
async fn first<T, F: Future<Output = Option<T>>>(
    members: Vec<Member>,
    enough: usize,
    ask: impl Fn(Member) -> F,
) -> Vec<T> {
    let answers = stream::iter(members).map(ask).buffer_unordered(AT_ONCE).filter_map(std::future::ready);
    let (mut found, mut answers) = (Vec::new(), std::pin::pin!(answers.take(enough)));
    let _ = tokio::time::timeout(EVERYONE, async {
        while let Some(answer) = answers.next().await {
            found.push(answer);
        }
    })
    .await;
    found
}

fn absent(member: &Member, repository: &Repository) -> FetchError {
    FetchError::NotFound(format!(
        "`{}` does not have it, as peer `{}` found",
        repository.registry, member.name
    ))
}

fn resolved(meaning: &TagMeaning) -> Option<Resolved> {
    let (digest, media_type) = (meaning.digest.parse().ok()?, MediaType::parse(&meaning.media_type)?);
    let info = ManifestInfo { digest, media_type, size: meaning.size, stale: meaning.stale };
    Some(Resolved { info, age: Duration::from_millis(meaning.age_ms) })
}
