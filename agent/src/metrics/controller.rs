//! Metrics of the controller.

use std::sync::Arc;

use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::BuildLabels;

/// Metrics of the controller. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ControllerMetrics {
    registry: Arc<Registry>,
    /// 1 while this process leads.
    pub leader: Gauge,
    /// Nodes that have an agent.
    pub nodes: Gauge,
    /// Nodes of which nothing is known.
    pub silent_nodes: Gauge,
    /// Image sets.
    pub image_sets: Gauge,
    /// Image sets whose images are on every node that they select.
    pub ready_image_sets: Gauge,
    /// Failed writes to the API server.
    pub failed_writes: Counter,
    /// Certificates for peers that were signed.
    pub certificates_issued: Counter,
    /// Requests for certificates that were refused.
    pub certificates_denied: Counter,
}

impl Default for ControllerMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("hearth");
        let build = Family::<BuildLabels, Gauge>::default();
        build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "Always 1; the label says which version runs", build);
        let (leader, nodes, silent_nodes) = (Gauge::default(), Gauge::default(), Gauge::default());
        let (image_sets, ready_image_sets) = (Gauge::default(), Gauge::default());
        let failed_writes = Counter::default();
        let (certificates_issued, certificates_denied) = (Counter::default(), Counter::default());
        registry.register("controller_leader", "1 while this process leads the controller", leader.clone());
        registry.register(
            "controller_nodes",
            "Nodes that have an agent, as the leader sees them",
            nodes.clone(),
        );
        registry.register(
            "controller_silent_nodes",
            "Nodes whose agent has not renewed its NodeCache",
            silent_nodes.clone(),
        );
        registry.register("controller_image_sets", "ImageSets", image_sets.clone());
        registry.register(
            "controller_image_sets_ready",
            "ImageSets whose images are on every node that they select",
            ready_image_sets.clone(),
        );
        registry.register(
            "controller_failed_writes",
            "Writes to the API server that failed",
            failed_writes.clone(),
        );
        registry.register(
            "controller_certificates_issued",
            "Certificates for peers that were signed",
            certificates_issued.clone(),
        );
        registry.register(
            "controller_certificates_denied",
            "Requests for certificates for peers that were refused",
            certificates_denied.clone(),
        );
        Self {
            registry: Arc::new(registry),
            leader,
            nodes,
            silent_nodes,
            image_sets,
            ready_image_sets,
            failed_writes,
            certificates_issued,
            certificates_denied,
        }
    }
}

impl ControllerMetrics {
    /// All series in OpenMetrics 1.0.
    pub fn open_metrics(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("writing to a string cannot fail");
        out
    }
}
