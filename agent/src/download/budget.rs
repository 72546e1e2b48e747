//! The budget of a registry for the background work of all nodes.
//!
//! For each registry one peer is the owner of the budget: the first by rank that is usable. Every node reports to it what the registry
//! said of its rate limit, and asks it before background work requests a manifest, so that the pre-pulls of all nodes together leave
//! the reserve to waiting pods.
//!
//! The owner can only make background work wait; the local rule applies as well. When the first peers by rank do not answer, this node is
//! the owner for itself, and reports what it has granted to the owner that answers next.
//! An owner that refuses for longer than [`MOST_REFUSED`] is checked (`refusals`): a `HEAD` request, which registries do not count, shows how many
//! requests are left, and if the local rule allows it, the owner is not asked for a while.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{error::FetchError, fetcher::Fetcher, refusals::Turn};
use crate::{
    limits::download::budget::{ANSWER, IGNORED, MOST_REFUSED, OWNERS, PAUSE},
    peers::{
        Membership, Peer, Settled,
        budget::{BudgetAsk, Granted, Rate},
        rank,
    },
    types::{Digest, Reference, RegistryHost, Repository, Tag},
    upstream::{Class, Told},
};

/// How long background work should wait, if at all.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// According to a peer.
    OfOwner(Option<Duration>),
    /// According to this node itself.
    Own(Option<Duration>),
}

impl Answer {
    fn wait(self) -> Option<Duration> {
        match self {
            Self::OfOwner(wait) | Self::Own(wait) => wait,
        }
    }
}

fn reserved(registry: &RegistryHost, wait: Option<Duration>) -> Result<(), FetchError> {
    wait.map_or(Ok(()), |wait| Err(FetchError::Reserved { registry: registry.clone(), wait }))
}

impl Fetcher {
    /// Fails while background work should not request blobs, because less than the reserve of the rate limit is left.
    pub fn within_budget(&self, repository: &Repository) -> Result<(), FetchError> {
        let wait = self.0.upstream.background_wait(&repository.registry, Class::Uncounted);
        reserved(&repository.registry, wait)
    }

    /// Fails while background work should not request a manifest that is not here.
    pub async fn turn(&self, repository: &Repository, reference: &Reference) -> Result<(), FetchError> {
        reserved(&repository.registry, self.background_turn(repository, reference).await)
    }

    /// The digest of a tag, for background work. Registries do not count the `HEAD` request; when it has no usable answer,
    /// the other nodes and a request that is counted remain.
    pub async fn digest_in_turn(&self, repository: &Repository, tag: &Tag) -> Result<Digest, FetchError> {
        // Should this registry count it, the reserve is kept all the same.
        reserved(&repository.registry, self.manifest_wait(&repository.registry))?;
        match self.tag_digest(repository, tag).await {
            Err(FetchError::NotNow { .. }) => {
                let tag = Reference::Tag(tag.clone());
                self.turn(repository, &tag).await?;
                Ok(self.manifest_head(repository, &tag).await?.digest)
            }
            resolved => resolved,
        }
    }

    /// How long background work should wait before it requests a manifest that is not here; `None` when it may go on.
    async fn background_turn(&self, repository: &Repository, reference: &Reference) -> Option<Duration> {
        let registry = &repository.registry;
        if let Some(wait) = self.manifest_wait(registry) {
            return Some(wait);
        }
        if self.0.refusals.lock().ignores(registry, Instant::now()) {
            return None;
        }
        let subject = rank::key("request", &format!("{repository} {reference}"));
        let answer = self.ask_owner(registry, Some(subject)).await;
        let Answer::OfOwner(refused) = answer else { return answer.wait() };
        let turn = self.0.refusals.lock().answered(registry, refused, Instant::now());
        match turn {
            Turn::Go => None,
            Turn::Wait(wait) => Some(wait),
            Turn::Check => self.check_owner(repository, reference).await,
        }
    }

    /// The same by what the registry told this node, without asking another one.
    fn manifest_wait(&self, registry: &RegistryHost) -> Option<Duration> {
        self.0.upstream.background_wait(registry, Class::Background)
    }

    /// Asks the owner of the registry's budget, the next one when it does not answer, and at last this node itself. Without `subject` it only
    /// reports.
    async fn ask_owner(&self, registry: &RegistryHost, subject: Option<u64>) -> Answer {
        let told = self.0.upstream.rate_told(registry);
        let granted = self.0.upstream.granted_lately(registry);
        let ask = BudgetAsk {
            registry: registry.clone(),
            subject,
            rate: told.map(rate),
            granted: (granted > 0)
                .then(|| Granted { peer: self.0.peers.config().name.clone(), count: granted }),
        };
        let owners = self.0.peers.membership().map(|membership| self.owners(&membership, registry));
        for owner in owners.unwrap_or_default() {
            let answer = tokio::time::timeout(ANSWER, self.0.peers.budget(&owner, &ask)).await;
            if let Ok(Some(Settled::Found(answer))) = answer {
                let wait = Duration::from_millis(answer.wait_ms);
                return Answer::OfOwner(Some(wait).filter(|wait| !wait.is_zero()));
            }
        }
        Answer::Own(self.0.upstream.grant(registry, told, None, subject).err())
    }

    /// The first usable peers that rank before this node.
    fn owners(&self, membership: &Membership, registry: &RegistryHost) -> Vec<Peer> {
        let before = membership.resolvers(rank::key("budget", registry.as_str()));
        before.into_iter().filter(|peer| self.0.peers.is_usable(peer)).take(OWNERS).cloned().collect()
    }

    /// Whether the registry says itself that there is something left for background work.
    async fn check_owner(&self, repository: &Repository, reference: &Reference) -> Option<Duration> {
        let registry = &repository.registry;
        // Its headers count, those of a refusal too.
        let _ = self.0.upstream.manifest_head(repository, reference).await;
        let wait = self.manifest_wait(registry);
        if wait.is_none() {
            tracing::warn!(%registry, "another node refused background work for {MOST_REFUSED:?} although the registry allows it: not asking it for {IGNORED:?}");
        }
        self.0.refusals.lock().checked(registry, wait.is_none(), Instant::now());
        wait
    }

    /// Reports to the owners what registries say of their rate limits, until `stop`.
    pub async fn share_rates(self, stop: CancellationToken) {
        let _ = stop.run_until_cancelled(self.report_rates()).await;
    }

    async fn report_rates(&self) {
        let mut reported: HashMap<RegistryHost, (u64, u64)> = HashMap::new();
        loop {
            self.0.upstream.rate_changed().await;
            // Several answers make one report.
            tokio::time::sleep(PAUSE).await;
            for (registry, Told { limit, remaining, .. }) in self.0.upstream.rates_told() {
                let rate = (limit, remaining);
                if reported.insert(registry.clone(), rate) != Some(rate) {
                    self.ask_owner(&registry, None).await;
                }
            }
        }
    }
}

fn rate(told: Told) -> Rate {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Rate {
        source: told.source,
        limit: told.limit,
        remaining: told.remaining,
        window: millis(told.window),
        age: millis(told.age),
    }
}
