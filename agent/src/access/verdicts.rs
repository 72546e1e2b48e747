//! Whether a registry lets clients read repositories, remembered for a short time. The registry is asked once for any number
//! of requests with the same credentials; the credentials themselves are not kept.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, Semaphore};

use super::Client;
use super::client::{Key, Salt};
use crate::{
    types::{Cache, RegistryHost, Repository},
    upstream::UpstreamError,
};

/// For how long a client that may read a repository is believed: the longest time for which revoked credentials work.
const ALLOWED: Duration = Duration::from_mins(1);

/// For how long one that may not is refused without a request.
const REFUSED: Duration = Duration::from_secs(10);

/// Verdicts remembered at most; the least recently used gives way.
const MOST: usize = 16_384;

/// Credentials that one registry judges at the same time: a client that tries passwords must not use up its patience at once.
const AT_ONCE: usize = 32;

/// Registries for which these are counted.
const MOST_REGISTRIES: usize = 1_024;

/// What the registry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed,
    Refused,
}

impl Verdict {
    fn lifetime(self) -> Duration {
        match self {
            Self::Allowed => ALLOWED,
            Self::Refused => REFUSED,
        }
    }
}

/// What an answer of the registry says of the client and the repository; `None` when it says nothing, as "not found" does: it
/// is about one content. Pure.
fn verdict<T>(answer: &Result<T, UpstreamError>) -> Option<Verdict> {
    match answer {
        Ok(_) => Some(Verdict::Allowed),
        Err(UpstreamError::Denied { .. }) => Some(Verdict::Refused),
        Err(_) => None,
    }
}

type Slot = Arc<Mutex<Option<(Verdict, Instant)>>>;

#[derive(Debug)]
pub(super) struct Verdicts {
    salt: Salt,
    slots: Cache<Key, Slot>,
    judging: Cache<RegistryHost, Arc<Semaphore>>,
}

impl Default for Verdicts {
    fn default() -> Self {
        Self {
            salt: Salt::default(),
            slots: Cache::ending_unused(MOST, ALLOWED),
            judging: Cache::new(MOST_REGISTRIES),
        }
    }
}

impl Verdicts {
    /// The registry's verdict, from memory or by `ask`.
    pub(super) async fn of<T>(
        &self,
        repository: &Repository,
        client: &Client,
        ask: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<Verdict, UpstreamError> {
        let slot = self.slots.get_or_insert_with(&self.salt.key(repository, client), Slot::default);
        let mut known = slot.lock().await;
        if let Some(verdict) = fresh(known.as_ref(), Instant::now()) {
            return Ok(verdict);
        }
        let judging =
            self.judging.get_or_insert_with(&repository.registry, || Arc::new(Semaphore::new(AT_ONCE)));
        let _permit = judging.acquire().await;
        let answer = ask.await;
        match verdict(&answer) {
            Some(verdict) => {
                *known = Some((verdict, Instant::now()));
                Ok(verdict)
            }
            None => Err(answer.err().expect("an answer without an error is a verdict")),
        }
    }

    /// The verdict in memory. While the registry is being asked there is none.
    pub(super) fn known(&self, repository: &Repository, client: &Client) -> Option<Verdict> {
        let slot = self.slots.get(&self.salt.key(repository, client))?;
        let known = slot.try_lock().ok()?;
        fresh(known.as_ref(), Instant::now())
    }
}

fn fresh(known: Option<&(Verdict, Instant)>, now: Instant) -> Option<Verdict> {
    let (verdict, since) = known?;
    (now.saturating_duration_since(*since) < verdict.lifetime()).then_some(*verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Login;

    fn client() -> Client {
        Client::Login(Login::Password { user: "ann".into(), secret: "word".into() })
    }

    fn repository() -> Repository {
        Repository { registry: "r.test".parse().unwrap(), name: "a".parse().unwrap() }
    }

    fn errors() -> [UpstreamError; 4] {
        let registry = repository().registry;
        [
            UpstreamError::Denied { registry: registry.clone(), reason: String::new() },
            UpstreamError::NotFound { registry: registry.clone() },
            UpstreamError::Throttled { registry: registry.clone(), retry_after: None },
            UpstreamError::Unavailable { registry, reason: String::new() },
        ]
    }

    #[test]
    fn only_the_registrys_word_is_a_verdict() {
        assert_eq!(verdict(&Ok(())), Some(Verdict::Allowed));
        let refused = errors().map(|error| verdict::<()>(&Err(error)));
        assert_eq!(refused, [Some(Verdict::Refused), None, None, None]);
    }

    #[test]
    fn verdicts_end() {
        let now = Instant::now();
        for (verdict, seconds, expected) in [
            (Verdict::Allowed, 59, Some(Verdict::Allowed)),
            (Verdict::Allowed, 60, None),
            (Verdict::Refused, 9, Some(Verdict::Refused)),
            (Verdict::Refused, 10, None),
        ] {
            let later = now + Duration::from_secs(seconds);
            assert_eq!(fresh(Some(&(verdict, now)), later), expected, "{verdict:?} after {seconds} s");
        }
        assert_eq!(fresh(None, now), None);
    }

    #[tokio::test]
    async fn the_registry_is_asked_once_for_each_client_and_again_after_an_outage() {
        let verdicts = Verdicts::default();
        let [denied, _, _, unavailable] = errors();
        let asked = std::cell::Cell::new(0);
        let ask = |answer: Result<(), UpstreamError>| {
            let asked = &asked;
            async move {
                asked.set(asked.get() + 1);
                answer
            }
        };
        let (ann, place) = (client(), repository());
        assert!(verdicts.of(&place, &ann, ask(Err(unavailable))).await.is_err());
        assert_eq!(verdicts.known(&place, &ann), None);
        for _ in 0..2 {
            assert_eq!(verdicts.of(&place, &ann, ask(Ok(()))).await.unwrap(), Verdict::Allowed);
        }
        assert_eq!(asked.get(), 2);
        assert_eq!(verdicts.known(&place, &ann), Some(Verdict::Allowed));
        for _ in 0..2 {
            let verdict = verdicts.of(&place, &Client::Anyone, ask(Err(denied.clone()))).await;
            assert_eq!(verdict.unwrap(), Verdict::Refused);
        }
        assert_eq!(asked.get(), 3);
    }
}
