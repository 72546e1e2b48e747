//! Reads what the layers of a base image hold, without keeping their bytes.
//!
//! Layers are applied in order with the whiteouts of the OCI image specification ("layer.md", section
//! "Whiteouts"): `.wh.NAME` removes `NAME`, `.wh..wh..opq` empties its directory. While a layer is read, its
//! blob digest and its `diffID` are both checked, so a base that is damaged or wrong is never built upon.

use std::io::{self, Read};

use oci::{
    Mismatch,
    archive::{decompressed, for_each_member},
};

use super::{
    elf::Interest,
    sparse,
    tarball::{ArchiveError, Limits},
    view::{Node, SMALL, View, of_interest},
};
use crate::{
    cache::{Cache, Content, Shelf},
    digest::{Digest, Hashing},
    progress::Bar,
};

/// Why a base layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// It cannot be read.
    #[error("the base layer `{layer}` cannot be read")]
    Read {
        /// The layer.
        layer: Digest,
        /// Why.
        #[source]
        source: ArchiveError,
    },
    /// Its uncompressed bytes are not those that the image configuration names.
    #[error("the base layer `{layer}` unpacks to `{found}`, but its image configuration says `{expected}`",
        found = .mismatch.found, expected = .mismatch.expected)]
    DiffId {
        /// The layer.
        layer: Digest,
        /// The digest of what it unpacks to, and that of the configuration.
        mismatch: Box<Mismatch>,
    },
}

/// Applies one layer to a view. `digest` is checked by who fetched the blob, `diff_id` here.
pub fn apply(
    cache: &Cache,
    view: &mut View,
    blob: &Content,
    diff_id: Digest,
    bar: &Bar,
) -> Result<(), ScanError> {
    let fail = |source| ScanError::Read { layer: blob.digest, source };
    let file = cache.open_content(Shelf::Blobs, blob).map_err(|error| fail(error.into()))?;
    let limits = Limits::default();
    // One more than allowed: what is cut off then is noticed.
    let bounded = decompressed(bar.reader(file)).map_err(|error| fail(error.into()))?.take(limits.bytes + 1);
    let mut raw = Hashing::new(bounded);
    // Whiteouts hide what lower layers brought, wherever in the layer they stand: additions wait.
    let mut additions = Vec::new();
    let read = for_each_member(&mut raw, limits.bounds(), ArchiveError::from, |member| {
        member_into(view, &mut additions, member).map_err(ArchiveError::Read)
    });
    // The end mark is read over, and whatever follows it is a part of what was hashed.
    let read = read.and_then(|_| io::copy(&mut raw, &mut io::sink()).map_err(ArchiveError::Read));
    let hasher = raw.into_parts().1;
    if hasher.length() > limits.bytes {
        return Err(fail(ArchiveError::TooLarge { limit: limits.bytes, unit: "bytes" }));
    }
    read.map_err(fail)?;
    for (path, node) in additions {
        view.put(&path, node);
    }
    let checked = diff_id.check(hasher.finish());
    checked.map_err(|mismatch| ScanError::DiffId { layer: blob.digest, mismatch })
}

fn member_into(
    view: &mut View,
    additions: &mut Vec<(String, Node)>,
    member: &mut tar::Entry<'_, impl Read>,
) -> io::Result<()> {
    let sparse = sparse::of(member)?;
    let bytes = sparse.as_ref().and_then(|sparse| sparse.name.clone());
    let bytes = bytes.unwrap_or_else(|| member.path_bytes().into_owned());
    let name = String::from_utf8_lossy(&bytes);
    let path = name.trim_start_matches("./").trim_matches('/').to_owned();
    let (parent, last) = path.rsplit_once('/').unwrap_or(("", &path));
    if last == ".wh..wh..opq" {
        view.remove_below(parent);
        return Ok(());
    }
    if let Some(hidden) = last.strip_prefix(".wh.") {
        let hidden = if parent.is_empty() { hidden.to_owned() } else { format!("{parent}/{hidden}") };
        view.remove(&hidden);
        return Ok(());
    }
    if matches!(path.as_str(), "" | ".") {
        return Ok(());
    }
    let mode = member.header().mode()?;
    let kind = member.header().entry_type();
    let node = if kind.is_dir() {
        Node::Directory
    } else if kind.is_symlink() {
        let target = member.link_name_bytes().unwrap_or_default().into_owned();
        Node::Symlink(String::from_utf8_lossy(&target).into_owned())
    } else if kind.is_hard_link() {
        Node::file(mode)
    } else if kind.is_file() {
        let size = sparse.as_ref().map_or_else(|| member.size(), |sparse| sparse.size);
        let mut content: Box<dyn Read + '_> = match sparse {
            Some(sparse) => Box::new(sparse.content(member)?),
            None => Box::new(member),
        };
        let text = if of_interest(&path) && size <= SMALL {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        } else {
            None
        };
        let binary = match Interest::of(&path) {
            Some(interest) => interest.read(&mut content)?,
            None => None,
        };
        Node::File { mode, text, binary }
    } else {
        Node::Special
    };
    additions.push((path, node));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::ImagePath;

    fn layer(cache: &Cache, files: &[(&str, &str)]) -> (Content, Digest) {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o755);
            builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        let raw = builder.into_inner().unwrap();
        let packed = zstd::encode_all(&raw[..], 1).unwrap();
        (cache.put(Shelf::Blobs, &mut &packed[..]).unwrap(), Digest::of(&raw))
    }

    #[test]
    fn layers_are_applied_with_their_whiteouts() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let mut view = View::default();
        // Larger than what headers may have: contents are none.
        let large = "x".repeat(5 << 20);
        let lower =
            layer(&cache, &[("etc/passwd", "root"), ("opt/a", &large), ("opt/b", "2"), ("srv/x", "3")]);
        let upper = layer(
            &cache,
            &[
                ("opt/c", "4"),
                ("opt/.wh.a", ""),
                ("srv/y", "5"),
                ("srv/.wh..wh..opq", ""),
                ("./etc/group", "g"),
            ],
        );
        for (blob, diff_id) in [&lower, &upper] {
            apply(&cache, &mut view, blob, *diff_id, &Bar::hidden()).unwrap();
        }
        let left: Vec<&str> = view.nodes().map(|(path, _)| path).collect();
        assert_eq!(left, ["etc/group", "etc/passwd", "opt/b", "opt/c", "srv/y"]);
        assert_eq!(view.text(&ImagePath::known("etc/passwd")), Some("root"));
    }

    #[test]
    fn a_layer_that_is_cut_short_or_has_endless_headers_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let (whole, diff_id) = layer(&cache, &[("a", "1"), ("b", "2")]);
        let bytes = std::fs::read(cache.path(Shelf::Blobs, &whole.digest)).unwrap();
        for length in [0, 20, bytes.len() / 2, bytes.len() - 1] {
            let cut = cache.put(Shelf::Blobs, &mut &bytes[..length]).unwrap();
            let mut view = View::default();
            let error = apply(&cache, &mut view, &cut, diff_id, &Bar::hidden());
            assert!(error.is_err(), "cut at {length}");
            assert_eq!(view.nodes().count(), 0, "nothing of it is seen");
        }
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(64 << 20);
        header.set_cksum();
        builder.append(&header, io::repeat(b'x').take(64 << 20)).unwrap();
        let raw = builder.into_inner().unwrap();
        let packed = zstd::encode_all(&raw[..], 1).unwrap();
        let bomb = cache.put(Shelf::Blobs, &mut &packed[..]).unwrap();
        let error = apply(&cache, &mut View::default(), &bomb, Digest::of(&raw), &Bar::hidden());
        let source = |error: &ScanError| {
            matches!(error, ScanError::Read { source: ArchiveError::TooLarge { .. }, .. })
        };
        assert!(error.as_ref().is_err_and(source), "{error:?}");
    }

    #[test]
    fn a_layer_that_is_not_what_the_configuration_says_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let (blob, _) = layer(&cache, &[("a", "1")]);
        let error = apply(&cache, &mut View::default(), &blob, Digest::of(b""), &Bar::hidden());
        assert!(matches!(error, Err(ScanError::DiffId { .. })), "{error:?}");
    }
}
