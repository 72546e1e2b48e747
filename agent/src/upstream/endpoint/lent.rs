//! Requests with the credentials that clients have lent.

use super::{
    super::{Caller, UpstreamError, ask::Ask, lent::MOST_LOGINS},
    Endpoint, Failure, Reply,
};
use crate::types::{RepoName, Repository};

impl Endpoint {
    /// Sends a request. Credentials that a client has lent are no longer used when the registry refuses them.
    pub(in crate::upstream) async fn send(&self, name: &RepoName, ask: &Ask) -> Result<Reply, Failure> {
        if !self.policy.lent || ask.caller != Caller::Agent {
            return self.send_as(name, ask).await;
        }
        let repository = Repository { registry: self.registry.clone(), name: name.clone() };
        for _ in 0..MOST_LOGINS {
            let Some(login) = self.shared.lent.first(&repository) else { break };
            let ask = Ask { caller: Caller::Client(login.clone()), ..ask.clone() };
            match self.send_as(name, &ask).await {
                Err(Failure { error: UpstreamError::Denied { .. }, .. }) => {
                    self.shared.lent.withdraw(&repository, &login);
                }
                sent => return sent,
            }
        }
        self.send_as(name, &Ask { caller: Caller::Anyone, ..ask.clone() }).await
    }
}
