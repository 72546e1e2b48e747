//! The operating-system packages of a base, as its package manager has written them down.
//!
//! ```text
//! var/lib/dpkg/status       Debian and what descends from it: one paragraph a package
//! var/lib/dpkg/status.d/*   images without a package manager (distroless): one file a package
//! lib/apk/db/installed      Alpine and Wolfi, also in usr/lib: one paragraph a package
//! etc/os-release            which distribution it is, also in usr/lib
//! ```
//!
//! RPM databases are binary and not read. The layers are read once; what they come to is noted in the cache.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use oci::archive::{decompressed, for_each_member};
use serde::{Deserialize, Serialize};

use super::{
    scan::ScanError,
    sparse,
    tarball::{ArchiveError, Limits},
};
use crate::{
    cache::{Cache, Shelf},
    digest::Hasher,
    layer::Layer,
    progress::Progress,
};

/// A database of ten thousand packages has less.
const LIMIT: u64 = 64 << 20;

/// A package that a base has installed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// `deb` or `apk`: the type of its package URL.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its version, with the revision of the distribution.
    pub version: String,
    /// What it was built for, as the distribution calls it.
    pub architecture: String,
}

/// What a base says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// The distribution: `debian`, `ubuntu`, `alpine`.
    pub id: String,
    /// Its version: `12`, `3.20.3`; empty for rolling ones.
    pub version: String,
    /// The packages.
    pub packages: BTreeSet<Package>,
}

/// Reads the packages of a base from its layers.
pub fn of_base(cache: &Cache, layers: &[Layer], progress: &Progress) -> Result<System, ScanError> {
    let mut hasher = Hasher::default();
    hasher.update(b"packages 1");
    for layer in layers {
        hasher.update(format!(" {}", layer.blob.digest).as_bytes());
    }
    let key = hasher.finish();
    if let Some(system) = cache.note("trees-v2", &key) {
        return Ok(system);
    }
    let mut files = BTreeMap::new();
    for layer in layers {
        let bar = progress.bytes("reading the packages of the base", layer.blob.size);
        apply(cache, layer, &mut files, |file| bar.reader(file))?;
    }
    let system = describe(&files);
    // Only saves time: the next run reads the layers again when the note is not there.
    if let Err(error) = cache.leave_note("trees-v2", &key, &system) {
        tracing::warn!(error = %error, "the packages of the base are not kept");
    }
    Ok(system)
}

/// Applies a layer to the files of interest, with the whiteouts of the image specification.
fn apply<R: Read + Send>(
    cache: &Cache,
    layer: &Layer,
    files: &mut BTreeMap<String, String>,
    counted: impl FnOnce(crate::cache::verify::Verified) -> R,
) -> Result<(), ScanError> {
    let fail = |source| ScanError::Read { layer: layer.blob.digest, source };
    let file = cache.open_content(Shelf::Blobs, &layer.blob).map_err(|error| fail(error.into()))?;
    let limits = Limits::default();
    let reader = decompressed(counted(file)).map_err(|error| fail(error.into()))?.take(limits.bytes);
    let mut added = Vec::new();
    for_each_member(reader, limits.bounds(), ArchiveError::from, |member| {
        let sparse = sparse::of(member).map_err(ArchiveError::Read)?;
        let name = sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let name = name.unwrap_or_else(|| member.path_bytes().into_owned());
        let name = String::from_utf8_lossy(&name).into_owned();
        let path = name.trim_start_matches("./").trim_matches('/');
        let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
        let below = |directory: &str, path: &str| {
            directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
        };
        if last == ".wh..wh..opq" {
            files.retain(|path, _| !below(parent, path));
        } else if let Some(hidden) = last.strip_prefix(".wh.") {
            let hidden = if parent.is_empty() { hidden.to_owned() } else { format!("{parent}/{hidden}") };
            files.retain(|path, _| *path != hidden && !below(&hidden, path));
        } else if of_interest(path) && member.header().entry_type().is_file() && member.size() <= LIMIT {
            let mut bytes = Vec::new();
            let read = match sparse {
                Some(sparse) if sparse.size > LIMIT => return Ok(()),
                Some(sparse) => {
                    sparse.content(member).and_then(|mut content| content.read_to_end(&mut bytes))
                }
                None => member.read_to_end(&mut bytes),
            };
            read.map_err(ArchiveError::Read)?;
            added.push((path.to_owned(), String::from_utf8_lossy(&bytes).into_owned()));
        }
        Ok(())
    })
    .map_err(fail)?;
    files.extend(added);
    Ok(())
}

fn of_interest(path: &str) -> bool {
    matches!(
        path,
        "var/lib/dpkg/status"
            | "lib/apk/db/installed"
            | "usr/lib/apk/db/installed"
            | "etc/os-release"
            | "usr/lib/os-release"
    ) || path.strip_prefix("var/lib/dpkg/status.d/").is_some_and(|name| !name.ends_with(".md5sums"))
}

/// What the files of interest say.
fn describe(files: &BTreeMap<String, String>) -> System {
    let release = ["etc/os-release", "usr/lib/os-release"].iter().find_map(|path| files.get(*path));
    let value = |key: &str| {
        let line = release?.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim().trim_matches(['"', '\'']).to_owned())
    };
    let mut packages = BTreeSet::new();
    for (path, text) in files {
        if path.starts_with("var/lib/dpkg/") {
            packages.extend(text.split("\n\n").filter_map(debian));
        } else if path.ends_with("apk/db/installed") {
            packages.extend(text.split("\n\n").filter_map(alpine));
        }
    }
    System { id: value("ID").unwrap_or_default(), version: value("VERSION_ID").unwrap_or_default(), packages }
}

/// A paragraph of dpkg's status (deb-control(5), dpkg-query(1)); `None` when it is not installed.
fn debian(paragraph: &str) -> Option<Package> {
    let value = |key: &str| {
        let line = paragraph.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))?;
        Some(line.trim().to_owned())
    };
    // Files of distroless images have no status: they are there because the package is.
    if value("Status").is_some_and(|status| !status.ends_with(" installed")) {
        return None;
    }
    let (name, version) = (value("Package")?, value("Version")?);
    Some(Package {
        kind: "deb".to_owned(),
        name,
        version,
        architecture: value("Architecture").unwrap_or_default(),
    })
}

/// A paragraph of apk's database (apk-tools, "apk spec": `P`, `V` and `A`).
fn alpine(paragraph: &str) -> Option<Package> {
    let value = |key: &str| paragraph.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
    Some(Package {
        kind: "apk".to_owned(),
        name: value("P:")?,
        version: value("V:")?,
        architecture: value("A:").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9+deb12u8\n\
        Description: GNU C Library\n Package: not this\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\
        \nPackage: tzdata\nStatus: install ok installed\nArchitecture: all\nVersion: 2024a-0+deb12u1\n";

    fn names(files: &[(&str, &str)]) -> (String, String, Vec<String>) {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        let system = describe(&files);
        let shown = |package: &Package| {
            format!("{} {} {} {}", package.kind, package.name, package.version, package.architecture)
        };
        (system.id, system.version, system.packages.iter().map(shown).collect())
    }

    #[test]
    fn databases_of_dpkg_and_apk_are_read() {
        let release = "PRETTY_NAME=\"Debian\"\nVERSION_ID=\"12\"\nID=debian\n";
        let (id, version, packages) =
            names(&[("usr/lib/os-release", release), ("var/lib/dpkg/status", STATUS)]);
        assert_eq!((id.as_str(), version.as_str()), ("debian", "12"));
        assert_eq!(packages, ["deb libc6 2.36-9+deb12u8 amd64", "deb tzdata 2024a-0+deb12u1 all"]);
        let distroless = "Package: base-files\nVersion: 12.4\nArchitecture: amd64\n";
        let (id, _, packages) = names(&[("var/lib/dpkg/status.d/base", distroless)]);
        assert_eq!((id.as_str(), packages), ("", vec!["deb base-files 12.4 amd64".to_owned()]));
        let apk = "C:Q1x=\nP:musl\nV:1.2.5-r0\nA:x86_64\nF:lib\nR:ld\n\nP:zlib\nV:1.3.1-r1\nA:x86_64\n";
        let (id, version, packages) =
            names(&[("etc/os-release", "ID=alpine\nVERSION_ID=3.20.3\n"), ("lib/apk/db/installed", apk)]);
        assert_eq!((id.as_str(), version.as_str()), ("alpine", "3.20.3"));
        assert_eq!(packages, ["apk musl 1.2.5-r0 x86_64", "apk zlib 1.3.1-r1 x86_64"]);
    }

    #[test]
    fn upper_layers_replace_and_remove_what_lower_ones_say() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let layer = |files: &[(&str, &str)]| {
            let mut builder = tar::Builder::new(Vec::new());
            for (name, content) in files {
                let mut header = tar::Header::new_ustar();
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, name, content.as_bytes()).unwrap();
            }
            let raw = builder.into_inner().unwrap();
            let blob = cache.put(Shelf::Blobs, &mut &raw[..]).unwrap();
            Layer { blob, diff_id: blob.digest, media_type: String::new(), annotations: BTreeMap::default() }
        };
        let lower = layer(&[("etc/os-release", "ID=debian\n"), ("./var/lib/dpkg/status", STATUS)]);
        let less = layer(&[("var/lib/dpkg/status", "Package: libc6\nVersion: 3\n")]);
        let none = layer(&[("var/lib/.wh.dpkg", "")]);
        let of = |layers: &[Layer]| of_base(&cache, layers, &Progress::hidden()).unwrap();
        assert_eq!(of(std::slice::from_ref(&lower)).packages.len(), 2);
        let changed = of(&[lower.clone(), less.clone()]);
        assert_eq!((changed.id.as_str(), changed.packages.len()), ("debian", 1));
        assert_eq!(of(&[lower.clone(), none]).packages.len(), 0);
        assert_eq!(of(&[lower, less]), changed, "it is noted");
    }
}
