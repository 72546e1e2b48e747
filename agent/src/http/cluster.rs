//! The view of the cluster: what each node reports of its store and its image sets, asked of the peers.
//!
//! One look serves everybody for [`FRESH`], so that reading the page costs peers the same however many browsers do it. A
//! look ends after [`LOOK`]: nodes that have not answered by then are shown as such, and delay nothing.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::admin::Detail;
use crate::{
    download::Fetcher,
    metrics::Metrics,
    peers::{
        Peer, Peers,
        state::{MOST_SETS, NodeState, SetState, key},
    },
    store::Store,
};

/// How long one look is shown.
const FRESH: Duration = Duration::from_secs(10);

/// Longest time for a look.
const LOOK: Duration = Duration::from_secs(4);

/// Most nodes that are asked in one look, and how many at once.
const MOST: usize = 512;
const AT_ONCE: usize = 32;

/// Names and states of this node's image sets.
type Sets = Arc<dyn Fn() -> BTreeMap<String, SetState> + Send + Sync>;

/// Looks at the cluster, and says what this node has. Cheap to clone.
#[derive(Clone)]
pub struct ClusterView {
    store: Store,
    fetcher: Fetcher,
    peers: Peers,
    metrics: Metrics,
    sets: Sets,
    last: Arc<Mutex<Option<Look>>>,
}

impl std::fmt::Debug for ClusterView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterView")
    }
}

/// What one look found.
#[derive(Clone, Debug)]
struct Look {
    taken: Instant,
    /// Nodes of the cluster, with this one.
    known: usize,
    /// Nodes that were asked, and what they said; this one first.
    nodes: Arc<Vec<(String, Option<NodeState>)>>,
}

impl ClusterView {
    /// Puts the parts together.
    pub fn new(
        store: Store,
        fetcher: Fetcher,
        peers: Peers,
        metrics: Metrics,
        sets: impl Fn() -> BTreeMap<String, SetState> + Send + Sync + 'static,
    ) -> Self {
        Self { store, fetcher, peers, metrics, sets: Arc::new(sets), last: Arc::default() }
    }

    /// What this node has.
    pub(super) fn own(&self) -> NodeState {
        let sets = (self.sets)();
        NodeState {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            bytes: self.store.totals().bytes,
            allowed_bytes: u64::try_from(self.metrics.store_allowed.get()).ok().filter(|bytes| *bytes > 0),
            trouble: self.store.trouble().is_some(),
            downloads: self.fetcher.status().len() as u64,
            sets: sets.into_iter().take(MOST_SETS).map(|(name, set)| (key(&name), set)).collect(),
        }
    }

    /// The document. Names of nodes and sets are for those who may see names.
    pub(super) async fn document(&self, detail: Detail) -> Value {
        let look = self.look().await;
        let names: BTreeMap<String, String> =
            (self.sets)().into_keys().map(|name| (key(&name), name)).collect();
        describe(look.known, &look.nodes, &names, detail)
    }

    async fn look(&self) -> Look {
        // Callers that come meanwhile wait for this look, which is bounded, and share it.
        let mut last = self.last.lock().await;
        if let Some(look) = last.as_ref().filter(|look| look.taken.elapsed() < FRESH) {
            return look.clone();
        }
        let membership = self.peers.membership();
        let others: Vec<Peer> =
            membership.iter().flat_map(|membership| membership.others()).cloned().collect();
        let known = others.len() + 1;
        let mut nodes = vec![(self.peers.identity().name, Some(self.own()))];
        nodes.extend(self.ask(others).await);
        let look = Look { taken: Instant::now(), known, nodes: Arc::new(nodes) };
        *last = Some(look.clone());
        look
    }

    async fn ask(&self, others: Vec<Peer>) -> BTreeMap<String, Option<NodeState>> {
        let mut states: BTreeMap<String, Option<NodeState>> =
            others.iter().take(MOST).map(|peer| (peer.name.clone(), None)).collect();
        let ask = |peer: Peer| async move {
            let state = self.peers.state(&peer).await;
            (peer.name, state.ok())
        };
        let asked = stream::iter(others.into_iter().take(MOST)).map(ask).buffer_unordered(AT_ONCE);
        let answers = async {
            tokio::pin!(asked);
            while let Some((name, state)) = asked.next().await {
                states.insert(name, state);
            }
        };
        // Nodes that have not answered stay without a state.
        let _ = tokio::time::timeout(LOOK, answers).await;
        states
    }
}

/// The document of a look. `names` are those of this node's sets. Pure.
fn describe(
    known: usize,
    nodes: &[(String, Option<NodeState>)],
    names: &BTreeMap<String, String>,
    detail: Detail,
) -> Value {
    let answered: Vec<&NodeState> = nodes.iter().filter_map(|(_, state)| state.as_ref()).collect();
    let mut document = json!({
        "nodes": known,
        "asked": nodes.len(),
        "answered": answered.len(),
        "warm": answered.iter().filter(|state| state.is_warm()).count(),
        "inTrouble": answered.iter().filter(|state| state.trouble).count(),
        "bytes": answered.iter().map(|state| state.bytes).fold(0, u64::saturating_add),
    });
    if detail == Detail::Names {
        let sets: BTreeMap<&String, &str> = answered
            .iter()
            .flat_map(|state| state.sets.keys())
            .map(|key| (key, names.get(key).map_or("", String::as_str)))
            .collect();
        document["sets"] = json!(sets);
        document["grid"] =
            nodes.iter().map(|(name, state)| json!({ "node": name, "state": state })).collect();
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_sees_numbers_and_the_token_a_grid() {
        let set = |here| SetState { images: 2, here, failed: 0 };
        let state = |here, trouble| NodeState {
            bytes: u64::MAX / 2,
            trouble,
            sets: [(key("spark"), set(here)), (key("elsewhere"), set(2))].into(),
            ..NodeState::default()
        };
        let nodes = [
            ("a".to_owned(), Some(state(2, false))),
            ("b".to_owned(), Some(state(1, true))),
            ("c".to_owned(), None),
        ];
        let names = [(key("spark"), "imageset/spark".to_owned())].into();
        let numbers = describe(9, &nodes, &names, Detail::Numbers);
        let expected = json!({
            "nodes": 9, "asked": 3, "answered": 2, "warm": 1, "inTrouble": 1, "bytes": u64::MAX - 1,
        });
        assert_eq!(numbers, expected);
        let named = describe(9, &nodes, &names, Detail::Names);
        assert_eq!(named["sets"][key("spark")], "imageset/spark");
        assert_eq!(named["sets"][key("elsewhere")], "", "no node of ours knows its name");
        assert_eq!(named["grid"][1]["state"]["sets"][key("spark")]["here"], 1);
        assert_eq!(named["grid"][2], json!({"node": "c", "state": null}));
    }
}
