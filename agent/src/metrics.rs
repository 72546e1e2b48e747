//! Prometheus metrics, by name. One value that is passed to every part; no globals.

mod controller;
mod durations;
mod exposition;
mod process;

pub use durations::Durations;
use process::Process;

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

pub use controller::ControllerMetrics;
pub use exposition::plain;

/// Which part of the API a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variants are the label values")]
pub enum Kind {
    /// `/v2/`
    base,
    /// A manifest by tag or digest.
    manifest,
    /// A blob.
    blob,
    /// The digest that a tag resolves to.
    tag,
    /// A tag list.
    tags,
    /// Referrers of a digest.
    referrers,
    /// A token endpoint.
    token,
    /// A path outside of the API.
    unknown,
}

/// Where the content of a response came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variants are the label values")]
pub enum Found {
    /// This node's store.
    hit,
    /// The registry.
    miss,
    /// A running download or request was joined.
    joined,
    /// The last known content, because the registry did not answer.
    stale,
}

/// Labels of `hearth_http_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Part of the API.
    pub route: Kind,
    /// HTTP status of the response.
    pub status: u16,
}

/// Labels of `hearth_content_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ContentLabels {
    /// Part of the API.
    pub kind: Kind,
    /// Where the answer came from.
    pub result: Found,
}

/// Labels of `hearth_upstream_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamLabels {
    /// Registry, as references name it.
    pub registry: String,
    /// Part of the API.
    pub kind: Kind,
    /// HTTP status, or `error` when none arrived.
    pub status: String,
}

/// Labels of counters by registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RegistryLabels {
    /// Registry, as references name it.
    pub registry: String,
}

/// The kind of a request to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variants are the label values")]
pub enum PeerWhat {
    /// A piece of a blob.
    piece,
    /// Hashes of pieces.
    hashes,
    /// A manifest.
    manifest,
    /// The digest that a tag resolves to.
    tag,
    /// A grant of background work to a registry.
    budget,
}

/// The result of a request to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the variants are the label values")]
pub enum PeerOutcome {
    /// The peer sent the content.
    found,
    /// The content is arriving at the peer.
    held,
    /// The peer takes no part.
    declined,
    /// The peer is busy or cannot get the content.
    busy,
    /// No response, or a wrong one.
    failed,
}

/// Labels of `hearth_peer_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PeerLabels {
    /// Kind of the request.
    pub what: PeerWhat,
    /// Result of the request.
    pub outcome: PeerOutcome,
}

/// Labels of counters by peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BlameLabels {
    /// Name of the peer.
    pub peer: String,
}

/// Labels of `hearth_peer_tag_resolutions_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TagResolutionLabels {
    /// `agreed` or `refused`.
    pub outcome: &'static str,
}

/// Labels of `hearth_store_errors_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TroubleLabels {
    /// `full`, `read-only` or `failing`.
    pub kind: &'static str,
}

/// Labels of `hearth_prepulls_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PrepullLabels {
    /// `here`, `changed`, `same`, or the reason of a failure.
    pub outcome: &'static str,
}

/// Labels of `hearth_prepull_images`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PrepullStateLabels {
    /// State of the images.
    pub state: &'static str,
}

/// Labels of `hearth_build_info`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    /// The agent's version.
    version: &'static str,
}

/// All metrics of the agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    process: Process,
    /// How long things take.
    pub durations: Durations,
    /// Responses to clients.
    pub requests: Family<RequestLabels, Counter>,
    /// Where the content of responses came from.
    pub content: Family<ContentLabels, Counter>,
    /// Body bytes sent to clients.
    pub served_bytes: Counter,
    /// Requests to registries, including those for redirects and tokens.
    pub upstream_requests: Family<UpstreamLabels, Counter>,
    /// Body bytes received from registries.
    pub upstream_bytes: Family<RegistryLabels, Counter>,
    /// Downloads whose bytes did not match their digest.
    pub mismatches: Family<RegistryLabels, Counter>,
    /// Requests that registries allow per window, if they report it.
    pub rate_limit: Family<RegistryLabels, Gauge>,
    /// Requests that are left in the window.
    pub rate_remaining: Family<RegistryLabels, Gauge>,
    /// Running downloads.
    pub downloads: Gauge,
    /// Open client connections of the mirror.
    pub connections: Gauge,
    /// Client connections of the mirror that were closed because the maximum number was open.
    pub connections_refused: Counter,
    /// Peers in the cluster, including this node.
    pub known_peers: Gauge,
    /// Requests to peers.
    pub peer_requests: Family<PeerLabels, Counter>,
    /// Bytes of pieces received from peers.
    pub peer_received_bytes: Counter,
    /// Bytes of pieces sent to peers.
    pub peer_sent_bytes: Counter,
    /// Pieces with wrong bytes, by the peer that sent them.
    pub peer_wrong_pieces: Family<BlameLabels, Counter>,
    /// Tags that the registry could not confirm, by whether enough peers agreed on a digest.
    pub peer_tag_resolutions: Family<TagResolutionLabels, Counter>,
    /// Blobs streamed to a client without caching.
    pub passed_through: Counter,
    /// Failed writes to the disk.
    pub store_errors: Family<TroubleLabels, Counter>,
    /// Whether the store accepts writes: 1 or 0.
    pub store_writable: Gauge,
    /// Second since 1970 at which a client last sent a request to the mirror; 0 before the first.
    pub last_request: Gauge,
    /// Whether this process had to rebuild the index.
    pub index_rebuilt: Gauge,
    /// Stored bytes that the background check has read.
    pub checked_bytes: Counter,
    /// Stored blobs that were damaged and quarantined.
    pub bad_blobs: Counter,
    /// Bytes that the store may hold now.
    pub store_allowed: Gauge,
    /// Bytes by which images that cannot be evicted exceed that.
    pub store_excess: Gauge,
    /// Bytes of blobs that were copied from the container runtime's content.
    pub runtime_bytes: Counter,
    /// Records of tags evicted.
    pub evicted_tags: Counter,
    /// Images evicted.
    pub evicted_images: Counter,
    /// Bytes that eviction freed.
    pub evicted_bytes: Counter,
    /// Pulls for sets, by outcome.
    pub prepulls: Family<PrepullLabels, Counter>,
    /// Images of sets, by state.
    pub prepull_images: Family<PrepullStateLabels, Gauge>,
    /// Whole blobs in the store.
    pub store_blobs: Gauge,
    /// Bytes of whole blobs in the store.
    pub store_bytes: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut root = Registry::default();
        let process = Process::register(&mut root);
        let registry = root.sub_registry_with_prefix("hearth");
        let durations = Durations::register(registry);
        let build = Family::<BuildLabels, Gauge>::default();
        build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "Always 1; the label says which version runs", build);
        let requests = Family::default();
        registry.register("http_requests", "Responses to clients of the mirror", requests.clone());
        let content = Family::default();
        registry.register(
            "content",
            "Responses with content, by kind and source of the content",
            content.clone(),
        );
        let served_bytes = Counter::default();
        registry.register("served_bytes", "Body bytes sent to clients", served_bytes.clone());
        let upstream_requests = Family::default();
        registry.register(
            "upstream_requests",
            "Requests sent to registries, including redirects and tokens",
            upstream_requests.clone(),
        );
        let upstream_bytes = Family::default();
        registry.register("upstream_bytes", "Body bytes received from registries", upstream_bytes.clone());
        let mismatches = Family::default();
        registry.register(
            "digest_mismatch",
            "Downloads whose bytes did not match their digest",
            mismatches.clone(),
        );
        let rate_limit = Family::default();
        registry.register(
            "ratelimit_limit",
            "Requests that the registry allows per window",
            rate_limit.clone(),
        );
        let rate_remaining = Family::default();
        registry.register(
            "ratelimit_remaining",
            "Requests that are left in the registry's current window",
            rate_remaining.clone(),
        );
        let downloads = Gauge::default();
        registry.register("downloads", "Running downloads", downloads.clone());
        let connections = Gauge::default();
        registry.register("mirror_connections", "Open client connections of the mirror", connections.clone());
        let connections_refused = Counter::default();
        registry.register(
            "mirror_connections_refused",
            "Client connections of the mirror that were closed because the maximum number was open",
            connections_refused.clone(),
        );
        let known_peers = Gauge::default();
        registry.register("peers", "Peers in the cluster, including this node", known_peers.clone());
        let peer_requests = Family::default();
        registry.register("peer_requests", "Requests to peers", peer_requests.clone());
        let peer_received_bytes = Counter::default();
        registry.register(
            "peer_received_bytes",
            "Bytes of pieces received from peers",
            peer_received_bytes.clone(),
        );
        let peer_sent_bytes = Counter::default();
        registry.register("peer_sent_bytes", "Bytes of pieces sent to peers", peer_sent_bytes.clone());
        let peer_wrong_pieces = Family::default();
        registry.register(
            "peer_wrong_pieces",
            "Pieces with wrong bytes, by the peer that sent them",
            peer_wrong_pieces.clone(),
        );
        let peer_tag_resolutions = Family::default();
        registry.register(
            "peer_tag_resolutions",
            "Tags that the registry could not confirm, by whether enough peers agreed on a digest",
            peer_tag_resolutions.clone(),
        );
        let passed_through = Counter::default();
        registry.register(
            "passed_through",
            "Blobs streamed from a registry to a client without caching",
            passed_through.clone(),
        );
        let store_errors = Family::default();
        registry.register("store_errors", "Failed writes to the disk, by kind", store_errors.clone());
        let store_writable = Gauge::default();
        registry.register(
            "store_writable",
            "Whether the store accepts writes (1) or not (0)",
            store_writable.clone(),
        );
        let last_request = Gauge::default();
        registry.register(
            "last_request_timestamp_seconds",
            "When a client last sent a request to the mirror, in seconds since 1970; 0 before the first",
            last_request.clone(),
        );
        let index_rebuilt = Gauge::default();
        registry.register(
            "store_index_rebuilt",
            "Whether this process had to rebuild the store's index",
            index_rebuilt.clone(),
        );
        let checked_bytes = Counter::default();
        registry.register(
            "store_checked_bytes",
            "Stored bytes that the background check has read",
            checked_bytes.clone(),
        );
        let bad_blobs = Counter::default();
        registry.register(
            "store_bad_blobs",
            "Stored blobs that were damaged on disk and quarantined",
            bad_blobs.clone(),
        );
        let store_allowed = Gauge::default();
        registry.register(
            "store_allowed_bytes",
            "Bytes that the store may hold now, by its limit and by the space to leave free",
            store_allowed.clone(),
        );
        let store_excess = Gauge::default();
        registry.register(
            "store_excess_bytes",
            "Bytes by which images that are pinned or in use exceed what the store may hold",
            store_excess.clone(),
        );
        let runtime_bytes = Counter::default();
        registry.register(
            "runtime_content_bytes",
            "Bytes of blobs taken from the container runtime's content",
            runtime_bytes.clone(),
        );
        let evicted_tags = Counter::default();
        registry.register("evicted_tags", "Records of tags evicted", evicted_tags.clone());
        let evicted_images = Counter::default();
        registry.register("evicted_images", "Images evicted", evicted_images.clone());
        let evicted_bytes = Counter::default();
        registry.register("evicted_bytes", "Bytes freed by eviction", evicted_bytes.clone());
        let prepulls = Family::default();
        registry.register("prepulls", "Pulls for pre-pull sets, by outcome", prepulls.clone());
        let prepull_images = Family::default();
        registry.register("prepull_images", "Images of pre-pull sets, by state", prepull_images.clone());
        let store_blobs = Gauge::default();
        registry.register("store_blobs", "Verified blobs in the store", store_blobs.clone());
        let store_bytes = Gauge::default();
        registry.register("store_bytes", "Bytes of verified blobs in the store", store_bytes.clone());
        Self {
            registry: Arc::new(root),
            process,
            durations,
            requests,
            content,
            served_bytes,
            upstream_requests,
            upstream_bytes,
            mismatches,
            rate_limit,
            rate_remaining,
            downloads,
            connections,
            connections_refused,
            known_peers,
            peer_requests,
            peer_received_bytes,
            peer_sent_bytes,
            peer_wrong_pieces,
            peer_tag_resolutions,
            passed_through,
            checked_bytes,
            bad_blobs,
            store_errors,
            store_writable,
            last_request,
            index_rebuilt,
            store_allowed,
            store_excess,
            runtime_bytes,
            evicted_tags,
            evicted_images,
            evicted_bytes,
            prepulls,
            prepull_images,
            store_blobs,
            store_bytes,
        }
        .present()
    }
}

impl Metrics {
    /// Makes the series whose labels are known: a counter that first appears with its first event shows no increase for it, and
    /// an alert on "none at all" needs a zero.
    fn present(self) -> Self {
        for kind in [Kind::manifest, Kind::blob] {
            self.requests.get_or_create(&RequestLabels { route: kind, status: 200 }).inc_by(0);
            for result in [Found::hit, Found::miss, Found::joined] {
                self.content.get_or_create(&ContentLabels { kind, result }).inc_by(0);
            }
        }
        for kind in ["full", "read-only", "failing"] {
            self.store_errors.get_or_create(&TroubleLabels { kind }).inc_by(0);
        }
        for outcome in ["agreed", "refused"] {
            self.peer_tag_resolutions.get_or_create(&TagResolutionLabels { outcome }).inc_by(0);
        }
        self
    }

    /// Counts a response by the source of its content.
    pub fn count_content(&self, kind: Kind, result: Found) {
        self.content.get_or_create(&ContentLabels { kind, result }).inc();
    }

    /// Counts a tag that the registry could not confirm, by whether enough peers agreed on a digest.
    pub fn count_tag_resolution(&self, agreed: bool) {
        let outcome = if agreed { "agreed" } else { "refused" };
        self.peer_tag_resolutions.get_or_create(&TagResolutionLabels { outcome }).inc();
    }

    /// Counts a failed write to the disk.
    pub fn count_store_error(&self, kind: &'static str) {
        self.store_errors.get_or_create(&TroubleLabels { kind }).inc();
    }

    /// All series in OpenMetrics 1.0.
    pub fn open_metrics(&self) -> String {
        self.process.read();
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("writing to a string cannot fail");
        out
    }

    /// All series in the text format of Prometheus.
    pub fn plain_text(&self) -> String {
        plain(&self.open_metrics())
    }
}
