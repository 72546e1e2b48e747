//! Imports the images of an archive into the store.

use std::{
    cell::RefCell,
    fs,
    io::Read,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use oci::layout::{INDEX, MARK};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    super::{Whole, whole},
    ArchiveError, docker,
    intake::{DOCKER, Intake, too_large},
    layout,
    naming::{self, Entry},
};
use crate::{
    store::{ManifestRecord, Staged, Store, StoreError, TagRecord},
    types::{Digest, ImageName, ManifestLinks, Reference, RegistryHost, media_type_of, named_media_type},
};

/// Where images come from.
#[expect(missing_debug_implementations, reason = "a stream has nothing to show")]
pub enum Source<'a> {
    /// A tar stream, compressed or not.
    Tar(Box<dyn Read + Send + 'a>),
    /// An OCI layout in a directory.
    Directory(PathBuf),
}

/// Options of an import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The name of the image, if not that in the archive.
    pub name: Option<ImageName>,
    /// Whether to pin the images.
    pub pin: bool,
    /// Ends the import.
    pub stop: CancellationToken,
}

/// The result of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    /// The imported images.
    pub images: Vec<ImportedImage>,
}

/// An imported image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportedImage {
    /// Its name.
    pub name: String,
    /// Digest of its manifest or index.
    pub digest: String,
    /// Number of its manifests, configurations and layers.
    pub blobs: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Images of an index (platforms, attestations) that are not in the archive.
    pub missing_images: usize,
    /// Whether the agent serves its registry; otherwise no client can pull it.
    pub served: bool,
}

impl Imported {
    /// Notes which images belong to registries that the agent does not serve.
    pub fn note_served(&mut self, serves: impl Fn(&RegistryHost) -> bool) {
        for image in &mut self.images {
            let name: Result<ImageName, _> = image.name.parse();
            image.served = name.is_ok_and(|name| serves(&name.repository.registry));
        }
    }
}

/// Imports images, all or none. Blocking.
pub fn import(store: &Store, source: Source<'_>, options: &ImportOptions) -> Result<Imported, ArchiveError> {
    let mut intake = Intake::new(store.clone());
    let (space, _) = store.space(&store.partials()?)?;
    match source {
        Source::Tar(reader) => intake.read_tar(reader, space.allowed)?,
        Source::Directory(directory) => take_directory(&mut intake, &directory, space.allowed)?,
    }
    let entries = match (intake.document(INDEX), intake.document(DOCKER).map(<[u8]>::to_vec)) {
        (Some(index), _) => layout::entries(intake.document(MARK), index)?,
        (None, Some(manifest)) => docker::entries(&mut intake, &manifest, &options.stop)?,
        (None, None) => return Err(ArchiveError::Unknown),
    };
    let mut checked = Vec::new();
    for (name, entry) in naming::assign(&entries, options.name.as_ref())? {
        let state = check(&intake, &name, &entry)?;
        checked.push((name, entry, state));
    }
    publish(store, intake, &checked, options.pin)
}

fn take_directory(intake: &mut Intake, directory: &Path, limit: u64) -> Result<(), ArchiveError> {
    let mut left = limit;
    for (name, path) in layout::directory_members(directory)? {
        let mut file = fs::File::open(&path).map_err(ArchiveError::Read)?;
        let metadata = file.metadata().map_err(ArchiveError::Read)?;
        if !metadata.is_file() {
            return Err(ArchiveError::member(&name, "it is not a file"));
        }
        left = left.checked_sub(metadata.len()).ok_or_else(|| too_large(limit))?;
        intake.take(&name, metadata.len(), &mut file)?;
    }
    Ok(())
}

/// Checks that everything in the image's manifests exists, has the right size, and can be served.
fn check(intake: &Intake, name: &ImageName, entry: &Entry) -> Result<Whole, ArchiveError> {
    let wrong = RefCell::new(None);
    let links = |digest: &Digest| {
        let unusable = |reason: String| {
            wrong.borrow_mut().get_or_insert(ArchiveError::document(&digest.to_string(), reason));
        };
        let Some(bytes) = intake.small(digest) else {
            if intake.content(digest).is_some() {
                unusable("it is too large for a manifest".to_owned());
            }
            return None;
        };
        ManifestLinks::parse(&bytes).map_err(|error| unusable(error.to_string())).ok()
    };
    let size = |digest: &Digest| intake.content(digest).map(Staged::size);
    let state = whole(&entry.digest, &links, &size);
    if let Some(error) = wrong.into_inner() {
        return Err(error);
    }
    if !state.missing.is_empty() || !state.complete {
        let missing = if state.missing.is_empty() { state.absent } else { state.missing };
        return Err(ArchiveError::Incomplete { image: name.to_string(), missing });
    }
    if entry.size.is_some_and(|promised| size(&entry.digest) != Some(promised)) {
        let reason = format!("the index has another size for `{}`", entry.digest);
        return Err(ArchiveError::document(INDEX, reason));
    }
    check_type(intake, entry)?;
    Ok(state)
}

/// A document that contains its media type must match the index.
fn check_type(intake: &Intake, entry: &Entry) -> Result<(), ArchiveError> {
    let named = intake.small(&entry.digest).and_then(|bytes| named_media_type(&bytes));
    match named {
        Some(named) if named != entry.media_type => {
            let reason = format!(
                "its media type is `{}`, and that in the index is `{}`",
                named.as_str(),
                entry.media_type.as_str()
            );
            Err(ArchiveError::document(&entry.digest.to_string(), reason))
        }
        _ => Ok(()),
    }
}

/// Blobs first, then the records of manifests, then tags: no name ever exists without its content.
fn publish(
    store: &Store,
    mut intake: Intake,
    checked: &[(ImageName, Entry, Whole)],
    pin: bool,
) -> Result<Imported, ArchiveError> {
    let size = |digest: &Digest| intake.content(digest).map_or(0, Staged::size);
    let image = |(name, entry, state): &(ImageName, Entry, Whole)| ImportedImage {
        name: name.to_string(),
        digest: entry.digest.to_string(),
        blobs: state.content.len(),
        bytes: state.content.iter().map(size).sum(),
        pinned: pin,
        missing_images: state.absent.len(),
        served: true,
    };
    let imported = Imported { images: checked.iter().map(image).collect() };
    let sizes: Vec<u64> = checked.iter().map(|(_, entry, _)| size(&entry.digest)).collect();
    let mut records = Vec::new();
    for (name, _, state) in checked {
        for digest in &state.manifests {
            let media_type = intake.small(digest).and_then(|bytes| media_type_of(&bytes));
            if let Some(media_type) = media_type {
                records.push((name.repository.clone(), *digest, ManifestRecord::new(media_type.as_str())));
            }
        }
    }
    for digest in checked.iter().flat_map(|(_, _, state)| &state.content) {
        if let Some(staged) = intake.remove(digest) {
            staged.commit()?;
        }
    }
    for (repository, digest, record) in &records {
        store.set_manifest(repository, digest, record)?;
    }
    for ((name, entry, _), size) in checked.iter().zip(sizes) {
        set_name(store, name, entry, size, pin)?;
    }
    store.note_reference_change();
    Ok(imported)
}

fn set_name(store: &Store, name: &ImageName, entry: &Entry, size: u64, pin: bool) -> Result<(), StoreError> {
    match name.reference() {
        Reference::Tag(tag) => store.set_tag(
            &name.repository,
            &tag,
            &TagRecord {
                digest: entry.digest,
                media_type: entry.media_type.as_str().to_owned(),
                size,
                confirmed: SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |elapsed| elapsed.as_secs()),
                pinned: pin,
                held: false,
                imported: true,
                unconfirmed: false,
            },
        ),
        Reference::Digest(digest) => {
            let record = ManifestRecord { pinned: pin, ..ManifestRecord::new(entry.media_type.as_str()) };
            store.set_manifest(&name.repository, &digest, &record)
        }
    }
}
