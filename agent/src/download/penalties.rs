//! Who sent wrong bytes for which digest. Asked last the next time; after a second lie not asked at all for a moment,
//! so that a client that resumes is told 503 and goes elsewhere, instead of being fed the same wrong bytes until it
//! gives up (containerd: three tries without a new byte).

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use crate::{types::Digest, upstream::Distrust};

use crate::limits::download::penalties::{LIES, MEMORY, MOST};

#[derive(Debug, Default)]
pub(super) struct Penalties(Mutex<HashMap<Digest, Lies>>);

/// How often an origin lied, and when last.
type Lies = HashMap<String, (u32, Instant)>;

impl Penalties {
    /// Remembers one transfer of wrong bytes.
    pub(super) fn note(&self, digest: &Digest, origins: &[String]) {
        let now = Instant::now();
        let mut penalties = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if penalties.len() >= MOST {
            penalties.retain(|_, origins| origins.values().any(|(_, at)| now.duration_since(*at) < MEMORY));
        }
        if penalties.len() >= MOST {
            return;
        }
        let known = penalties.entry(*digest).or_default();
        for origin in origins {
            let entry = known.entry(origin.clone()).or_insert((0, now));
            let lies = if now.duration_since(entry.1) < MEMORY { entry.0 } else { 0 };
            *entry = (lies + 1, now);
        }
    }

    /// Whom to ask last and whom not at all.
    pub(super) fn distrust(&self, digest: &Digest) -> Distrust {
        let penalties = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut distrust = Distrust::default();
        for (origin, (lies, at)) in penalties.get(digest).into_iter().flatten() {
            if at.elapsed() >= MEMORY {
                continue;
            }
            if *lies >= LIES {
                distrust.never.push(origin.clone());
            } else {
                distrust.last.push(origin.clone());
            }
        }
        distrust
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_lie_is_asked_last_and_the_second_not_at_all() {
        let (penalties, digest, other) = (Penalties::default(), Digest::of(b"a"), Digest::of(b"b"));
        penalties.note(&digest, &["one".into(), "two".into()]);
        assert_eq!(penalties.distrust(&digest).last.len(), 2);
        penalties.note(&digest, &["one".into()]);
        let distrust = penalties.distrust(&digest);
        assert_eq!((distrust.last, distrust.never), (vec!["two".to_owned()], vec!["one".to_owned()]));
        assert_eq!(penalties.distrust(&other), Distrust::default());
    }
}
