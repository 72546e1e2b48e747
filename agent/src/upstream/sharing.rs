//! What nodes know together of a registry: what it said of its rate limit, and the credentials that clients have lent.

use std::time::{Duration, Instant};

use super::{Class, Login, RegistryConfig, Shows, Told, Upstream};
use crate::types::{RegistryHost, Repository};

impl Upstream {
    /// Whose credentials the agent shows a registry.
    pub fn shows(&self, registry: &RegistryHost) -> Shows {
        self.serves(registry).map_or(Shows::Nothing, RegistryConfig::shows)
    }

    /// Lends a client's credentials to downloads from a repository: the registry lets it read there.
    pub fn lend(&self, repository: &Repository, login: &Login) {
        self.shared.lent.lend(repository, login);
    }

    /// Ends that.
    pub fn withdraw(&self, repository: &Repository, login: &Login) {
        self.shared.lent.withdraw(repository, login);
    }

    /// Whether there are credentials that a client has lent for a repository.
    pub fn has_lent(&self, repository: &Repository) -> bool {
        self.shared.lent.first(repository).is_some()
    }

    /// Whether there are, or were a short time ago.
    pub fn had_lent(&self, repository: &Repository) -> bool {
        self.shared.lent.had(repository)
    }

    /// How long background work should send no requests of this class to a registry; `None` when it may continue, according to the
    /// registry's responses.
    pub fn background_wait(&self, registry: &RegistryHost, class: Class) -> Option<Duration> {
        self.registry(registry).ok()?.background_wait(class)
    }

    /// What a registry said last of its rate limit to this node.
    pub fn rate_told(&self, registry: &RegistryHost) -> Option<Told> {
        let known = self.known.lock().get(registry).cloned();
        known?.told()
    }

    /// The registries that have said something of their rate limit to this node.
    pub fn rates_told(&self) -> Vec<(RegistryHost, Told)> {
        let known: Vec<_> =
            self.known.lock().iter().map(|(host, known)| (host.clone(), known.clone())).collect();
        known.into_iter().filter_map(|(host, known)| Some((host, known.told()?))).collect()
    }

    /// Waits until a registry has said something of its rate limit.
    pub async fn rate_changed(&self) {
        self.shared.told.notified().await;
    }

    /// As the owner of a registry's budget: learns what another node was told, and how many requests it has granted itself (with its
    /// name), and grants it the request for a content, or says how long background work should wait.
    pub fn grant(
        &self,
        registry: &RegistryHost,
        told: Option<Told>,
        granted: Option<(&str, u64)>,
        subject: Option<u64>,
    ) -> Result<(), Duration> {
        let (now, own) = (Instant::now(), self.rate_told(registry));
        let mut ledgers = self.ledgers.lock();
        let Some(ledger) = ledgers.of(registry, told, own, now) else { return Ok(()) };
        if let Some((peer, count)) = granted {
            ledger.note_elsewhere(peer, count, now);
        }
        subject.map_or(Ok(()), |subject| ledger.grant(subject, now))
    }

    /// How many requests this node has granted itself that the registry may not have counted.
    pub fn granted_lately(&self, registry: &RegistryHost) -> u64 {
        self.ledgers.lock().under_way(registry, Instant::now())
    }
}
