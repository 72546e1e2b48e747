//! Fetches side by side whatever is known to be needed, before images are prepared one after the other.
//!
//! What the specification or its lock names with a checksum is fetched at the start; what resolution comes to (packages of
//! Python, JARs) as soon as it is known. The [`Downloader`](crate::fetch::download::Downloader) bounds how many transfers
//! run at once, for all inputs together. Preparation then finds the files in the cache.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{BuildError, inputs::Inputs};
use crate::{
    checksum::Checksum,
    fetch::download::{Remote, redacted},
    matrix::Cell,
    sources::{maven::Repositories, pypi},
    spec::{FileContent, Input, Source, SparkSource, Wanted},
    version::Version,
};

/// Lookups of packages at once: each starts a `uv`.
const LOOKUPS: usize = 4;

/// A file on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fetch {
    /// Its name in a lock.
    pub(super) name: String,
    /// Where it is.
    pub(super) url: String,
    /// What must come.
    pub(super) checksum: Checksum,
    /// User and password, when the specification names some.
    pub(super) basic: Option<(String, String)>,
    /// Whether a package index has named it.
    pub(super) of_index: bool,
}

impl Inputs<'_> {
    /// Fetches everything that is known before anything is read.
    pub(super) async fn prefetch(&mut self) -> Result<(), BuildError> {
        self.locate_sparks().await?;
        let mut wanted = Vec::new();
        let inputs = self.matrix.wanted.iter().flat_map(of_specification);
        wanted.extend(inputs.filter_map(|input| self.of_input(input)));
        let sparks = self.located.iter().map(|(name, located)| Fetch {
            name: name.clone(),
            url: located.url.clone(),
            checksum: Checksum::Sha256(located.digest),
            basic: None,
            of_index: true,
        });
        wanted.extend(sparks);
        wanted.extend(self.of_lock());
        self.fetch_all(wanted).await
    }

    /// Fetches files side by side, each once. The first failure ends it; what came of the others is resumed later.
    pub(super) async fn fetch_all(&self, mut wanted: Vec<Fetch>) -> Result<(), BuildError> {
        if self.options.offline {
            return Ok(());
        }
        let mut seen = BTreeSet::new();
        wanted.retain(|fetch| seen.insert(fetch.checksum));
        let fetch = async |fetch: Fetch| {
            let basic = fetch.basic.as_ref().map(|(user, password)| (user.as_str(), password.as_str()));
            let remote = Remote { url: &fetch.url, basic, of_index: fetch.of_index };
            let fetched = self.downloader.fetch(remote, fetch.checksum).await;
            fetched.map(drop).map_err(|source| BuildError::Input { name: fetch.name.clone(), source })
        };
        let at_once = wanted.len().max(1);
        stream::iter(wanted.into_iter().map(fetch)).buffer_unordered(at_once).try_collect().await
    }

    /// Looks up every Spark that no lock names, side by side.
    async fn locate_sparks(&mut self) -> Result<(), BuildError> {
        let mut unknown: BTreeMap<String, (&str, &Version, &Cell)> = BTreeMap::new();
        for wanted in &self.matrix.wanted {
            let Some((version, SparkSource::PyPi(package))) = wanted.spark() else { continue };
            let name = format!("spark {version}");
            if self.pins.get(&name)?.is_none() {
                unknown.entry(name).or_insert((package, version, &wanted.cell));
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let _bar = self.progress.step("looking for releases of Spark");
        let offline = self.options.offline;
        let locate = async |(name, (package, version, cell)): (String, (&str, &Version, &Cell))| {
            let located = pypi::locate(package, version, cell.python.as_ref(), offline).await;
            let located = located.map_err(|source| BuildError::Find { version: version.clone(), source })?;
            Ok::<_, BuildError>((name, located))
        };
        self.located =
            stream::iter(unknown.into_iter().map(locate)).buffer_unordered(LOOKUPS).try_collect().await?;
        Ok(())
    }

    /// A file of the specification on a server, with its checksum or that of the lock.
    fn of_input(&self, input: &Input) -> Option<Fetch> {
        let Source::Url(url) = &input.place else { return None };
        let shown = redacted(url);
        let mut locked = self.pins.known().filter(|(_, pin)| pin.origin == shown);
        let locked = locked.next().map(|(_, pin)| Checksum::Sha256(pin.digest));
        let checksum = locked.or(input.checksum)?;
        Some(Fetch { name: shown, url: url.clone(), checksum, basic: None, of_index: false })
    }

    /// Sparks of the lock that are wanted. A build needs its packages of Python and JARs as well; another command may have a
    /// lock that is out of date.
    fn of_lock(&self) -> Vec<Fetch> {
        let repositories: Vec<Repositories<'_>> = self
            .matrix
            .wanted
            .iter()
            .filter_map(|wanted| Repositories::new(&self.downloader, &wanted.recipe.jars.repositories).ok())
            .collect();
        let basic = |url: &str| {
            let (user, password) = repositories.iter().find_map(|repositories| repositories.basic(url))?;
            Some((user.to_owned(), password.to_owned()))
        };
        let kinds = [("spark ", true), ("wheels ", true), ("jars ", false)];
        let sparks = self.matrix.wanted.iter().filter_map(Wanted::spark);
        let sparks: BTreeSet<String> = sparks.map(|(version, _)| format!("spark {version}")).collect();
        let fetch = |(name, pin): (&String, &crate::lock::Pin)| {
            if !sparks.contains(name) && !self.pins.is_strict() {
                return None;
            }
            let (_, of_index) = kinds.into_iter().find(|(kind, _)| name.starts_with(kind))?;
            let checksum = Checksum::Sha256(pin.digest);
            let url = pin.origin.clone();
            (url.contains("://") && !url.starts_with("file:")).then(|| Fetch {
                name: name.clone(),
                basic: basic(&url),
                url,
                checksum,
                of_index,
            })
        };
        self.pins.known().filter_map(fetch).collect()
    }
}

/// Every file that a cell's recipe names.
fn of_specification(wanted: &Wanted) -> impl Iterator<Item = &Input> {
    let recipe = &wanted.recipe;
    let spark = match &recipe.spark {
        Some(SparkSource::Archive(input)) => Some(input),
        Some(SparkSource::PyPi(_)) | None => None,
    };
    let files = recipe.files.iter().filter_map(|file| match &file.content {
        FileContent::Input(input) => Some(input),
        FileContent::Text(_) | FileContent::Directory => None,
    });
    spark.into_iter().chain(&recipe.java).chain(&recipe.python).chain(files)
}
