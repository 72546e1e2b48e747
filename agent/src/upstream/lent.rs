//! Credentials of clients, lent for the repositories that the registry let them read (`private: challenge`): downloads
//! outlive the requests that start them. In memory only.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Login;
use crate::types::{Cache, Repository};

/// For how long credentials are lent after the client's last request: longer than the pauses of one pull.
const LIFETIME: Duration = Duration::from_mins(15);

/// For how long it is known that there were some: longer than any response that was requested with them takes to arrive.
const REMEMBERED: Duration = Duration::from_mins(30);

/// Repositories at most; the least recently used gives way.
const MOST_REPOSITORIES: usize = 4_096;

/// Credentials of one repository at most: pods of several tenants may use one image.
pub(super) const MOST_LOGINS: usize = 4;

#[derive(Debug)]
pub(super) struct Lent(Cache<Repository, Logins>);

/// The newest first.
#[derive(Clone, Debug)]
struct Logins {
    all: Arc<[Login]>,
    since: Instant,
}

impl Default for Lent {
    fn default() -> Self {
        Self(Cache::ending(MOST_REPOSITORIES, REMEMBERED))
    }
}

impl Lent {
    pub(super) fn lend(&self, repository: &Repository, login: &Login) {
        let known = self.0.get(repository);
        let others = known.iter().flat_map(|known| known.all.iter()).filter(|other| *other != login);
        let all = std::iter::once(login).chain(others).take(MOST_LOGINS).cloned().collect();
        self.0.insert(repository.clone(), Logins { all, since: Instant::now() });
    }

    /// The registry refused it.
    pub(super) fn withdraw(&self, repository: &Repository, login: &Login) {
        let Some(known) = self.0.get(repository) else { return };
        let all = known.all.iter().filter(|other| *other != login).cloned().collect();
        self.0.insert(repository.clone(), Logins { all, ..known });
    }

    /// Whether there are some, or were a short time ago.
    pub(super) fn had(&self, repository: &Repository) -> bool {
        self.0.contains(repository)
    }

    pub(super) fn first(&self, repository: &Repository) -> Option<Login> {
        let known = self.0.get(repository)?;
        known.all.first().filter(|_| known.since.elapsed() < LIFETIME).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_credentials_are_used_until_they_are_refused() {
        let lent = Lent::default();
        let login = |user: &str| Login::Password { user: user.into(), secret: "word".into() };
        let repository =
            |name: &str| Repository { registry: "r.test".parse().unwrap(), name: name.parse().unwrap() };
        let (one, two) = (repository("one"), repository("two"));
        assert!(lent.first(&one).is_none() && !lent.had(&one));
        lent.lend(&one, &login("ann"));
        lent.lend(&one, &login("ben"));
        assert_eq!(lent.first(&one), Some(login("ben")));
        assert!(lent.first(&two).is_none() && !lent.had(&two), "another repository's");
        lent.withdraw(&one, &login("ben"));
        lent.withdraw(&one, &login("cid"));
        assert_eq!(lent.first(&one), Some(login("ann")));
        lent.withdraw(&one, &login("ann"));
        assert!(lent.first(&one).is_none());
        assert!(lent.had(&one), "what was requested with them may still arrive");
        for user in 0..MOST_LOGINS + 2 {
            lent.lend(&one, &login(&user.to_string()));
        }
        assert_eq!(lent.0.get(&one).unwrap().all.len(), MOST_LOGINS);
    }
}
