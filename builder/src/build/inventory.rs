//! What is in an image, read from its files: JARs, Python packages, runtimes, the base with its packages.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    BuildError, Options,
    images::Built,
    prepared::{Planning, Prepared},
};
use crate::{
    cache::{Cache, CacheError, Shelf},
    digest::Digest,
    plan::layers::LayerName,
    progress::Progress,
    purl::Purl,
    sbom::{self, Component, Kind, Referrer, Subject},
    sources::{
        base::{self, BaseError},
        detect, maven,
        packages::{self, System},
        view::{Node, View},
        zip,
    },
    spec::{self, SparkSource, SpecError},
    tree::Tree,
};

/// The documents about every image.
pub(super) fn referrers(
    options: &Options,
    cache: &Cache,
    planning: &Planning,
    built: &[Built<'_>],
    progress: &Progress,
) -> Result<Vec<Referrer>, BuildError> {
    let text = std::fs::read(&options.spec)
        .map_err(|source| SpecError::Read { path: options.spec.clone(), source })?;
    let specification = Digest::of(&text);
    let mut found = Vec::new();
    for Built { prepared, image, .. } in built {
        let name = format!("{}:{}", planning.matrix.repository, prepared.tag());
        let created = &prepared.settings.created;
        let subject = Subject { name: &name, manifest: &image.manifest.descriptor, created };
        let components = components(cache, prepared, progress)?;
        let inputs: BTreeMap<_, _> = planning
            .lock
            .inputs
            .iter()
            .filter(|(name, _)| prepared.inputs.contains(*name))
            .map(|(name, pin)| (name.clone(), pin.clone()))
            .collect();
        for (kind, document) in [
            (sbom::SPDX, sbom::spdx(&subject, &components)),
            (sbom::CYCLONEDX, sbom::cyclonedx(&subject, &components)),
            (sbom::IN_TOTO, sbom::provenance(&subject, &inputs, specification)),
        ] {
            found.push(sbom::referrer(&subject, kind, &document));
        }
    }
    Ok(found)
}

/// The components of an image.
fn components(
    cache: &Cache,
    prepared: &Prepared,
    progress: &Progress,
) -> Result<BTreeSet<Component>, BuildError> {
    let system = packages::of_base(cache, &prepared.base.layers, progress).map_err(BaseError::from)?;
    let mut found: BTreeSet<Component> = spark(prepared).into_iter().chain(base(prepared)).collect();
    found.extend(java(cache, prepared, &system)?);
    found.extend(python(prepared, &system));
    found.extend(of_system(&system));
    for tree in prepared.files.parts.values() {
        found.extend(jars(cache, tree)?);
        found.extend(python_packages(tree));
    }
    Ok(found)
}

fn library(purl: String, name: &str, version: &str) -> Component {
    Component { kind: Kind::Library, purl, name: name.to_owned(), version: version.to_owned(), digest: None }
}

fn spark(prepared: &Prepared) -> Option<Component> {
    let (version, source) = prepared.wanted.spark()?;
    let version = version.to_string();
    Some(match source {
        SparkSource::PyPi(package) => {
            library(Purl::python(package).version(&version).finish(), package, &version)
        }
        SparkSource::Archive(_) => {
            let purl = Purl::new("generic", "apache-spark").version(&version);
            library(purl.finish(), "apache-spark", &version)
        }
    })
}

/// The base: an image of a registry by its repository, anything else by its digest.
fn base(prepared: &Prepared) -> Option<Component> {
    let base = &prepared.base;
    let digest = base.digest.to_string();
    let purl = match &prepared.wanted.recipe.base {
        spec::Base::Image(reference) => {
            let repository = base::repository_of(reference);
            let name = repository.rsplit('/').next().unwrap_or(repository);
            let tag = reference.strip_prefix(repository).and_then(|rest| rest.strip_prefix(':'));
            let tag = tag.and_then(|tag| tag.split('@').next()).unwrap_or_default();
            let purl = Purl::new("oci", &name.to_lowercase()).version(&digest);
            purl.qualifier("arch", prepared.wanted.cell.platform.architecture())
                .qualifier("repository_url", repository)
                .qualifier("tag", tag)
        }
        spec::Base::Layout(..) => Purl::new("oci", &base.name.to_lowercase()).version(&digest),
        spec::Base::RootFs(_) => Purl::new("generic", &base.name).qualifier("checksum", &digest),
        spec::Base::Scratch => return None,
    };
    Some(Component {
        kind: Kind::Container,
        purl: purl.finish(),
        name: base.name.clone(),
        version: digest,
        digest: Some(base.digest),
    })
}

/// The distribution of the base, and its packages.
fn of_system(system: &System) -> Vec<Component> {
    let distribution = [system.id.as_str(), &system.version].join("-");
    let distribution = distribution.trim_matches('-');
    let of_package = |package: &packages::Package| {
        let purl = Purl::within(&package.kind, &system.id, &package.name)
            .version(&package.version)
            .qualifier("arch", &package.architecture)
            .qualifier("distro", distribution);
        library(purl.finish(), &package.name, &package.version)
    };
    let mut found: Vec<Component> = system.packages.iter().map(of_package).collect();
    if !system.id.is_empty() {
        let purl = Purl::new("generic", &system.id).version(&system.version).finish();
        let kind = Kind::OperatingSystem;
        let (name, version) = (system.id.clone(), system.version.clone());
        found.push(Component { kind, purl, name, version, digest: None });
    }
    found
}

/// The Java runtime, unless a package of the base is one: that says more.
fn java(cache: &Cache, prepared: &Prepared, system: &System) -> Result<Option<Component>, CacheError> {
    let wanted = &prepared.wanted;
    let Some(major) = wanted.cell.java.as_ref().map(|java| java.number(0)) else { return Ok(None) };
    let brought = prepared.files.parts.get(&LayerName::Java).filter(|_| wanted.recipe.java.is_some());
    let packaged = |package: &packages::Package| {
        let numbers = package.name.split(|letter: char| !letter.is_ascii_digit());
        let java = ["openjdk", "temurin", "corretto", "zulu", "jre", "jdk"];
        java.iter().any(|word| package.name.contains(word))
            && numbers.filter_map(|number| number.parse::<u32>().ok()).any(|number| number == major)
    };
    if brought.is_none() && system.packages.iter().any(packaged) {
        return Ok(None);
    }
    let view = brought.map(|tree| View::of_tree(cache, tree)).transpose()?;
    let mut releases =
        view.as_ref().unwrap_or(&prepared.base.view).nodes().filter_map(|(path, node)| match node {
            Node::File { text: Some(text), .. } if path.ends_with("/release") => detect::release(text),
            _ => None,
        });
    let version = releases.find(|release| release.major == major).map(|release| release.version);
    let purl = |name: &str, version: &str| Purl::new("generic", name).version(version).finish();
    Ok(Some(match version {
        Some(version) => library(purl("openjdk", &version), "openjdk", &version),
        None => library(purl("java-runtime", &major.to_string()), "java-runtime", &major.to_string()),
    }))
}

/// The Python, unless a package of the base is it.
fn python(prepared: &Prepared, system: &System) -> Option<Component> {
    let version = prepared.wanted.cell.python.as_ref()?.to_string();
    let packaged = |package: &packages::Package| {
        package.name == format!("python{version}")
            || package.name == "python3" && package.version.starts_with(&version)
    };
    if prepared.wanted.recipe.python.is_none() && system.packages.iter().any(packaged) {
        return None;
    }
    Some(library(Purl::new("generic", "python").version(&version).finish(), "python", &version))
}

/// JARs by what they say of themselves, else by their file name.
fn jars(cache: &Cache, tree: &Tree) -> Result<Vec<Component>, CacheError> {
    let mut found = Vec::new();
    for (path, entry) in tree {
        let (Some(stem), Some(content)) = (path.name().strip_suffix(".jar"), entry.content()) else {
            continue;
        };
        let file = cache.verified(Shelf::Files, &content)?;
        // What cannot be read is named by its file.
        let texts = zip::texts(&file, maven::PROPERTIES, maven::is_properties).unwrap_or_default();
        let own = if let [(_, text)] = texts.as_slice() { maven::named(text) } else { None };
        let component = if let Some((group, name, version)) = own {
            library(Purl::within("maven", &group, &name).version(&version).finish(), &name, &version)
        } else {
            let (name, version) = maven::split_name(stem).unwrap_or((stem, ""));
            library(Purl::new("generic", name).version(version).finish(), name, version)
        };
        found.push(Component { digest: Some(content.digest), ..component });
    }
    Ok(found)
}

/// Python packages by the names of their metadata directories.
fn python_packages(tree: &Tree) -> Vec<Component> {
    let package = |path: &crate::tree::ImagePath| {
        let directory = path.as_str().strip_suffix("/METADATA")?;
        let name = directory.rsplit('/').next()?.strip_suffix(".dist-info")?;
        let (name, version) = name.split_once('-')?;
        Some(library(Purl::python(name).version(version).finish(), name, version))
    };
    tree.keys().filter_map(package).collect()
}
