//! The budget of a registry for the background work of all nodes.
//!
//! For each registry one peer is the owner of the budget: the first by rank that is usable. Every node reports to it what the registry
//! said of its rate limit, and asks it before background work requests a manifest, so that the pre-pulls of all nodes together leave
//! the reserve to waiting pods.
//!
//! The owner can only make background work wait; the local rule applies as well. Without an answer the local rule decides alone.
//! An owner that refuses for longer than [`MOST_REFUSED`] is checked (`refusals`): a `HEAD` request, which registries do not count, shows how many
//! requests are left, and if the local rule allows it, the owner is not asked for a while.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{fetcher::Fetcher, refusals::Turn};
use crate::{
    limits::download::budget::{ANSWER, IGNORED, MOST_REFUSED, PAUSE},
    peers::{
        Membership, Peer, Settled,
        budget::{BudgetAsk, Rate},
        rank,
    },
    types::{Reference, RegistryHost, Repository},
    upstream::Told,
};

impl Fetcher {
    /// How long background work should wait before it requests a manifest that is not here, or a tag, which brings its manifest with
    /// it; `None` when it may go on.
    pub async fn background_turn(&self, repository: &Repository, reference: &Reference) -> Option<Duration> {
        let registry = &repository.registry;
        if let Some(wait) = self.background_wait(registry) {
            return Some(wait);
        }
        if self.0.refusals.lock().ignores(registry, Instant::now()) {
            return None;
        }
        let subject = rank::key("request", &format!("{repository} {reference}"));
        let refused = self.ask_owner(registry, Some(subject)).await?;
        let turn = self.0.refusals.lock().answered(registry, refused, Instant::now());
        match turn {
            Turn::Go => None,
            Turn::Wait(wait) => Some(wait),
            Turn::Check => self.check_owner(repository, reference).await,
        }
    }

    /// The wait that the owner of the registry's budget answers, this node itself included. `None` when there is no owner that answers.
    async fn ask_owner(&self, registry: &RegistryHost, subject: Option<u64>) -> Option<Option<Duration>> {
        let membership = self.0.peers.membership()?;
        let told = self.0.upstream.rate_told(registry);
        let Some(owner) = self.owner(&membership, registry) else {
            return Some(self.0.upstream.grant(registry, told, subject).err());
        };
        let ask = BudgetAsk { registry: registry.clone(), subject, rate: told.map(rate) };
        let answer = tokio::time::timeout(ANSWER, self.0.peers.budget(&owner, &ask)).await;
        match answer.ok().flatten()? {
            Settled::Found(answer) => {
                Some(Some(Duration::from_millis(answer.wait_ms)).filter(|wait| !wait.is_zero()))
            }
            Settled::Absent | Settled::NotNow => None,
        }
    }

    /// The first usable peer that ranks before this node.
    fn owner(&self, membership: &Membership, registry: &RegistryHost) -> Option<Peer> {
        let before = membership.resolvers(rank::key("budget", registry.as_str()));
        before.into_iter().find(|peer| self.0.peers.is_usable(peer)).cloned()
    }

    /// Whether the registry says itself that there is something left for background work.
    async fn check_owner(&self, repository: &Repository, reference: &Reference) -> Option<Duration> {
        let registry = &repository.registry;
        // Its headers count, those of a refusal too.
        let _ = self.0.upstream.manifest_head(repository, reference).await;
        let wait = self.background_wait(registry);
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
