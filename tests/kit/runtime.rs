//! Real parts, each started by the test that needs it: containerd, podman, buildah, skopeo and `docker-registry`.
//!
//! Every part has its own root, state and socket under a temporary directory and talks to loopback only. Dropping
//! it ends its processes by their ids, takes back its mounts and removes the directory; a part that cannot be
//! started says what it complained about. Nothing of the machine's own containerd or podman is read or touched.
//!
//! ```text
//! Containerd      its own daemon: `hosts.toml`, pulls by ctr and by CRI, containers under runc
//! ContainersTools podman, buildah and skopeo with one `registries.conf` and one storage
//! Dockerd         a Docker daemon of its own, for pulls
//! DockerRegistry  the reference registry on a storage directory
//! S3              a server that speaks S3
//! CountingProxy   in front of a registry: what was asked of it, when its bytes left, at what pace
//! ```
//!
//! The clients come in the machine's own release and, by [`Suite`], in those that `tests/runtimes.sh` unpacks.

mod containerd;
mod containers;
mod counting;
mod daemon;
mod docker_registry;
mod dockerd;
mod s3;
mod suite;

pub use containerd::Containerd;
pub use containers::{ContainersTools, Mirror};
pub use counting::{CountingProxy, Exchange};
pub use daemon::{Daemon, Finished, run};
pub use docker_registry::{DockerRegistry, Login};
pub use dockerd::Dockerd;
pub use s3::S3;
pub use suite::Suite;

/// Which of `programs` are not on this machine's path.
pub fn missing<'a>(programs: &[&'a str]) -> Vec<&'a str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<_> = std::env::split_paths(&path).collect();
    programs
        .iter()
        .copied()
        .filter(|program| !directories.iter().any(|directory| directory.join(program).is_file()))
        .collect()
}
