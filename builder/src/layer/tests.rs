use super::{codec::PIECE, *};
fn cache() -> (tempfile::TempDir, Cache) {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    (directory, cache)
}

fn sample(cache: &Cache) -> Tree {
    let put = |bytes: &[u8]| cache.put(Shelf::Files, &mut &*bytes).unwrap();
    let large = put(&b"0123456789abcdef".repeat(PIECE / 8));
    let small = put(b"small");
    let mut tree = Tree::new();
    tree.insert(ImagePath::known("opt"), Entry::directory(0o755));
    tree.insert(ImagePath::known("opt/large"), Entry::file(large, 0o644));
    for name in ["opt/linked", "opt/also"] {
        let kind = Kind::File { content: small, link: Some(3) };
        tree.insert(ImagePath::known(name), Entry { kind, ..Entry::file(small, 0o600) });
    }
    tree.insert(ImagePath::known("opt/empty"), Entry::file(put(b""), 0o644));
    tree
}

/// Names, link targets and contents as another program's reader sees them.
fn listing(cache: &Cache, layer: &Layer) -> (Vec<(String, Option<String>, u64)>, Digest) {
    let file = cache.open_content(Shelf::Blobs, &layer.blob).unwrap();
    let mut raw = Vec::new();
    oci::archive::decompressed(file).unwrap().read_to_end(&mut raw).unwrap();
    let mut archive = tar::Archive::new(&raw[..]);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let list = archive
        .entries()
        .unwrap()
        .map(Result::unwrap)
        .map(|mut member| {
            let mut content = Vec::new();
            member.read_to_end(&mut content).unwrap();
            assert_eq!(content.len() as u64, member.size());
            let link = member.link_name_bytes().map(|bytes| text(&bytes));
            (text(&member.path_bytes()), link, member.size())
        })
        .collect();
    (list, Digest::of(&raw))
}

#[test]
fn a_layer_holds_the_tree_and_its_diff_id_is_that_of_the_archive() {
    let (_directory, cache) = cache();
    let tree = sample(&cache);
    for codec in [Codec::Gzip, Codec::Zstd, Codec::ZstdChunked] {
        let layer = write(&cache, &tree, codec, 2, Bar::hidden()).unwrap();
        let (list, digest) = listing(&cache, &layer);
        let expected = [
            ("opt/", None, 0),
            ("opt/also", None, 5),
            ("opt/empty", None, 0),
            ("opt/large", None, 2 * PIECE as u64),
            ("opt/linked", Some("opt/also"), 0),
        ];
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(name, link, size)| (name.to_owned(), link.map(str::to_owned), size))
            .collect();
        assert_eq!(list, expected);
        assert_eq!(layer.diff_id, digest);
    }
}

#[test]
fn threads_and_what_the_cache_had_change_no_byte() {
    for codec in [Codec::Gzip, Codec::ZstdChunked] {
        let (_first_directory, first) = cache();
        let (_second_directory, second) = cache();
        let layer = write(&first, &sample(&first), codec, 1, Bar::hidden()).unwrap();
        let mut part = sample(&second);
        part.remove(&ImagePath::known("opt/also"));
        write(&second, &part, codec, 1, Bar::hidden()).unwrap();
        assert_eq!(write(&second, &sample(&second), codec, 4, Bar::hidden()).unwrap(), layer);
        assert_eq!(layer.annotations.is_empty(), codec == Codec::Gzip);
    }
}

/// What the headers of an archive come to, in the words of a table.
fn entries_of(archive: &[u8]) -> Vec<chunked::Entry> {
    let mut archive = tar::Archive::new(archive);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let members = archive.entries().unwrap().map(Result::unwrap);
    let entry = |mut member: tar::Entry<'_, &[u8]>| {
        let kind = match member.header().entry_type() {
            tar::EntryType::Link => "hardlink",
            tar::EntryType::Symlink => "symlink",
            tar::EntryType::Char => "char",
            tar::EntryType::Directory => "dir",
            _ => "reg",
        };
        let mut xattrs = std::collections::BTreeMap::new();
        for extension in member.pax_extensions().unwrap().into_iter().flatten() {
            let extension = extension.unwrap();
            if let Some(name) = extension.key().unwrap().strip_prefix("SCHILY.xattr.") {
                xattrs.insert(name.to_owned(), chunked::xattr(extension.value_bytes()));
            }
        }
        let header = member.header();
        chunked::Entry {
            kind: kind.to_owned(),
            name: text(&member.path_bytes()),
            link_name: member.link_name_bytes().map(|bytes| text(&bytes)).unwrap_or_default(),
            mode: header.mode().unwrap().into(),
            size: member.size(),
            uid: header.uid().unwrap(),
            gid: header.gid().unwrap(),
            modified: Some(crate::date::rfc3339(header.mtime().unwrap())),
            dev_major: header.device_major().unwrap().unwrap_or_default().into(),
            dev_minor: header.device_minor().unwrap().unwrap_or_default().into(),
            xattrs,
            ..chunked::Entry::default()
        }
    };
    members.map(entry).collect()
}

#[test]
fn a_table_of_contents_says_what_the_archive_says_and_every_chunk_is_where_it_says() {
    let (_directory, cache) = cache();
    let mut tree = sample(&cache);
    let link = Entry::symlink(&"target/".repeat(20));
    let device = Entry { kind: Kind::Character { major: 1, minor: 3 }, ..Entry::directory(0o666) };
    let mut capable = Entry { mtime: 1_700_000_000, uid: 185, gid: 7, ..tree["opt/empty"].clone() };
    capable.xattrs.insert("security.capability".to_owned(), "0100ff".to_owned());
    let zeros = cache.put(Shelf::Files, &mut &vec![0; 3 << 20][..]).unwrap();
    let medium = cache.put(Shelf::Files, &mut &b"medium ".repeat(9_000)[..]).unwrap();
    let long = format!("opt/{}/{}", "p".repeat(160), "n".repeat(120));
    for (name, entry) in [
        ("opt/symlink", link),
        ("opt/null", device),
        ("opt/capable", capable),
        ("opt/zeros", Entry::file(zeros, 0o4755)),
        (&long, Entry::file(medium, 0o640)),
        ("opt/\u{fa}j <&>", tree["opt/also"].clone()),
    ] {
        tree.insert(ImagePath::new(name).unwrap(), entry);
    }
    let layer = write(&cache, &tree, Codec::ZstdChunked, 2, Bar::hidden()).unwrap();
    let path = cache.path(Shelf::Blobs, &layer.blob.digest);
    let file = || std::fs::File::open(&path).unwrap();
    chunked::check(file(), layer.blob.size, &layer.annotations).unwrap();
    let mut reader = chunked::Reader::open(file(), layer.blob.size, &layer.annotations).unwrap();
    let (chunks, files) = (reader.verify().unwrap(), tree.len());
    assert!(chunks > files, "{chunks} chunks: the large files have several");
    let mut archive = Vec::new();
    reader.archive(&mut archive).unwrap();
    assert_eq!(Digest::of(&archive), layer.diff_id);
    let expected = entries_of(&archive);
    let mut found = reader.entries.clone();
    assert!(found.iter().any(|entry| entry.chunk_type == "zeros"));
    found.retain(|entry| entry.kind != "chunk");
    // The library of the test gives headers without what PAX records replace; none of these is.
    for entry in &mut found {
        (entry.digest, entry.offset, entry.end_offset) = (None, 0, 0);
        (entry.chunk_size, entry.chunk_offset, entry.chunk_digest) = (0, 0, None);
        entry.chunk_type.clear();
    }
    assert_eq!(found, expected);
}

#[test]
fn damaged_files_and_members_are_refused_and_removed() {
    for damaged in ["opt/also", "opt/large", "member of opt/large"] {
        let (directory, cache) = cache();
        let tree = sample(&cache);
        let layer = write(&cache, &tree, Codec::Gzip, 1, Bar::hidden()).unwrap();
        let name = damaged.trim_start_matches("member of ");
        let content = tree[name].content().unwrap();
        let path = if name == damaged {
            cache.path(Shelf::Files, &content.digest)
        } else {
            cache.member_path(Codec::Gzip.id(), &content.digest)
        };
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 3;
        bytes[middle] ^= 1;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::remove_dir_all(directory.path().join("layers-v2")).unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let write = || write(&cache, &tree, Codec::Gzip, 1, Bar::hidden());
        assert!(write().is_err(), "{damaged}");
        assert!(!path.exists() && cache.take_damaged() > 0, "{damaged}");
        sample(&cache);
        assert_eq!(write().unwrap(), layer, "{damaged}: it is made again");
    }
}
