//! Names of artifacts in Maven repositories.

use std::{fmt, str::FromStr};

/// One version of a project: what has a POM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Project {
    /// Group.
    pub group: String,
    /// Artifact.
    pub artifact: String,
    /// Version.
    pub version: String,
}

/// One file of a project: `group:artifact[:extension[:classifier]]:version`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Coordinate {
    /// The project.
    pub project: Project,
    /// `jar`, mostly.
    pub extension: String,
    /// Empty, mostly.
    pub classifier: String,
}

/// A text that is no coordinate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not `group:artifact[:extension[:classifier]]:version`")]
pub struct ParseCoordinateError(String);

impl Project {
    /// Its directory in a repository.
    pub fn directory(&self) -> String {
        format!("{}/{}/{}", self.group.replace('.', "/"), self.artifact, self.version)
    }

    /// Its POM in a repository.
    pub fn pom(&self) -> String {
        format!("{}/{}-{}.pom", self.directory(), self.artifact, self.version)
    }
}

impl fmt::Display for Project {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.group, self.artifact, self.version)
    }
}

impl Coordinate {
    /// Its name as a file.
    pub fn file(&self) -> String {
        let Project { artifact, version, .. } = &self.project;
        let classifier =
            if self.classifier.is_empty() { String::new() } else { format!("-{}", self.classifier) };
        format!("{artifact}-{version}{classifier}.{}", self.extension)
    }

    /// Whether both are the same file but for the version.
    pub fn same_file(&self, other: &Self) -> bool {
        let key = |one: &Self| {
            let Project { group, artifact, .. } = &one.project;
            (group.clone(), artifact.clone(), one.extension.clone(), one.classifier.clone())
        };
        key(self) == key(other)
    }

    /// Its file in a repository.
    pub fn path(&self) -> String {
        format!("{}/{}", self.project.directory(), self.file())
    }
}

impl FromStr for Coordinate {
    type Err = ParseCoordinateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseCoordinateError(text.to_owned());
        let parts: Vec<&str> = text.split(':').collect();
        // They become parts of URLs and paths.
        let sound = |part: &&str| {
            !part.is_empty()
                && !part.starts_with('.')
                && !part.contains("..")
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c))
        };
        if !parts.iter().all(sound) {
            return Err(wrong());
        }
        let (extension, classifier) = match parts.len() {
            3 => ("jar", ""),
            4 => (parts[2], ""),
            5 => (parts[2], parts[3]),
            _ => return Err(wrong()),
        };
        let project = Project {
            group: parts[0].to_owned(),
            artifact: parts[1].to_owned(),
            version: parts[parts.len() - 1].to_owned(),
        };
        Ok(Self { project, extension: extension.to_owned(), classifier: classifier.to_owned() })
    }
}

impl fmt::Display for Coordinate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Project { group, artifact, version } = &self.project;
        match (self.extension.as_str(), self.classifier.as_str()) {
            ("jar", "") => write!(f, "{group}:{artifact}:{version}"),
            (extension, "") => write!(f, "{group}:{artifact}:{extension}:{version}"),
            (extension, classifier) => write!(f, "{group}:{artifact}:{extension}:{classifier}:{version}"),
        }
    }
}

/// Whether `group:artifact` matches a pattern, whose parts may be `*`.
pub fn matches(pattern: &str, group: &str, artifact: &str) -> bool {
    let (wanted_group, wanted_artifact) = pattern.split_once(':').unwrap_or((pattern, "*"));
    let fits = |wanted: &str, found: &str| wanted == "*" || wanted == found;
    fits(wanted_group, group) && fits(wanted_artifact, artifact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_read_and_written() {
        for (text, path) in [
            ("org.example:geo_2.12:1.5", "org/example/geo_2.12/1.5/geo_2.12-1.5.jar"),
            ("a:b:jar:tests:1", "a/b/1/b-1-tests.jar"),
            ("a:b:zip:1", "a/b/1/b-1.zip"),
        ] {
            let coordinate: Coordinate = text.parse().unwrap();
            assert_eq!((coordinate.to_string().as_str(), coordinate.path().as_str()), (text, path));
        }
        for text in ["", "a:b", "a:b:c:d:e:f", "a::1", "../a:b:1", "a:b:1/2", "a:b:${v}", "a:b:[1,2)"] {
            assert!(text.parse::<Coordinate>().is_err(), "{text}");
        }
    }

    #[test]
    fn patterns_may_have_stars() {
        for (pattern, expected) in
            [("a:b", true), ("a:*", true), ("*:b", true), ("a", true), ("a:c", false), ("b:*", false)]
        {
            assert_eq!(matches(pattern, "a", "b"), expected, "{pattern}");
        }
    }
}
