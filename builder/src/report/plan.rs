//! What a build would do, for people and programs.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use serde::{Serialize, ser::SerializeStruct as _};

use super::common::{RefusedReport, mebibytes, write_refused, write_warnings};
use crate::{cache::Content, digest::Digest, layer::codec::Codec};

/// What a build would do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanReport {
    /// Where the images would go.
    pub repository: String,
    /// Tags and combinations.
    pub images: Vec<PlannedImage>,
    /// Cells that would not be built.
    pub refused: Vec<RefusedReport>,
    /// The bases, whose layers are taken as they are.
    pub bases: Vec<PlannedBase>,
    /// The layers over the bases, in the order in which images stack them.
    pub layers: Vec<PlannedLayer>,
    /// How layers are compressed.
    pub compression: Codec,
    /// Uncompressed bytes of all layers, each counted once.
    pub unique_bytes: u64,
    /// The same compressed; absent when one of them was never built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unique_compressed_bytes: Option<u64>,
    /// Uncompressed bytes of every distinct file once: the least that any plan could come to.
    pub distinct_bytes: u64,
    /// Uncompressed bytes that the images would have without sharing.
    pub total_bytes: u64,
    /// What the target has already, and what a push would send.
    pub target: Target,
    /// What the user should know about the inputs.
    pub warnings: Vec<String>,
    /// What a node would download that has the images of an old lock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
}

/// A compressed size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes.
    pub bytes: u64,
    /// Whether a part of it was never compressed, so that it is an estimate from samples.
    pub estimated: bool,
}

impl Size {
    /// Of something compressed.
    pub fn exact(bytes: u64) -> Self {
        Self { bytes, estimated: false }
    }

    /// Of something that was never compressed.
    pub fn estimate(bytes: u64) -> Self {
        Self { bytes, estimated: true }
    }
}

impl std::iter::Sum for Size {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Self::default(), |sum, size| Self {
            bytes: sum.bytes + size.bytes,
            estimated: sum.estimated || size.estimated,
        })
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let about = if self.estimated { "~" } else { "" };
        f.pad(&format!("{about}{}", mebibytes(self.bytes)))
    }
}

impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Size", 2)?;
        fields.serialize_field("bytes", &self.bytes)?;
        fields.serialize_field("estimated", &self.estimated)?;
        fields.end()
    }
}

/// A plan held against the lock of images that nodes have already.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Against {
    /// The old lock.
    pub lock: String,
    /// Whether its layers were compressed in another way, so that every layer over the base is new.
    pub other_codec: bool,
    /// What each image needs that the old ones did not have.
    pub images: Vec<AgainstImage>,
    /// Uncompressed bytes of all new layers, each counted once; without bases.
    pub unique_bytes: u64,
    /// The same compressed.
    pub unique_compressed: Size,
}

/// What one image needs that the old ones did not have.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgainstImage {
    /// Its tag.
    pub tag: String,
    /// New layers over the base.
    pub layers: usize,
    /// Their uncompressed bytes.
    pub bytes: u64,
    /// The same compressed, which is what is downloaded.
    pub compressed: Size,
    /// Whether the base is another one.
    pub base_is_new: bool,
    /// The compressed base when it is another one: at most this is downloaded as well.
    pub base_compressed: Size,
}

/// What the target repository has already.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Why nothing is known of it; absent when it was asked and has answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
    /// Compressed bytes of layers that are there.
    pub present_bytes: u64,
    /// Compressed bytes of layers that a push would take from another repository of the same registry.
    pub mount_bytes: u64,
    /// Compressed bytes of layers that a push would send.
    pub upload_bytes: u64,
    /// Uncompressed bytes of layers that were never built, so that their digests are unknown.
    pub unbuilt_bytes: u64,
    /// What these come to when they are compressed, estimated from samples.
    pub unbuilt_estimated_bytes: u64,
}

/// Layers that were never built.
#[derive(Debug, Clone, Copy)]
pub struct Unbuilt {
    /// Their uncompressed bytes.
    pub bytes: u64,
    /// What they come to when they are compressed, estimated.
    pub estimate: u64,
}

impl Target {
    /// Adds up blobs of layers, each digest once. `present`: what the repository has, or why nobody knows.
    /// `mountable`: what another repository of the same registry has.
    pub fn new(
        blobs: &BTreeSet<Content>,
        unbuilt: Unbuilt,
        present: &Result<BTreeSet<Digest>, String>,
        mountable: impl Fn(&Digest) -> bool,
    ) -> Self {
        let Unbuilt { bytes: unbuilt_bytes, estimate: unbuilt_estimated_bytes } = unbuilt;
        let mut target = Self { unbuilt_bytes, unbuilt_estimated_bytes, ..Self::default() };
        let present = match present {
            Ok(present) => present,
            Err(why) => return Self { unknown: Some(why.clone()), ..target },
        };
        for blob in blobs {
            let sum = match (present.contains(&blob.digest), mountable(&blob.digest)) {
                (true, _) => &mut target.present_bytes,
                (false, true) => &mut target.mount_bytes,
                (false, false) => &mut target.upload_bytes,
            };
            *sum += blob.size;
        }
        target
    }

    fn write_text(&self, repository: &str, out: &mut impl Write) -> io::Result<()> {
        if let Some(why) = &self.unknown {
            return writeln!(out, "what {repository} has is not known: {why}");
        }
        let [present, mount] = [self.present_bytes, self.mount_bytes].map(mebibytes);
        let estimated = self.unbuilt_bytes > 0;
        let upload = Size { bytes: self.upload_bytes + self.unbuilt_estimated_bytes, estimated };
        write!(out, "{repository} has {present} already; to upload: {upload}")?;
        if self.mount_bytes > 0 {
            write!(out, ", to mount from other repositories: {mount}")?;
        }
        if estimated {
            write!(out, " (~: layers that were never built are estimated; --exact builds them)")?;
        }
        writeln!(out)
    }
}

/// A base of a plan.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedBase {
    /// Its name.
    pub name: String,
    /// The tags of the images on it.
    pub images: Vec<String>,
    /// Its layers, compressed as they are.
    pub layers: Vec<Content>,
    /// Uncompressed bytes of a root file system that was never compressed.
    pub unbuilt_bytes: u64,
    /// Its layers compressed.
    pub compressed: Size,
}

/// An image of a plan.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedImage {
    /// Its tag.
    pub tag: String,
    /// Its combination.
    pub cell: String,
    /// Its layers over the base.
    pub layers: usize,
    /// Their uncompressed bytes.
    pub bytes: u64,
}

/// A layer of a plan.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedLayer {
    /// What is in it.
    pub label: String,
    /// The tags of the images that have it.
    pub images: Vec<String>,
    /// How many regular files it holds.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The compressed blob, when the cache has it.
    pub blob: Option<Content>,
    /// Its size, or an estimate of it.
    pub compressed: Size,
    /// Whether the target has it; absent when nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_target: Option<bool>,
}

impl PlannedImage {
    /// Adds up the layers of an image.
    pub fn new(tag: String, cell: String, layers: &[PlannedLayer]) -> Self {
        let own = || layers.iter().filter(|layer| layer.images.contains(&tag));
        let (count, bytes) = (own().count(), own().map(|layer| layer.bytes).sum());
        Self { tag, cell, layers: count, bytes }
    }
}

impl PlanReport {
    /// For people.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        for image in &self.images {
            let (layers, size) = (image.layers, mebibytes(image.bytes));
            writeln!(out, "{}:{}  {}  {layers} layers, {size}", self.repository, image.tag, image.cell)?;
        }
        write_refused(out, &self.refused)?;
        for PlannedBase { name, images, layers, compressed, .. } in &self.bases {
            let (count, shared) = (layers.len().max(1), images.len());
            let size = format!("{count} layers, {compressed} compressed");
            writeln!(out, "base {name}: {size}, {shared} images")?;
        }
        self.write_layers(out)?;
        write_warnings(out, &self.warnings)?;
        if let Some(against) = &self.against {
            against.write_text(out)?;
        }
        let (unique, total) = (mebibytes(self.unique_bytes), mebibytes(self.total_bytes));
        writeln!(out, "{unique} to store instead of {total} (uncompressed, without bases)")?;
        if let Some(bytes) = self.unique_compressed_bytes {
            writeln!(out, "{} to store with {}", mebibytes(bytes), self.compression)?;
        }
        self.target.write_text(&self.repository, out)
    }

    fn write_layers(&self, out: &mut impl Write) -> io::Result<()> {
        let codec = self.compression;
        writeln!(
            out,
            "layers over the base, lowest first (uncompressed; {codec}, with ~ estimated from samples):"
        )?;
        for layer in &self.layers {
            let (size, files, shared) = (mebibytes(layer.bytes), layer.files, layer.images.len());
            let packed = layer.compressed;
            let there = if layer.at_target == Some(true) { "  (at the target)" } else { "" };
            let label = &layer.label;
            writeln!(
                out,
                "  {size:>10}  {packed:>10}  {files:>6} files  {shared:>3} images  {label}{there}"
            )?;
        }
        Ok(())
    }
}

impl Against {
    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "a node with the images of {} would download (uncompressed; compressed):", self.lock)?;
        if self.other_codec {
            writeln!(out, "  (its layers were compressed in another way: all are new)")?;
        }
        for image in &self.images {
            let (size, layers, tag) = (mebibytes(image.bytes), image.layers, &image.tag);
            let packed = image.compressed;
            write!(out, "  {size:>10}  {packed:>10}  {layers:>3} layers  {tag}")?;
            if image.base_is_new {
                write!(out, ", and another base of {}", image.base_compressed)?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_there_or_mounted_or_sent() {
        let blob = |text: &str, size| Content { digest: Digest::of(text.as_bytes()), size };
        let blobs = BTreeSet::from([blob("a", 1), blob("b", 20), blob("c", 300)]);
        let present = Ok(BTreeSet::from([blob("a", 1).digest]));
        let unbuilt = Unbuilt { bytes: 4000, estimate: 2000 };
        let target = Target::new(&blobs, unbuilt, &present, |digest| *digest == blob("b", 0).digest);
        let expected = Target {
            unknown: None,
            present_bytes: 1,
            mount_bytes: 20,
            upload_bytes: 300,
            unbuilt_bytes: 4000,
            unbuilt_estimated_bytes: 2000,
        };
        assert_eq!(target, expected);
        let unknown = Target::new(&blobs, unbuilt, &Err("it is asleep".to_owned()), |_| true);
        assert_eq!((unknown.present_bytes, unknown.upload_bytes), (0, 0));
        let mut out = Vec::new();
        unknown.write_text("registry.example.com/spark", &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().ends_with("not known: it is asleep\n"));
    }
}
