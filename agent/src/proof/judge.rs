//! What the facts about a node say: whether its container runtime pulls through this agent. Pure.

use crate::setup::{Finding, Report};

/// Longest name and version of a runtime.
const LONGEST: usize = 80;

/// Whether something holds, as in a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It is proved.
    True,
    /// It is known not to hold.
    False,
    /// Not known yet.
    Unknown,
}

impl Holds {
    /// As a condition's status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What is known so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// What `setup` found on the node.
    pub(super) setup: Option<Report>,
    /// Name and version of the runtime, by its own answer.
    pub(super) runtime: Option<String>,
    /// The outcome of a pull that the runtime was told to make, or why it could not be told.
    pub(super) pull: Option<Result<(), String>>,
    /// The runtime to which an image's manifest was sent.
    pub(super) client: Option<String>,
    /// The time for the first proof is over.
    pub(super) waited: bool,
}

/// What the facts say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the container runtime pulls through this agent.
    pub holds: Holds,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, for people, and what to do.
    pub message: String,
    /// Name and version of the runtime, as far as known.
    pub runtime: Option<String>,
}

/// The reason while it is still being found out.
pub const CHECKING: &str = "Checking";

/// The reason after the runtime's configuration was restored.
pub const RESTORED: &str = "Restored";

pub(super) fn judge(facts: &Facts) -> Verdict {
    let setup = facts.setup.clone().unwrap_or_default();
    let of_setup = || setup.runtimes.first().map(|runtime| runtime.name().to_owned());
    let runtime = facts.runtime.clone().or_else(|| facts.client.clone()).or_else(of_setup);
    let name = runtime.as_deref().unwrap_or("the container runtime");
    let (holds, reason, message) = match (&facts.pull, &facts.client) {
        (Some(Ok(())), _) => {
            (Holds::True, "Pulled", format!("{name} pulls through this agent (proved by a pull)"))
        }
        (_, Some(client)) => {
            (Holds::True, "Requested", format!("{client} pulls through this agent (proved by its requests)"))
        }
        (pull, None) => without_proof(&setup, pull.as_ref(), name, facts.waited),
    };
    Verdict { holds, reason, message, runtime }
}

fn without_proof(
    setup: &Report,
    pull: Option<&Result<(), String>>,
    name: &str,
    waited: bool,
) -> (Holds, &'static str, String) {
    if let Some(problem) = &setup.problem {
        let message = format!(
            "this node is not set up: {problem}. Then replace the agent's pod, which runs `setup` again"
        );
        return (Holds::False, "SetupFailed", message);
    }
    let traps = findings(setup, true);
    if setup.is_in_vain() {
        return (Holds::False, "Trap", format!("{name} does not use this agent: {}", traps.join("; ")));
    }
    if setup.restored {
        let message = "the container runtime's configuration was restored: it pulls from registries itself";
        return (Holds::Unknown, RESTORED, message.to_owned());
    }
    let mut hints = String::new();
    for hint in traps.iter().chain(&findings(setup, false)) {
        hints.push_str("; ");
        hints.push_str(hint);
    }
    if let Some(Err(problem)) = pull {
        let reload = setup.runtimes.first().map_or(String::new(), |runtime| {
            format!("; if it was configured after it had started: `{}`", runtime.reload())
        });
        let message =
            format!("{name} did not pull a test image through this agent: {problem}{reload}{hints}");
        return (Holds::False, "PullFailed", message);
    }
    if !waited {
        return (Holds::Unknown, CHECKING, format!("waiting for {name}"));
    }
    let message = format!(
        "{name} has not pulled through this agent since it started: start a pod with an image that this node does not have, or run \
         `hearth-agent setup --check` on the node{hints}"
    );
    (Holds::Unknown, "NoRequestYet", message)
}

/// The findings that are traps, or the others.
fn findings(setup: &Report, traps: bool) -> Vec<String> {
    let all = setup.findings.iter().filter(|finding| finding.trap == traps);
    let text = |Finding { place, what, remedy, .. }: &Finding| format!("{place}: {what}: {remedy}");
    all.map(text).collect()
}

/// A name and a version as they are shown.
pub(super) fn shown(name: &str, version: &str) -> String {
    let version = version.strip_prefix('v').unwrap_or(version);
    format!("{name} {version}").trim_end().chars().take(LONGEST).collect()
}

/// The container runtime that sends this `User-Agent`; `None` for other clients. Tools such as podman and BuildKit are no runtimes
/// of pods.
pub(super) fn runtime_of(user_agent: &str) -> Option<String> {
    let product = user_agent.split(' ').next()?;
    let (name, version) = product.split_once('/')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_' | '~');
    let known = matches!(name, "containerd" | "cri-o" | "docker");
    (known && version.chars().all(plain)).then(|| shown(name, version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::Runtime;

    fn report(trap: bool) -> Report {
        let finding = Finding { trap, place: "/c".into(), what: "a list".into(), remedy: "set one".into() };
        let bypassing = if trap { vec![Runtime::Containerd] } else { Vec::new() };
        Report {
            runtimes: vec![Runtime::Containerd],
            findings: vec![finding],
            bypassing,
            ..Report::default()
        }
    }

    #[test]
    fn a_proof_wins_then_traps_then_what_else_is_known() {
        let facts = Facts::default();
        let failed = || Some(Err("not found".to_owned()));
        let runtime = || Some("containerd 2.1.9".to_owned());
        for (facts, expected) in [
            (facts.clone(), "Unknown Checking: waiting for the container runtime"),
            (
                Facts { pull: Some(Ok(())), runtime: runtime(), setup: Some(report(true)), ..facts.clone() },
                "True Pulled: containerd 2.1.9 pulls through this agent (proved by a pull)",
            ),
            (
                Facts { client: runtime(), pull: failed(), ..facts.clone() },
                "True Requested: containerd 2.1.9 pulls through this agent (proved by its requests)",
            ),
            (
                Facts { pull: failed(), runtime: runtime(), setup: Some(report(true)), ..facts.clone() },
                "False Trap: containerd 2.1.9 does not use this agent: /c: a list: set one",
            ),
            (
                Facts { pull: failed(), runtime: runtime(), setup: Some(report(false)), ..facts.clone() },
                "False PullFailed: containerd 2.1.9 did not pull a test image through this agent: not found; if it was configured after it \
                 had started: `systemctl restart containerd`; /c: a list: set one",
            ),
            (
                Facts {
                    setup: Some(Report { problem: Some("`/c`: not TOML; fix it".into()), ..report(false) }),
                    ..facts.clone()
                },
                "False SetupFailed: this node is not set up: `/c`: not TOML; fix it. Then replace the agent's pod, which runs `setup` again",
            ),
            (
                Facts {
                    setup: Some(Report { restored: true, ..report(false) }),
                    waited: true,
                    ..facts.clone()
                },
                "Unknown Restored: the container runtime's configuration was restored: it pulls from registries itself",
            ),
            (
                Facts { setup: Some(report(false)), waited: true, ..facts },
                "Unknown NoRequestYet: containerd has not pulled through this agent since it started: start a pod with an image that this \
                 node does not have, or run `hearth-agent setup --check` on the node; /c: a list: set one",
            ),
        ] {
            let Verdict { holds, reason, message, .. } = judge(&facts);
            assert_eq!(format!("{} {reason}: {message}", holds.as_str()), expected);
        }
    }

    #[test]
    fn runtimes_are_known_by_their_user_agent() {
        for (user_agent, expected) in [
            ("containerd/2.1.9", Some("containerd 2.1.9")),
            ("containerd/v2.1.4-k3s1", Some("containerd 2.1.4-k3s1")),
            ("cri-o/1.31.0 go/go1.22.1 os/linux arch/amd64", Some("cri-o 1.31.0")),
            ("docker/27.0 go/go1.22", Some("docker 27.0")),
            ("containerd/", Some("containerd")),
            ("containerd/<b>", None),
            ("containerd", None),
            ("buildkit/0.1", None),
            ("curl/8", None),
            ("", None),
        ] {
            assert_eq!(runtime_of(user_agent).as_deref(), expected, "{user_agent}");
        }
        let long = format!("containerd/{}", "1".repeat(1_000));
        assert!(runtime_of(&long).unwrap().len() <= LONGEST);
    }
}
