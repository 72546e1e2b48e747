//! `hearth-agent setup --check`: each runtime pulls an image that only the running agent has.

use std::{
    io::Cursor,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::ArgMatches;
use reqwest::Method;

use super::{as_json, client::Client, print, print_result};
use crate::{
    config::Config,
    images::archive::{ImportOptions, Imported},
    setup::{
        Finding, Job, Plan, Runtime,
        check::{self, Probe},
    },
};

/// The result of one runtime's pull.
#[derive(Debug, serde::Serialize)]
pub(super) struct Checked {
    runtime: Runtime,
    /// The image that it pulled; `None` when no served registry fits the runtime.
    image: Option<String>,
    /// Milliseconds, when the pull succeeded.
    pub(super) took: Option<u128>,
    /// Why the pull failed.
    pub(super) problem: Option<String>,
}

pub(super) fn run(
    job: &Job,
    plan: &Plan,
    socket: Option<&Path>,
    config: &Config,
    arguments: &ArgMatches,
) -> anyhow::Result<()> {
    let client = Client::new(&config.admin_socket)?;
    let checked: Vec<_> =
        plan.runtimes.iter().map(|runtime| one(*runtime, job, socket, &client)).collect::<Result<_, _>>()?;
    if as_json(arguments) {
        let all = serde_json::json!({ "checks": checked, "findings": plan.findings });
        print_result(arguments, &format!("{}\n", serde_json::to_string_pretty(&all)?))?;
    } else {
        print(&describe(&checked, plan, job))?;
    }
    match checked.iter().filter(|one| one.took.is_none()).count() {
        0 => Ok(()),
        failed => anyhow::bail!(
            "{failed} of {} container runtimes do not pull through the agent at {}",
            checked.len(),
            job.mirror
        ),
    }
}

/// Returns the agent's errors; the runtime's errors are part of the result.
pub(super) fn one(
    runtime: Runtime,
    job: &Job,
    socket: Option<&Path>,
    client: &Client,
) -> anyhow::Result<Checked> {
    let Some(registry) = check::registry(runtime, &job.registries) else {
        let problem = "the configuration has no registry that this runtime can pull from through the agent: add one to \
                       `registries` (Docker: `docker.io`)";
        return Ok(Checked { runtime, image: None, took: None, problem: Some(problem.to_owned()) });
    };
    let Probe { name, archive } = Probe::new(&registry)?;
    let options = ImportOptions { name: Some(name.clone()), ..ImportOptions::default() };
    let _: Imported = client
        .import(Cursor::new(archive), &options)
        .context("cannot import the test image into the agent")?;
    let (pulled, took) = pull(runtime, job, socket, &name)?;
    // A test image that stays would only be a few hundred bytes until the next eviction.
    if let Err(error) = client.call::<serde_json::Value>(Method::DELETE, "/api/v1/images", &[&name]) {
        tracing::warn!(error = %format!("{error:#}"), "cannot remove the test image `{name}` from the agent");
    }
    let problem = pulled.err().map(|error| format!("{:#}", anyhow::Error::from(error)));
    let took = problem.is_none().then_some(took.as_millis());
    Ok(Checked { runtime, image: Some(name.to_string()), took, problem })
}

fn pull(
    runtime: Runtime,
    job: &Job,
    socket: Option<&Path>,
    name: &crate::types::ImageName,
) -> anyhow::Result<(Result<(), check::CheckError>, Duration)> {
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let started = Instant::now();
    let pulled = executor.block_on(check::pull(runtime, &job.root, socket, name));
    Ok((pulled, started.elapsed()))
}

fn describe(checked: &[Checked], plan: &Plan, job: &Job) -> String {
    let mut lines = Vec::new();
    for Checked { runtime, image, took, problem } in checked {
        let (name, image) = (runtime.name(), image.as_deref().unwrap_or("nothing"));
        lines.push(match (took, problem) {
            (Some(took), _) => {
                format!("{name}: pulled `{image}` through the agent at {} in {took} ms", job.mirror)
            }
            (None, problem) => {
                format!("{name}: FAILED to pull `{image}`: {}", problem.as_deref().unwrap_or_default())
            }
        });
    }
    if checked.iter().all(|one| one.took.is_some()) {
        return lines.join("\n") + "\n";
    }
    // The obstacles, most likely first.
    for edit in &plan.edits {
        lines.push(format!("not set up: {}: run `hearth-agent setup` without --check first", edit.path));
    }
    let traps = plan.findings.iter().filter(|finding| finding.trap);
    lines.extend(traps.map(|Finding { place, what, remedy, .. }| format!("TRAP: {place}: {what}: {remedy}")));
    if plan.edits.is_empty() && plan.findings.iter().all(|finding| !finding.trap) {
        lines.push(
            "the configuration is correct: restart the runtime if it was configured after it started (Docker, \
             k3s, RKE2, a changed `config_path`), reload CRI-O, and check whether it reads another configuration file"
                .to_owned(),
        );
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::Edit;

    #[test]
    fn the_output_has_the_result_and_after_a_failure_the_remedy() {
        let job = Job {
            root: "/".into(),
            mirror: "127.0.0.1:5050".parse().unwrap(),
            registries: Vec::new(),
            runtimes: Vec::new(),
        };
        let one = |problem: Option<&str>| Checked {
            runtime: Runtime::Containerd,
            image: Some("r.test/a:b".into()),
            took: problem.is_none().then_some(7),
            problem: problem.map(Into::into),
        };
        let (nothing, mut plan) = (Plan::default(), Plan::default());
        plan.edits.push(Edit { path: "/a".into(), before: None, after: None });
        plan.findings.push(Finding {
            trap: true,
            place: "/b".into(),
            what: "it is so".into(),
            remedy: "do this".into(),
        });
        assert_eq!(
            describe(&[one(None)], &plan, &job),
            "containerd: pulled `r.test/a:b` through the agent at 127.0.0.1:5050 in 7 ms\n"
        );
        assert_eq!(
            describe(&[one(Some("not found"))], &plan, &job),
            "containerd: FAILED to pull `r.test/a:b`: not found\n\
             not set up: /a: run `hearth-agent setup` without --check first\n\
             TRAP: /b: it is so: do this\n"
        );
        assert!(describe(&[one(Some("x"))], &nothing, &job).contains("restart the runtime"));
    }
}
