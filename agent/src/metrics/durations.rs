//! How long things take, as histograms with classic buckets.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, histogram::Histogram},
    registry::Registry,
};

use super::Kind;

/// Upper bounds in seconds: from a hit in memory to a large layer over a slow link.
const BUCKETS: [f64; 13] = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Labels of `hearth_first_byte_seconds`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FirstByteLabels {
    /// `manifest` or `blob`.
    pub kind: Kind,
    /// `disk`, `peers`, `registry`; `network` for a blob that is still arriving.
    pub source: &'static str,
}

/// Labels of `hearth_download_seconds`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DownloadLabels {
    /// `registry`, `peers`, `both`, or `runtime` for what the container runtime had.
    pub source: &'static str,
}

/// The histograms. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Durations {
    first_byte: Family<FirstByteLabels, Histogram, fn() -> Histogram>,
    download: Family<DownloadLabels, Histogram, fn() -> Histogram>,
}

impl Durations {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let first_byte = Family::new_with_constructor(histogram as fn() -> Histogram);
        registry.register(
            "first_byte_seconds",
            "Time until the first byte of content was ready for a client, by where it came from",
            first_byte.clone(),
        );
        let download = Family::new_with_constructor(histogram as fn() -> Histogram);
        registry.register(
            "download_seconds",
            "Time of whole downloads of blobs, by where their bytes came from",
            download.clone(),
        );
        let durations = Self { first_byte, download };
        for source in ["disk", "peers", "registry"] {
            let _ = durations.first_byte.get_or_create(&FirstByteLabels { kind: Kind::manifest, source });
        }
        for source in ["disk", "network"] {
            let _ = durations.first_byte.get_or_create(&FirstByteLabels { kind: Kind::blob, source });
        }
        for source in ["registry", "peers", "both", "runtime"] {
            let _ = durations.download.get_or_create(&DownloadLabels { source });
        }
        durations
    }

    /// Content is ready for a client.
    pub fn first_byte(&self, kind: Kind, source: &'static str, taken: Duration) {
        self.first_byte.get_or_create(&FirstByteLabels { kind, source }).observe(taken.as_secs_f64());
    }

    /// A download is complete, with so many bytes from the registry and from peers.
    pub fn downloaded(&self, from_registry: u64, from_peers: u64, taken: Duration) {
        let source = match (from_registry, from_peers) {
            (0, 0) => "runtime",
            (_, 0) => "registry",
            (0, _) => "peers",
            _ => "both",
        };
        self.download.get_or_create(&DownloadLabels { source }).observe(taken.as_secs_f64());
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}
