//! JARs by Maven coordinates and Python packages of one cell, checked. Two versions of one package are refused, and
//! both are named.

use std::collections::{BTreeSet, HashMap};

use super::{
    Jars, MavenRepository, SpecError, Wheels,
    check::Check,
    keys::{At, JarsKeys, RepositoryKeys, WheelsKeys},
    recipe::scheme,
};
use crate::{coordinate::Coordinate, matrix::Cell, package::normal};

impl Check<'_> {
    pub(super) fn jars(&self, keys: Option<&JarsKeys>, cell: &Cell) -> Result<Jars, SpecError> {
        let Some(keys) = keys else { return Ok(Jars::default()) };
        let mut packages: Vec<Coordinate> = Vec::new();
        let mut places: Vec<&At<String>> = Vec::new();
        for text in &keys.packages {
            let package = self.fill("jars.packages", text, cell)?.parse();
            let package: Coordinate =
                package.map_err(|error| self.wrong(text.at(), &format!("`jars.packages`: {error}")))?;
            match packages.iter().position(|known| known.same_file(&package)) {
                None => {
                    packages.push(package);
                    places.push(text);
                }
                Some(known) if packages[known] == package => {}
                Some(known) => {
                    let (other, line) = (&packages[known], places[known].at().line());
                    let problem = format!(
                        "`jars.packages`: `{package}` contradicts `{other}` of line {line} for {}",
                        cell.name()
                    );
                    return Err(self.wrong(text.at(), &problem));
                }
            }
        }
        if let (Some(package), []) = (keys.packages.first(), keys.repositories.as_slice()) {
            let problem = "`jars.packages` needs `jars.repositories`: none is built in";
            return Err(self.wrong(package.at(), problem));
        }
        let repositories = keys.repositories.iter().map(|keys| self.repository(keys, cell));
        Ok(Jars {
            repositories: repositories.collect::<Result<_, _>>()?,
            packages,
            exclude: self.names("jars.exclude", &keys.exclude, cell)?,
            keep_spark: self.names("jars.keepSpark", &keys.keep_spark, cell)?,
        })
    }

    /// Names with their placeholders filled, each once.
    fn names(&self, key: &str, texts: &[At<String>], cell: &Cell) -> Result<Vec<String>, SpecError> {
        let mut seen = BTreeSet::new();
        let filled = texts.iter().map(|text| self.fill(key, text, cell));
        let filled: Vec<String> = filled.collect::<Result<_, _>>()?;
        Ok(filled.into_iter().filter(|text| seen.insert(text.clone())).collect())
    }

    fn repository(&self, keys: &At<RepositoryKeys>, cell: &Cell) -> Result<MavenRepository, SpecError> {
        let RepositoryKeys { url, mirrors, username_env, password_env } = keys.value();
        let mut urls = Vec::new();
        for text in std::iter::once(url).chain(mirrors) {
            let url = self.fill("jars.repositories", text, cell)?;
            let url = url.trim_end_matches('/');
            let relative = url.strip_prefix("file:").filter(|path| !path.starts_with('/'));
            match (scheme(url), relative) {
                (_, Some(path)) => urls.push(format!("file:{}", self.directory.join(path).display())),
                (Some("http" | "https" | "file"), None) => urls.push(url.to_owned()),
                _ => {
                    let problem = format!("`jars.repositories`: `{url}` is no http(s) or file URL");
                    return Err(self.wrong(text.at(), &problem));
                }
            }
        }
        let (username_env, password_env) = (username_env.clone(), password_env.clone());
        Ok(MavenRepository { urls, username_env, password_env })
    }

    pub(super) fn wheels(&self, keys: &At<WheelsKeys>, cell: &Cell) -> Result<Wheels, SpecError> {
        let WheelsKeys { lock, extras, groups, requirements, packages } = keys.value();
        if cell.python.is_none() {
            return Err(self.wrong(keys.at(), "`wheels` needs the axis `python`: wheels are chosen for it"));
        }
        let path = |text: &At<String>| Ok(self.directory.join(self.fill("wheels", text, cell)?));
        match (lock, requirements, packages.as_slice()) {
            (Some(lock), None, []) => Ok(Wheels::Lock {
                path: path(lock)?,
                extras: self.names("wheels.extras", extras, cell)?,
                groups: self.names("wheels.groups", groups, cell)?,
            }),
            (None, None, []) => {
                Err(self.wrong(keys.at(), "`wheels` needs either `lock`, or `requirements` or `packages`"))
            }
            (Some(lock), requirements, packages) => {
                let line = requirements.as_ref().or(packages.first()).map_or(0, |text| text.at().line());
                let problem = format!(
                    "`wheels` takes either `lock`, or `requirements` and `packages` (line {line}), but {} has both",
                    cell.name()
                );
                Err(self.wrong(lock.at(), &problem))
            }
            (None, requirements, packages) => {
                if let Some(text) = extras.first().or(groups.first()) {
                    let problem = "`wheels.extras` and `wheels.groups` go with `wheels.lock` only";
                    return Err(self.wrong(text.at(), problem));
                }
                let requirements = requirements.as_ref().map(path).transpose()?;
                Ok(Wheels::Requirements(requirements, self.wheel_packages(packages, cell)?))
            }
        }
    }

    /// Requirements for Python packages. Two pins of one package are a conflict; uv judges all other combinations.
    fn wheel_packages(&self, packages: &[At<String>], cell: &Cell) -> Result<Vec<String>, SpecError> {
        let mut found: Vec<String> = Vec::new();
        let mut pins: HashMap<String, (String, &At<String>)> = HashMap::new();
        for text in packages {
            let package = self.fill("wheels", text, cell)?;
            if let Some((name, version)) = pin(&package) {
                match pins.get(&name) {
                    Some((other, place)) if *other != version => {
                        let problem = format!(
                            "`wheels.packages`: `{package}` contradicts `{name}=={other}` of line {} for {}",
                            place.at().line(),
                            cell.name()
                        );
                        return Err(self.wrong(text.at(), &problem));
                    }
                    _ => drop(pins.insert(name, (version, text))),
                }
            }
            if !found.contains(&package) {
                found.push(package);
            }
        }
        Ok(found)
    }
}

/// Name and version of a requirement such as `pandas==2.2.3`; `None` when it says less or depends on a marker.
fn pin(requirement: &str) -> Option<(String, String)> {
    let (name, version) = requirement.split_once("==").filter(|_| !requirement.contains(';'))?;
    let name = name.split('[').next().unwrap_or(name).trim();
    Some((normal(name), version.trim().to_owned()))
}
