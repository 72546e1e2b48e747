//! Bearer tokens from the endpoint that a registry's challenge names (distribution project, "Token Authentication
//! Specification").
//!
//! Tokens are cached by realm, service, scope and user, and fetched once however many requests wait for them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use oci::token::TokenAnswer;
use parking_lot::Mutex;

use super::credentials::Login;

/// Lifetime of a token whose answer names none (token specification, "expires_in").
const DEFAULT_LIFETIME: Duration = Duration::from_mins(1);

/// Longest time for which a token is kept, also when its answer names a longer one.
const LONGEST_LIFETIME: Duration = Duration::from_hours(24);

/// A token is not used in the last part of its life: the request has to arrive before it ends.
const MARGIN: Duration = Duration::from_secs(10);

/// A token and until when it is used.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) value: String,
    until: Instant,
}

impl Token {
    /// The token in an answer that came now.
    pub(super) fn of(answer: TokenAnswer, now: Instant) -> Option<Self> {
        let lifetime = answer.expires_in.map_or(DEFAULT_LIFETIME, Duration::from_secs).min(LONGEST_LIFETIME);
        let useful = lifetime.saturating_sub(MARGIN).max(lifetime / 2);
        Some(Self { value: answer.into_token()?, until: now + useful })
    }

    fn is_fresh(&self, now: Instant) -> bool {
        now < self.until
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("until", &self.until).finish_non_exhaustive()
    }
}

/// What a token was given for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: String,
    pub(super) login: Option<Login>,
}

/// One slot for each key: the task that holds its lock fetches, the others wait.
pub(super) type TokenSlot = Arc<tokio::sync::Mutex<Option<Token>>>;

/// Tokens by registry, repository and actions. Bounded: above the limit, stale slots that no task holds are dropped.
#[derive(Debug, Default)]
pub(super) struct TokenCache(Mutex<HashMap<TokenKey, TokenSlot>>);

const MAX_SLOTS: usize = 4096;

impl TokenCache {
    pub(super) fn slot(&self, key: &TokenKey) -> TokenSlot {
        let mut slots = self.0.lock();
        if let Some(slot) = slots.get(key) {
            return slot.clone();
        }
        if slots.len() >= MAX_SLOTS {
            let now = Instant::now();
            slots.retain(|_, slot| {
                Arc::strong_count(slot) > 1
                    || slot
                        .try_lock()
                        .is_ok_and(|token| token.as_ref().is_some_and(|token| token.is_fresh(now)))
            });
        }
        slots.entry(key.clone()).or_default().clone()
    }
}

/// The slot's token if it is fresh and not the one that was just refused.
pub(super) fn usable(slot: Option<&Token>, refused: Option<&str>, now: Instant) -> Option<String> {
    slot.filter(|token| token.is_fresh(now) && refused != Some(token.value.as_str()))
        .map(|token| token.value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_without_a_lifetime_lives_for_a_minute_less_the_margin() {
        let now = Instant::now();
        let answer = |text: &str| Token::of(serde_json::from_str(text).unwrap(), now);
        let token = answer(r#"{"token":"t"}"#).unwrap();
        assert!(
            token.is_fresh(now + Duration::from_secs(49)) && !token.is_fresh(now + Duration::from_secs(50))
        );
        assert!(
            !answer(r#"{"access_token":"t","expires_in":4}"#).unwrap().is_fresh(now + Duration::from_secs(2))
        );
        for lifetime in [u64::MAX, i64::MAX as u64, (i64::MAX as u64) - 1] {
            let token = answer(&format!(r#"{{"token":"t","expires_in":{lifetime}}}"#)).unwrap();
            assert!(!token.is_fresh(now + LONGEST_LIFETIME), "{lifetime}");
        }
        assert!(answer(r#"{"token":"","expires_in":60}"#).is_none());
        assert_eq!(usable(Some(&token), Some("t"), now), None, "a refused token is not used again");
    }
}
