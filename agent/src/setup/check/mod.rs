//! Proves that requests reach the agent: each runtime pulls, by its own means, an image that only the agent has
//! ([`Probe`]). The image is removed afterwards.
//!
//! | runtime | pulls through |
//! | --- | --- |
//! | containerd, k3s, RKE2 | CRI on its socket |
//! | CRI-O | CRI on its socket; else podman, else skopeo, which read the same configuration |
//! | Docker | its API on its socket |

mod docker;
mod image;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

pub use image::{Probe, ProbeError};
use tokio::process::Command;

use super::Runtime;
use crate::{
    runtime::{self, RuntimeError},
    types::{ImageName, RegistryPattern},
};

/// Longest time for a pull of a few hundred bytes. A runtime that does not reach the agent uses the registry, and
/// some retry that.
const LIMIT: Duration = Duration::from_mins(2);

/// Most bytes of a program's output in an error.
const MOST_SAID: usize = 2000;

/// Why a runtime did not get the image.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Error of a CRI runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Docker's socket does not answer.
    #[error("Docker does not answer at `{}`: {what}", socket.display())]
    Unreachable {
        /// Path of the socket.
        socket: PathBuf,
        /// The cause.
        what: String,
    },
    /// The runtime returned an error.
    #[error("{0}")]
    Refused(String),
    /// There is no way to run the check.
    #[error("{0}")]
    NoWay(String),
    /// The check timed out.
    #[error("no answer within {LIMIT:?}")]
    TimedOut,
}

/// How a runtime is called.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Cri(PathBuf),
    Docker(PathBuf),
    Program(&'static str),
}

/// A registry for which the runtime uses the agent, if there is one. Pure.
pub fn registry(runtime: Runtime, registries: &[RegistryPattern]) -> Option<String> {
    const HUB: &str = "docker.io";
    let mut found = registries.iter().filter_map(|pattern| match pattern {
        RegistryPattern::Exact(host) => Some(host.to_string()),
        RegistryPattern::Any => Some(HUB.to_owned()),
        // Any name below it: where this name exists, only the mirror is requested.
        RegistryPattern::Under(_) if runtime == Runtime::Crio => {
            pattern.to_string().strip_prefix('*').map(|domain| format!("hearth-check{domain}"))
        }
        RegistryPattern::Under(_) => None,
    });
    // Docker uses mirrors for one registry only.
    found.find(|name| runtime != Runtime::Docker || name == HUB)
}

/// Pulls the image with the runtime, and removes it again. `socket` is the user's path of its socket.
pub async fn pull(
    runtime: Runtime,
    root: &Path,
    socket: Option<&Path>,
    image: &ImageName,
) -> Result<(), CheckError> {
    let on_path = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    };
    let chosen = way(runtime, root, socket, Path::exists, on_path)?;
    let pulled = async {
        match &chosen {
            Way::Cri(socket) => by_cri(&runtime::Runtime::new(socket), image).await,
            Way::Docker(socket) => by_docker(socket, image).await,
            Way::Program(program) => by_program(program, image).await,
        }
    };
    tokio::time::timeout(LIMIT, pulled).await.map_err(|_| CheckError::TimedOut)?
}

fn way(
    runtime: Runtime,
    root: &Path,
    socket: Option<&Path>,
    exists: impl Fn(&Path) -> bool,
    on_path: impl Fn(&str) -> bool,
) -> Result<Way, CheckError> {
    let usual = match runtime {
        Runtime::Containerd => runtime::SOCKETS[0],
        Runtime::K3s | Runtime::Rke2 => runtime::SOCKETS[1],
        Runtime::Crio => runtime::SOCKETS[2],
        Runtime::Docker => "/run/docker.sock",
    };
    let place = socket.map_or_else(|| root.join(usual.trim_start_matches('/')), Path::to_owned);
    let named = socket.is_some();
    if runtime == Runtime::Docker {
        return Ok(Way::Docker(place));
    }
    if runtime != Runtime::Crio || named || exists(&place) {
        return Ok(Way::Cri(place));
    }
    if root != Path::new("/") {
        let what =
            format!("CRI-O does not listen at `{}`: run the check directly on the node", place.display());
        return Err(CheckError::NoWay(what));
    }
    let program = ["podman", "skopeo"].into_iter().find(|program| on_path(program));
    program.map(Way::Program).ok_or_else(|| {
        CheckError::NoWay(format!(
            "found neither CRI-O at `{}` nor podman nor skopeo: give CRI-O's socket with --socket",
            place.display()
        ))
    })
}

/// Pulls the image over CRI, and removes it again. The caller limits the time.
pub async fn by_cri(runtime: &runtime::Runtime, image: &ImageName) -> Result<(), CheckError> {
    let image = image.to_string();
    runtime.pull(&image, None).await?;
    Ok(runtime.remove(&image).await?)
}

async fn by_docker(socket: &Path, image: &ImageName) -> Result<(), CheckError> {
    let (repository, tag) = (image.repository.to_string(), image.reference().to_string());
    docker::pull(socket, &repository, &tag).await?;
    docker::remove(socket, &repository, &tag).await
}

/// Uses a temporary storage. Not below `$TMPDIR`: podman before 5.1 rejects a run root with more than 50 characters.
async fn by_program(program: &str, image: &ImageName) -> Result<(), CheckError> {
    let home = tempfile::tempdir_in("/tmp")
        .map_err(|error| CheckError::NoWay(format!("cannot create a temporary directory: {error}")))?;
    let mut command = Command::new(program);
    match program {
        "podman" => command
            .arg("--root")
            .arg(home.path().join("root"))
            .arg("--runroot")
            .arg(home.path().join("run"))
            .args(["--storage-driver", "vfs", "pull", "--quiet", &image.to_string()]),
        _ => command
            .args(["copy", &format!("docker://{image}")])
            .arg(format!("dir:{}", home.path().join("copy").display())),
    };
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.map_err(|error| CheckError::NoWay(format!("cannot run `{program}`: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().take(MOST_SAID).collect();
    Err(CheckError::Refused(format!("`{program}` failed: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_chosen_for_which_the_runtime_uses_the_agent() {
        for (runtime, registries, expected) in [
            (Runtime::Containerd, &["r.test:5000", "docker.io"][..], Some("r.test:5000")),
            (Runtime::Docker, &["r.test", "docker.io"], Some("docker.io")),
            (Runtime::Docker, &["r.test"], None),
            (Runtime::Docker, &["*"], Some("docker.io")),
            (Runtime::K3s, &["*.r.test"], None),
            (Runtime::Crio, &["*.r.test"], Some("hearth-check.r.test")),
        ] {
            let patterns: Vec<_> = registries.iter().map(|name| name.parse().unwrap()).collect();
            assert_eq!(registry(runtime, &patterns).as_deref(), expected, "{runtime:?} {registries:?}");
        }
    }

    #[test]
    fn each_runtime_is_called_at_its_socket() {
        let root = Path::new("/");
        let found = |runtime, root, socket: Option<&str>, there: bool, program: &str| {
            way(runtime, root, socket.map(Path::new), |_| there, |name| name == program).ok()
        };
        let cri = |path: &str| Some(Way::Cri(path.into()));
        assert_eq!(found(Runtime::Containerd, root, None, false, ""), cri("/run/containerd/containerd.sock"));
        assert_eq!(
            found(Runtime::Rke2, Path::new("/host"), None, true, ""),
            cri("/host/run/k3s/containerd/containerd.sock")
        );
        assert_eq!(found(Runtime::Crio, root, None, true, "podman"), cri("/run/crio/crio.sock"));
        assert_eq!(found(Runtime::Crio, root, None, false, "podman"), Some(Way::Program("podman")));
        assert_eq!(found(Runtime::Crio, root, None, false, "skopeo"), Some(Way::Program("skopeo")));
        assert_eq!(found(Runtime::Crio, root, None, false, ""), None);
        assert_eq!(found(Runtime::Crio, Path::new("/host"), None, false, "podman"), None);
        assert_eq!(found(Runtime::Crio, root, Some("/x"), false, ""), cri("/x"));
        assert_eq!(
            found(Runtime::Docker, root, None, true, ""),
            Some(Way::Docker("/run/docker.sock".into()))
        );
    }
}
