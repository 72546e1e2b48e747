//! Where images to convert come from, and where converted ones go.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

use oci::{
    ImageName,
    archive::{Headers, decompressed, for_each_member},
    layout::{INDEX, REF_NAME, path_of},
    media_type::LAYER,
};
use serde::Deserialize;
use serde_json::Value;

use super::ConvertError;
use crate::{
    cache::{Cache, Content, Shelf},
    digest::Digest,
    image::Descriptor,
    progress::Bar,
    registry::{Registry, Repository},
    sources::{base::repository_of, tarball::Limits},
};

/// Manifests and configurations of real images are far smaller.
pub(super) const DOCUMENT: u64 = 8 << 20;

/// A place for images, as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `host/repository:tag` or `host/repository@digest`.
    Registry(String),
    /// `oci:DIRECTORY[:TAG]`: an OCI image layout.
    Layout(PathBuf, Option<String>),
    /// `docker-archive:FILE[:REFERENCE]`: what `docker save` writes.
    Archive(PathBuf, Option<String>),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let file = |rest: &str| match rest.split_once(':') {
            Some((path, name)) if !path.is_empty() && !name.is_empty() => {
                Ok((path.into(), Some(name.to_owned())))
            }
            None if !rest.is_empty() => Ok((rest.into(), None)),
            _ => Err(format!(
                "`{text}` names no file: `oci:DIR[:TAG]` and `docker-archive:FILE[:REFERENCE]` do"
            )),
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            return file(rest).map(|(path, name)| Self::Layout(path, name));
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            return file(rest).map(|(path, name)| Self::Archive(path, name));
        }
        let reference = text.strip_prefix("docker://").unwrap_or(text);
        if reference.starts_with(['/', '.']) {
            return Err(format!("`{text}` is a path: write `oci:{text}` or `docker-archive:{text}`"));
        }
        reference.parse::<ImageName>().map_err(|error| error.to_string())?;
        Ok(Self::Registry(reference.to_owned()))
    }
}

impl Place {
    /// What annotations call it: paths of this machine stay here.
    pub fn name(&self) -> String {
        match self {
            Self::Registry(reference) => reference.clone(),
            Self::Layout(path, name) | Self::Archive(path, name) => {
                let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
                name.as_ref().map_or_else(|| file.to_string(), |name| format!("{file}:{name}"))
            }
        }
    }

    /// The repository of a reference.
    pub fn repository(&self) -> Option<Repository> {
        match self {
            Self::Registry(reference) => Some(reference.parse::<ImageName>().ok()?.repository),
            _ => None,
        }
    }
}

/// One image: a manifest with its configuration.
#[derive(Clone, Debug)]
pub struct SourceImage {
    /// The manifest, as it was written.
    pub manifest: Value,
    /// Its digest.
    pub digest: Digest,
    /// The bytes of its configuration.
    pub config: Vec<u8>,
    /// Its layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// Reads parts of an image.
#[derive(Debug)]
pub struct Source<'a> {
    /// Where it is.
    pub place: &'a Place,
    /// Names and tokens.
    pub registry: &'a Registry,
    /// Where blobs go.
    pub cache: &'a Cache,
}

/// An image in an archive of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Source<'_> {
    fn refuse(&self, problem: impl Into<String>) -> ConvertError {
        ConvertError::Source { name: self.place.name(), problem: problem.into() }
    }

    /// The outermost manifest or index of an image in a registry or a layout.
    pub async fn top(&self) -> Result<(Vec<u8>, Digest), ConvertError> {
        match self.place {
            Place::Registry(reference) => {
                let (bytes, digest) = self.registry.manifest(reference).await?;
                Ok((bytes.to_vec(), digest))
            }
            Place::Layout(path, wanted) => {
                let index = document(&path.join(INDEX))?;
                let index: Index = serde_json::from_slice(&index)
                    .map_err(|error| self.refuse(format!("its `index.json` cannot be read: {error}")))?;
                let images: Vec<&Descriptor> =
                    index.manifests.iter().filter(|entry| entry.artifact_type.is_none()).collect();
                let name = |entry: &Descriptor| entry.annotations.get(REF_NAME).cloned();
                let chosen = match wanted {
                    Some(wanted) => images.iter().find(|entry| name(entry).as_ref() == Some(wanted)),
                    None if images.len() == 1 => images.first(),
                    None => None,
                };
                let known: Vec<String> = images.iter().filter_map(|entry| name(entry)).collect();
                let chosen = chosen.ok_or_else(|| {
                    self.refuse(format!(
                        "say with `oci:DIR:TAG` which image is meant: it has `{}`",
                        known.join("`, `")
                    ))
                })?;
                self.manifest(chosen.digest).await
            }
            Place::Archive(..) => unreachable!("archives have no manifests"),
        }
    }

    /// A manifest or an index by digest.
    pub async fn manifest(&self, digest: Digest) -> Result<(Vec<u8>, Digest), ConvertError> {
        match self.place {
            Place::Registry(reference) => {
                let pinned = format!("{}@{digest}", repository_of(reference));
                let (bytes, digest) = self.registry.manifest(&pinned).await?;
                Ok((bytes.to_vec(), digest))
            }
            Place::Layout(path, _) => {
                let path = path.join(path_of(&digest));
                let bytes = document(&path)?;
                let found = Digest::of(&bytes);
                if found == digest { Ok((bytes, digest)) } else { Err(ConvertError::Damaged { path, found }) }
            }
            Place::Archive(..) => unreachable!("archives have no manifests"),
        }
    }

    /// Brings a blob into the cache, verified.
    pub async fn blob(&self, wanted: &Content, bar: &Bar) -> Result<Content, ConvertError> {
        if self.cache.find(Shelf::Blobs, wanted).is_some() {
            bar.advance(wanted.size);
            return Ok(*wanted);
        }
        let content = match self.place {
            Place::Registry(reference) => {
                self.registry.blob(self.cache, reference, wanted.digest, bar).await?
            }
            Place::Layout(path, _) => {
                let path = path.join(path_of(&wanted.digest));
                let file = open(&path)?;
                let content =
                    tokio::task::block_in_place(|| self.cache.put(Shelf::Blobs, &mut bar.reader(file)))?;
                if content.digest != wanted.digest {
                    return Err(ConvertError::Damaged { path, found: content.digest });
                }
                content
            }
            Place::Archive(..) => return Err(self.refuse("a layer is no longer in the cache")),
        };
        if content.size != wanted.size {
            let (digest, size) = (wanted.digest, wanted.size);
            return Err(self.refuse(format!("the blob `{digest}` has {} bytes, not {size}", content.size)));
        }
        Ok(content)
    }

    /// Reads the image of an archive; its layers go into the cache.
    pub fn archive(&self, path: &Path, wanted: Option<&str>, bar: &Bar) -> Result<SourceImage, ConvertError> {
        let saved = self.saved(path, wanted)?;
        let names: Vec<&String> = saved.layers.iter().collect();
        let mut links: BTreeMap<String, String> = BTreeMap::new();
        let mut blobs: BTreeMap<String, Content> = BTreeMap::new();
        let mut config = Vec::new();
        each_member(path, bar, |name, member| {
            let kind = member.header().entry_type();
            if kind.is_symlink() || kind.is_hard_link() {
                if let Some(target) = member.link_name_bytes() {
                    let target = String::from_utf8_lossy(&target).into_owned();
                    links.insert(name.to_owned(), resolve(name, &target, kind.is_symlink()));
                }
            } else if name == saved.config {
                member.take(DOCUMENT).read_to_end(&mut config).map_err(|source| unreadable(path, source))?;
            } else if Path::new(name).extension().is_some_and(|ending| ending == "tar")
                || names.iter().any(|layer| *layer == name)
            {
                blobs.insert(name.to_owned(), self.cache.put(Shelf::Blobs, member)?);
            }
            Ok(())
        })?;
        if config.is_empty() {
            return Err(self.refuse(format!("it lacks its configuration `{}`", saved.config)));
        }
        let find = |name: &String| {
            let mut place = name;
            // Links to links are followed, but not for ever.
            for _ in 0..8 {
                match links.get(place) {
                    Some(target) => place = target,
                    None => break,
                }
            }
            let blob = blobs.get(place).ok_or_else(|| self.refuse(format!("it lacks its layer `{name}`")))?;
            Ok(Descriptor::new(LAYER, *blob))
        };
        let layers = saved.layers.iter().map(find).collect::<Result<_, ConvertError>>()?;
        // Such archives have no manifest: the image is named by its configuration.
        Ok(SourceImage { manifest: serde_json::json!({}), digest: Digest::of(&config), config, layers })
    }

    fn saved(&self, path: &Path, wanted: Option<&str>) -> Result<Saved, ConvertError> {
        let mut manifest = Vec::new();
        each_member(path, &Bar::hidden(), |name, member| {
            if name == "manifest.json" {
                member
                    .take(DOCUMENT)
                    .read_to_end(&mut manifest)
                    .map_err(|source| unreadable(path, source))?;
            }
            Ok(())
        })?;
        let images: Vec<Saved> = serde_json::from_slice(&manifest).map_err(|_| {
            self.refuse("it has no `manifest.json` as `docker save` writes it: name a layout with `oci:DIR`")
        })?;
        let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
        let known: Vec<String> = images.iter().flat_map(tags).collect();
        let count = images.len();
        let fits = |image: &Saved| match wanted {
            Some(wanted) => tags(image).iter().any(|tag| tag == wanted),
            None => count == 1,
        };
        let found = images.into_iter().find(fits);
        found.ok_or_else(|| {
            let known = known.join("`, `");
            self.refuse(format!(
                "say with `docker-archive:FILE:REFERENCE` which image is meant: it has `{known}`"
            ))
        })
    }
}

/// The manifests of an index.
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// The name that a link in an archive points to: a symbolic link starts at its own directory.
fn resolve(name: &str, target: &str, symbolic: bool) -> String {
    let mut parts: Vec<&str> = if symbolic { name.split('/').collect() } else { Vec::new() };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn each_member(
    path: &Path,
    bar: &Bar,
    mut each: impl FnMut(&str, &mut tar::Entry<'_, Headers<Box<dyn Read + Send>>>) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let fail = |error| unreadable(path, io::Error::other(error));
    let reader = decompressed(bar.reader(open(path)?)).map_err(fail)?;
    for_each_member(reader, Limits::default().bounds(), fail, |member| {
        let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        each(name.trim_start_matches("./"), member)
    })?;
    Ok(())
}

fn open(path: &Path) -> Result<File, ConvertError> {
    File::open(path).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: io::Error) -> ConvertError {
    ConvertError::Read { path: path.to_owned(), source }
}

fn document(path: &Path) -> Result<Vec<u8>, ConvertError> {
    let mut bytes = Vec::new();
    open(path)?.take(DOCUMENT).read_to_end(&mut bytes).map_err(|source| unreadable(path, source))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_as_skopeo_names_them() {
        let place = |text: &str| text.parse::<Place>();
        let spark = "registry.example.com/spark:3.5.9".to_owned();
        assert_eq!(place(&spark), Ok(Place::Registry(spark.clone())));
        assert_eq!(place(&format!("docker://{spark}")), Ok(Place::Registry(spark.clone())));
        assert_eq!(place("oci:dist"), Ok(Place::Layout("dist".into(), None)));
        assert_eq!(place("oci:/a/dist:3.5"), Ok(Place::Layout("/a/dist".into(), Some("3.5".to_owned()))));
        let file = Place::Archive("a.tar".into(), Some(spark.clone()));
        assert_eq!(place(&format!("docker-archive:a.tar:{spark}")), Ok(file.clone()));
        assert_eq!(file.name(), format!("a.tar:{spark}"));
        for text in ["", "oci:", "oci::a", "./dist", "/dist", "docker-archive:", "a b", "UPPER/x"] {
            assert!(place(text).is_err(), "{text}");
        }
    }

    #[test]
    fn links_of_archives_lead_from_layer_to_layer() {
        assert_eq!(resolve("b/layer.tar", "../a/layer.tar", true), "a/layer.tar");
        assert_eq!(resolve("b/layer.tar", "a/layer.tar", false), "a/layer.tar");
    }
}
