//! Brings a base image into the cache: its layers as they are, its configuration, and a view of its files.
//!
//! The layers of a registry image or an OCI layout are reused byte for byte, so every image on the same base
//! shares them with everybody else's. A root file system archive becomes one layer, whose tar headers are
//! written anew (order, names of users and groups, compression), so that the same files give the same digest
//! whatever program packed them. Its modification times are kept: compiled Python files in it depend on them.
//!
//! Everything that is read is checked against the digest that named it.

mod context;
mod files;
mod origin;

use std::{io, path::Path, sync::Arc};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci::media_type::{DOCKER_LAYER, LAYER};
use serde_json::{Value, json};

use self::{context::DOCUMENT_LIMIT, origin::Manifest};
pub use self::{
    context::{BaseError, Context},
    origin::{Origin, pinned, repository_of},
};
use super::{
    archive::{self, Flavour},
    detect::SEARCH_PATH,
    scan::{self, ScanError},
    tarball::{ArchiveError, Limits},
    view::View,
};
use crate::{
    cache::{Cache, Shelf},
    checksum::Checksum,
    digest::{Digest, Hasher},
    image::Descriptor,
    layer::{self, Layer, LayerError, chunked, codec::Codec},
    platform::Platform,
    progress::Progress,
    tree::{self, Tree},
};

/// Layers fetched at once from a registry.
const PARALLEL: usize = 4;

/// Indexes may point to indexes, but not for ever.
const DEPTH: usize = 4;

/// A base that is ready to build upon.
#[derive(Debug, Clone)]
pub struct Base {
    /// What it is called in annotations: the reference, or the name of the file or directory.
    pub name: String,
    /// Its digest: of the manifest, or of the archive; of no bytes for `scratch`.
    pub digest: Digest,
    /// Its image configuration.
    pub config: Value,
    /// Its layers, in the cache, lowest first.
    pub layers: Vec<Layer>,
    /// The files of a root file system that was never compressed: they become the only layer ([`Base::write`]).
    pub unwritten: Option<Arc<Tree>>,
    /// The files of a root file system; `None` for an image, whose layers have them.
    tree: Option<Arc<Tree>>,
    /// Its files.
    pub view: View,
}

impl Base {
    /// How many layers it has or will have.
    pub fn layer_count(&self) -> usize {
        self.layers.len() + usize::from(self.unwritten.is_some())
    }

    /// Uncompressed bytes of what was never compressed.
    pub fn unwritten_bytes(&self) -> u64 {
        self.unwritten.as_deref().map_or(0, tree::bytes)
    }

    /// Compresses a root file system, unless an earlier build has done so.
    pub fn write(
        &mut self,
        cache: &Cache,
        codec: Codec,
        jobs: usize,
        progress: &Progress,
    ) -> Result<(), LayerError> {
        if let Some(files) = self.unwritten.take() {
            let bar = progress.bytes("compressing the base", tree::bytes(&files));
            self.layers = vec![layer::write(cache, &files, codec, jobs, bar)?];
        }
        Ok(())
    }
}

/// The base of images that stand on nothing.
pub fn scratch(platform: Platform) -> Base {
    Base {
        name: "scratch".to_owned(),
        digest: Digest::of(b""),
        config: plain_config(platform),
        layers: Vec::new(),
        unwritten: None,
        tree: Some(Arc::default()),
        view: View::default(),
    }
}

/// The configuration of what is no image yet.
fn plain_config(platform: Platform) -> Value {
    json!({
        "architecture": platform.architecture(),
        "os": "linux",
        "config": { "Env": [format!("PATH={SEARCH_PATH}")] },
    })
}

/// Makes a base of a root file system archive. It is not compressed here: a plan and a lock do not need that.
pub fn from_archive(context: Context<'_>, path: &Path, codec: Codec) -> Result<Base, BaseError> {
    let fail = |source| BaseError::Archive { path: path.to_owned(), source };
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let (digest, tree) =
        unpacked(context.cache, path, Flavour::RootFileSystem, context.progress).map_err(fail)?;
    if !tree.contains_key("usr") && !tree.contains_key("bin") {
        let problem = "it has neither `/usr` nor `/bin`: is it a root file system?".to_owned();
        return Err(BaseError::Unsuitable { name, problem });
    }
    let view = View::of_tree(context.cache, &tree)?;
    let config = plain_config(context.platform);
    let tree = Arc::new(tree);
    let (layers, unwritten) = match layer::known(context.cache, &tree, codec) {
        Some(layer) => (vec![layer], None),
        None => (Vec::new(), Some(tree.clone())),
    };
    Ok(Base { name, digest, config, layers, unwritten, tree: Some(tree), view })
}

/// Reads an archive, or remembers what it holds from an earlier run. The file itself is always hashed.
fn unpacked(
    cache: &Cache,
    path: &Path,
    flavour: Flavour,
    progress: &Progress,
) -> Result<(Digest, Tree), ArchiveError> {
    let digest = checked(path, None, progress)?.0;
    let shown = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let tree = unpack_known(cache, path, &shown, digest, flavour, progress)?;
    Ok((digest, tree))
}

/// The digest of a file, and what it comes to instead of the expected checksum.
pub fn checked(
    path: &Path,
    expected: Option<Checksum>,
    progress: &Progress,
) -> Result<(Digest, Result<(), Checksum>), ArchiveError> {
    let open = |source| ArchiveError::Open { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(open)?;
    let length = file.metadata().map_err(open)?.len();
    let shown = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bar = progress.bytes(&format!("checking {shown}"), length);
    let mut hasher = Hasher::default();
    let mut checker = expected.map(Checksum::checker);
    let mut buffer = vec![0; crate::cache::BUFFER];
    loop {
        let count = io::Read::read(&mut file, &mut buffer).map_err(ArchiveError::Read)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        if let Some(checker) = &mut checker {
            checker.update(&buffer[..count]);
        }
        bar.advance(count as u64);
    }
    let digest = hasher.finish();
    Ok((digest, checker.map_or(Ok(()), |checker| checker.finish(digest))))
}

/// Reads an archive whose digest is known, unless its contents are in the cache; `shown` is its name for people.
pub fn unpack_known(
    cache: &Cache,
    path: &Path,
    shown: &str,
    digest: Digest,
    flavour: Flavour,
    progress: &Progress,
) -> Result<Tree, ArchiveError> {
    let key = Digest::of(format!("tree 2 {} {digest}", flavour.name()).as_bytes());
    if let Some(tree) = cache.note::<Tree>("trees-v2", &key)
        && tree
            .values()
            .filter_map(tree::Entry::content)
            .all(|content| cache.find(Shelf::Files, &content).is_some())
    {
        return Ok(tree);
    }
    cache.verify_archive(path, digest)?;
    let file =
        std::fs::File::open(path).map_err(|source| ArchiveError::Open { path: path.to_owned(), source })?;
    let length = file.metadata().map(|meta| meta.len()).unwrap_or_default();
    let bar = progress.bytes(&format!("unpacking {shown}"), length);
    let tree = archive::unpack(cache, bar.reader(file), flavour, Limits::default())?;
    cache.leave_note("trees-v2", &key, &tree)?;
    Ok(tree)
}

/// Brings an image from a registry or a layout into the cache.
pub async fn from_image(context: Context<'_>, origin: Origin<'_>) -> Result<Base, BaseError> {
    let name = origin.name();
    let unsuitable = |problem: String| BaseError::Unsuitable { name: name.clone(), problem };
    let (manifest, digest) = resolve(context, origin).await?;
    let config = manifest.config.ok_or_else(|| unsuitable("its manifest has no configuration".to_owned()))?;
    let content = origin.blob(context, config.digest, "the base's configuration", config.size).await?;
    let file = context.cache.open_content(Shelf::Blobs, &content)?;
    let config: Value = serde_json::from_reader(io::Read::take(file, DOCUMENT_LIMIT))
        .map_err(|error| unsuitable(format!("its configuration cannot be read: {error}")))?;
    let architecture = config.get("architecture").and_then(Value::as_str).unwrap_or_default();
    if architecture != context.platform.architecture() {
        let wanted = context.platform.architecture();
        return Err(unsuitable(format!("it is for `{architecture}`, but `linux/{wanted}` is asked for")));
    }
    let diff_ids: Vec<Digest> =
        serde_json::from_value(config["rootfs"]["diff_ids"].clone()).unwrap_or_default();
    if diff_ids.len() != manifest.layers.len() {
        let (ids, layers) = (diff_ids.len(), manifest.layers.len());
        return Err(unsuitable(format!("its configuration names {ids} layers, its manifest {layers}")));
    }
    let fetch = async |(descriptor, diff_id): (&Descriptor, Digest)| {
        let media_type = layer_type(&descriptor.media_type).map_err(unsuitable)?.to_owned();
        let label = format!("base layer {}", descriptor.digest.short());
        let blob = origin.blob(context, descriptor.digest, &label, descriptor.size).await?;
        // What describes the bytes goes with them; what describes the base does not.
        let annotations = descriptor.annotations.clone().into_iter();
        let annotations = annotations.filter(|(name, _)| name.starts_with(chunked::PREFIX)).collect();
        Ok::<_, BaseError>(Layer { blob, diff_id, media_type, annotations })
    };
    let wanted = manifest.layers.iter().zip(diff_ids);
    let layers: Vec<Layer> = stream::iter(wanted.map(fetch)).buffered(PARALLEL).try_collect().await?;
    let view = view(context, &layers)?;
    Ok(Base { name, digest, config, layers, unwritten: None, tree: None, view })
}

/// Follows indexes to the manifest of the platform; gives that manifest's digest.
async fn resolve(context: Context<'_>, origin: Origin<'_>) -> Result<(Manifest, Digest), BaseError> {
    let platform = context.platform;
    let unsuitable = |problem: String| BaseError::Unsuitable { name: origin.name(), problem };
    let (mut bytes, mut digest) = origin.top(context).await?;
    for _ in 0..DEPTH {
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|error| unsuitable(format!("its manifest cannot be read: {error}")))?;
        if manifest.manifests.is_empty() {
            return Ok((manifest, digest));
        }
        let fits = |entry: &&Descriptor| match &entry.platform {
            Some(keys) => keys.os == "linux" && keys.architecture == platform.architecture(),
            None => manifest.manifests.len() == 1,
        };
        let chosen =
            manifest.manifests.iter().find(fits).ok_or_else(|| {
                unsuitable(format!("it has no image for `linux/{}`", platform.architecture()))
            })?;
        (bytes, digest) = origin.manifest(context, chosen.digest).await?;
    }
    Err(unsuitable(format!("its indexes are nested more than {DEPTH} deep")))
}

/// The OCI name of a layer's media type; Docker's own names mean the same bytes.
fn layer_type(media_type: &str) -> Result<&str, String> {
    Ok(match media_type {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => Codec::Gzip.media_type(),
        DOCKER_LAYER => LAYER,
        known if known.starts_with(LAYER) => known,
        other => return Err(format!("a layer has the media type `{other}`, which cannot be read")),
    })
}

fn view(context: Context<'_>, layers: &[Layer]) -> Result<View, ScanError> {
    let mut hasher = Hasher::default();
    hasher.update(b"view 3");
    for layer in layers {
        hasher.update(format!(" {} {}", layer.blob.digest, layer.diff_id).as_bytes());
    }
    let key = hasher.finish();
    if let Some(view) = context.cache.note("trees-v2", &key) {
        return Ok(view);
    }
    let mut view = View::default();
    for layer in layers {
        let bar = context
            .progress
            .bytes(&format!("reading base layer {}", layer.blob.digest.short()), layer.blob.size);
        scan::apply(context.cache, &mut view, &layer.blob, layer.diff_id, &bar)?;
    }
    // Only saves time: the next run reads the layers again when the note is not there.
    if let Err(error) = context.cache.leave_note("trees-v2", &key, &view) {
        tracing::warn!(error = %error, "the view of the base is not kept");
    }
    Ok(view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_other_kinds_are_refused() {
        assert_eq!(
            layer_type("application/vnd.docker.image.rootfs.diff.tar.gzip"),
            Ok(Codec::Gzip.media_type())
        );
        assert_eq!(layer_type(Codec::Zstd.media_type()), Ok(Codec::Zstd.media_type()));
        assert!(layer_type("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip").is_err());
    }
}
