//! Crashes at any step, for real: a build runs under `strace`, which kills it with SIGKILL before its n-th write, sync,
//! rename, link, ..., for every n. Whatever has a name in the cache and in the output must be whole then, and the next
//! build must come to the same images.
//!
//! One crash in four is tried by default, other ones in every run; `HEARTH_SEED` repeats a choice, and with `HEARTH_CRASHES=all`
//! (`tests/run --all`) none is left out.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use flate2::{Compression, write::GzEncoder};
use kit::{process::binary, registry::random_bytes, registry::sha256, runtime::missing};
use serde_json::Value;

use kit::build_fixture::{Archive, Fixture, finish, report, skipped};

/// Calls that change a directory or a file.
const CALLS: [&str; 8] = ["rename", "fsync", "write", "linkat", "unlink", "fchmod", "mkdir", "ftruncate"];

/// A Spark that is as small as a Spark can be, with one file that is compressed for itself.
fn small() -> Fixture {
    let fixture = Fixture::new();
    let out = fs::File::create(fixture.path("pyspark-3.5.9.tar.gz")).expect("writable");
    let mut archive = Archive::new(GzEncoder::new(out, Compression::fast()));
    for path in ["deps/bin/spark-submit", "deps/bin/spark-class", "lib/pyspark.zip", "lib/py4j-1-src.zip"] {
        archive.file(&format!("pyspark-3.5.9/{path}"), 0o755, b"x");
    }
    for path in ["pyspark/__init__.py", "deps/jars/spark-kubernetes_2.12-3.5.9.jar"] {
        archive.file(&format!("pyspark-3.5.9/{path}"), 0o644, b"x");
    }
    let jar = random_bytes(1, 40_000);
    archive.file("pyspark-3.5.9/deps/jars/spark-core_2.12-3.5.9.jar", 0o644, &jar);
    archive.finish().finish().expect("writable");
    fixture
}

/// Runs a build that is killed before its n-th call; says whether it came to its end.
fn killed(fixture: &Fixture, call: &str, nth: usize, cache: &str, output: &str) -> bool {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    command.args(["-e", &format!("inject={call}:signal=SIGKILL:when={nth}")]);
    command.arg(binary("hearth").expect("the binary is built"));
    command.args(["build", "--jobs", "2", "--cache-dir", cache, "--to", output]);
    finish(command.current_dir(fixture.path(""))).status.success()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.path().is_dir() { open.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found
}

/// What has the name of a digest has that digest, and a document is whole.
fn assert_sound(cache: &Path, output: &Path, when: &str) {
    let named = ["files-v1", "blobs-v1"].map(|shelf| cache.join(shelf)).into_iter();
    for directory in named.chain([output.join("blobs/sha256")]) {
        for path in files(&directory) {
            let name = path.file_name().expect("files have names").to_string_lossy().into_owned();
            // What is written aside is nobody's content.
            if name.starts_with(".hearth-") {
                continue;
            }
            let digest = sha256(&fs::read(&path).expect("readable"));
            assert_eq!(digest, format!("sha256:{name}"), "{when}: {}", path.display());
        }
    }
    for path in ["layers-v2", "trees-v2", "checked-v2"].iter().flat_map(|kind| files(&cache.join(kind))) {
        let note = fs::read_to_string(&path).expect("readable");
        let (digest, json) = note.split_once('\n').expect("a digest stands before the note");
        assert_eq!(sha256(json.as_bytes()), format!("sha256:{digest}"), "{when}: {}", path.display());
    }
    if let Ok(index) = fs::read(output.join("index.json")) {
        assert!(serde_json::from_slice::<Value>(&index).is_ok(), "{when}: half an index");
    }
}

#[test]
fn a_crash_before_any_step_leaves_a_usable_cache() {
    if !missing(&["strace"]).is_empty() {
        skipped("strace is not installed");
        return;
    }
    let fixture = small();
    let expected = fixture.build(&["--cache-dir", "whole"]);
    let (next, kills, seed) = (AtomicUsize::new(0), Mutex::new(0), seed());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(call) = CALLS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let count = crash_at_every(&fixture, call, &expected, seed);
                    *kills.lock().expect("nobody panics with it") += count;
                }
            });
        }
    });
    let kills = kills.into_inner().expect("all threads have ended");
    let least = if seed.is_none() { 30 } else { 3 };
    assert!(kills > least, "only {kills} builds were killed; seed {seed:?}");
}

/// Decides which crashes are tried; without one all are.
fn seed() -> Option<u64> {
    if env::var_os("HEARTH_CRASHES").is_some_and(|which| which == "all") {
        return None;
    }
    let given = env::var("HEARTH_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    Some(given.unwrap_or_else(now))
}

fn is_tried(seed: Option<u64>, call: &str, nth: usize) -> bool {
    let mut hasher = DefaultHasher::new();
    (seed, call, nth).hash(&mut hasher);
    seed.is_none() || hasher.finish().is_multiple_of(2)
}

/// Kills builds before the calls of a kind that are tried; says how many.
fn crash_at_every(fixture: &Fixture, call: &str, expected: &Value, seed: Option<u64>) -> usize {
    let mut kills = 0;
    // The first steps each; later ones are like those before them.
    let positions = std::iter::successors(Some(1), |nth| Some(nth + 1 + nth / 4));
    for nth in positions.filter(|nth| is_tried(seed, call, *nth)) {
        if crash_at(fixture, call, nth, expected, seed) {
            break;
        }
        kills += 1;
        // A sample's next one may lie past the end.
        assert!(nth < 2_000, "{call} does not end");
    }
    kills
}

/// Kills a build before its n-th call of a kind and checks what it leaves; says whether it came to its end.
fn crash_at(fixture: &Fixture, call: &str, nth: usize, expected: &Value, seed: Option<u64>) -> bool {
    let when = format!("{call} {nth}, seed {seed:?}");
    let names = [format!("cache-{call}"), format!("dist-{call}")];
    let [cache, output] = [&names[0], &names[1]].map(|name| fixture.path(name));
    let ended = killed(fixture, call, nth, &names[0], &names[1]);
    assert_sound(&cache, &output, &when);
    let mut command = fixture.command(&["--cache-dir", &names[0], "--to", &names[1]]);
    let again = report(&finish(command.args(["--output", "json"])));
    assert_eq!(again["images"], expected["images"], "{when}");
    let aside = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".hearth-"))
    };
    assert_eq!(files(&output).iter().find(|path| aside(path)), None, "{when}: nothing half-written stays");
    for directory in [cache, output] {
        fs::remove_dir_all(directory).expect("removable");
    }
    ended
}
