//! Readers of what strangers wrote: archives and POMs with damaged bytes are read or refused, and never more than that.
//!
//! A failure prints the seed of its run and the smallest case; `HEARTH_SEED` repeats a run.

use std::{
    fs,
    io::{Cursor, Write as _},
    path::Path,
    time::SystemTime,
};

use hearth_builder::{
    cache::Cache,
    digest::Digest,
    platform::Platform,
    sources::{
        archive::{self, Flavour},
        maven::pom,
        tarball::Limits,
        wheels::{lockfile, marker::Environment, tags},
        zip,
    },
    tree::{Kind, Tree},
};
use proptest::{
    collection::vec,
    prelude::{Strategy, any},
    sample::Index,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};

use kit::build_fixture::Archive;

/// What happens to a file on its way.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Repeat(Index, Index),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let one = proptest::prop_oneof![
        4 => (any::<Index>(), 1..=255_u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), vec(any::<u8>(), 1..600)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Repeat(from, to)),
    ];
    vec(one, 0..6)
}

fn apply(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for damage in damage {
        if bytes.is_empty() {
            return bytes;
        }
        let length = bytes.len();
        match damage {
            Damage::Flip(at, bits) => bytes[at.index(length)] ^= bits,
            Damage::Cut(at) => bytes.truncate(at.index(length)),
            Damage::Insert(at, more) => {
                let at = at.index(length);
                bytes.splice(at..at, more.iter().copied());
            }
            Damage::Repeat(from, to) => {
                let (from, to) = (from.index(length), to.index(length));
                bytes.extend_from_within(from.min(to)..from.max(to));
            }
        }
    }
    bytes
}

/// Runs a property with the seed of `HEARTH_SEED` or of the time, which a failure shows.
fn check<S: Strategy>(cases: u32, strategy: &S, property: impl Fn(S::Value) -> Result<(), TestCaseError>)
where
    S::Value: std::fmt::Debug,
{
    let given = std::env::var("HEARTH_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let seed = given.unwrap_or_else(now);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    match runner.run(strategy, property) {
        Ok(()) => {}
        Err(TestError::Fail(reason, smallest)) => {
            panic!("HEARTH_SEED={seed}: {reason}; the smallest case: {smallest:?}")
        }
        Err(error) => panic!("HEARTH_SEED={seed}: {error}"),
    }
}

/// No path leaves the image, and every file has the content that its entry names.
fn sound(cache: &Cache, tree: &Tree) -> Result<(), TestCaseError> {
    for (path, entry) in tree {
        let text = path.as_str();
        let climbs = text.split('/').any(|part| matches!(part, "" | "." | ".."));
        proptest::prop_assert!(!climbs && !text.contains('\0'), "{text:?}");
        if let Kind::File { content, .. } = &entry.kind {
            let bytes = cache.read_small(content, 1 << 20);
            let right = bytes.is_ok_and(|bytes| Digest::of(&bytes) == content.digest);
            proptest::prop_assert!(right, "{text}: its content is not in the cache");
        }
    }
    Ok(())
}

fn cache() -> (tempfile::TempDir, Cache) {
    let home = tempfile::tempdir().expect("temporary folders are available");
    let cache = Cache::open(&home.path().join("cache")).expect("writable");
    (home, cache)
}

const LIMITS: Limits = Limits { bytes: 1 << 20, members: 1000, headers: 1 << 16 };

#[test]
fn damaged_tar_archives_are_read_or_refused() {
    let mut archive = Archive::new(Vec::new());
    archive.directory("usr");
    archive.file("usr/a", 0o755, b"content");
    archive.link(tar::EntryType::Symlink, "usr/b", "a");
    archive.link(tar::EntryType::Link, "usr/c", "usr/a");
    archive.attribute("user.x", b"value");
    archive.file(&format!("usr/{}/{}", "d".repeat(120), "f".repeat(120)), 0o644, &[7; 2000]);
    let plain = archive.finish();
    let packed = zstd::encode_all(&plain[..], 1).expect("memory is writable");
    let (_home, cache) = cache();
    check(400, &(any::<bool>(), any::<bool>(), damage()), |(root, compressed, damage)| {
        let bytes = apply(if compressed { packed.clone() } else { plain.clone() }, &damage);
        let flavour = if root { Flavour::RootFileSystem } else { Flavour::Source };
        match archive::unpack(&cache, &bytes[..], flavour, LIMITS) {
            Ok(tree) => sound(&cache, &tree),
            Err(_) => Ok(()),
        }
    });
}

#[test]
fn damaged_sparse_archives_are_read_or_refused() {
    let (home, cache) = cache();
    let content = [vec![0; 70_000], b"data".repeat(300), vec![0; 9_000], vec![7; 600]].concat();
    fs::write(home.path().join("sparse.bin"), content).expect("writable");
    let archives: Vec<Vec<u8>> = ["0.0", "0.1", "1.0"]
        .into_iter()
        .map(|version| {
            let mut tar = std::process::Command::new("tar");
            tar.args(["--sparse", "--hole-detection=raw", "--format=pax", "--sparse-version", version]);
            let output =
                tar.args(["-cf", "-", "sparse.bin"]).current_dir(home.path()).output().expect("tar is there");
            // Padding to a record only makes it likelier that nothing is hit.
            output.stdout[..8192.min(output.stdout.len())].to_vec()
        })
        .collect();
    check(400, &(0..3_usize, damage()), |(version, damage)| {
        let bytes = apply(archives[version].clone(), &damage);
        match archive::unpack(&cache, &bytes[..], Flavour::Source, LIMITS) {
            Ok(tree) => sound(&cache, &tree),
            Err(_) => Ok(()),
        }
    });
}

/// Words of markers and of lock files in any order, and bytes that are none.
fn marker() -> impl Strategy<Value = String> {
    let words = [
        "python_version",
        "extra",
        "sys_platform",
        "'3.11'",
        "\"linux\"",
        "==",
        "~=",
        "<",
        ">=",
        "===",
        "not",
        "in",
        "and",
        "or",
        "(",
        ")",
        "'3.*'",
        "'99999999999999999999'",
        "'",
        "\u{e9}",
    ];
    let word = proptest::prop_oneof![
        8 => proptest::sample::select(words.to_vec()).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    vec(word, 0..40).prop_map(|words| words.join(" "))
}

#[test]
fn markers_are_evaluated_or_refused() {
    let environment = Environment {
        python: "3.11".parse().expect("a version"),
        platform: Platform::Amd64,
        libc: tags::ASSUMED,
    };
    check(4000, &marker(), |marker| {
        let _ = environment.holds(&marker, &["x".to_owned()]);
        let _ = environment.holds(&format!("{}{marker}", "(".repeat(70)), &[]);
        Ok(())
    });
}

#[test]
fn damaged_locks_of_python_packages_are_read_or_refused() {
    let environment = Environment {
        python: "3.11".parse().expect("a version"),
        platform: Platform::Amd64,
        libc: tags::ASSUMED,
    };
    let hash = "a".repeat(64);
    let pylock = format!(
        "lock-version = \"1.0\"\nextras = [\"x\"]\n[[packages]]\nname = \"a\"\nversion = \"1\"\nmarker = \"'x' in extras or python_version > '3'\"\n\
         wheels = [{{ name = \"a-1-py3-none-any.whl\", url = \"https://index.test/a\", hashes = {{ sha256 = \"{hash}\" }} }}]\n"
    );
    let uv = format!(
        "version = 1\n[[package]]\nname = \"p\"\nsource = {{ virtual = \".\" }}\ndependencies = [{{ name = \"a\", extra = [\"x\"] }}]\n\
         [[package]]\nname = \"a\"\nversion = \"1\"\nwheels = [{{ url = \"https://index.test/a-1-py3-none-any.whl\", hash = \"sha256:{hash}\" }}]\n\
         [package.optional-dependencies]\nx = [{{ name = \"a\", marker = \"extra == 'x'\" }}]\n"
    );
    for whole in [&pylock, &uv] {
        assert_eq!(
            lockfile::wheels(whole, &environment, &lockfile::More::default()).map(|wheels| wheels.len()),
            Ok(1)
        );
        check(1000, &damage(), |damage| {
            let bytes = apply(whole.clone().into_bytes(), &damage);
            let _ =
                lockfile::wheels(&String::from_utf8_lossy(&bytes), &environment, &lockfile::More::default());
            Ok(())
        });
    }
}

fn write_zip(path: &Path, members: &[(&str, &[u8])]) {
    // Stored members: their bytes are damaged as well.
    let script = "import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1], 'w')\nfor a in sys.argv[2:]:\n    n, c = a.split('=')\n    z.writestr(n, c)\nz.close()\n";
    let mut python = std::process::Command::new("python3");
    python.arg("-c").arg(script).arg(path);
    for (name, content) in members {
        python.arg(format!("{name}={}", String::from_utf8_lossy(content)));
    }
    assert!(python.status().expect("python3 starts").success());
}

#[test]
fn damaged_zip_archives_are_read_or_refused() {
    let (home, cache) = cache();
    let path = home.path().join("a.whl");
    write_zip(
        &path,
        &[("pkg/a.py", b"print(1)"), ("pkg-1.dist-info/METADATA", b"Name: pkg"), ("x/y/z", b"")],
    );
    let whole = fs::read(&path).expect("readable");
    let damaged = home.path().join("damaged.whl");
    check(400, &damage(), |damage| {
        let bytes = apply(whole.clone(), &damage);
        fs::write(&damaged, &bytes).expect("writable");
        match zip::unpack(&cache, &damaged, Digest::of(&bytes)) {
            Ok(tree) => sound(&cache, &tree),
            Err(_) => Ok(()),
        }
    });
}

#[test]
fn damaged_poms_are_read_or_refused() {
    let mut text = Cursor::new(Vec::new());
    write!(
        text,
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><parent><groupId>g</groupId><artifactId>p</artifactId>\
         <version>1</version></parent><artifactId>a</artifactId><properties><x>${{y}}</x><y>${{x}}</y></properties>\
         <dependencies><dependency><groupId>${{x}}</groupId><artifactId>b</artifactId><version>[1,2)</version>\
         <exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions></dependency>\
         </dependencies></project>"
    )
    .expect("memory is writable");
    let whole = text.into_inner();
    check(2000, &damage(), |damage| {
        let bytes = apply(whole.clone(), &damage);
        let _ = pom::parse(&String::from_utf8_lossy(&bytes));
        Ok(())
    });
}
