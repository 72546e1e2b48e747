//! Who requests content through the mirror, by the credentials in the request.

use std::hash::{BuildHasher as _, RandomState};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::{
    types::{Digest, Repository},
    upstream::Login,
};

/// A client of the mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Client {
    /// It shows no credentials. So does this agent when it pre-pulls.
    #[default]
    Anyone,
    /// It shows these.
    Login(Login),
}

impl Client {
    /// The credentials in an `Authorization` header of the scheme Basic (RFC 7617); `None` when it is something else.
    pub fn of_basic(header: &str) -> Option<Self> {
        let (scheme, encoded) = header.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()?;
        let (user, secret) = decoded.split_once(':')?;
        Some(Self::Login(Login::Password { user: user.to_owned(), secret: secret.to_owned() }))
    }

    /// Whether it shows credentials.
    pub(super) fn has_login(&self) -> bool {
        matches!(self, Self::Login(_))
    }
}

/// Names what was judged without the credentials themselves: a hash with a salt of this process.
pub(super) type Key = (Repository, Digest);

#[derive(Debug)]
pub(super) struct Salt([u8; 32]);

impl Default for Salt {
    /// The output of a keyed hash whose key comes from the operating system.
    fn default() -> Self {
        let (state, mut salt) = (RandomState::new(), [0; 32]);
        for (number, bytes) in salt.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&state.hash_one(number).to_be_bytes());
        }
        Self(salt)
    }
}

impl Salt {
    pub(super) fn key(&self, repository: &Repository, client: &Client) -> Key {
        let mut salted = self.0.to_vec();
        if let Client::Login(Login::Password { user, secret }) = client {
            // The length keeps `a` with `bc` apart from `ab` with `c`.
            salted.extend_from_slice(&user.len().to_be_bytes());
            salted.extend_from_slice(user.as_bytes());
            salted.extend_from_slice(secret.as_bytes());
        }
        (repository.clone(), Digest::of(&salted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str, secret: &str) -> Client {
        Client::Login(Login::Password { user: user.into(), secret: secret.into() })
    }

    #[test]
    fn credentials_are_read_from_a_basic_header_alone() {
        // `ann:se:cret`, `ann`, a byte that is not UTF-8.
        for (header, expected) in [
            ("Basic YW5uOnNlOmNyZXQ=", Some(login("ann", "se:cret"))),
            ("basic  YW5uOnNlOmNyZXQ=", Some(login("ann", "se:cret"))),
            ("Basic YW5u", None),
            ("Basic /w==", None),
            ("Basic !", None),
            ("Bearer YW5uOnNlOmNyZXQ=", None),
            ("", None),
        ] {
            assert_eq!(Client::of_basic(header), expected, "{header}");
        }
    }

    #[test]
    fn keys_differ_by_credentials_repository_and_process() {
        let salt = Salt::default();
        let repository =
            |name: &str| Repository { registry: "r.test".parse().unwrap(), name: name.parse().unwrap() };
        let key = |client: &Client| salt.key(&repository("a"), client);
        let ann = login("ann", "b");
        assert_eq!(key(&ann), key(&ann));
        for other in [login("ann", "c"), login("annb", ""), login("an", "nb"), Client::Anyone] {
            assert_ne!(key(&ann), key(&other), "{other:?}");
        }
        assert_ne!(key(&ann), salt.key(&repository("b"), &ann));
        assert_ne!(key(&ann), Salt::default().key(&repository("a"), &ann));
    }
}
