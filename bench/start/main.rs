//! What `cargo demo` starts: it says what the demonstration costs before any of that is spent, lets `tests/setup` install
//! missing programs, builds everything in one compilation, and hands over to the demonstration.

use std::{
    env, fs,
    io::{self, IsTerminal, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// One command builds all three programs: cargo would compile what they share once for each set of features.
const BUILD: [&str; 15] = [
    "build",
    "--profile",
    "demo",
    "--package",
    "agent",
    "--package",
    "builder",
    "--package",
    "bench",
    "--bin",
    "hearth-agent",
    "--bin",
    "hearth",
    "--bin",
    "demo",
];

/// Something that is downloaded and done once per machine.
#[derive(Clone, Copy, Debug)]
struct Part {
    what: &'static str,
    megabytes: u32,
    /// On two cores.
    seconds: u32,
}

/// Measured in a root file system that has only Rust, with a fast network.
const PROGRAMS: Part =
    Part { what: "Debian packages, crates and their compilation", megabytes: 200, seconds: 480 };
const BASE: Part = Part { what: "a base root file system with Java and Python", megabytes: 120, seconds: 60 };
const SPARKS: Part = Part { what: "two Sparks", megabytes: 640, seconds: 60 };
/// The demonstration itself.
const RUN: u32 = 100;

/// What the demonstration costs while `missing` is not here yet.
fn cost(missing: &[Part]) -> String {
    let seconds: u32 = RUN + missing.iter().map(|part| part.seconds).sum::<u32>();
    let time = format!("cargo demo takes about {} minutes on two cores", seconds.div_ceil(60));
    if missing.is_empty() {
        return format!("{time} and downloads nothing.");
    }
    let megabytes: u32 = missing.iter().map(|part| part.megabytes).sum();
    let names: Vec<_> = missing.iter().map(|part| part.what).collect();
    format!("{time} this time and downloads about {megabytes} MB: {}.", names.join("; "))
}

/// What earlier runs have not left here.
fn missing(demo: &Path, fixtures: &Path) -> Vec<Part> {
    let names: Vec<String> = fs::read_dir(fixtures)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let count = |start: &str, end: &str| {
        names.iter().filter(|name| name.starts_with(start) && name.ends_with(end)).count()
    };
    [
        (PROGRAMS, demo.is_file()),
        (BASE, count("base-", ".tar") > 0),
        (SPARKS, count("pyspark-", ".tar.gz") > 1),
    ]
    .into_iter()
    .filter_map(|(part, here)| (!here).then_some(part))
    .collect()
}

/// Nobody waits for a compilation to read this.
const HELP: &str = "\
Builds two real Spark images and pulls them through three agents

Usage: cargo demo [--keep]

Options:
      --keep  Leave the registry and the agents running at the end until Ctrl-C, and print their addresses
  -h, --help  Print help";

fn main() -> ExitCode {
    if env::args_os().skip(1).any(|argument| argument == "--help" || argument == "-h") {
        let _ = writeln!(io::stdout(), "{HELP}");
        return ExitCode::SUCCESS;
    }
    match start() {
        Ok(never) => match never {},
        Err(reason) => {
            // Nothing is left to do when even standard error is closed.
            let _ = writeln!(io::stderr(), "demo failed: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Returns only when the demonstration could not be started, with the reason.
fn start() -> Result<std::convert::Infallible, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let own = env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    // `<target>/debug/start`.
    let target = own.parent().and_then(Path::parent).ok_or("this program lies in no target directory")?;
    let demo = target.join("demo/demo");
    let fixtures = env::var_os("HEARTH_FIXTURES").filter(|value| !value.is_empty());
    let fixtures = fixtures.map_or_else(|| PathBuf::from("/var/tmp/hearth-fixtures"), PathBuf::from);
    // A reader that went away (`cargo demo | head`) is no reason to fail.
    let _ = writeln!(io::stdout(), "{}", cost(&missing(&demo, &fixtures)));

    run(Command::new("bash").arg(root.join("tests/setup")).arg("demo"))?;
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(BUILD).arg("--manifest-path").arg(root.join("Cargo.toml"));
    if !io::stderr().is_terminal() {
        build.arg("--quiet");
    }
    run(&mut build)?;
    let error = Command::new(&demo).args(env::args_os().skip(1)).exec();
    Err(format!("cannot start `{}`: {error}", demo.display()))
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|error| format!("cannot run `{name}`: {error}"))?;
    status.success().then_some(()).ok_or_else(|| format!("`{name}` ended with {status}; it says why above"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_that_of_what_is_missing() {
        assert_eq!(cost(&[]), "cargo demo takes about 2 minutes on two cores and downloads nothing.");
        let part = |what, megabytes, seconds| Part { what, megabytes, seconds };
        assert_eq!(
            cost(&[part("packages", 100, 200), part("a base", 20, 60)]),
            "cargo demo takes about 6 minutes on two cores this time and downloads about 120 MB: packages; a base."
        );
    }

    #[test]
    fn what_an_earlier_run_left_is_not_missing() {
        let directory = env::temp_dir().join(format!("hearth-start-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("writable");
        let names = |directory: &Path| {
            missing(&directory.join("demo"), directory).iter().map(|part| part.megabytes).collect::<Vec<_>>()
        };
        assert_eq!(names(&directory), [PROGRAMS, BASE, SPARKS].map(|part| part.megabytes));
        for name in ["demo", "base-bookworm-1.tar", "pyspark-1.tar.gz", ".pyspark-2.tar.gz.partial"] {
            fs::write(directory.join(name), "").expect("writable");
        }
        assert_eq!(names(&directory), [SPARKS.megabytes], "one of two");
        fs::write(directory.join("pyspark-2.tar.gz"), "").expect("writable");
        assert_eq!(names(&directory), [0; 0]);
        fs::remove_dir_all(&directory).expect("removable");
    }
}
