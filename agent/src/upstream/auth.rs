//! Registry authentication: Basic, and Bearer tokens from the endpoint that the registry's challenge names
//! (distribution project, "Token Authentication Specification"; RFC 9110, 11.6.1 for the header).
//!
//! Tokens are cached by realm, service, scope and user, and fetched once however many requests wait for them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::Deserialize;

use super::credentials::Login;

/// What a `WWW-Authenticate` header asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token.
    Bearer {
        /// URL of the token endpoint.
        realm: String,
        /// The registry's name there.
        service: Option<String>,
        /// What the token has to allow.
        scope: Option<String>,
    },
}

/// The first usable challenge of all `WWW-Authenticate` headers: Bearer before Basic.
pub(super) fn challenge<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            let mut parameters = parameters(rest);
            if let Some(realm) = parameters.remove("realm") {
                return Some(Challenge::Bearer {
                    realm,
                    service: parameters.remove("service"),
                    scope: parameters.remove("scope"),
                });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
    }
    basic
}

/// `name="value", name=value`, with `\"` inside quotes.
fn parameters(mut text: &str) -> HashMap<String, String> {
    let mut all = HashMap::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let (value, rest) = if let Some(quoted) = rest.strip_prefix('"') {
            unquote(quoted)
        } else {
            let (value, rest) = rest.split_at(rest.find([',', ' ']).unwrap_or(rest.len()));
            (value.to_owned(), rest)
        };
        all.insert(name, value);
        text = rest;
    }
    all
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &text[at + 1..]),
            _ => value.push(c),
        }
    }
    (value, "")
}

/// What the token endpoint answers.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Lifetime of a token whose answer names none (token specification, "expires_in").
const DEFAULT_LIFETIME: Duration = Duration::from_mins(1);

/// Longest time for which a token is kept, also when its answer names a longer one.
const LONGEST_LIFETIME: Duration = Duration::from_hours(24);

/// A token is not used in the last part of its life: the request has to arrive before it ends.
const MARGIN: Duration = Duration::from_secs(10);

impl TokenAnswer {
    pub(super) fn into_token(self, now: Instant) -> Option<Token> {
        let value = self.token.or(self.access_token).filter(|value| !value.is_empty())?;
        let lifetime = self.expires_in.map_or(DEFAULT_LIFETIME, Duration::from_secs).min(LONGEST_LIFETIME);
        let useful = lifetime.saturating_sub(MARGIN).max(lifetime / 2);
        Some(Token { value, until: now + useful })
    }
}

/// A token and until when it is used.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) value: String,
    until: Instant,
}

impl Token {
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
    fn challenges_are_read_in_every_form_that_registries_send() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.map(Into::into),
                scope: scope.map(Into::into),
            })
        };
        let read = |headers: &[&str]| challenge(headers.iter().copied());
        assert_eq!(
            read(&[r#"Bearer realm="https://a/token",service="r",scope="repository:x:pull,push""#]),
            bearer("https://a/token", Some("r"), Some("repository:x:pull,push"))
        );
        assert_eq!(
            read(&[r#"bearer service=r, realm="https://a/t""#]),
            bearer("https://a/t", Some("r"), None)
        );
        assert_eq!(read(&[r#"Bearer realm="a\"b""#]), bearer("a\"b", None, None));
        assert_eq!(read(&["Basic realm=x", r#"Bearer realm="t""#]), bearer("t", None, None));
        assert_eq!(read(&["Basic realm=x"]), Some(Challenge::Basic));
        assert_eq!(read(&["Bearer", "Negotiate"]), None);
        assert_eq!(read(&[r#"Bearer realm="unclosed"#]), bearer("unclosed", None, None));
    }

    #[test]
    fn a_token_without_a_lifetime_lives_for_a_minute_less_the_margin() {
        let now = Instant::now();
        let answer = |text: &str| serde_json::from_str::<TokenAnswer>(text).unwrap().into_token(now);
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
