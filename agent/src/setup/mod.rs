//! Configures the node's container runtimes to use the agent, and uninstalls that configuration.
//!
//! Pure functions over the existing files decide what to write (`containerd`, `containers`, `documents`), and report
//! settings with which requests would never reach the agent. [`plan`] combines their results without a change;
//! [`apply`] then replaces file by file, each atomically, and only if it is unchanged since the plan. A second run
//! changes nothing; uninstalling restores every file byte for byte:
//!
//! | file | how it is restored |
//! | --- | --- |
//! | containerd's `hosts.toml` | the agent's part is between two marker lines (`block`) |
//! | `registries.conf.d/zz-hearth.conf` | removed completely |
//! | `daemon.json`, `registries.yaml` | the original is kept beside it, with the suffix `.before-hearth` |

mod block;
pub mod check;
mod containerd;
mod containers;
mod documents;
mod host;
mod report;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use containerd::Registries;
use documents::Document;
use host::Host;
pub use host::apply;
pub use report::Report;

use crate::types::RegistryPattern;

/// Suffix of the name under which a document's original is kept.
const BEFORE: &str = ".before-hearth";

/// Kept instead of an original when there was no file; an empty file is kept as it was.
const NO_FILE: &str = "hearth: there was no file\n";

/// What to set up.
#[derive(Clone, Debug)]
pub struct Job {
    /// Where the node's file system is mounted; `/` on the node itself.
    pub root: PathBuf,
    /// Address at which the runtimes reach the mirror.
    pub mirror: SocketAddr,
    /// The registries that the agent serves.
    pub registries: Vec<RegistryPattern>,
    /// The runtimes to configure; empty means all that are found.
    pub runtimes: Vec<Runtime>,
}

/// A program that pulls images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// containerd, by itself.
    Containerd,
    /// CRI-O, and podman, buildah and skopeo, which read the same files.
    Crio,
    /// Docker.
    Docker,
    /// k3s, which writes its containerd's configuration itself.
    K3s,
    /// RKE2, likewise.
    Rke2,
}

impl Runtime {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Containerd, Self::Crio, Self::Docker, Self::K3s, Self::Rke2];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Crio => "crio",
            Self::Docker => "docker",
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
        }
    }

    /// The command with which it reads its configuration again.
    pub fn reload(self) -> &'static str {
        match self {
            Self::Containerd => "systemctl restart containerd",
            Self::Crio => "systemctl reload crio",
            Self::Docker => "systemctl reload docker",
            Self::K3s => "systemctl restart k3s",
            Self::Rke2 => "systemctl restart rke2-server or rke2-agent",
        }
    }

    /// The directory by which it is detected.
    fn home(self) -> &'static str {
        match self {
            Self::Containerd => "/etc/containerd",
            Self::Crio => "/etc/containers",
            Self::Docker => "/etc/docker",
            Self::K3s => "/etc/rancher/k3s",
            Self::Rke2 => "/etc/rancher/rke2",
        }
    }
}

/// Something that the administrator should know.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Finding {
    /// Whether requests do not reach the agent because of it.
    pub trap: bool,
    /// The file or directory on the node.
    pub place: String,
    /// What was found.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Finding {
    fn trap(place: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { trap: true, place: place.to_owned(), what: what.into(), remedy: remedy.into() }
    }

    fn note(place: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { trap: false, ..Self::trap(place, what, remedy) }
    }
}

/// A change of a file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Edit {
    /// Its path on the node.
    pub path: String,
    /// The current content.
    #[serde(skip)]
    pub before: Option<String>,
    /// The new content; `None` removes the file.
    pub after: Option<String>,
}

/// The planned changes and findings.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// Runtimes that were found or named.
    pub runtimes: Vec<Runtime>,
    /// Files to change, in this order.
    pub edits: Vec<Edit>,
    /// What the administrator should know.
    pub findings: Vec<Finding>,
    /// The runtimes whose requests do not reach the agent, because of a finding that is a trap.
    pub bypassing: Vec<Runtime>,
}

impl Plan {
    /// Whether the setup changes nothing for any runtime: each has a trap.
    pub fn is_in_vain(&self) -> bool {
        self.bypassing.len() == self.runtimes.len()
    }
}

/// Why setup failed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file that cannot be parsed, or changed safely.
    #[error("`{path}`: {what}; {remedy}")]
    Problem {
        /// The file on the node.
        path: String,
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// An operation on a file failed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// The operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No runtime was found.
    #[error("no container runtime found below `{}`: select one with --runtime", .0.display())]
    NoRuntime(PathBuf),
}

fn problem(path: &str, what: &dyn std::fmt::Display, remedy: &str) -> SetupError {
    SetupError::Problem { path: path.to_owned(), what: what.to_string(), remedy: remedy.to_owned() }
}

/// Decides what to write, or with `undo` what to restore. Only reads.
pub fn plan(job: &Job, undo: bool) -> Result<Plan, SetupError> {
    let host = Host::new(&job.root);
    let mut planning =
        Planning { job, host, undo, plan: Plan { runtimes: runtimes(job)?, ..Plan::default() } };
    for runtime in planning.plan.runtimes.clone() {
        let known = planning.plan.findings.len();
        match runtime {
            Runtime::Containerd => planning.containerd()?,
            Runtime::Crio => planning.containers()?,
            Runtime::Docker => planning.docker()?,
            Runtime::K3s => planning.rancher(documents::K3S, runtime)?,
            Runtime::Rke2 => planning.rancher(documents::RKE2, runtime)?,
        }
        if planning.plan.findings[known..].iter().any(|finding| finding.trap) {
            planning.plan.bypassing.push(runtime);
        }
    }
    planning.plan.edits.retain(|edit| edit.before != edit.after);
    Ok(planning.plan)
}

fn runtimes(job: &Job) -> Result<Vec<Runtime>, SetupError> {
    if !job.runtimes.is_empty() {
        return Ok(job.runtimes.clone());
    }
    let host = Host::new(&job.root);
    let mut found = Vec::new();
    for runtime in Runtime::ALL {
        if host.is_directory(runtime.home())? {
            found.push(runtime);
        }
    }
    if found.is_empty() { Err(SetupError::NoRuntime(job.root.clone())) } else { Ok(found) }
}

struct Planning<'a> {
    job: &'a Job,
    host: Host,
    undo: bool,
    plan: Plan,
}

impl Planning<'_> {
    fn url(&self) -> String {
        format!("http://{}", self.job.mirror)
    }

    fn edit(&mut self, path: String, before: Option<String>, after: Option<String>) {
        self.plan.edits.push(Edit { path, before, after });
    }

    fn note(&mut self, finding: Finding) {
        self.plan.findings.push(finding);
    }

    fn containerd(&mut self) -> Result<(), SetupError> {
        let config = self.containerd_config()?;
        let certs = config.directory().to_owned();
        let present = self.host.list(&certs)?;
        if self.undo {
            for name in present {
                self.take_out_of_hosts(format!("{certs}/{name}/hosts.toml"))?;
            }
            return Ok(());
        }
        self.plan.findings.extend(config.findings());
        let mut names = Vec::new();
        for pattern in &self.job.registries {
            let candidates = containerd::directories(pattern);
            let chosen = candidates.iter().find(|name| present.contains(name)).or(candidates.last());
            match chosen {
                Some(name) => names.push(name.clone()),
                None => self.plan.findings.push(Finding::note(
                    &certs,
                    format!(
                        "`{pattern}` cannot be mirrored: containerd supports only complete names and `_default`"
                    ),
                    "list each registry of these nodes in `registries`, or use `*`",
                )),
            }
        }
        // `_default` does not apply to registries that have a directory of their own.
        if names.iter().any(|name| name == "_default") {
            names.extend(present.iter().cloned());
        }
        names.sort();
        names.dedup();
        for name in &names {
            self.put_into_hosts(format!("{certs}/{name}/hosts.toml"))?;
        }
        for name in present.iter().filter(|name| !names.contains(name)) {
            self.check_hosts(&format!("{certs}/{name}/hosts.toml"))?;
        }
        Ok(())
    }

    fn containerd_config(&self) -> Result<Registries, SetupError> {
        let mut registries = Registries::default();
        let mut open = vec![containerd::CONFIG.to_owned()];
        let mut imports = true;
        while let Some(path) = open.pop() {
            let Some(text) = self.host.read(&path)? else { continue };
            let table: toml::Table =
                text.parse().map_err(|error| problem(&path, &error, "fix the file, then run setup again"))?;
            registries.add(&table);
            if std::mem::take(&mut imports) {
                let named = table.get("imports").and_then(toml::Value::as_array).into_iter().flatten();
                for pattern in named.filter_map(toml::Value::as_str) {
                    open.extend(self.host.matching(pattern)?);
                }
                // The first of the list is read first.
                open.reverse();
            }
        }
        Ok(registries)
    }

    fn put_into_hosts(&mut self, path: String) -> Result<(), SetupError> {
        let before = self.host.read(&path)?;
        let after = containerd::with_agent(before.as_deref().unwrap_or_default(), &self.url())
            .map_err(|error| problem(&path, &error, "fix the file, then run setup again"))?;
        self.edit(path, before, Some(after));
        Ok(())
    }

    fn take_out_of_hosts(&mut self, path: String) -> Result<(), SetupError> {
        let Some(before) = self.host.read(&path)? else { return Ok(()) };
        let after = containerd::without_agent(&before)
            .map_err(|error| problem(&path, &error, "fix the file, then run setup again"))?;
        self.edit(path, Some(before), after);
        Ok(())
    }

    /// Reports files that setup does not write and containerd cannot read.
    fn check_hosts(&mut self, path: &str) -> Result<(), SetupError> {
        if let Some(Err(error)) = self.host.read(path)?.map(|text| containerd::check_hosts(&text)) {
            self.note(Finding::note(
                path,
                error.to_string(),
                "fix it: meanwhile containerd pulls directly from the registry",
            ));
        }
        Ok(())
    }

    fn containers(&mut self) -> Result<(), SetupError> {
        let ours = format!("{}/{}", containers::DROP_INS, containers::OURS);
        let before = self.host.read(&ours)?;
        if self.undo {
            self.edit(ours, before, None);
            return Ok(());
        }
        let mut files = Vec::new();
        let names = self.host.list(containers::DROP_INS)?.into_iter();
        let names = names.filter(|name| {
            Path::new(name).extension().is_some_and(|end| end == "conf") && name != containers::OURS
        });
        let paths = names.map(|name| format!("{}/{name}", containers::DROP_INS));
        for path in std::iter::once(containers::MAIN.to_owned()).chain(paths) {
            files.extend(self.host.read(&path)?.map(|text| (path, text)));
        }
        let (text, findings) =
            containers::drop_in(&files, &self.job.mirror.to_string(), &self.job.registries)?;
        self.plan.findings.extend(findings);
        if before.as_deref() != Some(&*text) {
            self.note(Finding::note(
                &ours,
                "a running CRI-O has not read it yet",
                "`systemctl reload crio`; podman, buildah and skopeo read it at each run",
            ));
        }
        self.edit(ours, before, Some(text));
        Ok(())
    }

    fn docker(&mut self) -> Result<(), SetupError> {
        let hub: RegistryPattern =
            "docker.io".parse().map_err(|error| problem(documents::DOCKER, &error, ""))?;
        let served =
            self.job.registries.iter().any(|pattern| *pattern == hub || *pattern == RegistryPattern::Any);
        if !self.undo && !served {
            self.note(Finding::note(
                documents::DOCKER,
                "Docker's `registry-mirrors` apply only to `docker.io`, which the agent does not serve",
                "add it to `registries` and as `defaultRegistry`, or do not set up Docker",
            ));
            return Ok(());
        }
        if self.document(Document::Docker, documents::DOCKER)? {
            let remedy = if self.undo {
                "`systemctl reload docker`"
            } else {
                "`systemctl reload docker`; the agent needs `defaultRegistry: docker.io`"
            };
            self.note(Finding::note(
                documents::DOCKER,
                "a running Docker has not read it yet; only images of `docker.io` use mirrors",
                remedy,
            ));
        }
        Ok(())
    }

    fn rancher(&mut self, path: &'static str, runtime: Runtime) -> Result<(), SetupError> {
        if self.document(Document::Rancher, path)? {
            self.note(Finding::note(
                path,
                "it is read when the service starts",
                format!("`{}`", runtime.reload()),
            ));
        }
        Ok(())
    }

    /// Plans a document and the original beside it; returns whether the document changes.
    fn document(&mut self, kind: Document, path: &str) -> Result<bool, SetupError> {
        let url = self.url();
        let kept = format!("{path}{BEFORE}");
        let (now, stored) = (self.host.read(path)?, self.host.read(&kept)?);
        let from = |text: Option<&str>, url: &str| {
            kind.with_agent(path, text.unwrap_or_default(), url, &self.job.registries)
        };
        let original = stored.as_deref().map(|text| Some(text).filter(|text| *text != NO_FILE));
        // Created from the kept original and not changed since, perhaps with another address.
        let ours = match (original, &now) {
            (Some(original), Some(now)) => {
                let before = kind.first(path, now)?.unwrap_or_else(|| url.clone());
                *now == from(original, &before)?
            }
            _ => false,
        };
        let base = match (original, &now) {
            (Some(original), _) if ours => original.map(str::to_owned),
            (Some(_), Some(now)) => Some(kind.without_agent(path, now, &url)?),
            _ => now.clone(),
        };
        if self.undo {
            if original.is_none() {
                return Ok(false);
            }
            let changed = now != base;
            self.edit(path.to_owned(), now, base);
            self.edit(kept, stored, None);
            return Ok(changed);
        }
        let after = from(base.as_deref(), &url)?;
        let changed = now.as_deref() != Some(&after);
        // The original first: without it the document could not be restored.
        self.edit(kept, stored, Some(base.unwrap_or_else(|| NO_FILE.to_owned())));
        self.edit(path.to_owned(), now, Some(after));
        Ok(changed)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the tests look at the files")]
mod tests;
