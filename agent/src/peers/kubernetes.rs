//! Peers from the `EndpointSlices` of a headless Kubernetes service.
//!
//! A peer has the name of its node and the zone of its endpoint. Endpoints that do not serve, or are terminating, are
//! not peers.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::{Api, runtime::watcher};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Peer,
    directory::{Directory, Publisher},
};
use crate::kubernetes::{Known, connect, follow};

/// The label that ties a slice to its service.
const LABEL: &str = "kubernetes.io/service-name";

/// Name of the slice's port to use when there are several.
const PORT: &str = "peer";

/// A service to watch.
pub(super) struct Slices {
    pub(super) namespace: String,
    pub(super) name: String,
    /// URL of the API server; `None` means the cluster in which this process runs.
    pub(super) api: Option<String>,
}

impl Directory for Slices {
    async fn run(self, publish: Publisher, stop: CancellationToken) {
        let work = async {
            let client = connect(self.api.as_deref(), "peers").await;
            let known: watch::Sender<Known<Vec<Peer>>> = watch::Sender::default();
            let mut news = known.subscribe();
            let config = watcher::Config::default().labels(&format!("{LABEL}={}", self.name));
            let slices: Api<EndpointSlice> = Api::namespaced(client, &self.namespace);
            let tell = async {
                while news.changed().await.is_ok() {
                    let known = news.borrow_and_update();
                    if known.synced {
                        publish.publish(known.objects.values().flatten().cloned());
                    }
                }
            };
            tokio::join!(follow(slices, config, |slice| membership(&slice), known), tell)
        };
        stop.run_until_cancelled(work).await;
    }
}

/// The peers in a slice. Pure.
fn membership(slice: &EndpointSlice) -> Vec<Peer> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some(PORT)).or(ports.first());
    let port = named.and_then(|port| u16::try_from(port.port?).ok());
    let Some(port) = port else { return Vec::new() };
    let peer = |endpoint: &Endpoint| {
        let conditions = endpoint.conditions.as_ref();
        let serving = conditions.and_then(|known| known.serving.or(known.ready)).unwrap_or(true);
        let leaving = conditions.and_then(|known| known.terminating).unwrap_or(false);
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        (serving && !leaving).then(|| Peer {
            name: endpoint.node_name.clone().unwrap_or_else(|| address.to_string()),
            zone: endpoint.zone.clone().unwrap_or_default(),
            address: SocketAddr::new(address, port),
        })
    };
    slice.endpoints.iter().filter_map(peer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_endpoints_that_serve_are_peers() {
        let slice: EndpointSlice = serde_json::from_str(
            r#"{"metadata":{"name":"s"},"addressType":"IPv4","ports":[{"name":"x","port":1},{"name":"peer","port":5051}],
               "endpoints":[
                 {"addresses":["10.0.0.1"],"nodeName":"a","zone":"z1","conditions":{"ready":true,"serving":true,"terminating":false}},
                 {"addresses":["10.0.0.2"],"nodeName":"b","conditions":{"ready":false,"serving":true,"terminating":true}},
                 {"addresses":["10.0.0.3"],"nodeName":"c","conditions":{"ready":false,"serving":false}},
                 {"addresses":["10.0.0.4"],"nodeName":"d","conditions":{}},
                 {"addresses":["fd00::5"]},
                 {"addresses":["name.test"],"nodeName":"e"}]}"#,
        )
        .unwrap();
        let found: Vec<_> = membership(&slice)
            .into_iter()
            .map(|peer| (peer.name, peer.zone, peer.address.to_string()))
            .collect();
        let expected =
            [("a", "z1", "10.0.0.1:5051"), ("d", "", "10.0.0.4:5051"), ("fd00::5", "", "[fd00::5]:5051")];
        assert_eq!(found, expected.map(|(name, zone, address)| (name.into(), zone.into(), address.into())));
        let bare = r#"{"metadata":{"name":"s"},"addressType":"IPv4","ports":null,"endpoints":null}"#;
        let bare: EndpointSlice = serde_json::from_str(bare).expect("lists may be null");
        assert!(membership(&bare).is_empty());
    }
}
