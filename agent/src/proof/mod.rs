//! Proves that the node's container runtime pulls through this agent, or says what keeps it from that.
//!
//! | evidence | needs |
//! | --- | --- |
//! | the runtime pulls a test image that only this agent has | its socket (`runtime.socket`) |
//! | a manifest was sent to a client that calls itself a container runtime | a pod that starts |
//! | traps and problems that `setup` found | its report (`runtime.setupReport`) |
//!
//! Each wait has a limit: a runtime that does not answer costs the proof and nothing else. Without a proof the pull is tried again
//! after growing pauses, since an administrator may have mended the node meanwhile.

mod judge;

use std::{io::Cursor, path::PathBuf, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

pub use judge::{CHECKING, Holds, RESTORED, Verdict};
use judge::{Facts, judge, runtime_of, shown};

use crate::{
    images::{
        self,
        archive::{self, ImportOptions, Source},
    },
    journal::Journal,
    runtime::Runtime,
    setup::{
        self, Report,
        check::{self, Probe},
    },
    store::Store,
    types::{ImageName, RegistryPattern, chain},
};

/// Longest wait for the runtime's version.
const VERSION: Duration = Duration::from_secs(5);

/// Longest wait for a pull of a few hundred bytes. A runtime that does not reach the agent asks the registry, and some retry that.
const PULL: Duration = Duration::from_secs(25);

/// For how long nothing is reported without a proof: the pull of the first pod may be the proof.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked whether a runtime was sent a manifest, and whether this process owns the store.
const LOOK: Duration = Duration::from_secs(1);

/// Pauses between attempts: the first and the longest.
const FIRST_PAUSE: Duration = Duration::from_mins(1);
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// The state of the proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// What the facts say.
    pub verdict: Verdict,
    /// Since when it holds, does not hold, or is unknown.
    pub since: Timestamp,
}

impl Proof {
    /// As a part of the status document; without `names`, what the network may know.
    pub fn document(&self, names: bool) -> Value {
        let Verdict { holds, reason, message, runtime } = &self.verdict;
        let uses = match holds {
            Holds::True => Some(true),
            Holds::False => Some(false),
            Holds::Unknown => None,
        };
        let mut document = json!({ "usesAgent": uses, "reason": reason, "since": self.since.to_string() });
        if names {
            document["name"] = json!(runtime);
            document["message"] = json!(message);
        }
        document
    }
}

/// Finds the proof.
#[derive(Debug)]
pub struct Prover {
    runtime: Option<Runtime>,
    setup_report: Option<PathBuf>,
    registries: Vec<RegistryPattern>,
    store: Store,
    journal: Journal,
    facts: Facts,
    proof: watch::Sender<Proof>,
}

impl Prover {
    /// Does nothing before [`Self::run`]. `registries` are served by the agent.
    pub fn new(
        runtime: Option<Runtime>,
        setup_report: Option<PathBuf>,
        registries: Vec<RegistryPattern>,
        store: Store,
        journal: Journal,
    ) -> Self {
        let facts = Facts::default();
        let proof = watch::Sender::new(Proof { verdict: judge(&facts), since: Timestamp::now() });
        Self { runtime, setup_report, registries, store, journal, facts, proof }
    }

    /// The proof and its changes.
    pub fn proof(&self) -> watch::Receiver<Proof> {
        self.proof.subscribe()
    }

    /// Runs until there is a proof, or until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let _ = stop.run_until_cancelled(Box::pin(self.prove())).await;
    }

    async fn prove(mut self) {
        let started = Instant::now();
        self.facts.setup = self.read_report().await;
        self.publish();
        // The test image is imported into the store.
        while !self.store.is_owner() {
            tokio::time::sleep(LOOK).await;
        }
        let (mut next, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            if let Some(runtime) = self.runtime.clone().filter(|_| next <= Instant::now()) {
                self.try_pull(&runtime).await;
                (next, pause) = (Instant::now() + pause, (pause * 2).min(LONGEST_PAUSE));
            }
            let clients = self.journal.pulls(|pull| pull.client.is_some());
            self.facts.client = clients.iter().find_map(|pull| runtime_of(pull.client.as_deref()?));
            self.facts.waited = started.elapsed() >= PATIENCE;
            self.publish();
            if self.proof.borrow().verdict.holds == Holds::True {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Publishes what the facts say, and logs it when it has changed.
    fn publish(&self) {
        let verdict = judge(&self.facts);
        let changed = self.proof.send_if_modified(|before| {
            if before.verdict == verdict {
                return false;
            }
            let same = before.verdict.holds == verdict.holds;
            let since = if same { before.since } else { Timestamp::now() };
            *before = Proof { verdict: verdict.clone(), since };
            true
        });
        let Verdict { holds, reason, message, .. } = verdict;
        match holds {
            _ if !changed || reason == CHECKING => {}
            Holds::False => tracing::error!(reason, "{message}"),
            Holds::True | Holds::Unknown => tracing::info!(reason, "{message}"),
        }
    }

    async fn read_report(&self) -> Option<Report> {
        let path = self.setup_report.clone()?;
        let read = tokio::task::spawn_blocking({
            let path = path.clone();
            move || Report::read(&path)
        });
        match read.await.unwrap_or_else(|error| Err(error.into())) {
            Ok(report) => report,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot read what `setup` found on this node");
                None
            }
        }
    }

    async fn try_pull(&mut self, runtime: &Runtime) {
        let late = |limit| format!("no answer within {limit:?}");
        let version = tokio::time::timeout(VERSION, runtime.version()).await;
        let outcome = match version.map_err(|_| late(VERSION)) {
            Err(problem) => Err(problem),
            Ok(Err(error)) => Err(chain(&error)),
            Ok(Ok((name, version))) => {
                let kind = if name == "cri-o" { setup::Runtime::Crio } else { setup::Runtime::Containerd };
                self.facts.runtime = Some(shown(&name, &version));
                let pulled = tokio::time::timeout(PULL, self.pull(runtime, kind)).await;
                pulled.unwrap_or_else(|_| Err(late(PULL)))
            }
        };
        self.facts.pull = Some(outcome);
    }

    async fn pull(&self, runtime: &Runtime, kind: setup::Runtime) -> Result<(), String> {
        let registry = check::registry(kind, &self.registries);
        let registry = registry.ok_or("no registry of `registries` is one that this runtime can mirror")?;
        let probe = Probe::new(&registry).map_err(|error| chain(&error))?;
        let imported = Imported::new(&self.store, probe).await?;
        check::by_cri(runtime, &imported.name).await.map_err(|error| chain(&error))
    }
}

/// The test image in the store, until this is dropped: also when the pull is given up.
struct Imported {
    store: Store,
    name: ImageName,
}

impl Imported {
    async fn new(store: &Store, Probe { name, archive }: Probe) -> Result<Self, String> {
        let options = ImportOptions { name: Some(name.clone()), ..ImportOptions::default() };
        let this = Self { store: store.clone(), name };
        let store = store.clone();
        let work = tokio::task::spawn_blocking(move || {
            archive::import(&store, Source::Tar(Box::new(Cursor::new(archive))), &options).map(drop)
        });
        let imported = work.await.map_err(|error| chain(&error))?;
        imported.map_err(|error| format!("cannot import the test image: {}", chain(&error)))?;
        Ok(this)
    }
}

impl Drop for Imported {
    fn drop(&mut self) {
        let (store, name) = (self.store.clone(), self.name.clone());
        // A test image that stays is only a few hundred bytes until the next eviction.
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = images::remove(&store, &name) {
                tracing::debug!(error = %chain(&error), image = %name, "cannot remove the test image");
            }
        }));
    }
}
