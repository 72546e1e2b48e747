//! Child processes: one that runs until it is dropped, and one that runs to its end within a limit.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to start, and to end after it was asked to.
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A process that runs until this value is dropped; what it prints goes to a file.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`; what it prints goes to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let output = File::create(log).with_context(|| format!("cannot create `{}`", log.display()))?;
        let errors = output.try_clone().context("cannot duplicate a file handle")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start `{name}`; is it installed"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn printed(&self) -> String {
        fs::read(&self.log)
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Asks `ready` with what was printed so far until it gives a value; a process that ends before, or takes too
    /// long, is an error with the end of what it printed.
    pub async fn ready<T>(&mut self, mut ready: impl AsyncFnMut(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + START;
        loop {
            let printed = self.printed();
            if let Some(value) = ready(&printed).await {
                return Ok(value);
            }
            if let Some(status) = self.child.try_wait().context("cannot wait for a child")? {
                bail!("`{}` ended with {status}:\n{}", self.name, tail(&printed));
            }
            if Instant::now() > deadline {
                bail!("`{}` was not ready after {START:?}:\n{}", self.name, tail(&printed));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks it to end (SIGTERM) and waits; one that does not end is killed.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        let end = Instant::now() + STOP;
        signal(self.child.id(), Signal::TERM);
        while Instant::now() < end {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(POLL),
                Ok(status) => return status,
                Err(_) => break,
            }
        }
        self.child.kill().ok();
        self.child.wait().ok()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sends `signal` to the process `id`, which the caller started; one that is gone already is fine.
pub(super) fn signal(id: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Finished {
    /// Whether it said that it succeeded.
    pub success: bool,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// Its standard output, or an error with what it complained about.
    pub fn output(self) -> Result<String> {
        if self.success {
            return Ok(self.stdout);
        }
        bail!("it failed:\n{}\n{}", tail(&self.stdout), tail(&self.stderr))
    }
}

/// Runs `command` to its end, at most `limit`; then it is killed and that is an error.
pub async fn run(command: Command, limit: Duration) -> Result<Finished> {
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(limit, command.output())
        .await
        .with_context(|| format!("`{shown}` took longer than {limit:?}"))?
        .with_context(|| format!("cannot run `{shown}`"))?;
    Ok(Finished {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The last lines of `text`: what a person needs to see of a log.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Takes back every mount under `directory`, the innermost first; the kernel's list is the truth.
pub(super) fn unmount_under(directory: &Path) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else { return };
    let points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    for point in points.iter().rev().map(Path::new).filter(|point| point.starts_with(directory)) {
        // Lazily: a process that is about to end may still be in it.
        rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH).ok();
    }
}
