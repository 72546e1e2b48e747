//! What `setup` found on a node, in a file for the agent of the same pod: the agent reports it to the cluster, where people look.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{Finding, Plan, Runtime, SetupError, host};
use crate::types::chain;

/// Larger files are no reports.
const LARGEST: u64 = 1 << 20;

/// The result of one run of `setup`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Runtimes that were found or named.
    #[serde(default)]
    pub runtimes: Vec<Runtime>,
    /// What the administrator should know.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// The runtimes whose requests do not reach the agent, because of a finding that is a trap.
    #[serde(default)]
    pub bypassing: Vec<Runtime>,
    /// Why nothing could be set up.
    #[serde(default)]
    pub problem: Option<String>,
    /// The node's files were restored: requests no longer reach the agent.
    #[serde(default)]
    pub restored: bool,
}

impl Report {
    /// The report of a run that planned and changed files, or failed to.
    pub fn new(outcome: Result<&Plan, &SetupError>, undo: bool) -> Self {
        match outcome {
            Ok(Plan { runtimes, findings, bypassing, .. }) => Self {
                runtimes: runtimes.clone(),
                findings: findings.clone(),
                bypassing: bypassing.clone(),
                problem: None,
                restored: undo,
            },
            Err(error) => Self { problem: Some(chain(error)), ..Self::default() },
        }
    }

    /// Whether no runtime of the node uses the agent.
    pub fn is_in_vain(&self) -> bool {
        !self.runtimes.is_empty() && self.bypassing.len() == self.runtimes.len()
    }

    /// Replaces the file. Blocking.
    pub fn write(&self, path: &Path) -> Result<(), SetupError> {
        host::replace(path, &serde_json::json!(self).to_string())
    }

    /// Reads the file; `None` when there is none. Blocking.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(LARGEST).read_to_end(&mut bytes)?;
        Ok(Some(serde_json::from_slice(&bytes)?))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the test writes its own file")]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("setup.json");
        assert_eq!(Report::read(&path).unwrap(), None);
        let plan = Plan {
            runtimes: vec![Runtime::Containerd],
            findings: vec![Finding::trap("/a", "it is so", "do this")],
            bypassing: vec![Runtime::Containerd],
            ..Plan::default()
        };
        let report = Report::new(Ok(&plan), false);
        report.write(&path).unwrap();
        assert_eq!(Report::read(&path).unwrap(), Some(report.clone()));
        assert!(report.is_in_vain() && !report.restored);
        let failed = Report::new(Err(&SetupError::NoRuntime("/host".into())), false);
        failed.write(&path).unwrap();
        let read = Report::read(&path).unwrap().unwrap();
        assert!(read.problem.unwrap().contains("no container runtime found below `/host`"));
        std::fs::write(&path, "{").unwrap();
        assert!(Report::read(&path).is_err());
    }
}
