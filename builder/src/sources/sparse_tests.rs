use std::{fs, process::Command};

use proptest::{
    prelude::{Strategy, any},
    test_runner::TestRunner,
};

use super::{
    super::archive::{Flavour, unpack},
    *,
};
use crate::{
    cache::{Cache, Shelf},
    sources::tarball::Limits,
    tree::{Kind, Tree},
};

fn read(cache: &Cache, bytes: &[u8]) -> Result<Tree, String> {
    let read = unpack(cache, bytes, Flavour::Source, Limits::default());
    read.map_err(|error| format!("{:#}", anyhow::Error::new(error)))
}

/// Lengths of zeros and of other bytes, in turn.
fn lengths() -> impl Strategy<Value = Vec<(u32, u16)>> {
    proptest::collection::vec((0..200_000_u32, any::<u16>()), 0..12)
}

#[test]
fn sparse_files_of_gnu_tar_are_read_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(&directory.path().join("cache")).unwrap();
    let name = format!("d/{}.bin", "long".repeat(40));
    fs::create_dir(directory.path().join("d")).unwrap();
    let config = proptest::test_runner::Config { failure_persistence: None, cases: 24, ..Default::default() };
    let test = |(lengths, zeros): (Vec<(u32, u16)>, u32)| {
        let mut content = Vec::new();
        for (at, (hole, data)) in lengths.iter().enumerate() {
            content.resize(content.len() + *hole as usize, 0);
            content.resize(content.len() + usize::from(*data), u8::try_from(at + 1).unwrap());
        }
        content.resize(content.len() + zeros as usize, 0);
        fs::write(directory.path().join(&name), &content).unwrap();
        for version in ["0.0", "0.1", "1.0", "gnu"] {
            let mut tar = Command::new("tar");
            match version {
                "gnu" => tar.arg("--format=gnu"),
                version => tar.args(["--format=pax", "--sparse-version", version]),
            };
            tar.args(["--sparse", "--hole-detection=raw", "--mode=0640", "-cf", "-", &name]);
            let output = tar.current_dir(&directory).output().expect("GNU tar is there");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let tree = read(&cache, &output.stdout).unwrap();
            let entry = &tree[name.as_str()];
            let Kind::File { content: found, .. } = entry.kind else { panic!("{version}: {entry:?}") };
            assert_eq!((found.size, entry.mode), (content.len() as u64, 0o640), "{version}");
            assert!(
                fs::read(cache.path(Shelf::Files, &found.digest)).unwrap() == content,
                "{version}: the same bytes"
            );
            assert_eq!(tree.len(), 2, "{version}: no made-up name is left: {:?}", tree.keys());
        }
        Ok(())
    };
    TestRunner::new(config).run(&(lengths(), 0..300_000_u32), test).unwrap();
}

/// An archive with one file that has these extended headers.
fn archive(headers: &[(&str, &str)], stored: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions(headers.iter().map(|(key, value)| (*key, value.as_bytes()))).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(stored.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, "GNUSparseFile.1/sp.bin", stored).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn maps_that_make_no_sense_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let [major, minor, name] =
        [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "sp.bin")];
    let block = |text: &str| {
        let mut block = text.as_bytes().to_vec();
        block.resize(block.len().next_multiple_of(BLOCK), 0);
        block
    };
    for (headers, stored, expected) in [
        (vec![major, minor, name], block("0\n"), "how long"),
        (vec![("GNU.sparse.major", "2"), name, ("GNU.sparse.realsize", "9")], block("0\n"), "2.0"),
        (vec![name, ("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,5,4,2")], b"1234567".to_vec(), "overlap"),
        (vec![name, ("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,10")], b"1".to_vec(), "beyond its end"),
        (
            vec![name, ("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,1,5")],
            b"1".to_vec(),
            "without a length",
        ),
        (vec![name, ("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,x")], b"1".to_vec(), "no number"),
        (vec![name, ("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,5")], b"123".to_vec(), "cut short"),
        (
            vec![
                name,
                ("GNU.sparse.size", "18446744073709551615"),
                ("GNU.sparse.map", "18446744073709551615,1"),
            ],
            b"1".to_vec(),
            "beyond its end",
        ),
        (
            vec![major, minor, name, ("GNU.sparse.realsize", "9")],
            block("9999999\n"),
            "more than 1048576 parts",
        ),
        (vec![major, minor, name, ("GNU.sparse.realsize", "9")], block(&"7".repeat(600)), "no number"),
        (vec![major, minor, name, ("GNU.sparse.realsize", "9")], b"1\n0\n".to_vec(), "cut short"),
        (
            vec![major, minor, name, ("GNU.sparse.realsize", "99999999999999")],
            block("0\n"),
            "unpacks to more than",
        ),
        (
            vec![major, minor, ("GNU.sparse.name", "/etc/passwd"), ("GNU.sparse.realsize", "0")],
            block("0\n"),
            "absolute",
        ),
    ] {
        let error = read(&cache, &archive(&headers, &stored)).unwrap_err();
        assert!(error.contains(expected), "{headers:?}: {error}");
    }
    let headers = [major, minor, name, ("GNU.sparse.realsize", "9")];
    let mut stored = block("1\n4\n3\n");
    stored.extend(b"abc");
    let tree = read(&cache, &archive(&headers, &stored)).unwrap();
    let Kind::File { content, .. } = tree["sp.bin"].kind else { panic!("it is a file") };
    assert_eq!(fs::read(cache.path(Shelf::Files, &content.digest)).unwrap(), b"\0\0\0\0abc\0\0");
}
