//! Runs of credential programs: one at a time per key, independent of other keys. An answer is kept for the
//! time in it, a failure for seconds. A failure is never an answer.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;

/// How long a program that failed is not run again for the same key.
const FAILURE_PAUSE: Duration = Duration::from_secs(3);

/// Programs that run at once, for all keys.
const MOST_AT_ONCE: usize = 64;

/// Most keys in memory, and most answers for each.
const MOST: usize = 1_024;

/// The answer of a program.
#[derive(Clone, Debug)]
pub(super) struct Answer<T> {
    /// What it may be used for, within its key.
    pub(super) scope: String,
    /// For how long it may be used.
    pub(super) keep: Duration,
    pub(super) value: T,
}

/// All keys.
#[derive(Debug)]
pub(super) struct Runs<T> {
    keys: Mutex<HashMap<String, Arc<Key<T>>>>,
    at_once: Arc<Semaphore>,
}

impl<T> Default for Runs<T> {
    fn default() -> Self {
        Self { keys: Mutex::default(), at_once: Arc::new(Semaphore::new(MOST_AT_ONCE)) }
    }
}

/// The state of one key, and the lock that a run of its program holds.
#[derive(Debug)]
struct Key<T> {
    known: Mutex<Known<T>>,
    running: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Known<T> {
    answers: HashMap<String, Kept<T>>,
    failed: Option<(Instant, String)>,
}

#[derive(Debug)]
struct Kept<T> {
    at: Instant,
    until: Instant,
    value: T,
}

impl<T: Clone + Send + 'static> Runs<T> {
    /// A kept answer for one of `scopes`, else that of `run`, or why there is none. `fresh` ignores answers
    /// from before this call, because the registry rejected one.
    ///
    /// A run continues when the caller leaves, so that a slow program finishes even if its callers time out
    /// earlier.
    pub(super) async fn get(
        &self,
        key: &str,
        scopes: &[&str],
        fresh: bool,
        run: impl Future<Output = Result<Answer<T>, String>> + Send + 'static,
    ) -> Result<T, String> {
        let since = fresh.then(Instant::now);
        let key = self.key(key);
        if let Some(known) = key.look(scopes, since) {
            return known;
        }
        let only = key.running.clone().lock_owned().await;
        if let Some(known) = key.look(scopes, since) {
            return known;
        }
        let at_once = self.at_once.clone();
        let task = tokio::spawn(async move {
            let _permit = at_once.acquire_owned().await;
            let outcome = run.await;
            let outcome = key.keep(outcome, Instant::now());
            drop(only);
            outcome
        });
        task.await.unwrap_or_else(|error| Err(format!("the run of the program was aborted: {error}")))
    }

    fn key(&self, key: &str) -> Arc<Key<T>> {
        let mut keys = lock(&self.keys);
        if keys.len() >= MOST && !keys.contains_key(key) {
            // Keys that a caller waits for stay.
            keys.retain(|_, key| Arc::strong_count(key) > 1);
        }
        let new = || {
            let known = Known { answers: HashMap::new(), failed: None };
            Arc::new(Key { known: Mutex::new(known), running: Arc::default() })
        };
        keys.entry(key.to_owned()).or_insert_with(new).clone()
    }
}

impl<T: Clone> Key<T> {
    /// The kept answer or failure; `None` when the program must run.
    fn look(&self, scopes: &[&str], since: Option<Instant>) -> Option<Result<T, String>> {
        let (known, now) = (lock(&self.known), Instant::now());
        let usable = |kept: &&Kept<T>| kept.until > now && since.is_none_or(|since| kept.at >= since);
        let kept = scopes.iter().find_map(|scope| known.answers.get(*scope).filter(usable));
        if let Some(kept) = kept {
            tracing::trace!(age = ?kept.at.elapsed(), "credential program not run again");
            return Some(Ok(kept.value.clone()));
        }
        let recent =
            known.failed.as_ref().filter(|(at, _)| now.saturating_duration_since(*at) < FAILURE_PAUSE);
        recent.map(|(_, reason)| Err(reason.clone()))
    }

    fn keep(&self, outcome: Result<Answer<T>, String>, now: Instant) -> Result<T, String> {
        let mut known = lock(&self.known);
        let answer = match outcome {
            Ok(answer) => answer,
            Err(reason) => {
                known.failed = Some((now, reason.clone()));
                return Err(reason);
            }
        };
        known.failed = None;
        if known.answers.len() >= MOST {
            known.answers.retain(|_, kept| kept.until > now);
        }
        if known.answers.len() < MOST || known.answers.contains_key(&answer.scope) {
            let kept = Kept { at: now, until: now + answer.keep, value: answer.value.clone() };
            known.answers.insert(answer.scope, kept);
        }
        Ok(answer.value)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::join_all;

    use super::*;

    fn answer(value: u32) -> Answer<u32> {
        Answer { scope: String::new(), keep: Duration::from_mins(5), value }
    }

    #[tokio::test]
    async fn a_program_that_hangs_does_not_block_other_keys() {
        let runs = Arc::new(Runs::default());
        let hung = {
            let runs = runs.clone();
            tokio::spawn(async move { runs.get("a", &[""], false, std::future::pending()).await })
        };
        tokio::task::yield_now().await;
        assert_eq!(runs.get("b", &[""], false, async { Ok(answer(1)) }).await, Ok(1));
        assert!(!hung.is_finished());
        hung.abort();
    }

    #[tokio::test]
    async fn callers_of_one_key_share_one_run_also_when_it_fails() {
        let (runs, count) = (Runs::default(), Arc::new(AtomicU32::new(0)));
        let run = |ok: bool| {
            let count = count.clone();
            async move {
                let n = count.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                if ok { Ok(answer(n)) } else { Err("it failed".to_owned()) }
            }
        };
        let all = join_all((0..10).map(|_| runs.get("a", &[""], false, run(true)))).await;
        assert!(all.iter().all(|value| *value == Ok(0)), "{all:?}");
        // All callers had the same rejected login: one new one is enough.
        let all = join_all((0..10).map(|_| runs.get("a", &[""], true, run(true)))).await;
        assert!(all.iter().all(|value| *value == Ok(1)), "{all:?}");
        let all = join_all((0..10).map(|_| runs.get("b", &[""], false, run(false)))).await;
        assert!(all.iter().all(|value| *value == Err("it failed".to_owned())), "{all:?}");
        assert_eq!(count.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_run_continues_when_its_caller_has_left() {
        let runs = Runs::default();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let slow = runs.get("a", &[""], false, async {
            let _ = gone.await;
            Ok(answer(7))
        });
        assert!(tokio::time::timeout(Duration::from_millis(20), slow).await.is_err());
        go.send(()).expect("the run continues");
        assert_eq!(runs.get("a", &[""], false, async { Ok(answer(8)) }).await, Ok(7));
    }

    #[test]
    fn a_failure_is_kept_for_seconds_and_an_answer_for_its_own_time() {
        let runs = Runs::<u32>::default();
        let key = runs.key("a");
        let now = Instant::now();
        assert_eq!(key.keep(Err("it failed".into()), now), Err("it failed".into()));
        assert_eq!(key.look(&[""], None), Some(Err("it failed".into())));
        assert_eq!(
            key.keep(Err("it failed".into()), now.checked_sub(FAILURE_PAUSE).unwrap()),
            Err("it failed".into())
        );
        assert_eq!(key.look(&[""], None), None, "run again");
        let image = Answer { scope: "image".into(), keep: Duration::from_mins(1), value: 5 };
        assert_eq!(key.keep(Ok(image), now), Ok(5));
        assert_eq!((key.look(&["image", ""], None), key.look(&["other", ""], None)), (Some(Ok(5)), None));
        assert_eq!(key.look(&["image"], Some(now + Duration::from_millis(1))), None, "it was rejected");
        let short = Answer { scope: "image".into(), keep: Duration::ZERO, value: 6 };
        assert_eq!(key.keep(Ok(short), now), Ok(6));
        assert_eq!(key.look(&["image"], None), None);
    }

    #[test]
    fn memory_is_bounded() {
        let runs = Runs::<u32>::default();
        for n in 0..3 * MOST {
            let key = runs.key(&n.to_string());
            let _ = key.keep(Ok(answer(1)), Instant::now());
        }
        assert!(lock(&runs.keys).len() <= MOST);
    }
}
