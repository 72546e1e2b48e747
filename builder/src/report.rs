//! What a build tells its user in the end: a table for people, JSON for programs.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde::Serialize;

use crate::{cache::Content, digest::Digest};

/// The result of a build.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The images, in the order of the matrix.
    pub images: Vec<ImageReport>,
    /// Every tag with what it points to: a manifest, or the index over those of several platforms.
    pub tags: BTreeMap<String, Digest>,
    /// Documents about the images: what is in them, and where it came from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub referrers: Vec<Digest>,
    /// Cells that were not built.
    pub refused: Vec<RefusedReport>,
    /// The OCI layout that holds them.
    pub output: String,
    /// What the user should know, such as a base without `tini`.
    pub warnings: Vec<String>,
    /// Blobs and bytes sent to the registry; absent without a push.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push: Option<PushReport>,
    /// How long it took.
    pub seconds: f64,
}

/// One image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageReport {
    /// Repository and tag.
    pub reference: String,
    /// The cell.
    pub cell: String,
    /// Its platform.
    pub platform: String,
    /// The digest to pull it by.
    pub manifest: Digest,
    /// The digest of its configuration, which container runtimes call the image id.
    pub config: Digest,
    /// Its layers, lowest first.
    pub layers: Vec<LayerReport>,
}

/// One layer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerReport {
    /// What is in it.
    pub label: String,
    /// The blob.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// The digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Its media type.
    pub media_type: String,
}

/// A cell that was not built.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedReport {
    /// The cell.
    pub cell: String,
    /// Why it cannot run.
    pub impossible: Vec<String>,
    /// Why nobody vouches for it.
    pub untested: Vec<String>,
}

/// What was pushed.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PushReport {
    /// Where to.
    pub repository: String,
    /// Blobs that were sent.
    pub uploaded: Vec<Digest>,
    /// Blobs that the repository had.
    pub skipped: Vec<Digest>,
    /// Bytes that were sent.
    pub uploaded_bytes: u64,
    /// Bytes that did not have to be sent.
    pub skipped_bytes: u64,
}

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
    /// The layers over the bases, in the order in which images stack them.
    pub layers: Vec<PlannedLayer>,
    /// Uncompressed bytes of all layers, each counted once.
    pub unique_bytes: u64,
    /// Uncompressed bytes of every distinct file once: the least that any plan could come to.
    pub distinct_bytes: u64,
    /// Uncompressed bytes that the images would have without sharing.
    pub total_bytes: u64,
    /// What the user should know about the inputs.
    pub warnings: Vec<String>,
    /// What a node would download that has the images of an old lock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
}

/// A plan held against the lock of images that nodes have already.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Against {
    /// The old lock.
    pub lock: String,
    /// What each image needs that the old ones did not have.
    pub images: Vec<AgainstImage>,
    /// Uncompressed bytes of all new layers, each counted once; without bases.
    pub unique_bytes: u64,
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
    /// Whether the base is another one.
    pub base_is_new: bool,
}

/// What became of a lock.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LockReport {
    /// The file.
    pub lock: String,
    /// How many inputs it has.
    pub inputs: usize,
    /// How many layers it has.
    pub layers: usize,
    /// What is different from before; nothing when it is current.
    pub changes: Vec<String>,
    /// Whether it was only checked.
    pub checked: bool,
    /// What the user should know about the inputs.
    pub warnings: Vec<String>,
}

impl LockReport {
    /// Whether a check found it stale.
    pub fn stale(&self) -> bool {
        self.checked && !self.changes.is_empty()
    }

    /// For people.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        self.changes.iter().try_for_each(|change| writeln!(out, "  {change}"))?;
        write_warnings(out, &self.warnings)?;
        let (lock, inputs, layers) = (&self.lock, self.inputs, self.layers);
        let what = match (self.checked, self.changes.is_empty()) {
            (_, true) => "is current",
            (true, false) => "is stale",
            (false, false) => "was written",
        };
        writeln!(out, "{lock} {what}: {inputs} inputs, {layers} layers")
    }
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
}

impl PlanReport {
    /// Adds up what the layers come to.
    pub fn new(
        repository: String,
        images: Vec<(String, String)>,
        refused: Vec<RefusedReport>,
        layers: Vec<PlannedLayer>,
        warnings: Vec<String>,
    ) -> Self {
        let image = |(tag, cell): (String, String)| {
            let own = || layers.iter().filter(|layer| layer.images.contains(&tag));
            let (count, bytes) = (own().count(), own().map(|layer| layer.bytes).sum());
            PlannedImage { tag, cell, layers: count, bytes }
        };
        let images: Vec<PlannedImage> = images.into_iter().map(image).collect();
        let unique_bytes = layers.iter().map(|layer| layer.bytes).sum();
        let total_bytes = images.iter().map(|image| image.bytes).sum();
        Self {
            repository,
            images,
            refused,
            layers,
            unique_bytes,
            distinct_bytes: 0,
            total_bytes,
            warnings,
            against: None,
        }
    }

    /// For people.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        for image in &self.images {
            let (layers, size) = (image.layers, megabytes(image.bytes));
            writeln!(out, "{}:{}  {}  {layers} layers, {size}", self.repository, image.tag, image.cell)?;
        }
        write_refused(out, &self.refused)?;
        writeln!(out, "layers over the base, lowest first (uncompressed; compressed when built before):")?;
        for layer in &self.layers {
            let (size, files, shared) = (megabytes(layer.bytes), layer.files, layer.images.len());
            let blob = layer.blob.map_or_else(|| "-".to_owned(), |blob| megabytes(blob.size));
            writeln!(out, "  {size:>10}  {blob:>10}  {files:>6} files  {shared:>3} images  {}", layer.label)?;
        }
        write_warnings(out, &self.warnings)?;
        if let Some(against) = &self.against {
            writeln!(out, "a node with the images of {} would download (uncompressed):", against.lock)?;
            for image in &against.images {
                let (size, layers, tag) = (megabytes(image.bytes), image.layers, &image.tag);
                let base = if image.base_is_new { ", and another base" } else { "" };
                writeln!(out, "  {size:>10}  {layers:>3} layers  {tag}{base}")?;
            }
        }
        let (unique, total) = (megabytes(self.unique_bytes), megabytes(self.total_bytes));
        writeln!(out, "{unique} to store instead of {total}")
    }
}

/// One JSON object, indented.
pub fn write_json(report: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report)?;
    writeln!(out)
}

fn write_refused(out: &mut impl Write, refused: &[RefusedReport]) -> io::Result<()> {
    for refused in refused {
        writeln!(out, "not built: {}", refused.cell)?;
        for reason in refused.impossible.iter().chain(&refused.untested) {
            writeln!(out, "  {reason}")?;
        }
    }
    Ok(())
}

fn write_warnings(out: &mut impl Write, warnings: &[String]) -> io::Result<()> {
    warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}"))
}

impl Report {
    /// For people.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        for image in &self.images {
            writeln!(out, "{}", image.reference)?;
            writeln!(out, "  {} ({})", image.cell, image.platform)?;
            writeln!(out, "  manifest  {}", image.manifest)?;
            for layer in &image.layers {
                let (size, digest) = (megabytes(layer.size), layer.digest.short());
                writeln!(out, "  layer     {size:>9}  {digest}  {}", layer.label)?;
            }
        }
        write_refused(out, &self.refused)?;
        write_warnings(out, &self.warnings)?;
        for (tag, digest) in &self.tags {
            writeln!(out, "{tag}  {digest}")?;
        }
        writeln!(out, "written to {}", self.output)?;
        if let Some(push) = &self.push {
            let (sent, bytes) = (push.uploaded.len(), megabytes(push.uploaded_bytes));
            let (had, saved) = (push.skipped.len(), megabytes(push.skipped_bytes));
            writeln!(
                out,
                "pushed to {}: {sent} blobs sent ({bytes}), {had} were there ({saved})",
                push.repository
            )?;
        }
        let images = self.images.len();
        writeln!(out, "{images} {} in {:.1} s", if images == 1 { "image" } else { "images" }, self.seconds)
    }
}

fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let digest = Digest::of(b"");
        let layer = LayerReport {
            label: "Spark JARs".to_owned(),
            digest,
            size: 314_150_000,
            diff_id: digest,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        };
        let image = ImageReport {
            reference: "registry.example.com/spark:3.5.9".to_owned(),
            cell: "Spark 3.5.9, Java 17".to_owned(),
            platform: "linux/amd64".to_owned(),
            manifest: digest,
            config: digest,
            layers: vec![layer],
        };
        Report { images: vec![image], output: "dist".to_owned(), seconds: 1.25, ..Report::default() }
    }

    #[test]
    fn people_see_names_sizes_and_digests() {
        let mut out = Vec::new();
        report().write_text(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in ["registry.example.com/spark:3.5.9", "314.1 MB", "sha256:e3b0", "1 image in 1.2 s"] {
            assert!(text.contains(part), "{text} should hold {part}");
        }
    }

    #[test]
    fn programs_get_one_object() {
        let mut out = Vec::new();
        write_json(&report(), &mut out).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["images"][0]["layers"][0]["diffId"], Digest::of(b"").to_string());
        assert!(value.get("push").is_none());
    }
}
