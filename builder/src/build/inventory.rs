//! What is in an image, read from its files: JARs, Python packages, runtimes, the base.

use std::collections::BTreeSet;

use super::{BuildError, Built, Options, Planning, inputs::Prepared};
use crate::{
    cache::{Cache, CacheError, Shelf},
    digest::Digest,
    sbom::{self, Component, Referrer, Subject},
    sources::{maven, zip},
    spec::SpecError,
    tree::Tree,
};

/// The documents about every image.
pub(super) fn referrers(
    options: &Options,
    cache: &Cache,
    planning: &Planning,
    built: &[Built<'_>],
) -> Result<Vec<Referrer>, BuildError> {
    let text = std::fs::read(&options.spec)
        .map_err(|source| SpecError::Read { path: options.spec.clone(), source })?;
    let specification = Digest::of(&text);
    let mut found = Vec::new();
    for Built { prepared, image, .. } in built {
        let name = format!("{}:{}", planning.matrix.repository, prepared.tag());
        let created = &prepared.settings.created;
        let subject = Subject { name: &name, manifest: &image.manifest.descriptor, created };
        let components = components(cache, prepared)?;
        for (kind, document) in [
            (sbom::SPDX, sbom::spdx(&subject, &components)),
            (sbom::CYCLONEDX, sbom::cyclonedx(&subject, &components)),
            (sbom::IN_TOTO, sbom::provenance(&subject, &planning.lock.inputs, specification)),
        ] {
            found.push(sbom::referrer(&subject, kind, &document));
        }
    }
    Ok(found)
}

/// The components of an image.
fn components(cache: &Cache, prepared: &Prepared) -> Result<BTreeSet<Component>, CacheError> {
    let cell = &prepared.wanted.cell;
    let mut found = BTreeSet::new();
    let mut generic = |name: &str, version: String, digest| {
        let purl = format!("pkg:generic/{name}@{}", encoded(&version));
        found.insert(Component { purl, name: name.to_owned(), version, digest });
    };
    generic("apache-spark", cell.spark.to_string(), None);
    generic("java-runtime", cell.java.to_string(), None);
    if let Some(python) = &cell.python {
        generic("python", python.to_string(), None);
    }
    let base = &prepared.base;
    found.insert(Component {
        purl: format!("pkg:oci/{}@{}", encoded(&base.name), encoded(&base.digest.to_string())),
        name: base.name.clone(),
        version: base.digest.to_string(),
        digest: Some(base.digest),
    });
    for tree in prepared.files.parts.values() {
        found.extend(jars(cache, tree)?);
        found.extend(packages(tree));
    }
    Ok(found)
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
        let digest = Some(content.digest);
        if let Some((group, name, version)) = own {
            let purl = format!("pkg:maven/{}/{}@{}", encoded(&group), encoded(&name), encoded(&version));
            found.push(Component { purl, name, version, digest });
            continue;
        }
        let (name, version) = maven::split_name(stem).unwrap_or((stem, "unknown"));
        let purl = format!("pkg:generic/{}@{}", encoded(name), encoded(version));
        found.push(Component { purl, name: name.to_owned(), version: version.to_owned(), digest });
    }
    Ok(found)
}

/// Python packages by the names of their metadata directories.
fn packages(tree: &Tree) -> Vec<Component> {
    let package = |path: &crate::tree::ImagePath| {
        let directory = path.as_str().strip_suffix("/METADATA")?;
        let name = directory.rsplit('/').next()?.strip_suffix(".dist-info")?;
        let (name, version) = name.split_once('-')?;
        let purl = format!("pkg:pypi/{}@{}", name.to_lowercase().replace('_', "-"), encoded(version));
        Some(Component { purl, name: name.to_owned(), version: version.to_owned(), digest: None })
    };
    tree.keys().filter_map(package).collect()
}

/// As package URLs write what is not a letter, a digit or one of a few signs.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let sign = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(sign).collect()
}
