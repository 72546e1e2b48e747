//! Names of repositories, as references spell them.

use std::{fmt, str::FromStr};

use oci_client::Reference;

/// A repository on a registry, without tag or digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repository {
    host: String,
    endpoint: String,
    path: String,
}

impl Repository {
    /// The registry as references spell it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The registry as it is reached (`index.docker.io` for `docker.io`).
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The path on the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// As the library takes it; which tag does not matter where one repository is meant.
    pub(super) fn reference(&self) -> Reference {
        Reference::with_tag(self.host.clone(), self.path.clone(), "latest".to_owned())
    }
}

impl FromStr for Repository {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The grammar of the library takes capitals when it adds the default registry itself.
        if text.contains(|letter: char| letter.is_ascii_uppercase()) {
            return Err(format!("`{text}`: repository name must be lowercase"));
        }
        let reference: Reference = text.parse().map_err(|error| format!("`{text}`: {error}"))?;
        if reference.digest().is_some() || reference.tag() != Some("latest") || text.ends_with(":latest") {
            return Err(format!("`{text}` has a tag or digest: tags come from the key `tag`"));
        }
        Ok(Self {
            host: reference.registry().to_owned(),
            endpoint: reference.resolve_registry().to_owned(),
            path: reference.repository().to_owned(),
        })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

/// Whether a text is an image reference.
pub fn check_reference(text: &str) -> Result<(), String> {
    text.parse::<Reference>().map(|_| ()).map_err(|error| format!("`{text}`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_names_without_tag() {
        let repository = |text: &str| text.parse::<Repository>();
        let hub = repository("docker.io/library/spark").unwrap();
        assert_eq!(
            (hub.host(), hub.endpoint(), hub.path()),
            ("docker.io", "index.docker.io", "library/spark")
        );
        let local = repository("127.0.0.1:5000/a/b").unwrap();
        assert_eq!(local.to_string(), "127.0.0.1:5000/a/b");
        for text in ["", "UPPER/x", "a/b:tag", "a/b:latest", "a b", "registry.example.com/a@sha256:00"] {
            assert!(repository(text).is_err(), "{text}");
        }
    }
}
