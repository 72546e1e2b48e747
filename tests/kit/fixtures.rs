//! Real inputs for tests and the demo, made once per machine: a root file system with Java and Python, and the
//! source distribution of a Spark.
//!
//! They lie in `$HEARTH_FIXTURES` (default `/var/tmp/hearth-fixtures`), outside every checkout:
//!
//! ```text
//! base-<key>.tar            <key>: digest of everything that decides what is in it but the packages' versions
//! pyspark-<version>.tar.gz  as the index has it, checked against the hash that the index states
//! .<name>.lock              held while <name> is made
//! .<name>.partial           not yet whole; a kill leaves it behind and the next run starts from it or replaces it
//! ```
//!
//! A file under its final name is whole: it was written aside, checked, and renamed. Two processes that want the
//! same one make it once.
//!
//! Nothing here names a package server. Where packages come from is what the machine is configured for: apt's
//! sources, and uv's or else pip's index settings.

mod debian;
mod python;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

pub use self::python::requires_python;

/// A minimal Debian root file system (an uncompressed tar) with Java 17, Python 3.11, tini, procps, bash and
/// nss_wrapper, as `hearth build` takes it for `base: { rootfs: ... }`.
///
/// Made with `mmdebstrap`, which needs root and about a minute; a file made before is used by anyone.
pub fn base_rootfs() -> Result<PathBuf> {
    once(&debian::file_name(), debian::make).context("failed to make the base root file system")
}

/// The source distribution of pyspark `version` (about 320 MB for the 3.5 line), downloaded once.
pub fn pyspark(version: &str) -> Result<PathBuf> {
    once(&format!("pyspark-{version}.tar.gz"), |partial, _| python::download("pyspark", version, partial))
        .with_context(|| format!("failed to obtain the source distribution of pyspark {version}"))
}

/// The directory of the fixtures.
pub fn directory() -> PathBuf {
    std::env::var_os("HEARTH_FIXTURES")
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from("/var/tmp/hearth-fixtures"), PathBuf::from)
}

/// The whole file `name`; when it is not there, `make` writes it to the path it is given. It is also given the lock:
/// a child process that has it too keeps others out for as long as it writes, even when this process is killed.
fn once(name: &str, make: impl FnOnce(&Path, &File) -> Result<()>) -> Result<PathBuf> {
    once_in(&directory(), name, make)
}

fn once_in(directory: &Path, name: &str, make: impl FnOnce(&Path, &File) -> Result<()>) -> Result<PathBuf> {
    let whole = directory.join(name);
    if whole.is_file() {
        return Ok(whole);
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot create `{}`", directory.display()))?;
    let lock_path = directory.join(format!(".{name}.lock"));
    let lock = File::create(&lock_path).with_context(|| format!("cannot open `{}`", lock_path.display()))?;
    // Waits for another process that makes the same file; the kernel drops its lock however it ends.
    lock.lock().with_context(|| format!("cannot lock `{}`", lock_path.display()))?;
    if whole.is_file() {
        return Ok(whole);
    }
    let partial = directory.join(format!(".{name}.partial"));
    make(&partial, &lock)?;
    File::open(&partial)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&partial, &whole))
        .with_context(|| format!("cannot put `{}` in place", whole.display()))?;
    Ok(whole)
}

/// Runs `command` to its end and returns what it printed; a failure carries the end of what it complained about.
fn run(command: &mut std::process::Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run `{name}`"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = complaint.trim().lines().collect();
    let tail = lines[lines.len().saturating_sub(15)..].join("\n");
    anyhow::bail!("`{name}` ended with {}:\n{tail}", output.status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_fixture_that_several_want_at_once_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let made = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let path = once_in(directory.path(), "thing", |partial, _| {
                        made.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok(fs::write(partial, "whole")?)
                    });
                    assert_eq!(fs::read_to_string(path.unwrap()).unwrap(), "whole");
                });
            }
        });
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_fixture_that_could_not_be_made_is_not_there_and_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let failed = once_in(directory.path(), "thing", |partial, _| {
            fs::write(partial, "half")?;
            anyhow::bail!("killed")
        });
        assert_eq!(failed.unwrap_err().to_string(), "killed");
        assert!(!directory.path().join("thing").exists());
        let path = once_in(directory.path(), "thing", |partial, _| Ok(fs::write(partial, "whole")?)).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "whole");
    }
}
