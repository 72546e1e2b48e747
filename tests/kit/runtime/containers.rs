//! podman, buildah and skopeo: one library underneath, so one configuration and one storage for the three.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::daemon::unmount_under;
use super::{Finished, Suite, run};

/// As for containerd: a pull takes under a minute.
const LIMIT: Duration = Duration::from_mins(4);

/// Where requests for a registry go first: `<agent>/<registry>/...`, in plain HTTP.
#[derive(Clone, Copy, Debug)]
pub struct Mirror<'a> {
    /// The registry's host as image names say it.
    pub registry: &'a str,
    /// The agent's mirror listener.
    pub agent: SocketAddr,
}

/// The tools with a storage, a home directory and a `registries.conf` of their own.
#[derive(Debug)]
pub struct ContainersTools {
    suite: Suite,
    directory: tempfile::TempDir,
}

impl ContainersTools {
    /// Prepares them; nothing runs yet.
    pub fn new(mirror: Mirror<'_>) -> Result<Self> {
        Self::of(Suite::Own, mirror, None)
    }

    /// The same in another release. `registry` is where the registry itself is, in plain HTTP, when its name leads
    /// nowhere: these clients ask it last.
    pub fn of(suite: Suite, mirror: Mirror<'_>, registry: Option<SocketAddr>) -> Result<Self> {
        let this = Self::without_mirror(suite)?;
        let location = registry.map_or_else(
            || format!("location = \"{}\"\n", mirror.registry),
            |address| format!("location = \"{address}\"\ninsecure = true\n"),
        );
        let Mirror { registry, agent } = mirror;
        fs::write(
            this.path().join("etc/containers/registries.conf"),
            format!(
                "[[registry]]\nprefix = \"{registry}\"\n{location}\n\
                 [[registry.mirror]]\nlocation = \"{agent}/{registry}\"\ninsecure = true\n"
            ),
        )?;
        Ok(this)
    }

    /// The same with a configuration that names no registry yet. What is written to `etc/containers` below their
    /// [path](Self::path) is what they read.
    pub fn without_mirror(suite: Suite) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hearth-containers-").tempdir()?;
        let this = Self { suite, directory };
        let path = this.path();
        let config = path.join("etc/containers");
        fs::create_dir_all(&config)?;
        fs::write(config.join("policy.json"), r#"{ "default": [{ "type": "insecureAcceptAnything" }] }"#)?;
        fs::write(config.join("registries.conf"), "unqualified-search-registries = []\n")?;
        // Looked at first by all three, whatever the machine's own configuration says.
        fs::create_dir(path.join("home"))?;
        std::os::unix::fs::symlink("../etc", path.join("home/.config"))?;
        let storage = path.display();
        fs::write(
            path.join("storage.conf"),
            format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = \"{storage}/graph\"\nrunroot = \"{storage}/run\"\n"
            ),
        )?;
        Ok(this)
    }

    /// Pulls `image` into podman's storage.
    pub async fn podman_pull(&self, image: &str) -> Result<()> {
        self.output("podman", &["pull", "--quiet", image]).await.map(drop)
    }

    /// The digest of `image`'s manifest as podman's storage has it.
    pub async fn podman_digest(&self, image: &str) -> Result<String> {
        let printed = self.output("podman", &["image", "inspect", "--format", "{{.Digest}}", image]).await?;
        Ok(printed.trim().to_owned())
    }

    /// Pulls `image` into buildah's storage.
    pub async fn buildah_pull(&self, image: &str) -> Result<()> {
        self.output("buildah", &["pull", "--quiet", image]).await.map(drop)
    }

    /// The digest of `image`'s manifest as buildah's storage has it.
    pub async fn buildah_digest(&self, image: &str) -> Result<String> {
        let printed = self
            .output("buildah", &["inspect", "--type", "image", "--format", "{{.FromImageDigest}}", image])
            .await?;
        Ok(printed.trim().to_owned())
    }

    /// Copies `image`, blobs as they are, into `name`, a directory with the manifest (`manifest.json`) and each
    /// blob under its hexadecimal digest.
    pub async fn skopeo_copy(&self, image: &str, name: &str) -> Result<PathBuf> {
        let target = self.path().join(name);
        let to = format!("dir:{}", target.display());
        self.output("skopeo", &["copy", "--preserve-digests", &format!("docker://{image}"), &to]).await?;
        Ok(target)
    }

    /// Where the tools keep everything: a place for archives too.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs one of the tools and gives what it printed.
    pub async fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let finished = self.call(program, arguments).await?;
        finished.output().with_context(|| format!("`{program} {}` failed", arguments.join(" ")))
    }

    async fn call(&self, program: &str, arguments: &[&str]) -> Result<Finished> {
        let mut command = self.suite.command(program);
        command.args(arguments);
        self.run(command).await
    }

    /// Runs a program in the environment that the tools have.
    pub async fn run(&self, mut command: Command) -> Result<Finished> {
        let path = self.path();
        self.suite.prepare(&mut command);
        command
            .env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1")
            .env("HOME", path.join("home"))
            .env("XDG_CONFIG_HOME", path.join("home/.config"))
            .env("XDG_RUNTIME_DIR", path.join("home"))
            .env("XDG_DATA_HOME", path.join("home/.local"))
            .env("TMPDIR", path)
            .env_remove("CONTAINERS_REGISTRIES_CONF")
            .env("CONTAINERS_STORAGE_CONF", path.join("storage.conf"))
            .env_remove("REGISTRY_AUTH_FILE");
        run(command, LIMIT).await
    }
}

impl Drop for ContainersTools {
    fn drop(&mut self) {
        // The overlay driver leaves its own directory mounted on itself.
        unmount_under(self.path());
    }
}
