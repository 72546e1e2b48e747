//! The status document: what the agent does and how its registries and peers stand, for people, scripts and the page.
//!
//! The network sees numbers alone: names of images, registries and peers may be secrets, and so may be what errors say.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::admin::{Detail, Section};
use crate::{
    download::Fetcher,
    journal::{self, Journal},
    metrics::{ContentLabels, Found, Kind, Metrics},
    peers::{Peer, Peers},
    store::Store,
    upstream::Upstream,
};

/// Entries of each kind from the journal.
const ENTRIES: usize = 30;

/// Longest wait for a peer that is probed.
const PROBE: Duration = Duration::from_secs(3);

/// Peers that are probed, a few at once.
const PROBED: usize = 64;

/// Makes the document. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Report {
    store: Store,
    fetcher: Fetcher,
    upstream: Arc<Upstream>,
    peers: Peers,
    journal: Journal,
    metrics: Metrics,
    sections: Vec<Section>,
}

impl Report {
    /// Puts the parts together.
    pub fn new(
        store: Store,
        fetcher: Fetcher,
        upstream: Arc<Upstream>,
        peers: Peers,
        journal: Journal,
        metrics: Metrics,
        sections: Vec<Section>,
    ) -> Self {
        Self { store, fetcher, upstream, peers, journal, metrics, sections }
    }

    /// The document.
    pub(super) fn document(&self, detail: Detail) -> Value {
        let names = detail == Detail::Names;
        let (downloads, registries) = (self.fetcher.status(), self.upstream.status());
        let mut document = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "store": self.store_numbers(names),
            "requests": self.requests(),
            "bytes": self.bytes(),
            "transfers": if names { json!(downloads) } else { downloads.len().into() },
            "arriving": {
                "have": downloads.iter().map(|one| one.have).sum::<u64>(),
                "size": downloads.iter().map(|one| one.size.unwrap_or(one.have)).sum::<u64>(),
            },
            "registries": if names { json!(registries) } else { registries.len().into() },
            "peers": self.peers_known(names),
        });
        if names {
            document["recent"] = self.recent();
        }
        for section in &self.sections {
            document[section.name()] = section.make(detail);
        }
        document
    }

    fn store_numbers(&self, names: bool) -> Value {
        // In this order: `counted` must not be true for totals from before the count ended.
        let counted = self.store.is_counted();
        let totals = self.store.totals();
        let allowed = u64::try_from(self.metrics.store_allowed.get()).ok().filter(|allowed| *allowed > 0);
        let trouble = self.store.trouble();
        json!({
            "blobs": totals.blobs,
            "bytes": totals.bytes,
            "allowedBytes": allowed,
            "counted": counted,
            "trouble": trouble.map(|trouble| if names { trouble.what } else { trouble.kind.as_str().to_owned() }),
        })
    }

    fn requests(&self) -> Value {
        let (total, last) = self.journal.requests();
        let of = |result| -> u64 {
            let count = |kind| self.metrics.content.get_or_create(&ContentLabels { kind, result }).get();
            count(Kind::manifest) + count(Kind::blob)
        };
        json!({
            "total": total,
            "lastSecondsAgo": last.map(|at| journal::now().saturating_sub(at)),
            "hits": of(Found::hit),
            "joined": of(Found::joined),
            "misses": of(Found::miss),
        })
    }

    fn bytes(&self) -> Value {
        json!({
            "served": self.metrics.served_bytes.get(),
            "fromRegistries": self.upstream.received_in_all(),
            "fromPeers": self.metrics.peer_received_bytes.get(),
            "toPeers": self.metrics.peer_sent_bytes.get(),
        })
    }

    fn peers_known(&self, names: bool) -> Value {
        let membership = self.peers.membership();
        let others: Vec<&Peer> = membership.iter().flat_map(|membership| membership.others()).collect();
        let skipped: Vec<&str> =
            others.iter().filter(|peer| !self.peers.is_usable(peer)).map(|peer| peer.name.as_str()).collect();
        json!({
            "on": self.peers.is_on(),
            "known": others.len(),
            "skipped": if names { json!(skipped) } else { skipped.len().into() },
        })
    }

    fn recent(&self) -> Value {
        fn first<T>(mut all: Vec<T>) -> Vec<T> {
            all.truncate(ENTRIES);
            all
        }
        json!({
            "pulls": first(self.journal.pulls(|_| true)),
            "downloads": first(self.journal.downloads(|_| true)),
            "failures": first(self.journal.failures(|_| true)),
        })
    }

    /// Whether peers answer, asked now.
    pub(super) async fn probe_peers(&self) -> Value {
        use futures_util::{StreamExt as _, stream};
        let membership = self.peers.membership();
        let others: Vec<Peer> =
            membership.iter().flat_map(|membership| membership.others()).take(PROBED).cloned().collect();
        let probe = |peer: Peer| async move {
            let asked = tokio::time::timeout(PROBE, self.peers.probe(&peer)).await;
            let problem = match asked {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.problem),
                Err(_) => Some(format!("no answer within {} s", PROBE.as_secs())),
            };
            json!({ "peer": peer.name, "address": peer.address.to_string(), "problem": problem })
        };
        let answers: Vec<Value> = stream::iter(others).map(probe).buffered(8).collect().await;
        json!({ "on": self.peers.is_on(), "peers": answers })
    }
}
