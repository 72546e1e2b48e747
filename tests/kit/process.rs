//! Our own binaries as child processes: where they are, and the agent started, signalled and killed like a service.

use std::{
    env,
    fs::File,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStderr, Command},
    sync::oneshot,
};

/// How long a process may take until it listens.
const START: Duration = Duration::from_secs(20);
/// How long a process may take to end after a signal: its own grace period and some more.
const STOP: Duration = Duration::from_mins(1);
/// Log lines kept for the message of a failed test.
const LINES: usize = 400;
/// A directory in which every agent's whole log is kept, as `PROCESS_ID.log`.
pub const LOGS: &str = "HEARTH_TEST_LOGS";

/// Path of one of the project's binaries: beside the running test's or demo's own, or in `HEARTH_BIN_DIR`.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let dir = if let Some(dir) = env::var_os("HEARTH_BIN_DIR") {
        PathBuf::from(dir)
    } else {
        let own = env::current_exe()?;
        let dir = own.parent().context("the running program lies in a folder")?;
        // Test binaries lie one level deeper, in `deps`.
        if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_path_buf() } else { dir.to_path_buf() }
    };
    let path = dir.join(name);
    ensure!(path.is_file(), "`{}` is missing; run `cargo build` first or set HEARTH_BIN_DIR", path.display());
    Ok(path)
}

/// Builds `hearth` and `hearth-agent` beside the running program, with its profile. With `HEARTH_BIN_DIR` set, the
/// programs there are used as they are.
pub async fn build_binaries() -> anyhow::Result<()> {
    if env::var_os("HEARTH_BIN_DIR").is_some() {
        return Ok(());
    }
    let own = env::current_exe()?;
    let profile_dir = own.parent().context("the running program lies in a folder")?;
    let target = profile_dir.parent().context("the profile's folder lies in the target folder")?;
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "--package", "agent", "--package", "builder", "--target-dir"])
        .arg(target);
    command.arg("--manifest-path").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"));
    if profile_dir.ends_with("release") {
        command.arg("--release");
    }
    let output =
        command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("cannot run `cargo`")?;
    ensure!(output.status.success(), "`cargo build` failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Where an agent listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The pull API.
    pub mirror: SocketAddr,
    /// Probes and metrics.
    pub admin: SocketAddr,
}

/// A running `hearth-agent run`. Killed when dropped.
#[derive(Debug)]
pub struct AgentProcess {
    child: Child,
    /// Where it listens.
    pub addresses: Addresses,
    log: Arc<Mutex<Vec<String>>>,
}

impl AgentProcess {
    /// Starts the real binary with this configuration file, which must ask for JSON logs, and waits until it listens.
    pub async fn start(config: &Path) -> anyhow::Result<Self> {
        Self::start_with(config, &[]).await
    }

    /// [`Self::start`] with more variables in its environment.
    pub async fn start_with(config: &Path, environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut command = std::process::Command::new(binary("hearth-agent")?);
        command.args(["run", "--config"]).arg(config).envs(environment.iter().copied());
        Self::start_by(command).await
    }

    /// Starts an agent by a command of one's own (in another namespace, for example).
    pub async fn start_by(command: std::process::Command) -> anyhow::Result<Self> {
        let mut child = Command::from(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start `hearth-agent`")?;
        let stderr = child.stderr.take().context("stderr was piped")?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let (found, listening) = oneshot::channel();
        tokio::spawn(follow(stderr, Arc::clone(&log), found, kept(child.id())?));
        match tokio::time::timeout(START, listening).await {
            Ok(Ok(addresses)) => Ok(Self { child, addresses, log }),
            _ => bail!("`hearth-agent` did not say that it listens; its log:\n{}", join(&log)),
        }
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// What it logged, oldest first, the last few hundred lines.
    pub fn log(&self) -> String {
        join(&self.log)
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("cannot kill `hearth-agent`")
    }

    /// Sends SIGTERM; the process goes on draining.
    pub fn terminate(&self) -> anyhow::Result<()> {
        let id = self.child.id().context("`hearth-agent` has ended already")?;
        let pid =
            i32::try_from(id).ok().and_then(Pid::from_raw).context("a process id is a positive number")?;
        kill_process(pid, Signal::TERM).context("cannot signal `hearth-agent`")
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let status = tokio::time::timeout(STOP, self.child.wait()).await;
        Ok(status
            .with_context(|| format!("`hearth-agent` does not end; its log:\n{}", join(&self.log)))??)
    }
}

fn join(log: &Mutex<Vec<String>>) -> String {
    log.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
}

/// The file for an agent's whole log, where one is wanted.
fn kept(id: Option<u32>) -> anyhow::Result<Option<File>> {
    let Some(directory) = env::var_os(LOGS) else { return Ok(None) };
    let path = Path::new(&directory).join(format!("{}.log", id.unwrap_or_default()));
    File::create(&path).with_context(|| format!("cannot create `{}`", path.display())).map(Some)
}

/// Keeps the last lines of the log, all of them in `kept`, and finds the addresses in it.
async fn follow(
    stderr: ChildStderr,
    log: Arc<Mutex<Vec<String>>>,
    found: oneshot::Sender<Addresses>,
    mut kept: Option<File>,
) {
    let mut found = Some(found);
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(addresses) = listening(&line)
            && let Some(found) = found.take()
        {
            // Nobody waits any more when starting timed out.
            let _ = found.send(addresses);
        }
        if let Some(file) = &mut kept {
            // A full disk must not end the agent, which writes into this pipe.
            let _ = writeln!(file, "{line}");
        }
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == LINES {
            log.remove(0);
        }
        log.push(line);
    }
}

/// Reads the log line with the message `listening`.
fn listening(line: &str) -> Option<Addresses> {
    let parsed: Value = serde_json::from_str(line).ok()?;
    let fields = &parsed["fields"];
    let address = |name: &str| fields[name].as_str()?.parse().ok();
    (fields["message"] == "listening").then_some(())?;
    Some(Addresses { mirror: address("mirror")?, admin: address("admin")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listening_line_gives_the_addresses() {
        let line = r#"{"level":"INFO","fields":{"message":"listening","mirror":"127.0.0.1:1","admin":"127.0.0.1:2"}}"#;
        let expected = Addresses { mirror: ([127, 0, 0, 1], 1).into(), admin: ([127, 0, 0, 1], 2).into() };
        assert_eq!(listening(line), Some(expected));
        assert_eq!(listening(r#"{"fields":{"message":"bound","mirror":"127.0.0.1:1"}}"#), None);
        assert_eq!(listening("panicked at"), None);
    }
}
