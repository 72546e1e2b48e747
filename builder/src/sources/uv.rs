//! Runs the user's `uv`, which knows the user's indexes, credentials, mirrors and certificates.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{elf::Libc, wheels::marker::Environment};
use crate::fetch::pip;

/// A resolver that answers at all answers within this time.
const TIMEOUT: Duration = Duration::from_mins(3);

/// A file in the scratch directory.
const OVERRIDES: &str = "overrides.txt";

/// Another one; uv knows the format by its name.
const OUTPUT: &str = "pylock.toml";

/// Another one: uv reads here for which environments it is to resolve.
const PROJECT: &str = "pyproject.toml";

/// Why uv is of no help.
#[derive(Debug, thiserror::Error)]
pub enum UvError {
    /// It cannot be started.
    #[error("cannot run `uv`, which finds Python packages: install it (`pip install uv`)")]
    NoUv(#[source] std::io::Error),
    /// Its directory cannot be written.
    #[error("cannot write a scratch directory for uv")]
    Scratch(#[source] std::io::Error),
    /// It takes too long.
    #[error("`uv` did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// It says no.
    #[error("`uv` says: {0}")]
    Refused(String),
    /// The requirements point to other files, which nobody would watch for changes.
    #[error("`{0}` is not supported in requirements: write everything into one file")]
    Option(String),
}

/// Runs uv to its end; `offline`: on what its own cache has.
pub async fn run(directory: &Path, arguments: &[&str], offline: bool) -> Result<Output, UvError> {
    with_input(directory, arguments, "", offline).await
}

async fn with_input(
    directory: &Path,
    arguments: &[&str],
    input: &str,
    offline: bool,
) -> Result<Output, UvError> {
    let mut command = Command::new("uv");
    command.args(arguments).current_dir(directory).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if offline {
        command.env("UV_OFFLINE", "1");
    }
    if let Some(index) = pip::index().await {
        command.env("UV_DEFAULT_INDEX", index);
    }
    let mut child = command.spawn().map_err(UvError::NoUv)?;
    let stdin = child.stdin.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // uv closes its end early when it has read enough to refuse.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(TIMEOUT, both).await.map_err(|_| UvError::Timeout)?;
    output.map_err(UvError::NoUv)
}

/// Locks requirements and gives the lock in the format of `pylock.toml`. For one environment uv takes what its C library
/// can load; for several the lock has markers, and a wheel for each may be missing. Of a package in `preferred` (name and
/// version) that version is taken, unless the requirements rule it out.
pub async fn compile(
    requirements: &str,
    environments: &[&Environment],
    preferred: &BTreeMap<String, String>,
    offline: bool,
) -> Result<String, UvError> {
    let option = requirements.lines().map(str::trim_start).find(|line| {
        ["-r", "-c", "-e", "--requirement", "--constraint", "--editable"]
            .iter()
            .any(|option| line.starts_with(option))
    });
    if let Some(line) = option {
        return Err(UvError::Option(line.trim().to_owned()));
    }
    let scratch = tempfile::tempdir().map_err(UvError::Scratch)?;
    // PySpark is in the image already, and there is no wheel of it: never mind who needs it.
    std::fs::write(scratch.path().join(OVERRIDES), "pyspark ; sys_platform == 'never'\n")
        .map_err(UvError::Scratch)?;
    // uv prefers the versions of the output file of an earlier run, and refuses one without packages.
    let output_file = scratch.path().join(OUTPUT);
    if !preferred.is_empty() {
        std::fs::write(&output_file, earlier(preferred)).map_err(UvError::Scratch)?;
    }
    let mut arguments: Vec<String> = ARGUMENTS.map(str::to_owned).to_vec();
    let oldest = environments.iter().map(|environment| &environment.python).min();
    arguments.extend(oldest.iter().flat_map(|python| ["--python-version".to_owned(), python.to_string()]));
    if let [environment] = environments {
        arguments.extend(["--python-platform".to_owned(), target(environment)]);
    } else {
        arguments.push("--universal".to_owned());
        std::fs::write(scratch.path().join(PROJECT), project(environments)).map_err(UvError::Scratch)?;
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = with_input(scratch.path(), &arguments, requirements, offline).await?;
    if !output.status.success() {
        return Err(UvError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    std::fs::read_to_string(output_file).map_err(UvError::Scratch)
}

/// What every resolution is run with. Only wheels: building a package runs its code on this machine.
const ARGUMENTS: [&str; 13] = [
    "pip",
    "compile",
    "-",
    "--quiet",
    "--no-header",
    "--no-annotate",
    "--format",
    "pylock.toml",
    "--output-file",
    OUTPUT,
    "--override",
    OVERRIDES,
    "--only-binary=:all:",
];

/// A project without anything but the environments that uv is to resolve for.
fn project(environments: &[&Environment]) -> String {
    let markers: BTreeSet<String> = environments.iter().map(|environment| environment.marker()).collect();
    let lines: Vec<String> = markers.into_iter().map(|marker| format!("    \"{marker}\"")).collect();
    format!("[tool.uv]\nenvironments = [\n{}\n]\n", lines.join(",\n"))
}

/// A lock that names versions and nothing else.
fn earlier(preferred: &BTreeMap<String, String>) -> String {
    let mut text = "lock-version = \"1.0\"\ncreated-by = \"hearth\"\n".to_owned();
    for (name, version) in preferred {
        text = format!("{text}\n[[packages]]\nname = \"{name}\"\nversion = \"{version}\"\n");
    }
    text
}

/// The platform as uv names it. uv knows some versions of glibc only: the newest that the image has is taken.
fn target(environment: &Environment) -> String {
    const KNOWN: [u32; 12] = [17, 28, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40];
    let machine = environment.platform.machine();
    match environment.libc {
        Libc::Musl(..) => format!("{machine}-unknown-linux-musl"),
        Libc::Glibc(_, minor) => {
            let newest = KNOWN.into_iter().rev().find(|known| *known <= minor).unwrap_or(KNOWN[0]);
            format!("{machine}-manylinux_2_{newest}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::platform::Platform;

    fn environment(libc: Libc) -> Environment {
        Environment { python: "3.11".parse().unwrap(), platform: Platform::Amd64, libc }
    }

    /// A directory with two versions of one wheel.
    fn wheels() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for version in ["1.0", "1.1"] {
            let path = directory.path().join(format!("alpha-{version}-py3-none-any.whl"));
            let mut wheel = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
            let options =
                zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
            for (name, text) in [
                ("METADATA", format!("Metadata-Version: 2.1\nName: alpha\nVersion: {version}\n")),
                ("WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n".to_owned()),
                ("RECORD", String::new()),
            ] {
                wheel.start_file(format!("alpha-{version}.dist-info/{name}"), options).unwrap();
                wheel.write_all(text.as_bytes()).unwrap();
            }
            wheel.finish().unwrap();
        }
        directory
    }

    #[test]
    fn locked_versions_are_kept_while_the_requirements_allow_it() {
        let directory = wheels();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let locked = |requirement: &str, preferred: &[(&str, &str)]| {
            let find = directory.path().display();
            let text = format!("--no-index\n--find-links {find}\n{requirement}\n");
            let preferred =
                preferred.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
            let environment = environment(Libc::Glibc(2, 28));
            runtime.block_on(compile(&text, &[&environment], &preferred.collect(), false))
        };
        let newest = match locked("alpha", &[]) {
            // Machines without uv cannot run this test, nor lock Python packages.
            Err(UvError::NoUv(_)) => return,
            other => other.unwrap(),
        };
        assert!(newest.contains("version = \"1.1\""), "{newest}");
        let kept = locked("alpha", &[("alpha", "1.0")]).unwrap();
        assert!(kept.contains("version = \"1.0\""), "{kept}");
        let moved = locked("alpha>1.0", &[("alpha", "1.0")]).unwrap();
        assert!(moved.contains("version = \"1.1\""), "{moved}");
    }

    #[test]
    fn uv_is_asked_for_the_c_library_of_the_image() {
        for (libc, expected) in [
            (Libc::Glibc(2, 36), "x86_64-manylinux_2_36"),
            (Libc::Glibc(2, 30), "x86_64-manylinux_2_28"),
            (Libc::Glibc(2, 50), "x86_64-manylinux_2_40"),
            (Libc::Glibc(2, 12), "x86_64-manylinux_2_17"),
            (Libc::Musl(1, 2), "x86_64-unknown-linux-musl"),
        ] {
            assert_eq!(target(&environment(libc)), expected);
        }
    }
}
