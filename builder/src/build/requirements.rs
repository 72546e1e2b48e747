//! The Python packages that images ask for: what the lock calls them, and which wheels they come to.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    BuildError,
    inputs::{Inputs, Outline},
};
use crate::{
    digest::Digest,
    package::of_wheel,
    sources::{
        detect::Found,
        wheels::{Request, marker::Environment, resolution, tags},
    },
    spec::{Wanted, Wheels},
};

/// The Python packages of one image.
#[derive(Debug)]
pub(super) struct Required {
    /// The name of the request in a lock.
    pub(super) name: String,
    /// Where the request comes from, in a lock.
    pub(super) shown: String,
    /// The directory that paths of the request are relative to.
    pub(super) directory: PathBuf,
    /// The image's Python.
    pub(super) program: String,
    pub(super) request: Request,
    environment: Environment,
}

impl Inputs<'_> {
    /// What an image requires; `None` when it has no Python or needs no packages.
    pub(super) fn required(&self, wanted: &Wanted, found: &Found) -> Result<Option<Required>, BuildError> {
        let (Some(wheels), Some(python)) = (&wanted.recipe.wheels, &found.python) else { return Ok(None) };
        let (version, platform) = (wanted.cell.python.clone(), wanted.cell.platform);
        let Some(version) = version else { return Ok(None) };
        let libc = python.libc.unwrap_or(tags::ASSUMED);
        let environment = Environment { python: version, platform, libc };
        let request = Request::read(wheels)?;
        let (directory, shown) = self.request_name(wheels, &request);
        // Bases with other C libraries get other wheels. What a base does not show is not in the name, either.
        let libc = python.libc.map(|libc| format!(" {libc}")).unwrap_or_default();
        let name = format!("wheels {shown} python{} {platform}{libc}", environment.python);
        let (directory, program) = (directory.to_owned(), python.program.to_string());
        Ok(Some(Required { name, shown, directory, program, request, environment }))
    }

    /// Chooses the Python packages that the lock does not have, of all images together.
    pub(super) async fn resolve_wheels(&mut self, outlines: &[Outline]) -> Result<(), BuildError> {
        let mut open: BTreeMap<String, resolution::Wanted> = BTreeMap::new();
        for outline in outlines {
            let Some(required) = self.required(outline.wanted(), &outline.found)? else { continue };
            let Required { name, request, environment, .. } = required;
            if self.pins.resolved(&name, request.digest())?.is_some() {
                continue;
            }
            let suffix = format!(" python{} {}", environment.python, environment.platform);
            let preferred = self.preferred_wheels(&name, &suffix);
            open.insert(name, resolution::Wanted { request, environment, preferred });
        }
        if open.is_empty() {
            return Ok(());
        }
        let _bar = self.progress.step("locking Python packages");
        let (names, wanted): (Vec<String>, Vec<_>) = open.into_iter().unzip();
        let wheels = resolution::resolve(&wanted, self.options.offline).await?;
        self.resolved = names.into_iter().zip(wheels).collect();
        Ok(())
    }

    /// The directory that paths of a request for Python packages are relative to, and what the lock calls it.
    fn request_name<'w>(&self, wheels: &'w Wheels, request: &Request) -> (&'w Path, String) {
        let (path, more) = match wheels {
            Wheels::Lock { path, extras, groups } => (path, [extras.as_slice(), groups].concat()),
            Wheels::Requirements(Some(path), packages) => (path, packages.clone()),
            Wheels::Requirements(None, _) => return (Path::new(""), request.digest().short().to_string()),
        };
        let mut shown = self.relative(path);
        if !more.is_empty() {
            // One file with other packages beside it is another request.
            shown = format!("{shown}+{}", Digest::of(more.join("\n").as_bytes()).short());
        }
        (path.parent().unwrap_or(Path::new("")), shown)
    }

    /// The locked versions of Python packages: those of this request, else those of any for the same Python and platform.
    fn preferred_wheels(&self, request: &str, suffix: &str) -> BTreeMap<String, String> {
        let same: BTreeMap<_, _> = self.pins.parts(|name| name == request).filter_map(of_wheel).collect();
        if !same.is_empty() {
            return same;
        }
        let similar = self.pins.parts(|name| name.starts_with("wheels ") && name.contains(suffix));
        similar.filter_map(of_wheel).collect()
    }
}
