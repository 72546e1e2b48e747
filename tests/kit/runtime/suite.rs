//! Which release of a runtime: the machine's own, or one of another suite of Debian that `tests/runtimes.sh` unpacked.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::run;
use crate::fixtures;

/// A suite's versions move: what a test needs to know of one, it reads from the program ([`Suite::version`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// What is on the machine's path.
    Own,
    /// Debian 13.
    Trixie,
    /// Debian's newest.
    Sid,
}

impl Suite {
    /// Its name, except of the machine's own.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Own => None,
            Self::Trixie => Some("trixie"),
            Self::Sid => Some("sid"),
        }
    }

    /// Where an unpacked suite lies.
    fn directory(self) -> Option<PathBuf> {
        self.name().map(|name| fixtures::directory().join("runtimes").join(name))
    }

    /// A command of one of its programs, which finds the suite's other programs too.
    pub fn command(self, program: &str) -> Command {
        let unpacked = self.directory().map(|directory| directory.join("bin").join(program));
        let mut command = Command::new(unpacked.unwrap_or_else(|| program.into()));
        self.prepare(&mut command);
        command
    }

    /// Lets any command find the suite's programs before the machine's own.
    pub fn prepare(self, command: &mut Command) {
        let Some(directory) = self.directory() else { return };
        let mut path = OsString::from(directory.join("bin"));
        path.push(":");
        path.push(env::var_os("PATH").unwrap_or_default());
        command.env("PATH", path);
        // podman looks for netavark in fixed places otherwise, also when it only pulls.
        command.env("CONTAINERS_HELPER_BINARY_DIR", directory.join("helpers"));
    }

    /// Major and minor version of one of its programs, by `--version`.
    pub async fn version(self, program: &str) -> Result<(u32, u32)> {
        let mut command = self.command(program);
        command.arg("--version");
        let printed = run(command, Duration::from_secs(20)).await?.output()?;
        version_in(&printed).with_context(|| format!("`{program} --version` prints no version: {printed}"))
    }
}

/// The first word of the form `1.2...` or `v1.2...`.
fn version_in(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_programs_print() {
        for (printed, expected) in [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", Some((1, 6))),
            ("containerd github.com/containerd/containerd/v2 2.1.9+unknown \n", Some((2, 1))),
            ("Docker version 28.5.2+dfsg4, build 3ef3c07c", Some((28, 5))),
            ("buildah version 1.43.2 (image-spec 1.1.1, runtime-spec 1.2.1)", Some((1, 43))),
            ("containerd v1.7.0 abc", Some((1, 7))),
            ("nothing of the kind", None),
        ] {
            assert_eq!(version_in(printed), expected, "{printed}");
        }
    }
}
