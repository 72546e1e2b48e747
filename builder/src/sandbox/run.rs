//! Starts a program in a sandbox and waits for it.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Read},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{
    error::{SUBCOMMAND, SandboxError},
    root::Root,
};

/// What is kept of each output: its end.
const OUTPUT: usize = 256 << 10;

/// Lines of standard error that a failure cites.
const CITED: usize = 4;

/// A program of the image.
#[derive(Debug)]
pub struct Job<'a> {
    /// What it is for, in words: `compiling Python files`.
    pub what: &'a str,
    /// The program, by its path in the image, and its arguments.
    pub command: &'a [&'a str],
    /// Its environment: nothing else is in it.
    pub env: &'a BTreeMap<String, String>,
    /// How long it may take.
    pub limit: Duration,
    /// Whether addresses are the same each time, where this machine allows it: what Java archives has some in it.
    pub fixed_addresses: bool,
}

/// What a program printed: the end of each, when there was more than `OUTPUT`.
#[derive(Debug)]
pub struct Ran {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Root {
    /// Runs a program to its end. It must succeed.
    pub fn run(&self, job: &Job<'_>) -> Result<Ran, SandboxError> {
        let failed = |why: String| SandboxError::Failed(why);
        let hearth = std::env::current_exe()
            .map_err(|error| failed(format!("the program `hearth` cannot be found again: {error}")))?;
        // The child's search path is that of the image.
        let unshare = on_path("unshare")
            .ok_or_else(|| failed("`unshare` (util-linux) is not installed on this machine".to_owned()))?;
        let mut command = match fixed_addresses().filter(|_| job.fixed_addresses) {
            Some(setarch) => {
                let mut command = Command::new(setarch);
                command.arg("--addr-no-randomize").arg(unshare);
                command
            }
            None => Command::new(unshare),
        };
        command
            .args(["--user", "--map-root-user", "--mount", "--pid", "--net", "--ipc", "--uts"])
            .args(["--fork", "--kill-child", "--"])
            .arg(hearth)
            .arg(SUBCOMMAND)
            .arg(self.path(""))
            .arg("--")
            .args(job.command)
            .env_clear()
            .envs(job.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn();
        let mut child = child.map_err(|error| failed(format!("`unshare` cannot be started: {error}")))?;
        let outputs = [drain(child.stdout.take()), drain(child.stderr.take())];
        let status = wait(&mut child, job.limit);
        let [stdout, stderr] = outputs.map(|output| output.join().unwrap_or_default());
        let status = status.map_err(|error| failed(format!("it cannot be waited for: {error}")))?;
        match status {
            Some(status) if status.success() => Ok(Ran { stdout, stderr }),
            Some(status) => Err(failed(reason(job, status, &stderr))),
            None => Err(failed(format!(
                "{} took more than {} s and was stopped{}",
                job.what,
                job.limit.as_secs(),
                cited(&stderr)
            ))),
        }
    }
}

/// `setarch` (util-linux), if it may switch off that addresses are random; some containers forbid it.
fn fixed_addresses() -> Option<PathBuf> {
    let setarch = on_path("setarch")?;
    let mut command = Command::new(&setarch);
    command.arg("--addr-no-randomize").arg(&setarch).arg("--version");
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success()).then_some(setarch)
}

/// A program of this machine.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|place| place.is_file())
}

/// Waits within the limit; `None` when the child had to be killed. Everything in its PID namespace ends with it.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn reason(job: &Job<'_>, status: ExitStatus, stderr: &str) -> String {
    let program = job.command.first().copied().unwrap_or_default();
    format!("{} failed: `{program}` ended with {status}{}", job.what, cited(stderr))
}

/// The last lines of what a program complained about.
fn cited(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(CITED)..].join("; ");
    if last.is_empty() { last } else { format!(": {last}") }
}

/// Reads an output to its end, so that its writer never waits, and keeps the last bytes.
fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut kept: VecDeque<u8> = VecDeque::new();
        let mut buffer = [0; 16 << 10];
        if let Some(mut pipe) = pipe {
            while let Ok(count) = pipe.read(&mut buffer) {
                if count == 0 {
                    break;
                }
                kept.extend(&buffer[..count]);
                kept.drain(..kept.len().saturating_sub(OUTPUT));
            }
        }
        String::from_utf8_lossy(kept.make_contiguous()).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_runs_on_is_stopped() {
        let mut endless = Command::new("sleep").arg("600").spawn().unwrap();
        assert!(wait(&mut endless, Duration::from_millis(20)).unwrap().is_none());
        assert!(endless.try_wait().unwrap().is_some(), "it has ended");
        let mut short = Command::new("true").spawn().unwrap();
        assert!(wait(&mut short, Duration::from_mins(1)).unwrap().is_some_and(|status| status.success()));
    }

    #[test]
    fn only_the_end_of_an_output_is_kept_and_cited() {
        let mut long = "x".repeat(2 * OUTPUT).into_bytes();
        long.extend(b"end");
        let kept = drain(Some(io::Cursor::new(long))).join().unwrap();
        assert_eq!((kept.len(), kept.ends_with("xend")), (OUTPUT, true));
        assert_eq!(cited("a\nb\n\nc\nd\ne  \n"), ": b; c; d; e");
        assert_eq!(cited("\n"), "");
    }
}
