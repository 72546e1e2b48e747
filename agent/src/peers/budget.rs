//! What peers tell the owner of a registry's budget, and its answer.

use serde::{Deserialize, Serialize};

use crate::{limits::peers::wire::LONGEST, types::RegistryHost};

/// A report of a registry's rate limit to the owner of its budget, and a request for a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetAsk {
    /// The registry.
    pub registry: RegistryHost,
    /// The content that background work is to request; `None` only reports.
    pub subject: Option<u64>,
    /// What the registry said to the requester last.
    pub rate: Option<Rate>,
    /// What the requester has granted lately itself: the owner does not know of it.
    pub granted: Option<Granted>,
}

/// Requests of background work that a node granted as the owner, or because no owner answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The node's name.
    pub peer: String,
    /// Requests that may be under way.
    pub count: u64,
}

/// What a registry said of its rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Whose limit it is, as a hash; 0 when the registry does not say.
    pub source: u64,
    /// Requests allowed per window.
    pub limit: u64,
    /// Requests left.
    pub remaining: u64,
    /// Milliseconds of a window.
    pub window: u64,
    /// Milliseconds since the registry said so.
    pub age: u64,
}

/// The owner's answer about the budget of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetAnswer {
    /// Milliseconds for which background work should wait; 0 grants the request.
    pub wait_ms: u64,
}

/// A parameter that is missing or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BudgetError(pub(super) &'static str);

impl BudgetAsk {
    /// Reads the parameters of a request.
    pub(super) fn read<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, BudgetError> {
        let registry = get("registry").and_then(|name| name.parse().ok()).ok_or(BudgetError("registry"))?;
        let hash = |hex| u64::from_str_radix(hex, 16).map_err(|_| BudgetError("subject"));
        let number = |name| get(name)?.parse().ok();
        let rate = || {
            Some(Rate {
                source: get("source").map_or(Some(0), |hex| u64::from_str_radix(hex, 16).ok())?,
                limit: number("limit")?,
                remaining: number("remaining")?,
                window: number("windowMs")?,
                age: number("ageMs")?,
            })
        };
        let peer = get("member").filter(|peer| peer.len() <= LONGEST).map(str::to_owned);
        let granted = peer.zip(number("granted")).map(|(peer, count)| Granted { peer, count });
        Ok(Self { registry, subject: get("subject").map(hash).transpose()?, rate: rate(), granted })
    }

    /// The parameters of a request.
    pub(super) fn pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = vec![("registry", self.registry.to_string())];
        pairs.extend(self.subject.map(|subject| ("subject", format!("{subject:016x}"))));
        if let Some(Granted { peer, count }) = &self.granted {
            pairs.push(("member", peer.clone()));
            pairs.push(("granted", count.to_string()));
        }
        if let Some(Rate { source, limit, remaining, window, age }) = self.rate {
            pairs.push(("source", format!("{source:016x}")));
            let numbers = [("limit", limit), ("remaining", remaining), ("windowMs", window), ("ageMs", age)];
            pairs.extend(numbers.map(|(name, number)| (name, number.to_string())));
        }
        pairs
    }
}
