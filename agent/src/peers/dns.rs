//! Peers behind a DNS name: its addresses are looked up regularly, and each address is asked for its identity.
//!
//! Addresses change, the identity of an agent does not. An agent that does not answer is left out until it does.

use std::{collections::HashMap, net::SocketAddr};

use futures_util::{StreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::{
    Identity, Peer,
    client::Client,
    directory::{Directory, Publisher},
};

use crate::limits::peers::dns::{AGAIN, AT_ONCE, EVERY, LIMIT};

/// A DNS name to look up.
pub(super) struct Dns {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) client: Client,
}

impl Directory for Dns {
    async fn run(self, publish: Publisher, stop: CancellationToken) {
        let mut known: HashMap<SocketAddr, Identity> = HashMap::new();
        loop {
            let Some(found) = stop.run_until_cancelled(self.look(&mut known)).await else { return };
            match found {
                Ok(membership) => publish.publish(membership),
                Err(problem) => {
                    tracing::warn!(
                        host = self.host,
                        problem,
                        "cannot look up the peers: keeping the last list"
                    );
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
                return;
            }
        }
    }
}

impl Dns {
    async fn look(&self, known: &mut HashMap<SocketAddr, Identity>) -> Result<Vec<Peer>, String> {
        let answer =
            tokio::time::timeout(LIMIT, tokio::net::lookup_host((self.host.as_str(), self.port))).await;
        let addresses = answer.map_err(|_| format!("no answer within {LIMIT:?}"))?;
        let mut addresses: Vec<_> = addresses.map_err(|error| error.to_string())?.collect();
        addresses.sort_unstable();
        addresses.dedup();
        known.retain(|address, _| addresses.contains(address));
        let again: Vec<_> = known.keys().take(AGAIN).copied().collect();
        let asked =
            addresses.iter().filter(|address| !known.contains_key(*address) || again.contains(address));
        let answers = stream::iter(asked.copied().collect::<Vec<_>>())
            .map(|address| async move { (address, self.client.identity(address).await) })
            .buffer_unordered(AT_ONCE);
        let answers: Vec<_> = answers.collect().await;
        for (address, identity) in answers {
            match identity {
                Ok(identity) => {
                    known.insert(address, identity);
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot get the identity of a peer");
                    known.remove(&address);
                }
            }
        }
        let peer = |(address, identity): (&SocketAddr, &Identity)| Peer {
            name: identity.name.clone(),
            zone: identity.zone.clone(),
            address: *address,
        };
        Ok(known.iter().map(peer).collect())
    }
}
