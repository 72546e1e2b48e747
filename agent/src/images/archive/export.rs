//! Writes images as an OCI layout: a tar with the documents first, so that it can be imported in one pass, or a
//! directory, whose index is written last, so that a layout is always complete.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use oci::layout::{self, INDEX, MARK, REF_NAME, VERSION};
use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::{
    super::{ImageError, all, find, links, whole},
    ArchiveError,
    layout::{IMAGE_NAME, directory_members},
    tar::{self as stream, Kind},
};
use crate::{
    store::{Kept, Store, StoreError},
    types::{Digest, ImageName, Reference, media_type_of},
};

const BLOCK: u64 = 512;

/// A layout to be written: its blobs are protected from eviction meanwhile.
#[derive(Debug)]
pub struct Export {
    members: Vec<Member>,
}

/// One file of a layout.
#[derive(Debug)]
pub struct Member {
    /// Its path in the layout.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    Blob(Kept),
    File(PathBuf),
}

impl Content {
    fn open(&self) -> Result<Box<dyn Read + '_>, StoreError> {
        Ok(match self {
            Self::Bytes(bytes) => Box::new(bytes.as_slice()),
            Self::Blob(kept) => Box::new(kept.open()?),
            Self::File(path) => Box::new(fs::File::open(path).map_err(|source| StoreError::Io {
                action: "open",
                path: path.clone(),
                source,
            })?),
        })
    }
}

/// Collects images for a layout; each must be complete in the store. Blocking.
pub fn export(store: &Store, names: &[ImageName]) -> Result<Export, ImageError> {
    let images = all(store)?;
    let mut blobs: HashMap<Digest, Kept> = HashMap::new();
    let (mut order, mut manifests) = (Vec::new(), Vec::new());
    for name in names {
        let (_, meant) = find(&images, name)?;
        let digest = meant[0].digest;
        let state = whole(&digest, &|digest| links(store, digest), &|digest| {
            // This only checks; the exported blobs are protected below, and must still exist then.
            store.keep(digest).ok()?.map(|kept| kept.size())
        });
        if !state.complete {
            let missing = state.missing.first().or(state.absent.first()).unwrap_or(&digest);
            return Err(ImageError::Incomplete { name: name.to_string(), missing: missing.to_string() });
        }
        for part in &state.content {
            let gone = || ImageError::Incomplete { name: name.to_string(), missing: part.to_string() };
            if !blobs.contains_key(part) {
                blobs.insert(*part, store.keep(part)?.ok_or_else(gone)?);
                order.push(*part);
            }
        }
        manifests.push((name, digest, blobs[&digest].size()));
    }
    let index = index(store, &manifests);
    let mut members = vec![
        Member::bytes(MARK, VERSION.to_vec()),
        Member::bytes(INDEX, serde_json::to_vec(&index).expect("plain values are always valid JSON")),
    ];
    members.extend(order.iter().filter_map(|digest| blobs.remove(digest)).map(Member::blob));
    Ok(Export { members })
}

/// The index: each image with its whole name, and with its tag if that is unambiguous.
fn index(store: &Store, images: &[(&ImageName, Digest, u64)]) -> Value {
    let reference = |name: &ImageName| name.reference().to_string();
    let mut tags: HashMap<String, u32> = HashMap::new();
    for (name, ..) in images {
        *tags.entry(reference(name)).or_default() += 1;
    }
    let entry = |(name, digest, size): &(&ImageName, Digest, u64)| {
        let whole = ImageName { reference: Some(name.reference()), ..(*name).clone() }.to_string();
        let unique = tags[&reference(name)] == 1 && matches!(name.reference(), Reference::Tag(_));
        let short = if unique { reference(name) } else { whole.clone() };
        let annotations = BTreeMap::from([(IMAGE_NAME, whole), (REF_NAME, short)]);
        let media_type = store.read_small(digest).and_then(|bytes| media_type_of(&bytes));
        json!({
            "mediaType": media_type.as_ref().map(crate::types::MediaType::as_str),
            "digest": digest.to_string(),
            "size": size,
            "annotations": annotations,
        })
    };
    json!({
        "schemaVersion": 2,
        "mediaType": oci::media_type::INDEX,
        "manifests": images.iter().map(entry).collect::<Vec<_>>(),
    })
}

impl Member {
    fn bytes(name: &str, bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), size: bytes.len() as u64, content: Content::Bytes(bytes) }
    }

    fn blob(kept: Kept) -> Self {
        Self { name: layout::path_of(kept.digest()), size: kept.size(), content: Content::Blob(kept) }
    }
}

impl Export {
    /// The files that an import of this directory needs.
    pub fn of_directory(directory: &Path) -> Result<Self, ArchiveError> {
        let members = directory_members(directory)?;
        let member = |(name, path): (String, PathBuf)| {
            let size = fs::metadata(&path).map_err(ArchiveError::Read)?.len();
            Ok(Member { name, size, content: Content::File(path) })
        };
        Ok(Self { members: members.into_iter().map(member).collect::<Result<_, ArchiveError>>()? })
    }

    /// Size of the tar in bytes.
    pub fn tar_size(&self) -> u64 {
        let of = |member: &Member| BLOCK + extended_size(member) + member.size.next_multiple_of(BLOCK);
        self.members.iter().map(of).sum::<u64>() + 2 * BLOCK
    }

    /// Writes the tar.
    pub fn write_tar(&self, out: &mut dyn Write) -> Result<(), ArchiveError> {
        let write = |out: &mut dyn Write, bytes: &[u8]| out.write_all(bytes).map_err(ArchiveError::Write);
        for member in &self.members {
            write(out, &headers(member))?;
            copy(member, out)?;
            write(out, &vec![0; padding(member.size)])?;
        }
        write(out, &[0; 1024])
    }

    /// Writes a directory, which must be empty or not exist.
    pub fn write_directory(&self, directory: &Path) -> Result<(), ArchiveError> {
        let mut writer = DirectoryWriter::new(directory)?;
        for member in &self.members {
            writer.take(&member.name, member.size, &mut member.content.open()?)?;
        }
        writer.finish()
    }
}

/// Writes the layout in a tar from an agent to a directory. Verifies the contents again.
pub fn unpack(reader: impl Read, directory: &Path) -> Result<(), ArchiveError> {
    let mut writer = DirectoryWriter::new(directory)?;
    stream::read(reader, |name, kind, content| match kind {
        Kind::File(size) => writer.take(name, size, content),
        Kind::Link(_) => Err(ArchiveError::member(name, "links are not allowed in an exported layout")),
    })?;
    writer.finish()
}

fn copy(member: &Member, out: &mut dyn Write) -> Result<(), ArchiveError> {
    let mut content = member.content.open()?.take(member.size);
    let mut buffer = vec![0; 256 * 1024];
    let mut left = member.size;
    while left > 0 {
        let read = content.read(&mut buffer).map_err(ArchiveError::Read)?;
        if read == 0 {
            return Err(ArchiveError::member(&member.name, "it was truncated while it was read"));
        }
        out.write_all(&buffer[..read]).map_err(ArchiveError::Write)?;
        left -= read as u64;
    }
    Ok(())
}

fn padding(size: u64) -> usize {
    usize::try_from(size.next_multiple_of(BLOCK) - size).expect("less than a block")
}

/// Names of sha-512 blobs are longer than a plain header holds.
fn is_long(name: &str) -> bool {
    name.len() >= 100
}

fn extended_size(member: &Member) -> u64 {
    if is_long(&member.name) { BLOCK + (member.name.len() as u64 + 1).next_multiple_of(BLOCK) } else { 0 }
}

fn headers(member: &Member) -> Vec<u8> {
    let header = |name: &str, kind: EntryType, size: u64| {
        let mut header = Header::new_gnu();
        let name = &name.as_bytes()[..name.len().min(99)];
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let mut out = Vec::new();
    if is_long(&member.name) {
        let length = member.name.len() as u64 + 1;
        out.extend(header("././@LongLink", EntryType::GNULongName, length));
        out.extend(member.name.as_bytes());
        out.resize(out.len() + 1 + padding(length), 0);
    }
    out.extend(header(&member.name, EntryType::Regular, member.size));
    out
}

/// A layout that is being written to a directory.
struct DirectoryWriter {
    directory: PathBuf,
    index: Option<Vec<u8>>,
    made: HashSet<PathBuf>,
}

impl DirectoryWriter {
    fn new(directory: &Path) -> Result<Self, ArchiveError> {
        fs::create_dir_all(directory).map_err(ArchiveError::Write)?;
        if fs::read_dir(directory).map_err(ArchiveError::Write)?.next().is_some() {
            return Err(ArchiveError::NotEmpty(directory.to_owned()));
        }
        Ok(Self { directory: directory.to_owned(), index: None, made: HashSet::new() })
    }

    fn take(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<(), ArchiveError> {
        if name == INDEX {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).map_err(ArchiveError::Read)?;
            self.index = Some(bytes);
            return Ok(());
        }
        let digest = layout::blob_of(name);
        if digest.is_none() && name != MARK {
            return Err(ArchiveError::member(name, "it is not part of an OCI layout"));
        }
        let path = self.directory.join(name);
        if let Some(parent) = path.parent().filter(|parent| self.made.insert(parent.to_path_buf())) {
            fs::create_dir_all(parent).map_err(ArchiveError::Write)?;
        }
        let mut file = fs::File::create_new(&path).map_err(ArchiveError::Write)?;
        let mut hasher = digest.map(|digest| digest.algorithm().hasher());
        let mut buffer = vec![0; 256 * 1024];
        let mut written = 0;
        loop {
            let read = content.read(&mut buffer).map_err(ArchiveError::Read)?;
            if read == 0 {
                break;
            }
            file.write_all(&buffer[..read]).map_err(ArchiveError::Write)?;
            if let Some(hasher) = &mut hasher {
                hasher.update(&buffer[..read]);
            }
            written += read as u64;
        }
        if written != size {
            return Err(ArchiveError::Truncated);
        }
        if hasher.map(crate::types::Hasher::finish) != digest {
            return Err(ArchiveError::member(name, "its content is damaged: run `hearth-agent verify`"));
        }
        Ok(())
    }

    fn finish(self) -> Result<(), ArchiveError> {
        let index = self.index.ok_or(ArchiveError::Truncated)?;
        let (aside, path) = (self.directory.join(".index.json"), self.directory.join(INDEX));
        fs::write(&aside, index).and_then(|()| fs::rename(&aside, &path)).map_err(ArchiveError::Write)
    }
}
