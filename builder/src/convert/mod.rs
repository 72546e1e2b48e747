//! `hearth convert`: any image becomes zstd:chunked.
//!
//! ```text
//! source (registry, layout, archive) -> cache -> one layer after the other, several at once -> cache -> layout or registry
//! ```
//!
//! The configuration stays as it is, byte for byte, and with it the image id, the history and every `diffID`: a layer
//! unpacks to the same archive. Annotations of the manifest say what it was made from. Layers that have a table of
//! contents already are passed on. What cannot have one (an archive that clients read differently) becomes a zstd layer
//! without; a warning says why.
//!
//! Memory: for each layer under way the window of its compression, two chunks and the compressed table.

mod error;
mod headers;
mod layer;
mod report;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci::media_type::{DOCKER_LAYER, LAYER};
use serde_json::{Value, json};

pub use self::{
    error::ConvertError,
    report::{ConvertReport, ConvertedImage, ConvertedLayer},
    source::Place,
};
use self::{
    layer::Converted,
    source::{Source, SourceImage},
};
use crate::{
    cache::{Cache, Content, Shelf},
    digest::Digest,
    fetch::download,
    image::{self, Descriptor, Document, Image},
    layer::chunked,
    progress::{Bar, Progress},
    publish::{Publication, Pusher, Tag, layout},
    registry::{Registry, Repository, Settings},
    report::PushReport,
};

/// Layers fetched at once, and converted at once at most: each needs a window of up to 32 MiB.
const PARALLEL: usize = 4;

/// Indexes may point to indexes, but not for ever.
const DEPTH: usize = 4;

/// The annotation with the name of the image that was converted.
const FROM_NAME: &str = "dev.hearth.converted.name";

/// The annotation with the digest of its manifest; of its configuration where it came from an archive.
const FROM_DIGEST: &str = "dev.hearth.converted.digest";

/// What to convert, and where to.
#[derive(Debug, Clone)]
pub struct Options {
    /// The image.
    pub source: Place,
    /// Where the converted image goes.
    pub target: Place,
    /// The cache.
    pub cache: PathBuf,
    /// Threads.
    pub jobs: usize,
    /// How to reach registries.
    pub registries: Settings,
}

/// A converted image.
struct Done {
    report: ConvertedImage,
    image: Image,
}

/// Converts an image, for every platform that it has. Needs a multi-threaded runtime.
pub async fn run(options: &Options, progress: &Progress) -> Result<ConvertReport, ConvertError> {
    let started = Instant::now();
    let tag = target_tag(&options.target)?;
    let cache = Cache::open(&options.cache)?;
    let registry = Registry::new(options.registries.clone());
    let client = download::client().map_err(ConvertError::Client)?;
    let repository = options.target.repository();
    let none = BTreeMap::new();
    let pusher = |repository, mounts| Pusher {
        registry: &registry,
        client: &client,
        cache: &cache,
        repository,
        mounts,
        progress,
    };
    if let Some(repository) = &repository {
        pusher(repository, &none).check().await?;
    }
    let source = Source { place: &options.source, registry: &registry, cache: &cache };
    let mut work = Work { options, source, progress, warnings: Vec::new(), images: Vec::new() };
    let (document, digest) = work.top().await?;
    let Work { warnings, images, .. } = work;
    let tag = Tag { name: tag, document };
    let publication = Publication {
        images: images.iter().map(|done| &done.image).collect(),
        tags: vec![tag.clone()],
        referrers: Vec::new(),
    };
    let mut push = None;
    match (&options.target, &repository) {
        (Place::Layout(path, _), _) => {
            tokio::task::block_in_place(|| layout::write(&cache, path, &publication))?;
        }
        (_, Some(repository)) => {
            let mounts = mounts_of(options.source.repository(), repository, &images);
            let sent = pusher(repository, &mounts).push(&publication).await?;
            push = Some(PushReport::new(repository, &sent));
        }
        _ => unreachable!("`target_tag` refuses archives"),
    }
    Ok(ConvertReport {
        source: options.source.name(),
        source_digest: digest,
        target: options.target.name(),
        digest: tag.document.descriptor.digest,
        images: images.into_iter().map(|done| done.report).collect(),
        warnings,
        push,
        seconds: (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
    })
}

/// The tag that the converted image gets.
fn target_tag(target: &Place) -> Result<String, ConvertError> {
    let refuse = |problem| Err(ConvertError::Target { name: target.name(), problem });
    let tag = match target {
        Place::Archive(..) => {
            return refuse("an archive for `docker load` says nothing about chunks: write `oci:DIR`");
        }
        Place::Registry(reference) if reference.contains('@') => {
            return refuse("the converted image has another digest: name a tag");
        }
        Place::Registry(reference) => {
            let rest = &reference[crate::sources::base::repository_of(reference).len()..];
            rest.strip_prefix(':').unwrap_or("latest").to_owned()
        }
        Place::Layout(_, tag) => tag.clone().unwrap_or_else(|| "latest".to_owned()),
    };
    if tag.parse::<oci::Tag>().is_ok() {
        Ok(tag)
    } else {
        refuse("its tag may have letters, digits, `_`, `.` and `-`")
    }
}

/// Layers that were passed on and lie in another repository of the same registry.
fn mounts_of(
    source: Option<Repository>,
    target: &Repository,
    images: &[Done],
) -> BTreeMap<Digest, Repository> {
    let Some(source) = source.filter(|source| source.registry == target.registry && source != target) else {
        return BTreeMap::new();
    };
    let layers = images.iter().flat_map(|done| &done.report.layers).filter(|layer| layer.passed);
    layers.map(|layer| (layer.digest, source.clone())).collect()
}

/// A conversion under way.
struct Work<'a> {
    options: &'a Options,
    source: Source<'a>,
    progress: &'a Progress,
    warnings: Vec<String>,
    images: Vec<Done>,
}

impl Work<'_> {
    /// Converts everything; gives what the tag will point to, and the digest of what was converted.
    async fn top(&mut self) -> Result<(Document, Digest), ConvertError> {
        if let Place::Archive(path, wanted) = &self.options.source {
            let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
            let bar = self.progress.bytes("reading the archive", size);
            let image = tokio::task::block_in_place(|| self.source.archive(path, wanted.as_deref(), &bar))?;
            drop(bar);
            let digest = image.digest;
            return Ok((self.image(image)?, digest));
        }
        let (bytes, digest) = self.source.top().await?;
        Ok((Box::pin(self.document(&bytes, digest, DEPTH)).await?, digest))
    }

    /// Converts a manifest, or all manifests of an index.
    async fn document(
        &mut self,
        bytes: &[u8],
        digest: Digest,
        depth: usize,
    ) -> Result<Document, ConvertError> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| self.refuse(format!("its manifest `{digest}` is no JSON: {error}")))?;
        let Some(entries) = value["manifests"].as_array() else {
            let image = self.read(value, digest).await?;
            return self.image(image);
        };
        if depth == 0 {
            return Err(self.refuse(format!("its indexes are nested more than {DEPTH} deep")));
        }
        let mut manifests = Vec::new();
        for entry in entries {
            let descriptor: Descriptor = self.descriptor(entry)?;
            // Documents about images name the manifests that they are about: those are others now.
            let unknown = descriptor.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
            if unknown || descriptor.artifact_type.is_some() {
                self.warnings.push(format!("`{}` is about the old image and is left out", descriptor.digest));
                continue;
            }
            let (bytes, found) = self.source.manifest(descriptor.digest).await?;
            let document = Box::pin(self.document(&bytes, found, depth - 1)).await?;
            let mut entry = entry.clone();
            merge(&mut entry, document.descriptor.to_json());
            manifests.push(entry);
        }
        if manifests.is_empty() {
            return Err(self.refuse("its index holds no image"));
        }
        let mut index = value.clone();
        merge(&mut index, json!({ "schemaVersion": 2, "mediaType": image::INDEX, "manifests": manifests }));
        self.annotate(&mut index, digest);
        Ok(Document::new(image::INDEX, &index))
    }

    fn refuse(&self, problem: impl Into<String>) -> ConvertError {
        ConvertError::Source { name: self.options.source.name(), problem: problem.into() }
    }

    fn descriptor(&self, value: &Value) -> Result<Descriptor, ConvertError> {
        serde_json::from_value(value.clone())
            .map_err(|error| self.refuse(format!("its manifest cannot be read: {error}")))
    }

    /// Says in a manifest or an index what it was made from.
    fn annotate(&self, value: &mut Value, digest: Digest) {
        if let Some(object) = value.as_object_mut() {
            object.remove("subject");
            let annotations = object.entry("annotations").or_insert_with(|| json!({}));
            merge(annotations, json!({ FROM_NAME: self.options.source.name(), FROM_DIGEST: digest }));
        }
    }

    /// Reads the configuration of an image and brings its layers into the cache.
    async fn read(&self, manifest: Value, digest: Digest) -> Result<SourceImage, ConvertError> {
        let config = self.descriptor(&manifest["config"])?;
        let layers =
            manifest["layers"].as_array().ok_or_else(|| self.refuse("it is no image: it has no layers"))?;
        let layers: Vec<Descriptor> =
            layers.iter().map(|layer| self.descriptor(layer)).collect::<Result<_, _>>()?;
        if let Some(other) = layers.iter().find(|layer| !is_archive(&layer.media_type)) {
            return Err(self.refuse(format!("a layer has the media type `{}`", other.media_type)));
        }
        let blob = |descriptor: &Descriptor| Content { digest: descriptor.digest, size: descriptor.size };
        let total = config.size + layers.iter().map(|layer| layer.size).sum::<u64>();
        let bar = self.progress.bytes(&format!("fetching {}", digest.short()), total);
        let wanted: BTreeSet<Content> = layers.iter().chain([&config]).map(blob).collect();
        let fetch = async |wanted: Content| self.source.blob(&wanted, &bar).await;
        let _: Vec<Content> =
            stream::iter(wanted.into_iter().map(fetch)).buffer_unordered(PARALLEL).try_collect().await?;
        let mut bytes = Vec::new();
        let path = self.source.cache.verified(Shelf::Blobs, &blob(&config))?;
        let read = |source| ConvertError::Read { path: path.clone(), source };
        let file = std::fs::File::open(&path).map_err(read)?;
        file.take(source::DOCUMENT).read_to_end(&mut bytes).map_err(read)?;
        Ok(SourceImage { manifest, digest, config: bytes, layers })
    }

    /// Converts the layers of an image and writes its manifest.
    fn image(&mut self, source: SourceImage) -> Result<Document, ConvertError> {
        let config: Value = serde_json::from_slice(&source.config)
            .map_err(|error| self.refuse(format!("its configuration cannot be read: {error}")))?;
        let diff_ids: Vec<Digest> =
            serde_json::from_value(config["rootfs"]["diff_ids"].clone()).unwrap_or_default();
        if diff_ids.len() != source.layers.len() {
            let (ids, layers) = (diff_ids.len(), source.layers.len());
            return Err(self.refuse(format!("its configuration names {ids} layers, its manifest {layers}")));
        }
        let converted = tokio::task::block_in_place(|| self.layers(&source, &diff_ids))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let platform = format!("{}/{}", text(&config["os"]), text(&config["architecture"]));
        let mut layers = Vec::new();
        let mut described = Vec::new();
        for (old, new) in source.layers.iter().zip(&converted) {
            if let Some(reason) = &new.plain {
                self.warnings.push(format!(
                    "the layer `{}` ({platform}) has no table of contents, clients fetch it whole: {reason}",
                    old.digest
                ));
            }
            described.push(describe(old, new));
            layers.push(ConvertedLayer::new(old, new));
        }
        let content = Content { digest: Digest::of(&source.config), size: source.config.len() as u64 };
        let kind = source.manifest["config"]["mediaType"].as_str().unwrap_or(image::CONFIG);
        let kind = if kind.starts_with("application/vnd.docker.") { image::CONFIG } else { kind };
        let config = Document { descriptor: Descriptor::new(kind, content), bytes: source.config };
        let mut manifest = source.manifest;
        merge(
            &mut manifest,
            json!({
                "schemaVersion": 2,
                "mediaType": image::MANIFEST,
                "config": config.descriptor.to_json(),
                "layers": described,
            }),
        );
        self.annotate(&mut manifest, source.digest);
        let manifest = Document::new(image::MANIFEST, &manifest);
        let report = ConvertedImage {
            platform,
            from: source.digest,
            manifest: manifest.descriptor.digest,
            config: config.descriptor.digest,
            layers,
        };
        let layers = converted.into_iter().map(|converted| converted.layer).collect();
        self.images.push(Done { report, image: Image { config, layers, manifest: manifest.clone() } });
        Ok(manifest)
    }

    /// Converts layers, several at once; the largest begin.
    fn layers(&self, source: &SourceImage, diff_ids: &[Digest]) -> Result<Vec<Converted>, ConvertError> {
        let mut order: Vec<usize> = (0..source.layers.len()).collect();
        order.sort_by_key(|at| std::cmp::Reverse(source.layers[*at].size));
        let total = source.layers.iter().map(|layer| layer.size).sum();
        let bar = self.progress.bytes(&format!("converting {}", source.digest.short()), total);
        let found = Mutex::new(vec![None; order.len()]);
        let failure = Mutex::new(None);
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let convert = || {
            while let Some(at) = order.get(next.fetch_add(1, Ordering::Relaxed))
                && !stop.load(Ordering::Relaxed)
            {
                match self.layer(&source.layers[*at], diff_ids[*at], &bar) {
                    Ok(layer) => found.lock().unwrap_or_else(PoisonError::into_inner)[*at] = Some(layer),
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.options.jobs.clamp(1, PARALLEL).min(order.len()) {
                scope.spawn(convert);
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => {
                Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten().collect())
            }
        }
    }

    fn layer(&self, old: &Descriptor, diff_id: Digest, bar: &Bar) -> Result<Converted, ConvertError> {
        let blob = Content { digest: old.digest, size: old.size };
        layer::convert(self.source.cache, &blob, &old.annotations, diff_id, bar)
    }
}

/// The descriptor of a converted layer. Other annotations stay, except of tables that describe the old bytes.
fn describe(old: &Descriptor, new: &Converted) -> Value {
    let is_table =
        |name: &str| name.starts_with(chunked::PREFIX) || name.starts_with("containerd.io/snapshot/stargz/");
    let kept = old.annotations.iter().filter(|(name, _)| !is_table(name));
    let annotations = kept.chain(&new.layer.annotations);
    let annotations = annotations.map(|(name, value)| (name.clone(), value.clone())).collect();
    Descriptor { annotations, ..Descriptor::new(&new.layer.media_type, new.layer.blob) }.to_json()
}

/// Whether a layer is an archive in one of the compressions that are read here.
fn is_archive(media_type: &str) -> bool {
    let known = [LAYER, DOCKER_LAYER];
    let rest = known.iter().find_map(|known| media_type.strip_prefix(known));
    matches!(rest, Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
}

/// Replaces keys of an object.
fn merge(object: &mut Value, new: Value) {
    if let (Some(object), Value::Object(new)) = (object.as_object_mut(), new) {
        object.extend(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_a_tag() {
        let tag = |text: &str| target_tag(&text.parse().unwrap());
        assert_eq!(tag("registry.example.com:5000/spark").unwrap(), "latest");
        assert_eq!(tag("registry.example.com:5000/spark:3.5.9").unwrap(), "3.5.9");
        assert_eq!(tag("oci:dist").unwrap(), "latest");
        assert_eq!(tag("oci:dist:a").unwrap(), "a");
        let digest = format!("registry.example.com/spark@{}", Digest::of(b""));
        for text in ["docker-archive:a.tar", "oci:dist:a/b", &digest] {
            assert_eq!(tag(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn only_archives_are_converted() {
        for kind in ["", "+gzip", "+zstd"] {
            assert!(is_archive(&format!("application/vnd.oci.image.layer.v1.tar{kind}")));
        }
        assert!(is_archive("application/vnd.docker.image.rootfs.diff.tar.gzip"));
        for kind in
            ["application/vnd.in-toto+json", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"]
        {
            assert!(!is_archive(kind), "{kind}");
        }
    }
}
