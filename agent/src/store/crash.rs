//! Tests crashes between any two steps with real processes: a workload runs under `strace`, which kills it with
//! SIGKILL before its n-th write, fsync, rename, ..., for every n; afterwards the directory may contain only complete
//! and right files. A power cut also loses unsynced data: the order of the system calls shows that no file gets its
//! name before it is synced.
//!
//! Each crash costs one or two processes, so one in four is tried by default, different ones in every run;
//! `HEARTH_SEED` repeats a choice, and `HEARTH_CRASHES=all` (`tests/run --all`) tries all of them.

use std::{
    collections::BTreeSet,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::SystemTime,
};

use bytes::Bytes;

use super::{Config, Finish, ManifestRecord, Store, TagRecord};
use crate::types::{Digest, Repository, Tag};

/// The directory of the child process's workload.
const DIRECTORY: &str = "HEARTH_CRASH_DIRECTORY";

/// Calls that change a directory or a file.
const CALLS: &[&str] = &["write", "pwrite64", "fsync", "rename", "unlink", "mkdir", "chmod", "ftruncate"];

static LAYER: [u8; 100_000] = [7; 100_000];
const MANIFEST: &[u8] = b"{\"schemaVersion\":2}";
const CONFIG: &[u8] = b"{}";

fn repository() -> Repository {
    Repository { registry: "r.test:5000".parse().unwrap(), name: "team/app".parse().unwrap() }
}

/// Everything that changes the store: what a pull writes, a pin, what eviction removes.
fn work(directory: &Path) {
    let store = Store::open(&Config::of(directory)).unwrap();
    let (repository, tag): (_, Tag) = (repository(), "v1".parse().unwrap());
    let (manifest, config, layer) = (Digest::of(MANIFEST), Digest::of(CONFIG), Digest::of(&LAYER));
    store.put(&manifest, MANIFEST).unwrap();
    store.set_manifest(&repository, &manifest, &ManifestRecord::new("a/b")).unwrap();
    let record = TagRecord {
        digest: manifest,
        media_type: "a/b".into(),
        size: MANIFEST.len() as u64,
        confirmed: 7,
        pinned: false,
        held: false,
        imported: false,
        unconfirmed: false,
    };
    store.set_tag(&repository, &tag, &record).unwrap();
    transfer(&store, &layer);
    store.put(&config, CONFIG).unwrap();
    for fact in store.references().unwrap() {
        store.set_pin(&fact, true).unwrap();
        store.set_pin(&fact, false).unwrap();
        store.remove_reference(&fact).unwrap();
    }
    store.remove_blob(&config).unwrap();
    store.close();
}

/// In two halves, with a stop between them.
fn transfer(store: &Store, digest: &Digest) {
    let (content, size) = (Bytes::from_static(&LAYER), LAYER.len() as u64);
    if fs::metadata(store.0.paths.blob(digest)).is_ok() {
        return;
    }
    let partial = store.partial(digest).unwrap();
    partial.set_size(size).unwrap();
    partial.write(0, &[content.slice(..60_000)]).unwrap();
    partial.park().unwrap();
    drop(partial);
    let partial = store.partial(digest).unwrap();
    for gap in partial.gaps(0..size) {
        let range = usize::try_from(gap.start).unwrap()..usize::try_from(gap.end).unwrap();
        partial.write(gap.start, &[content.slice(range)]).unwrap();
    }
    assert_eq!(partial.finish().unwrap(), Finish::Verified);
    partial.commit().unwrap();
}

#[test]
#[ignore = "the child of the other tests here"]
fn workload() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        work(Path::new(&directory));
    }
}

fn under_strace(directory: &Path, log: &Path, options: &[String]) -> ExitStatus {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-y", "-s", "0", "-o"]).arg(log).args(options);
    command.arg(std::env::current_exe().unwrap());
    command.args(["store::crash::workload", "--exact", "--ignored"]).env(DIRECTORY, directory);
    command.output().expect("strace is installed").status
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.path().is_dir() { open.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found
}

/// Every file is absent, or complete and right, and the totals match the files.
fn assert_sound(directory: &Path, when: &str) {
    let blobs = files(&directory.join("blobs-v1"));
    for path in &blobs {
        let bytes = fs::read(path).unwrap();
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), Digest::of(&bytes).hex(), "{when}");
    }
    for path in files(&directory.join("refs-v1")) {
        let bytes = fs::read(&path).unwrap();
        let record = serde_json::from_slice::<serde_json::Value>(&bytes);
        assert!(record.is_ok(), "{when}: half a reference in {}", path.display());
    }
    let store = Store::open(&Config::of(directory)).unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_eq!(store.totals().blobs, blobs.len() as u64, "{when}");
    let indexed: BTreeSet<_> = store.blobs().unwrap().into_iter().map(|fact| fact.digest.hex()).collect();
    let there: BTreeSet<_> =
        blobs.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(indexed, there, "{when}");
    assert_eq!(files(&directory.join("tmp")), Vec::<PathBuf>::new(), "{when}");
    let orphans: Vec<_> = files(&directory.join("partial-v1"))
        .into_iter()
        .filter(|path| !path.with_extension("data").exists())
        .collect();
    assert_eq!(orphans, Vec::<PathBuf>::new(), "{when}");
    transfer(&store, &Digest::of(&LAYER));
    store.close();
}

fn inject(call: &str, nth: u32, fault: &str) -> [String; 4] {
    ["-e".to_owned(), format!("trace={call}"), "-e".to_owned(), format!("inject={call}:{fault}:when={nth}")]
}

/// Which crashes are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    All,
    /// One in four, by this seed.
    Sample(u64),
}

impl Choice {
    fn of_this_run() -> Self {
        if std::env::var_os("HEARTH_CRASHES").is_some_and(|which| which == "all") {
            return Self::All;
        }
        let given = std::env::var("HEARTH_SEED").ok().and_then(|seed| seed.parse().ok());
        let now =
            || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self::Sample(given.unwrap_or_else(now))
    }

    fn takes(self, call: &str, nth: u32) -> bool {
        let Self::Sample(seed) = self else { return true };
        let mut hasher = DefaultHasher::new();
        (seed, call, nth).hash(&mut hasher);
        hasher.finish().is_multiple_of(4)
    }
}

#[test]
fn a_sample_is_about_a_quarter_and_another_one_for_another_seed() {
    let taken = |choice: Choice| (1..=1000).filter(|nth| choice.takes("write", *nth)).collect::<Vec<_>>();
    let samples: Vec<_> = (1..=4).map(|seed| taken(Choice::Sample(seed))).collect();
    for sample in &samples {
        assert!((200..300).contains(&sample.len()), "{} of 1000", sample.len());
    }
    assert_eq!(samples[0], taken(Choice::Sample(1)), "a seed repeats its sample");
    assert_ne!(samples[0], samples[1]);
    assert_eq!(taken(Choice::All).len(), 1000);
}

/// Runs the workload with a fault at the n-th call, for every n of the choice.
fn everywhere(fault: &str) {
    let (home, choice) = (tempfile::tempdir().unwrap(), Choice::of_this_run());
    let faults: usize = std::thread::scope(|scope| {
        let halves = CALLS.chunks(CALLS.len().div_ceil(2)).map(|calls| {
            let home = home.path();
            scope.spawn(move || calls.iter().map(|call| at_every(call, fault, choice, home)).sum::<usize>())
        });
        let halves: Vec<_> = halves.collect();
        halves
            .into_iter()
            .map(|half| half.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .sum()
    });
    let least = if choice == Choice::All { 80 } else { 8 };
    assert!(faults >= least, "only {faults} faults with {choice:?}");
}

/// Runs the workload with a fault at the n-th call of one kind; returns the number of faults.
fn at_every(call: &str, fault: &str, choice: Choice, home: &Path) -> usize {
    let mut faults = 0;
    // Most of the later calls are similar calls of the index.
    let positions = std::iter::successors(Some(1), |nth| Some(nth + 1 + nth / 10));
    for nth in positions.filter(|nth| choice.takes(call, *nth)) {
        let when = format!("{fault} at {call} {nth}, {choice:?}");
        let directory = home.join(format!("{call}-{nth}"));
        fs::create_dir(&directory).unwrap();
        let ended = under_strace(&directory, &home.join(format!("{call}.log")), &inject(call, nth, fault));
        assert_sound(&directory, &when);
        fs::remove_dir_all(&directory).unwrap();
        if ended.success() {
            break;
        }
        // In a sample, the next fault may be past the end.
        assert!(nth < 2_000, "{call} does not end");
        faults += 1;
    }
    faults
}

#[test]
fn a_crash_before_any_step_leaves_only_complete_and_right_files() {
    everywhere("signal=SIGKILL");
}

/// The workload stops at the first error; the test checks the files that it leaves.
#[test]
fn a_disk_error_at_any_step_leaves_only_complete_and_right_files() {
    everywhere("error=EIO");
}

/// What a power cut could lose: files with unsynced bytes, and names in directories that were not synced.
#[derive(Default)]
struct Unsynced {
    files: BTreeSet<String>,
    names: BTreeSet<String>,
}

impl Unsynced {
    /// Processes the next call of the trace; returns an error if the order is wrong.
    fn take(&mut self, call: &str, arguments: &str) -> Option<String> {
        match call {
            "write" | "pwrite64" => {
                self.files.insert(descriptor(arguments)?);
            }
            "fsync" => {
                let path = descriptor(arguments)?;
                self.files.remove(&path);
                self.names.retain(|name| Path::new(name).parent() != Some(Path::new(&path)));
            }
            "mkdir" => {
                self.names.insert(quoted(arguments).next()?);
            }
            "rename" => {
                let mut names = quoted(arguments);
                let (from, to) = (names.next()?, names.next()?);
                let dirty = self.files.remove(&from);
                self.names.insert(to.clone());
                return dirty.then(|| format!("`{to}` got its name before its bytes were synced"));
            }
            _ => {}
        }
        None
    }
}

/// `5</path>` as `strace -y` prints it.
fn descriptor(arguments: &str) -> Option<String> {
    let (_, rest) = arguments.split_once('<')?;
    Some(rest.split_once('>')?.0.to_owned())
}

fn quoted(arguments: &str) -> impl Iterator<Item = String> {
    arguments.split('"').skip(1).step_by(2).map(str::to_owned)
}

#[test]
fn files_are_synced_before_they_get_their_names_and_the_names_are_synced_too() {
    let home = tempfile::tempdir().unwrap();
    let (directory, log) = (home.path().join("data"), home.path().join("log"));
    fs::create_dir(&directory).unwrap();
    let options = ["-e".to_owned(), format!("trace={}", CALLS.join(","))];
    // Names must not be abbreviated.
    let options = [&options[..], &["-s".to_owned(), "4096".to_owned()]].concat();
    assert!(under_strace(&directory, &log, &options).success());
    let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    let truth = ["blobs-v1", "refs-v1"].map(|name| directory.join(name));
    let ours = |name: &str| truth.iter().any(|root| Path::new(name).starts_with(root));
    let (mut unsynced, mut seen) = (Unsynced::default(), 0);
    for line in text.lines() {
        let Some((_, call)) = line.split_once(' ') else { continue };
        let Some((call, arguments)) = call.trim().split_once('(') else { continue };
        if let Some(problem) = unsynced.take(call, arguments) {
            assert!(!quoted(arguments).any(|name| ours(&name)), "{problem}");
        }
        seen += usize::from(call == "rename" && quoted(arguments).any(|name| ours(&name)));
    }
    assert!(seen >= 8, "the trace has {seen} renames:\n{text}");
    let left: Vec<_> = unsynced.names.iter().filter(|name| ours(name)).collect();
    assert!(left.is_empty(), "names that a power cut takes back: {left:?}");
}
