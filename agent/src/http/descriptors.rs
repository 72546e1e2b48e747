//! The file descriptors of this process: as many as it may have, and a share of them for each listener, so that
//! connections to one listener never take those of another, of the store or of registries.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are counted on when the limit is none.
const UNLIMITED: u64 = 1 << 20;

/// The minimum number of connections of a listener, also with a low limit.
const LEAST: usize = 16;

/// Connections that each listener may have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// The mirror's.
    pub mirror: usize,
    /// Of peers.
    pub peer: usize,
    /// Of probes and scrapers.
    pub admin: usize,
}

impl Shares {
    /// Raises this process's limit as far as it may be raised, and shares it out. `configured` is `limits.connections`.
    pub fn take(configured: usize) -> Self {
        let descriptors = raise();
        let shares = Self::of(descriptors, configured);
        if shares.mirror < configured {
            tracing::warn!(
                descriptors,
                mirror = shares.mirror,
                peer = shares.peer,
                admin = shares.admin,
                "limit of open files allows fewer connections than `limits.connections`: raise it (`ulimit -Hn`)"
            );
        }
        shares
    }

    /// A connection of the mirror or of a peer needs one more descriptor for the file that it reads. Pure.
    fn of(descriptors: u64, configured: usize) -> Self {
        let part = |divisor: u64| {
            let share = usize::try_from(descriptors / divisor).unwrap_or(usize::MAX).max(LEAST);
            share.min(configured)
        };
        Self { mirror: part(4), peer: part(8), admin: part(16) }
    }
}

/// Raises the soft limit to the hard one; the limit that holds then.
fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::warn!(%error, soft = limit.current, hard = limit.maximum, "limit of open files not raised");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listeners_together_never_take_all_descriptors() {
        for (descriptors, configured, expected) in [
            (1 << 20, 4_096, (4_096, 4_096, 4_096)),
            (20_000, 4_096, (4_096, 2_500, 1_250)),
            (1_024, 4_096, (256, 128, 64)),
            (1_024, 32, (32, 32, 32)),
            (64, 4_096, (16, 16, 16)),
        ] {
            let Shares { mirror, peer, admin } = Shares::of(descriptors, configured);
            assert_eq!((mirror, peer, admin), expected, "{descriptors} {configured}");
        }
    }
}
