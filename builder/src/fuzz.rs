//! Entry points of the fuzz targets in `tests/fuzz`: each gives untrusted bytes to one reader, which may refuse them and
//! must neither panic nor run without bounds.

use std::{fs, path::Path, str::from_utf8};

use crate::{
    cache::{Cache, Shelf},
    lock::Lock,
    platform::Platform,
    sources::{
        archive::{self, Flavour},
        elf::Libc,
        maven::pom,
        tarball::Limits,
        wheels::{
            install::{self, Target},
            lockfile,
            marker::Environment,
        },
        zip,
    },
    spec,
    tree::{Entry, ImagePath, Tree},
};

/// A target: its name, which is that of its corpus, and its function.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[FuzzTarget] = &[
    ("lock", lock),
    ("marker", marker),
    ("pom", pom),
    ("python_lock", python_lock),
    ("spec", spec),
    ("tar", tar),
    ("wheel", wheel),
    ("zip", zip),
];

/// Small: a fuzzer is to find wrong reading, not a full disk.
const LIMITS: Limits = Limits { bytes: 1 << 20, members: 1_000, headers: 64 << 10 };

thread_local! {
    /// A cache in a directory of its own. One for the whole run: content is kept by its digest.
    static HOME: (tempfile::TempDir, Cache) = {
        let home = tempfile::tempdir().expect("temporary directories are available");
        let cache = Cache::open(home.path()).expect("an empty directory becomes a cache");
        (home, cache)
    };
}

fn in_cache(work: impl FnOnce(&Path, &Cache)) {
    HOME.with(|(home, cache)| work(home.path(), cache));
}

fn environment() -> Option<Environment> {
    Some(Environment { python: "3.12".parse().ok()?, platform: Platform::Amd64, libc: Libc::Glibc(2, 36) })
}

/// `hearth.yaml`.
pub fn spec(data: &[u8]) {
    if let Ok(text) = from_utf8(data) {
        let _ = spec::file::parse(Path::new("hearth.yaml"), text, None);
    }
}

/// `hearth.lock`.
pub fn lock(data: &[u8]) {
    let _ = Lock::parse(Path::new("hearth.lock"), data);
}

/// A Maven POM.
pub fn pom(data: &[u8]) {
    if let Ok(text) = from_utf8(data) {
        let _ = pom::parse(text);
    }
}

/// An environment marker.
pub fn marker(data: &[u8]) {
    if let (Ok(text), Some(environment)) = (from_utf8(data), environment()) {
        let _ = environment.holds(text, &["extra".to_owned()]);
    }
}

/// A `pylock.toml` or `uv.lock`.
pub fn python_lock(data: &[u8]) {
    if let (Ok(text), Some(environment)) = (from_utf8(data), environment()) {
        let _ = lockfile::wheels(text, &environment, &lockfile::More::default());
    }
}

/// A tar archive, compressed or not.
pub fn tar(data: &[u8]) {
    in_cache(|_, cache| {
        for flavour in [Flavour::RootFileSystem, Flavour::Source] {
            let _ = archive::unpack(cache, data, flavour, LIMITS);
        }
    });
}

/// A zip archive, such as a wheel or a JAR.
pub fn zip(data: &[u8]) {
    in_cache(|home, cache| {
        let path = home.join("input.zip");
        if fs::write(&path, data).is_ok() {
            let _ = zip::unpack_within(cache, &path, LIMITS);
            let _ = zip::texts(&path, 64 << 10, |_| true);
            let _ = zip::top_names(&path);
        }
    });
}

/// The metadata of a wheel: `WHEEL`, `RECORD` and `entry_points.txt`, separated by zero bytes.
pub fn wheel(data: &[u8]) {
    in_cache(|_, cache| {
        let mut tree = Tree::new();
        let names = ["WHEEL", "RECORD", "entry_points.txt"];
        for (name, mut content) in names.into_iter().zip(data.split(|byte| *byte == 0)) {
            let path = ImagePath::new(&format!("a-1.dist-info/{name}"));
            if let (Ok(path), Ok(content)) = (path, cache.put(Shelf::Files, &mut content)) {
                tree.insert(path, Entry::file(content, 0o644));
            }
        }
        let target = Target { directory: "opt/packages", python: "/usr/bin/python3".to_owned() };
        let _ = install::install(cache, &tree, &target);
    });
}
