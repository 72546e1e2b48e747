//! A disk that flips bits: damaged content of the cache is made again or refused, and never published.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use kit::registry::sha256;

use kit::build_fixture::{Fixture, finish, report};

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).expect("readable").map(|entry| entry.expect("readable").path()) {
            if entry.is_dir() { open.push(entry) } else { found.push(entry) }
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    for path in files(from) {
        let target = to.join(path.strip_prefix(from).expect("it lies below"));
        fs::create_dir_all(target.parent().expect("it has a parent")).expect("writable");
        fs::copy(&path, &target).expect("writable");
    }
}

/// Flips one bit in the middle of a file, as a disk does: length, name and times stay.
fn flip(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let mut bytes = fs::read(path).expect("readable");
    if let Some(at) = bytes.len().checked_sub(1).map(|last| last / 2) {
        bytes[at] ^= 1;
    }
    fs::write(path, bytes).expect("writable");
}

#[test]
fn a_flipped_byte_in_any_kind_of_cached_object_is_never_published() {
    let fixture = Fixture::new();
    let lock = finish(&mut fixture.subcommand("lock", &[]));
    assert!(lock.status.success(), "{}", String::from_utf8_lossy(&lock.stderr));
    let expected = fixture.build(&["--locked", "--sbom", "--to", "expected"]);
    let kinds = fs::read_dir(fixture.path("cache")).expect("readable");
    let kinds = kinds.map(|kind| kind.expect("readable")).filter(|kind| kind.path().is_dir());
    let mut kinds: Vec<String> = kinds.map(|kind| kind.file_name().to_string_lossy().into_owned()).collect();
    kinds.sort_unstable();
    let mut flipped = Vec::new();
    for kind in &kinds {
        // Without the finished layers, the files that they are made of are read again.
        for finished in [true, false] {
            let name = format!("{kind}-{finished}");
            let cache = fixture.path(&format!("cache-{name}"));
            copy(&fixture.path("cache"), &cache);
            if !finished {
                for kind in
                    kinds.iter().filter(|kind| kind.starts_with("layers-") || kind.starts_with("blobs-"))
                {
                    fs::remove_dir_all(cache.join(kind)).expect("removable");
                }
            }
            let Ok(true) = fs::exists(cache.join(kind)) else { continue };
            let damaged = files(&cache.join(kind));
            for path in &damaged {
                flip(path);
            }
            flipped.extend((!damaged.is_empty()).then(|| kind.clone()));
            let output = format!("dist-{name}");
            let arguments = ["--locked", "--sbom", "--to", &output, "--output", "json"];
            let mut command = fixture.command(&arguments);
            let built = report(&finish(command.env("HEARTH_CACHE_DIR", &cache)));
            assert_eq!(built["images"], expected["images"], "{name}");
            assert_eq!(built["referrers"], expected["referrers"], "{name}");
            for path in files(&fixture.path(&output).join("blobs/sha256")) {
                let digest = sha256(&fs::read(&path).expect("readable"));
                assert!(
                    digest.ends_with(&*path.file_name().expect("it has one").to_string_lossy()),
                    "{name}"
                );
            }
        }
    }
    let expected = ["blobs", "files", "layers", "members", "trees"];
    for kind in expected {
        assert!(flipped.iter().any(|name| name.starts_with(kind)), "nothing of {kind} was damaged");
    }
}
