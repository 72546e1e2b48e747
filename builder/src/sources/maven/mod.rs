//! JARs by Maven coordinates: POMs are fetched as resolution asks for them, then the JARs that it came to.
//!
//! ```text
//! coordinates -> resolve (pure) -> "these POMs first" -> fetch -> resolve -> ... -> coordinates of every JAR
//! ```
//!
//! Repositories are asked in the order of the specification and their mirrors when one cannot be reached. On a server
//! every file needs a checksum beside it (`.sha256`, else `.sha1`), and what comes is checked against it; in a
//! directory the checksum is optional. After the first time the lock has SHA-256 digests.

pub mod model;
pub mod pom;
pub mod resolve;

use std::{collections::BTreeSet, path::Path};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use self::{
    model::{Lack, Poms},
    resolve::{Provided, Wanted},
};
use super::zip;
use crate::{
    cache::{Cache, CacheError, Shelf},
    checksum::Checksum,
    coordinate::{Coordinate, ParseCoordinateError, Project},
    fetch::download::{self, DownloadError, Downloader, Remote},
    spec::{Input, MavenRepository, Source},
    tree::Tree,
};

/// Small files asked for at once.
const PARALLEL: usize = 8;

/// Rounds of fetching POMs: the depth of the deepest chain of parents and dependencies.
const ROUNDS: usize = 1000;

/// A checksum file is a line.
const CHECKSUM: usize = 4096;

/// `pom.properties` in JARs are a few lines.
pub(crate) const PROPERTIES: u64 = 64 * 1024;

/// Why JARs cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum MavenError {
    /// The coordinates come to nothing that works.
    #[error("cannot resolve the JARs: {0}")]
    Resolve(String),
    /// A POM cannot be read.
    #[error("cannot read the POM of `{project}` from `{place}`: {problem}")]
    Pom {
        /// Whose.
        project: String,
        /// The repository.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// No repository has a file.
    #[error("no repository has `{coordinate}` (asked: {places})")]
    Absent {
        /// What.
        coordinate: String,
        /// Where.
        places: String,
    },
    /// A server has no checksum for a file.
    #[error(
        "`{0}` has neither a `.sha256` nor a `.sha1` beside it that can be read: nothing shows that it is whole; publish one, or list the JAR with its checksum under `files`"
    )]
    NoChecksum(String),
    /// A file of a directory cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A server cannot be reached, or what came is wrong.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// A lock names something that is no coordinate.
    #[error("the lock has the entry `{part}`, which names no JAR: remove it and run `hearth lock`")]
    Coordinate {
        /// The entry.
        part: String,
        /// What is wrong with it.
        #[source]
        problem: ParseCoordinateError,
    },
    /// An environment variable with a credential is missing.
    #[error("the environment variable `{0}`, which `jars.repositories` names, is not set")]
    Variable(String),
}

/// User and password.
type Basic = (String, String);

/// Repositories with the credentials for them.
pub struct Repositories<'a> {
    downloader: &'a Downloader<'a>,
    list: Vec<(Vec<String>, Option<Basic>)>,
}

impl std::fmt::Debug for Repositories<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repositories").field("places", &self.places()).finish_non_exhaustive()
    }
}

impl<'a> Repositories<'a> {
    /// Reads the credentials from the environment; nothing is asked yet.
    pub fn new(downloader: &'a Downloader<'a>, repositories: &[MavenRepository]) -> Result<Self, MavenError> {
        let variable = |name: &String| std::env::var(name).map_err(|_| MavenError::Variable(name.clone()));
        let read = |repository: &MavenRepository| {
            let user = repository.username_env.as_ref().map(variable).transpose()?;
            let password = repository.password_env.as_ref().map(variable).transpose()?;
            let basic = user.or_else(|| password.as_ref().map(|_| String::new()));
            let basic = basic.map(|user| (user, password.unwrap_or_default()));
            Ok((repository.urls.clone(), basic))
        };
        let list = repositories.iter().map(read).collect::<Result<_, MavenError>>()?;
        Ok(Self { downloader, list })
    }

    fn places(&self) -> String {
        let first = self.list.iter().filter_map(|(urls, _)| urls.first());
        first.map(|url| download::redacted(url)).collect::<Vec<_>>().join(", ")
    }

    /// Everything that the coordinates need.
    pub async fn resolve(&self, wanted: &Wanted<'_>) -> Result<Vec<Coordinate>, MavenError> {
        let mut poms = Poms::new();
        for _ in 0..ROUNDS {
            let needed = match resolve::resolve(wanted, &poms) {
                Ok(found) => return Ok(found),
                Err(Lack::Wrong(problem)) => return Err(MavenError::Resolve(problem)),
                Err(Lack::Need(needed)) => needed,
            };
            poms.extend(self.poms(needed).await?);
        }
        Err(MavenError::Resolve(format!("it needs more than {ROUNDS} rounds of POMs")))
    }

    async fn poms(&self, needed: BTreeSet<Project>) -> Result<Poms, MavenError> {
        let fetch = async |project: Project| {
            let Some((place, text)) = self.text(&project.pom()).await? else { return Ok((project, None)) };
            let pom = pom::parse(&text).map_err(|problem| MavenError::Pom {
                project: project.to_string(),
                place,
                problem,
            })?;
            Ok::<_, MavenError>((project, Some(pom)))
        };
        stream::iter(needed.into_iter().map(fetch)).buffered(PARALLEL).try_collect().await
    }

    /// A small text and the repository that has it, checked against its checksum when there is one.
    async fn text(&self, path: &str) -> Result<Option<(String, String)>, MavenError> {
        for (urls, basic) in &self.list {
            let Some((url, bytes)) = self.first(urls, basic.as_ref(), path, pom::LIMIT).await? else {
                continue;
            };
            let sum = self
                .first(std::slice::from_ref(&url), basic.as_ref(), &format!("{path}.sha1"), CHECKSUM)
                .await?;
            if let Some(expected) = sum.and_then(|(_, text)| Checksum::sha1(&first_word(&text)).ok()) {
                let mut checker = expected.checker();
                checker.update(&bytes);
                let digest = crate::digest::Digest::of(&bytes);
                checker.finish(digest).map_err(|found| DownloadError::Checksum {
                    url: format!("{}/{path}", download::redacted(&url)),
                    found: found.to_string(),
                    expected: expected.to_string(),
                })?;
            }
            return Ok(Some((url, String::from_utf8_lossy(&bytes).into_owned())));
        }
        Ok(None)
    }

    /// A small file from the first of a repository's servers that answers; `None` when it does not have it.
    async fn first(
        &self,
        urls: &[String],
        basic: Option<&Basic>,
        path: &str,
        limit: usize,
    ) -> Result<Option<(String, Vec<u8>)>, MavenError> {
        let mut last = None;
        for (at, base) in urls.iter().enumerate() {
            if let Some(directory) = directory(base) {
                let path = format!("{directory}/{path}");
                match std::fs::read(&path) {
                    Ok(bytes) => return Ok(Some((base.clone(), bytes))),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    Err(source) => return Err(MavenError::Read { path, source }),
                }
            }
            let url = format!("{base}/{path}");
            let basic = basic.map(|(user, password)| (user.as_str(), password.as_str()));
            match self
                .downloader
                .small(Remote { basic, ..Remote::open(&url) }, limit, at + 1 == urls.len())
                .await
            {
                Ok(found) => return Ok(found.map(|bytes| (base.clone(), bytes))),
                // A mirror may have what this server cannot give now.
                Err(error @ (DownloadError::Network { .. } | DownloadError::Stalled { .. })) => {
                    last = Some(error);
                }
                Err(error @ DownloadError::Status { status, .. }) if status.is_server_error() => {
                    last = Some(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        last.map_or(Ok(None), |error| Err(error.into()))
    }

    /// Where the file of an artifact is, and what it must come to.
    pub async fn locate(&self, coordinate: &Coordinate) -> Result<Input, MavenError> {
        let path = coordinate.path();
        for (urls, basic) in &self.list {
            for base in urls {
                if let Some(directory) = directory(base) {
                    let file = format!("{directory}/{path}");
                    if Path::new(&file).is_file() {
                        return Ok(Input { place: Source::Path(file.into()), checksum: None });
                    }
                }
            }
            for (extension, read) in
                [("sha256", Checksum::sha256 as fn(&str) -> _), ("sha1", Checksum::sha1 as fn(&str) -> _)]
            {
                let remote: Vec<String> =
                    urls.iter().filter(|url| directory(url).is_none()).cloned().collect();
                let sum =
                    self.first(&remote, basic.as_ref(), &format!("{path}.{extension}"), CHECKSUM).await?;
                if let Some((base, text)) = sum
                    && let Ok(checksum) = read(&first_word(&text))
                {
                    let place = Source::Url(format!("{base}/{path}"));
                    return Ok(Input { place, checksum: Some(checksum) });
                }
            }
            let remote = urls.iter().find(|url| directory(url).is_none());
            if let Some(base) = remote
                && self.has(&format!("{base}/{path}"), basic.as_ref()).await?
            {
                let url = download::redacted(&format!("{base}/{path}"));
                return Err(MavenError::NoChecksum(url));
            }
        }
        let places = self.places();
        Err(MavenError::Absent { coordinate: coordinate.to_string(), places })
    }

    /// Whether a server has a file at all.
    async fn has(&self, url: &str, basic: Option<&Basic>) -> Result<bool, MavenError> {
        let basic = basic.map(|(user, password)| (user.as_str(), password.as_str()));
        match self.downloader.small(Remote { basic, ..Remote::open(url) }, 0, true).await {
            Ok(found) => Ok(found.is_some()),
            // Not a byte of it is wanted.
            Err(DownloadError::TooLarge { .. }) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// User and password for a URL of one of the repositories.
    pub fn basic(&self, url: &str) -> Option<(&str, &str)> {
        let of = |(urls, _): &&(Vec<String>, Option<Basic>)| {
            urls.iter().any(|base| url.starts_with(&format!("{base}/")))
        };
        let (_, basic) = self.list.iter().find(of)?;
        basic.as_ref().map(|(user, password)| (user.as_str(), password.as_str()))
    }
}

fn directory(url: &str) -> Option<&str> {
    url.strip_prefix("file:").map(|path| path.strip_prefix("//").unwrap_or(path))
}

/// Checksum files hold the digits, and sometimes the name of the file behind them.
fn first_word(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).split_whitespace().next().unwrap_or_default().to_owned()
}

/// What the JARs of a Spark say of themselves, and their names say of the others.
pub fn provided(cache: &Cache, spark: &Tree) -> Result<Provided, CacheError> {
    let mut provided = Provided::default();
    let jars = spark.iter().filter_map(|(path, entry)| {
        let name = path.below("opt/spark/jars")?.strip_suffix(".jar")?;
        Some((name, entry.content()?))
    });
    for (name, content) in jars {
        let path = cache.verified(Shelf::Files, &content)?;
        // What is no zip archive says nothing; Java will have its own word about it.
        let texts = zip::texts(&path, PROPERTIES, is_properties).unwrap_or_default();
        // A shaded JAR carries the names of what was put into it, which cannot be told from its own.
        let own = if let [(_, text)] = texts.as_slice() { named(text) } else { None };
        if let Some((group, artifact, version)) = own.filter(|(_, artifact, _)| name.starts_with(artifact)) {
            provided.exact.insert((group, artifact), version);
        } else if let Some((artifact, version)) = split_name(name) {
            provided.by_name.insert(artifact.to_owned(), version.to_owned());
        }
    }
    Ok(provided)
}

/// Whether a member of a JAR says which artifact it is.
pub(crate) fn is_properties(member: &str) -> bool {
    member.starts_with("META-INF/maven/") && member.ends_with("/pom.properties")
}

/// Group, artifact and version of a `pom.properties`.
pub(crate) fn named(text: &str) -> Option<(String, String, String)> {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim().to_owned())
    };
    Some((value("groupId")?, value("artifactId")?, value("version")?))
}

/// Splits `commons-lang3-3.12.0` where the version begins.
pub(crate) fn split_name(name: &str) -> Option<(&str, &str)> {
    let mut starts = name.match_indices('-').map(|(at, _)| at);
    let at = starts.find(|at| name[at + 1..].starts_with(|c: char| c.is_ascii_digit()))?;
    Some((&name[..at], &name[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Entry, ImagePath};

    #[test]
    fn names_of_jars_are_split_where_the_version_begins() {
        for (name, expected) in [
            ("commons-lang3-3.12.0", Some(("commons-lang3", "3.12.0"))),
            ("spark-core_2.12-3.5.9", Some(("spark-core_2.12", "3.5.9"))),
            ("avro-mapred-1.11.4-hadoop2", Some(("avro-mapred", "1.11.4-hadoop2"))),
            ("noversion", None),
        ] {
            assert_eq!(split_name(name), expected);
        }
    }

    #[test]
    fn a_jar_says_what_it_is_unless_it_holds_others() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("cache")).unwrap();
        let mut spark = Tree::new();
        let mut jar = |name: &str, members: &[(&str, u32, &[u8])]| {
            let path = directory.path().join("x.jar");
            zip::tests::write(&path, members);
            let content = cache.put(Shelf::Files, &mut std::fs::File::open(&path).unwrap()).unwrap();
            spark.insert(
                ImagePath::new(&format!("opt/spark/jars/{name}")).unwrap(),
                Entry::file(content, 0o644),
            );
        };
        let own = b"#x\ngroupId=com.google.guava\nartifactId=guava\nversion=14.0.1\n";
        let other = b"groupId=a\nartifactId=b\nversion=1\n";
        jar("guava-14.0.1.jar", &[("META-INF/maven/com.google.guava/guava/pom.properties", 0o644, own)]);
        let two: [(&str, u32, &[u8]); 2] = [
            ("META-INF/maven/a/b/pom.properties", 0o644, other),
            ("META-INF/maven/c/d/pom.properties", 0o644, own),
        ];
        jar("shaded-2.0.jar", &two);
        let provided = provided(&cache, &spark).unwrap();
        let guava = ("com.google.guava".to_owned(), "guava".to_owned());
        assert_eq!(provided.exact.get(&guava).map(String::as_str), Some("14.0.1"));
        assert_eq!(provided.exact.len(), 1);
        assert_eq!(provided.by_name["shaded"], "2.0");
    }
}
