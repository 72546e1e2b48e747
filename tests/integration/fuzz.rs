//! The inputs of `tests/fuzz/corpus` again, without a fuzzer: none makes a reader panic.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn targets() -> Vec<hearth_agent::fuzz::FuzzTarget> {
    hearth_agent::fuzz::TARGETS.iter().chain(hearth_builder::fuzz::TARGETS).copied().collect()
}

/// Names without the extension of what lies in a folder.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("a folder of the repository");
    let paths = entries.map(|entry| entry.expect("it can be listed").path());
    paths.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
}

#[test]
fn the_corpus_of_every_target_is_read_without_a_panic() {
    let mut failed = Vec::new();
    for (name, target) in targets() {
        let mut count = 0;
        for entry in fs::read_dir(folder().join("corpus").join(name)).expect("every target has a corpus") {
            let path = entry.expect("it can be listed").path();
            let input = fs::read(&path).expect("it can be read");
            count += 1;
            if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
                failed.push(path);
            }
        }
        assert!(count > 2, "{name} has {count} inputs");
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn targets_programs_and_corpora_are_the_same_list() {
    let listed: BTreeSet<_> = targets().into_iter().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names(&folder().join("corpus")), listed);
    assert_eq!(names(&folder().join("fuzz_targets")), listed);
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).expect("it can be read");
    for name in &listed {
        assert!(
            manifest.contains(&format!("[[bin]]\nname = \"{name}\"\n")),
            "{name} in tests/fuzz/Cargo.toml"
        );
    }
}
