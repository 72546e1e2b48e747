//! What a conversion tells its user: a table for people, JSON for programs.

use std::io::{self, Write};

use serde::Serialize;

use super::layer::Converted;
use crate::{
    digest::Digest,
    image::Descriptor,
    report::{PushReport, mebibytes},
};

/// The result of a conversion.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConvertReport {
    /// What was converted.
    pub source: String,
    /// The digest of its manifest or index.
    pub source_digest: Digest,
    /// Where it went.
    pub target: String,
    /// The digest of the converted manifest or index.
    pub digest: Digest,
    /// The images, one for each platform.
    pub images: Vec<ConvertedImage>,
    /// What the user should know, such as layers without a table of contents.
    pub warnings: Vec<String>,
    /// Blobs and bytes sent to the registry; absent where a layout was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push: Option<PushReport>,
    /// How long it took.
    pub seconds: f64,
}

/// One image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConvertedImage {
    /// Its platform.
    pub platform: String,
    /// The digest of the old manifest.
    pub from: Digest,
    /// The digest to pull it by.
    pub manifest: Digest,
    /// The digest of its configuration, which is as it was.
    pub config: Digest,
    /// Its layers, lowest first.
    pub layers: Vec<ConvertedLayer>,
}

/// One layer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConvertedLayer {
    /// The old blob.
    pub from: Digest,
    /// Its bytes.
    pub from_size: u64,
    /// The blob.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// The digest of the archive in both.
    pub diff_id: Digest,
    /// Whether the old blob was zstd:chunked and is passed on.
    pub passed: bool,
    /// Whether it has a table of contents.
    pub table: bool,
}

impl ConvertedLayer {
    /// What became of a layer.
    pub(super) fn new(old: &Descriptor, new: &Converted) -> Self {
        Self {
            from: old.digest,
            from_size: old.size,
            digest: new.layer.blob.digest,
            size: new.layer.blob.size,
            diff_id: new.layer.diff_id,
            passed: new.passed,
            table: new.plain.is_none(),
        }
    }
}

impl ConvertReport {
    /// For people.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        for image in &self.images {
            writeln!(out, "{}  {}  {}", self.target, image.platform, image.manifest)?;
            for layer in &image.layers {
                let what = match (layer.passed, layer.table) {
                    (true, _) => "was zstd:chunked",
                    (false, true) => "converted",
                    (false, false) => "without a table of contents",
                };
                let (old, new) = (mebibytes(layer.from_size), mebibytes(layer.size));
                writeln!(out, "  {old:>10} -> {new:>10}  {}  {what}", layer.digest.short())?;
            }
        }
        for warning in &self.warnings {
            writeln!(out, "warning: {warning}")?;
        }
        if let Some(push) = &self.push {
            let (blobs, bytes) = (push.uploaded.len(), mebibytes(push.uploaded_bytes));
            writeln!(out, "sent {blobs} blobs ({bytes}) to {}", push.repository)?;
        }
        let images = self.images.len();
        let noun = if images == 1 { "image" } else { "images" };
        writeln!(out, "{images} {noun} of {} converted in {:.1} s", self.source, self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_sizes_before_and_after() {
        let digest = Digest::of(b"");
        let layer = ConvertedLayer {
            from: digest,
            from_size: 314_150_000,
            digest,
            size: 310_000_000,
            diff_id: digest,
            passed: false,
            table: true,
        };
        let image = ConvertedImage {
            platform: "linux/amd64".to_owned(),
            from: digest,
            manifest: digest,
            config: digest,
            layers: vec![layer],
        };
        let report = ConvertReport {
            source: "registry.example.com/spark:3.5.9".to_owned(),
            source_digest: digest,
            target: "dist:latest".to_owned(),
            digest,
            images: vec![image],
            warnings: vec!["look".to_owned()],
            push: None,
            seconds: 1.25,
        };
        let mut out = Vec::new();
        report.write_text(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in ["linux/amd64", "299.5 MiB", "295.6 MiB", "converted", "warning: look", "1 image of"] {
            assert!(text.contains(part), "{text} should hold {part}");
        }
    }
}
