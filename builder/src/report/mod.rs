//! What a build tells its user in the end: a table for people, JSON for programs.

mod common;
mod plan;

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde::Serialize;

use self::common::{write_refused, write_warnings};
pub use self::{
    common::{RefusedReport, mebibytes},
    plan::{
        Against, AgainstImage, PlanReport, PlannedBase, PlannedImage, PlannedLayer, Size, Target, Unbuilt,
    },
};
use crate::{digest::Digest, publish::upload::Sent, registry::Repository};

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

impl PushReport {
    /// What became of the blobs of a push.
    pub fn new(repository: &Repository, blobs: &[Sent]) -> Self {
        let mut report = Self { repository: repository.to_string(), ..Self::default() };
        for sent in blobs {
            if sent.uploaded {
                report.uploaded.push(sent.digest);
                report.uploaded_bytes += sent.size;
            } else {
                report.skipped.push(sent.digest);
                report.skipped_bytes += sent.size;
            }
        }
        report
    }
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

/// One JSON object, indented.
pub fn write_json(report: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report)?;
    writeln!(out)
}

/// Writes the same object as YAML.
pub fn write_yaml(report: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    let text = serde_saphyr::to_string(report).map_err(io::Error::other)?;
    out.write_all(text.as_bytes())
}

impl Report {
    /// For people.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        for image in &self.images {
            writeln!(out, "{}", image.reference)?;
            writeln!(out, "  {} ({})", image.cell, image.platform)?;
            writeln!(out, "  manifest  {}", image.manifest)?;
            for layer in &image.layers {
                let (size, digest) = (mebibytes(layer.size), layer.digest.short());
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
            let (sent, bytes) = (push.uploaded.len(), mebibytes(push.uploaded_bytes));
            let (had, saved) = (push.skipped.len(), mebibytes(push.skipped_bytes));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let digest = Digest::of(b"");
        let layer = LayerReport {
            label: "Spark JARs".to_owned(),
            digest,
            size: 329_410_000,
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
        for part in ["registry.example.com/spark:3.5.9", "314.1 MiB", "sha256:e3b0", "1 image in 1.2 s"] {
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
        let mut yaml = Vec::new();
        write_yaml(&report(), &mut yaml).unwrap();
        let read: serde_json::Value = serde_saphyr::from_str(std::str::from_utf8(&yaml).unwrap()).unwrap();
        assert_eq!(read, value);
    }
}
