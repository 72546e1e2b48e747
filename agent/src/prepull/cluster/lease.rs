//! Elects the leader among all agents with one lease. The decision is pure.
//!
//! Thousands of agents must not read one object every few seconds. The leader renews the lease and writes the
//! number of nodes into it. The others read it so rarely that all of them together read it about
//! [`LOOKS_A_MINUTE`] times a minute, at different times. In a large cluster a vacancy is noticed as soon as in
//! a small one.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams};

use crate::prepull::jitter::fraction;

/// Seconds without a renewal after which another agent may take the lease.
const DURATION_SECONDS: i32 = 30;

/// How often the leader renews.
pub(crate) const RENEW: Duration = Duration::from_secs(10);

/// When to read the lease again if its last renewal seems to be long ago.
const SILENT: Duration = Duration::from_secs(DURATION_SECONDS as u64 + 1);

/// Reads of the lease per minute by all other agents together.
const LOOKS_A_MINUTE: u32 = 60;

/// Annotation with the number of nodes.
const NODES: &str = "hearth.dev/nodes";

/// What to do with a lease.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Write this lease: this agent becomes or stays the leader.
    Write(Box<Lease>),
    /// Another agent is the leader in a cluster of this many nodes; `silent` when by its clock the last renewal
    /// is long ago: then the next read comes soon.
    Follow { nodes: u32, silent: bool },
}

/// Decides from the current lease. `held_since` is how long this agent has seen it unchanged: clocks of other
/// machines do not count.
pub(crate) fn decide(
    lease: Option<&Lease>,
    me: &str,
    seen_same_for: Duration,
    nodes: u32,
    now: Timestamp,
) -> Step {
    let spec = lease.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let mine = holder == me;
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(DURATION_SECONDS)).unwrap_or(0);
    let vacant = holder.is_empty() || seen_same_for >= Duration::from_secs(seconds);
    if !mine && !vacant {
        let renewed = spec.renew_time.as_ref().map(|renewed| renewed.0);
        let silent = renewed.is_some_and(|renewed| {
            now.duration_since(renewed).as_secs() > i64::try_from(3 * seconds).unwrap_or(i64::MAX)
        });
        return Step::Follow { nodes: lease.map_or(0, nodes_of), silent };
    }
    let mut metadata = lease.map(|lease| lease.metadata.clone()).unwrap_or_default();
    metadata.managed_fields = None;
    metadata.annotations.get_or_insert_default().insert(NODES.to_owned(), nodes.to_string());
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

fn nodes_of(lease: &Lease) -> u32 {
    let annotations = lease.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(NODES)).and_then(|nodes| nodes.parse().ok()).unwrap_or(0)
}

/// How long an agent that is not the leader waits before the next read; `part` is between 0 and 1. Pure.
pub(crate) fn look_again(nodes: u32, part: f64) -> Duration {
    let all = Duration::from_mins(1) * nodes / LOOKS_A_MINUTE;
    all.max(RENEW).mul_f64(0.5 + part)
}

/// Takes part in the election with one lease.
pub(crate) struct Elector {
    leases: Api<Lease>,
    name: String,
    me: String,
    /// A fraction that spreads the reads of the agents.
    part: f64,
    seen: Option<(String, tokio::time::Instant)>,
}

impl Elector {
    pub(crate) fn new(client: Client, namespace: &str, name: &str, me: &str) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            me: me.to_owned(),
            part: fraction(&format!("lead {me}")),
            seen: None,
        }
    }

    /// Reads and perhaps writes the lease: `None` when this agent is the leader, else the wait before the next
    /// read. A concurrent write of another agent wins.
    pub(crate) async fn look(&mut self, nodes: u32) -> Result<Option<Duration>, kube::Error> {
        let lease = self.leases.get_opt(&self.name).await?;
        let version =
            lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone()).unwrap_or_default();
        let same = self.seen.as_ref().filter(|(seen, _)| *seen == version).map(|(_, at)| *at);
        let at = same.unwrap_or_else(tokio::time::Instant::now);
        self.seen = Some((version, at));
        match decide(lease.as_ref(), &self.me, at.elapsed(), nodes, Timestamp::now()) {
            Step::Follow { silent: true, .. } => Ok(Some(SILENT)),
            Step::Follow { nodes, .. } => Ok(Some(look_again(nodes, self.part))),
            Step::Write(mut wanted) => {
                wanted.metadata.name = Some(self.name.clone());
                let parameters =
                    PostParams { field_manager: Some(super::MANAGER.to_owned()), ..PostParams::default() };
                let written = match lease {
                    None => self.leases.create(&parameters, &wanted).await,
                    Some(_) => self.leases.replace(&self.name, &parameters, &wanted).await,
                };
                match written {
                    Ok(_) => Ok(None),
                    Err(kube::Error::Api(status)) if status.code == 409 => {
                        Ok(Some(look_again(nodes, self.part)))
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Releases the lease, so that the next leader does not wait for it to expire. Best effort.
    pub(crate) async fn release(&self) {
        let Ok(Some(mut lease)) = self.leases.get_opt(&self.name).await else { return };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(&self.me))
        else {
            return;
        };
        spec.holder_identity = None;
        let _ = self.leases.replace(&self.name, &PostParams::default(), &lease).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str) -> Lease {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "l", "resourceVersion": "7", "annotations": {NODES: "5000"}},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 30, "leaseTransitions": 2},
        }))
        .unwrap()
    }

    #[test]
    fn a_lease_is_taken_when_it_is_not_renewed_and_kept_by_its_holder() {
        let at = |seconds| Duration::from_secs(seconds);
        for (there, seen, transitions) in [
            (None, 0, Some(0)),
            (Some("me"), 0, Some(2)),
            (Some("other"), 29, None),
            (Some("other"), 30, Some(3)),
            (Some(""), 0, Some(3)),
        ] {
            let there = there.map(lease);
            let step = decide(there.as_ref(), "me", at(seen), 9, Timestamp::UNIX_EPOCH);
            let Step::Write(written) = step else {
                assert_eq!((step, transitions), (Step::Follow { nodes: 5_000, silent: false }, None));
                continue;
            };
            let spec = written.spec.as_ref().unwrap();
            assert_eq!(spec.lease_transitions, transitions);
            assert_eq!((spec.holder_identity.as_deref(), nodes_of(&written)), (Some("me"), 9));
            let version = there.and_then(|lease| lease.metadata.resource_version);
            assert_eq!(
                written.metadata.resource_version, version,
                "a lease that changed meanwhile is not overwritten"
            );
        }
    }

    #[test]
    fn a_lease_whose_last_renewal_is_long_ago_is_read_again_soon() {
        let mut lease = lease("other");
        let now = Timestamp::from_second(1_000).unwrap();
        for (renewed, expected) in [(1_000, false), (911, false), (909, true), (2_000, false)] {
            let at = Timestamp::from_second(renewed).unwrap();
            lease.spec.as_mut().unwrap().renew_time = Some(MicroTime(at));
            let step = decide(Some(&lease), "me", Duration::ZERO, 9, now);
            assert_eq!(step, Step::Follow { nodes: 5_000, silent: expected }, "{renewed}");
        }
    }

    #[test]
    fn all_agents_together_read_a_fixed_number_of_times_a_minute() {
        assert_eq!(look_again(0, 0.5), RENEW);
        for nodes in [1_000_u32, 5_000] {
            let each = look_again(nodes, 0.5).as_secs_f64();
            let together = f64::from(nodes) * 60.0 / each;
            assert!((together - f64::from(LOOKS_A_MINUTE)).abs() < 1.0, "{nodes}: {together}");
        }
    }
}
