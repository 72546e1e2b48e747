use super::*;

/// A tar archive from (header changes, name, content).
struct Maker(tar::Builder<Vec<u8>>);

impl Maker {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// Names are written as given: the `tar` crate would refuse the hostile ones.
    fn raw(mut self, kind: tar::EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(7);
        header.set_uid(1);
        header.set_gid(2);
        if matches!(kind, tar::EntryType::Char) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.raw(tar::EntryType::Regular, name, "", content)
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(tar::EntryType::Symlink, name, target, b"")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn read(bytes: &[u8], flavour: Flavour, limits: Limits) -> Result<Tree, ArchiveError> {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    unpack(&cache, bytes, flavour, limits)
}

fn source(maker: Maker) -> Result<Tree, ArchiveError> {
    read(&maker.bytes(), Flavour::Source, Limits::default())
}

fn names(tree: &Tree) -> Vec<&str> {
    tree.keys().map(ImagePath::as_str).collect()
}

#[test]
fn plain_gzip_and_zstd_archives_read_the_same() {
    let plain = Maker::new().file("./p-1/deps/x.jar", b"jar").bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, &plain).unwrap();
    let tree = read(&plain, Flavour::Source, Limits::default()).unwrap();
    assert_eq!(names(&tree), ["p-1", "p-1/deps", "p-1/deps/x.jar"]);
    let entry = &tree["p-1/deps/x.jar"];
    assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime), (0o644, 1, 2, 7));
    for packed in [gzip.finish().unwrap(), zstd::encode_all(&plain[..], 1).unwrap()] {
        assert_eq!(read(&packed, Flavour::Source, Limits::default()).unwrap(), tree);
    }
}

#[test]
fn hostile_members_are_refused_with_their_name() {
    use tar::EntryType as Type;
    let cases = [
        (Maker::new().file("/etc/passwd", b""), "absolute"),
        (Maker::new().file("a/../../etc/passwd", b""), "`..`"),
        (Maker::new().symlink("a/l", "/etc"), "outside the archive"),
        (Maker::new().symlink("a/l", "../../etc"), "outside the archive"),
        (Maker::new().symlink("a/l", "b").file("a/l/x", b""), "behind the symbolic link"),
        (Maker::new().symlink("a/l", "l").file("a/l/x", b""), "loop"),
        (Maker::new().raw(Type::Link, "a/h", "a/missing", b""), "not among the members before it"),
        (Maker::new().raw(Type::Link, "a/h", "../etc/shadow", b""), "`..`"),
        (Maker::new().raw(Type::Char, "a/null", "", b""), "only files, directories and links"),
        (Maker::new().file("a/.wh.b", b""), "deletion"),
        (Maker::new().file("a", b"").file("a/b", b""), "not a directory"),
    ];
    for (maker, expected) in cases {
        let error = anyhow::Error::from(source(maker).unwrap_err());
        assert!(format!("{error:#}").contains(expected), "{error:#} should say {expected}");
    }
}

#[test]
fn a_root_file_system_must_not_reach_out_either() {
    use tar::EntryType as Type;
    let cases = [
        (Maker::new().file("/etc/passwd", b""), "absolute"),
        (Maker::new().file("usr/../../etc/passwd", b""), "`..`"),
        (Maker::new().raw(Type::Link, "a/h", "/etc/shadow", b""), "absolute"),
        (Maker::new().raw(Type::Link, "a/h", "../etc/shadow", b""), "`..`"),
        (Maker::new().file("etc/.wh.passwd", b""), "deletion"),
        (Maker::new().symlink("a", "a").file("a/x", b""), "loop"),
    ];
    for (maker, expected) in cases {
        let error = read(&maker.bytes(), Flavour::RootFileSystem, Limits::default()).unwrap_err();
        let error = anyhow::Error::from(error);
        assert!(format!("{error:#}").contains(expected), "{error:#} should say {expected}");
    }
}

#[test]
fn headers_that_would_fill_the_memory_are_refused() {
    let long = vec![b'x'; 3000];
    let attribute = [("SCHILY.xattr.user.bomb", &long[..])];
    for kind in [tar::EntryType::GNULongName, tar::EntryType::GNULongLink, tar::EntryType::XHeader] {
        let mut builder = tar::Builder::new(Vec::new());
        if kind == tar::EntryType::XHeader {
            builder.append_pax_extensions(attribute).unwrap();
        } else {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(long.len() as u64);
            header.set_cksum();
            builder.append(&header, &long[..]).unwrap();
        }
        let mut header = tar::Header::new_ustar();
        header.set_path("a").unwrap();
        header.set_size(0);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        builder.append(&header, io::empty()).unwrap();
        let bytes = builder.into_inner().unwrap();
        let with = |headers| read(&bytes, Flavour::Source, Limits { headers, ..Limits::default() });
        let error = with(2000);
        let refused =
            matches!(&error, Err(ArchiveError::TooLarge { limit: 2000, unit }) if unit.contains("headers"));
        assert!(refused, "{kind:?}: {error:?}");
        assert!(!matches!(with(10_000), Err(ArchiveError::TooLarge { .. })), "{kind:?}");
    }
}

#[test]
fn links_inside_the_archive_are_kept() {
    use tar::EntryType as Type;
    let maker =
        Maker::new().file("p/a", b"one").raw(Type::Link, "p/b", "p/a", b"").symlink("p/sub/c", "../a");
    let tree = source(maker).unwrap();
    assert_eq!(tree["p/a"].kind, tree["p/b"].kind);
    assert!(matches!(tree["p/a"].kind, Kind::File { link: Some(0), .. }));
    assert_eq!(tree["p/sub/c"].kind, Kind::Symlink("../a".to_owned()));
}

#[test]
fn a_root_file_system_may_have_devices_and_links_anywhere() {
    let maker = Maker::new()
        .symlink("bin", "/usr/bin")
        .symlink("etc/mtab", "../../proc/mounts")
        .raw(tar::EntryType::Char, "dev/null", "", b"")
        .file("bin/sh", b"#!");
    let tree = read(&maker.bytes(), Flavour::RootFileSystem, Limits::default()).unwrap();
    assert_eq!(tree["dev/null"].kind, Kind::Character { major: 1, minor: 3 });
    assert!(tree.contains_key("usr/bin/sh") && !tree.contains_key("bin/sh"), "{:?}", names(&tree));
}

#[test]
fn the_last_of_equal_names_wins_with_everything_below() {
    let maker = Maker::new().file("p/d/x", b"old").file("p/d", b"now a file");
    let tree = source(maker).unwrap();
    assert_eq!(names(&tree), ["p", "p/d"]);
}

#[test]
fn extended_attributes_of_a_root_file_system_are_kept() {
    let mut builder = tar::Builder::new(Vec::new());
    let value: &[u8] = &[1, 0, 0, 2, 0xff];
    builder.append_pax_extensions([("SCHILY.xattr.security.capability", value)]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    builder.append_data(&mut header, "usr/bin/ping", io::empty()).unwrap();
    let bytes = builder.into_inner().unwrap();
    let tree = read(&bytes, Flavour::RootFileSystem, Limits::default()).unwrap();
    assert_eq!(tree["usr/bin/ping"].xattrs["security.capability"], "01000002ff");
}

#[test]
fn bombs_and_cut_archives_are_refused() {
    let bytes = Maker::new().file("p/a", &[1; 600]).file("p/b", &[2; 600]).bytes();
    let with = |limits| read(&bytes, Flavour::Source, limits).unwrap_err();
    assert!(matches!(
        with(Limits { bytes: 1199, members: 9, ..Limits::default() }),
        ArchiveError::TooLarge { unit: "bytes", .. }
    ));
    assert!(matches!(
        with(Limits { bytes: 1200, members: 1, ..Limits::default() }),
        ArchiveError::TooLarge { unit: "members", .. }
    ));
    // Header, content, header, content: 512 + 1024 each. Every cut is noticed, also between two members.
    for length in [100, 512, 900, 1536, 2048, 3072, 3073] {
        let error = read(&bytes[..length], Flavour::Source, Limits::default());
        assert!(
            matches!(error, Err(ArchiveError::Read(_) | ArchiveError::Truncated)),
            "cut at {length}: {error:?}"
        );
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, &bytes).unwrap();
    let packed = gzip.finish().unwrap();
    let error = read(&packed[..packed.len() - 9], Flavour::Source, Limits::default());
    assert!(matches!(error, Err(ArchiveError::Read(_) | ArchiveError::Truncated)), "{error:?}");
    for (magic, name) in [(&b"\xfd7zXZ\0"[..], "xz"), (b"BZh91AY", "bzip2")] {
        let error = read(magic, Flavour::Source, Limits::default());
        assert!(matches!(error, Err(ArchiveError::Compression(found)) if found == name), "{error:?}");
    }
}

#[test]
fn links_are_followed_inside_the_tree_only() {
    let links = |path: &str| match path {
        "bin" => Some("usr/bin".to_owned()),
        "lib" => Some("/usr/lib".to_owned()),
        "up" => Some("../../..".to_owned()),
        "one" => Some("two".to_owned()),
        "two" => Some("one".to_owned()),
        _ => None,
    };
    let resolve = |path: &'static str| resolve(&ImagePath::known(path), links);
    assert_eq!(resolve("bin/sh"), Some(Some(ImagePath::known("usr/bin/sh"))));
    assert_eq!(resolve("lib"), Some(Some(ImagePath::known("usr/lib"))));
    assert_eq!(resolve("up/x"), Some(Some(ImagePath::known("x"))));
    assert_eq!(resolve("up"), Some(None));
    assert_eq!(resolve("one/x"), None);
}
