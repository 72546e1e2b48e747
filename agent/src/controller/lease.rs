//! Elects one of the controller's processes with a lease. The decision is pure.
//!
//! A leader that cannot renew the lease stops leading before another process may take it; a lease that is not renewed is
//! taken within 15 s: its duration, and the pause between two reads.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::Instant;

use super::MANAGER;

/// Name of the lease.
const NAME: &str = "hearth-controller";

/// Seconds without a renewal after which another process may take the lease.
const DURATION_SECONDS: i32 = 12;

/// How often the leader renews.
pub(super) const RENEW: Duration = Duration::from_secs(3);

/// How often other processes read the lease.
const LOOK: Duration = Duration::from_secs(2);

/// Longest wait for an answer about the lease.
const ANSWER: Duration = Duration::from_secs(2);

/// A leader stops this long after its last renewal. The request that follows may take [`ANSWER`], and the sum stays below the
/// duration of the lease.
const GIVE_UP: Duration = Duration::from_secs(9);

/// What to do with a lease.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// Write this lease: this process becomes or stays the leader.
    Write(Box<Lease>),
    /// Another process is the leader.
    Follow,
}

/// Decides from the current lease. `seen_same_for` is how long this process has seen it unchanged: clocks of other machines do
/// not count.
fn decide(lease: Option<&Lease>, me: &str, seen_same_for: Duration, now: Timestamp) -> Step {
    let spec = lease.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let mine = holder == me;
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(DURATION_SECONDS)).unwrap_or(0);
    let vacant = holder.is_empty() || seen_same_for >= Duration::from_secs(seconds);
    if !mine && !vacant {
        return Step::Follow;
    }
    let mut metadata = lease.map(|lease| lease.metadata.clone()).unwrap_or_default();
    metadata.managed_fields = None;
    let transitions = spec.lease_transitions.unwrap_or(0) + i32::from(!mine && lease.is_some());
    Step::Write(Box::new(Lease {
        metadata,
        spec: Some(LeaseSpec {
            holder_identity: Some(me.to_owned()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            acquire_time: if mine { spec.acquire_time } else { Some(MicroTime(now)) },
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }),
    }))
}

/// Takes part in the election.
pub(super) struct Elector {
    leases: Api<Lease>,
    me: String,
    seen: Option<(String, Instant)>,
}

impl Elector {
    /// `me` must differ from the name of every other process, also from that of an earlier one of the same pod.
    pub(super) fn new(client: Client, namespace: &str, me: &str) -> Self {
        Self { leases: Api::namespaced(client, namespace), me: me.to_owned(), seen: None }
    }

    /// Reads and perhaps writes the lease; whether this process is the leader. A concurrent write of another one wins.
    pub(super) async fn look(&mut self) -> Result<bool, kube::Error> {
        let late = || kube::Error::Service(format!("the API server did not answer within {ANSWER:?}").into());
        tokio::time::timeout(ANSWER, self.take()).await.unwrap_or_else(|_| Err(late()))
    }

    async fn take(&mut self) -> Result<bool, kube::Error> {
        let lease = self.leases.get_opt(NAME).await?;
        let version =
            lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone()).unwrap_or_default();
        let same = self.seen.as_ref().filter(|(seen, _)| *seen == version).map(|(_, at)| *at);
        let at = same.unwrap_or_else(Instant::now);
        self.seen = Some((version, at));
        let Step::Write(mut wanted) = decide(lease.as_ref(), &self.me, at.elapsed(), Timestamp::now()) else {
            return Ok(false);
        };
        wanted.metadata.name = Some(NAME.to_owned());
        let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let written = match lease {
            None => self.leases.create(&parameters, &wanted).await,
            Some(_) => self.leases.replace(NAME, &parameters, &wanted).await,
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until this process is the leader. `looked` is told whether the API server answered.
    pub(super) async fn win(&mut self, looked: impl Fn(bool)) {
        loop {
            let outcome = self.look().await;
            looked(outcome.is_ok());
            match outcome {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "cannot read the lease: retrying"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Renews until another process leads, or may soon.
    pub(super) async fn renew(&mut self, looked: impl Fn(bool)) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < GIVE_UP {
            tokio::time::sleep(RENEW.min(GIVE_UP.saturating_sub(renewed.elapsed()))).await;
            let begun = Instant::now();
            let outcome = self.look().await;
            looked(outcome.is_ok());
            match outcome {
                Ok(true) => renewed = begun,
                Ok(false) => return,
                Err(error) => tracing::debug!(%error, "cannot renew the lease: retrying"),
            }
        }
    }

    /// Releases the lease, so that the next leader does not wait for it to expire. Best effort.
    pub(super) async fn release(&self) {
        let Ok(Some(mut lease)) = self.leases.get_opt(NAME).await else { return };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(&self.me))
        else {
            return;
        };
        spec.holder_identity = None;
        let _ = self.leases.replace(NAME, &PostParams::default(), &lease).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str) -> Lease {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "l", "resourceVersion": "7"},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 12, "leaseTransitions": 2},
        }))
        .unwrap()
    }

    #[test]
    fn a_lease_is_taken_when_it_is_not_renewed_and_kept_by_its_holder() {
        let at = |seconds| Duration::from_secs(seconds);
        for (there, seen, transitions) in [
            (None, 0, Some(0)),
            (Some("me"), 0, Some(2)),
            (Some("other"), 11, None),
            (Some("other"), 12, Some(3)),
            (Some(""), 0, Some(3)),
        ] {
            let there = there.map(lease);
            let step = decide(there.as_ref(), "me", at(seen), Timestamp::UNIX_EPOCH);
            let Step::Write(written) = step else {
                assert_eq!((step, transitions), (Step::Follow, None));
                continue;
            };
            let spec = written.spec.as_ref().unwrap();
            assert_eq!(spec.lease_transitions, transitions);
            assert_eq!(spec.holder_identity.as_deref(), Some("me"));
            let version = there.and_then(|lease| lease.metadata.resource_version);
            assert_eq!(
                written.metadata.resource_version, version,
                "a lease that changed meanwhile is not overwritten"
            );
        }
    }

    #[test]
    fn a_leader_stops_before_its_lease_may_be_taken_and_a_lost_one_is_noticed_within_15_seconds() {
        let duration = Duration::from_secs(u64::try_from(DURATION_SECONDS).unwrap());
        // The last request begins just before, and its write takes effect on the server at its end.
        assert!(GIVE_UP + ANSWER < duration);
        assert!(duration + LOOK < Duration::from_secs(15));
    }
}
