//! Origins that sent wrong bytes for a digest. After the first wrong transfer an origin is used last for that digest,
//! after the second not at all for a short time, so that a resuming client gets 503 and uses another mirror, instead
//! of receiving the same wrong bytes until its pull fails (containerd: three attempts without a new byte).

use std::{collections::HashMap, time::Instant};

use parking_lot::Mutex;

use crate::{types::Digest, upstream::OriginPenalties};

use crate::limits::download::penalties::{MEMORY, MOST, WRONG_TRANSFERS};

#[derive(Debug, Default)]
pub(super) struct Penalties(Mutex<HashMap<Digest, WrongTransfers>>);

/// Wrong transfers by origin: how many, and when the last one was.
type WrongTransfers = HashMap<String, (u32, Instant)>;

impl Penalties {
    /// Notes a transfer of wrong bytes.
    pub(super) fn note(&self, digest: &Digest, origins: &[String]) {
        let now = Instant::now();
        let mut penalties = self.0.lock();
        if penalties.len() >= MOST {
            penalties.retain(|_, origins| origins.values().any(|(_, at)| now.duration_since(*at) < MEMORY));
        }
        if penalties.len() >= MOST {
            return;
        }
        let known = penalties.entry(*digest).or_default();
        for origin in origins {
            let entry = known.entry(origin.clone()).or_insert((0, now));
            let count = if now.duration_since(entry.1) < MEMORY { entry.0 } else { 0 };
            *entry = (count + 1, now);
        }
    }

    /// Which origins to use last and which not at all.
    pub(super) fn of(&self, digest: &Digest) -> OriginPenalties {
        let penalties = self.0.lock();
        let mut origin_penalties = OriginPenalties::default();
        for (origin, (count, at)) in penalties.get(digest).into_iter().flatten() {
            if at.elapsed() >= MEMORY {
                continue;
            }
            if *count >= WRONG_TRANSFERS {
                origin_penalties.never.push(origin.clone());
            } else {
                origin_penalties.last.push(origin.clone());
            }
        }
        origin_penalties
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_used_last_after_one_wrong_transfer_and_not_at_all_after_two() {
        let (penalties, digest, other) = (Penalties::default(), Digest::of(b"a"), Digest::of(b"b"));
        penalties.note(&digest, &["one".into(), "two".into()]);
        assert_eq!(penalties.of(&digest).last.len(), 2);
        penalties.note(&digest, &["one".into()]);
        let origin_penalties = penalties.of(&digest);
        assert_eq!(
            (origin_penalties.last, origin_penalties.never),
            (vec!["two".to_owned()], vec!["one".to_owned()])
        );
        assert_eq!(penalties.of(&other), OriginPenalties::default());
    }
}
