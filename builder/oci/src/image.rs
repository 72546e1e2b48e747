//! Image names as in pods and on the command line: `registry.example.com/team/app:v1`, `spark@sha256:...`.

use std::{fmt, str::FromStr};

use crate::{Digest, NameError, Reference, RegistryHost, Repository, Tag};

/// The registry of a name without one, by the traditional rule of image references.
const DOCKER_HUB: &str = "docker.io";

/// The tag of a name without one.
const LATEST: &str = "latest";

/// The name of an image. Without a tag or digest, it is the name of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageName {
    /// The image's repository.
    pub repository: Repository,
    /// The tag or digest; `None` when there is none. A digest has priority over a tag, as in container
    /// runtimes.
    pub reference: Option<Reference>,
}

impl ImageName {
    /// The tag or digest; `latest` when there is none.
    pub fn reference(&self) -> Reference {
        self.reference.clone().unwrap_or_else(|| {
            Reference::Tag(LATEST.parse::<Tag>().expect("`latest` is a tag by the specification's grammar"))
        })
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let last = rest.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match rest[last..].split_once(':') {
            Some((name, tag)) => (&rest[..last + name.len()], Some(tag.parse::<Tag>()?)),
            None => (rest, None),
        };
        let reference = digest.map(Reference::Digest).or(tag.map(Reference::Tag));
        Ok(Self { repository: repository(path)?, reference })
    }
}

fn repository(path: &str) -> Result<Repository, NameError> {
    let (registry, name) = match path.split_once('/') {
        Some((first, rest)) if RegistryHost::looks_like_host(first) => (first.parse()?, rest.to_owned()),
        Some(_) => (DOCKER_HUB.parse()?, path.to_owned()),
        None => (DOCKER_HUB.parse()?, format!("library/{path}")),
    };
    Ok(Repository { registry, name: name.parse()? })
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference {
            None => self.repository.fmt(f),
            Some(Reference::Tag(tag)) => write!(f, "{}:{tag}", self.repository),
            Some(Reference::Digest(digest)) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_container_runtimes_read_them() {
        let digest = Digest::of(b"");
        let at = format!("r.test:5000/a/b:v1@{digest}");
        for (text, expected) in [
            ("spark", "docker.io/library/spark".to_owned()),
            ("spark:3.5", "docker.io/library/spark:3.5".into()),
            ("apache/spark:3.5", "docker.io/apache/spark:3.5".into()),
            ("docker.io/library/spark:3.5", "docker.io/library/spark:3.5".into()),
            ("localhost/a:v1", "localhost/a:v1".into()),
            ("r.test:5000/a/b", "r.test:5000/a/b".into()),
            ("r.test:5000/a/b:v1", "r.test:5000/a/b:v1".into()),
            (&at, format!("r.test:5000/a/b@{digest}")),
        ] {
            let name: ImageName = text.parse().unwrap();
            assert_eq!(name.to_string(), expected);
            assert_eq!(expected.parse::<ImageName>().unwrap(), name, "{text}");
        }
        for bad in [
            "",
            ":v1",
            "r.test/",
            "r.test/A:v1",
            "r.test/a:",
            "r.test/a@sha256:12",
            "a b",
            "/a",
            "r.test/../x",
        ] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
        assert_eq!("a".parse::<ImageName>().unwrap().reference().to_string(), "latest");
    }
}
