//! Writes images into an OCI image layout, beside what is there already.
//!
//! ```text
//! <directory>/oci-layout             {"imageLayoutVersion":"1.0.0"}
//! <directory>/index.json             one manifest or index per tag, named by `org.opencontainers.image.ref.name`
//! <directory>/blobs/sha256/<hex>     hard links to the cache where the file system allows, else copies
//! ```
//!
//! Blobs come first and the index last, each written aside and renamed: a reader, or a build that is killed,
//! sees the old state or the new one. An image of the same name is replaced in the index; then blobs that only the old
//! one needed are removed (`unreferenced`). Builds that write the same layout take turns.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use oci::layout::{INDEX, MARK, REF_NAME, VERSION};
use serde_json::{Value, json};

use super::{Publication, unreferenced};
use crate::{
    cache::{Cache, CacheError, Content, Shelf},
    digest::{Digest, Hashing},
    image::{self, Document, canonical},
};

/// Why a layout cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is something else.
    #[error("`{}` is not empty and no OCI image layout: choose another directory with --to", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// A layer in the cache cannot be read.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Its index cannot be read.
    #[error("cannot read `{}`: remove it, and build again", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How names of files begin that are being written.
const ASIDE: &str = ".hearth-layout-";

/// Adds images to a layout, or starts one.
pub fn write(cache: &Cache, directory: &Path, publication: &Publication<'_>) -> Result<(), LayoutError> {
    let blobs = directory.join("blobs").join("sha256");
    check(directory)?;
    fs::create_dir_all(&blobs).map_err(|source| fault(&blobs, source))?;
    let turn = File::open(directory).map_err(|source| fault(directory, source))?;
    turn.lock().map_err(|source| fault(directory, source))?;
    for place in [directory, &blobs] {
        sweep(place).map_err(|source| fault(place, source))?;
    }
    replace(directory, &directory.join(MARK), VERSION)?;
    for image in &publication.images {
        for layer in &image.layers {
            link(cache, &layer.blob, &blobs.join(layer.blob.digest.hex()))?;
        }
        put_document(&blobs, &image.config)?;
    }
    for document in publication.referrers.iter().flat_map(|referrer| &referrer.blobs) {
        put_document(&blobs, document)?;
    }
    for document in publication.documents() {
        put_document(&blobs, document)?;
    }
    let path = directory.join(INDEX);
    let old = read_index(&path)?;
    let old = entries(old.as_ref());
    let index = merge(&blobs, old, publication);
    replace(directory, &path, &canonical(&index))?;
    let needed = unreferenced::reachable(&blobs, entries(Some(&index)).iter());
    let before = unreferenced::reachable(&blobs, old.iter());
    let ours = |digest: &Digest, path: &Path| {
        before.contains(digest) || same(&cache.path(Shelf::Blobs, digest), path)
    };
    unreferenced::remove(&blobs, &needed, ours).map_err(|source| fault(&blobs, source))
}

/// The manifests of an index.
fn entries(index: Option<&Value>) -> &[Value] {
    index.and_then(|index| index["manifests"].as_array()).map_or(&[], Vec::as_slice)
}

/// A directory that holds something else is left alone.
fn check(directory: &Path) -> Result<(), LayoutError> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(fault(directory, source)),
        Ok(_) if directory.join(MARK).exists() => Ok(()),
        // Empty, or all that a build leaves that was killed before it wrote the first document.
        Ok(mut entries) => {
            let is_ours = |entry: &fs::DirEntry| entry.file_name() == "blobs" || is_aside(entry);
            let ours = entries.all(|entry| entry.is_ok_and(|entry| is_ours(&entry)));
            if ours { Ok(()) } else { Err(LayoutError::Foreign { path: directory.to_owned() }) }
        }
    }
}

fn is_aside(entry: &fs::DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(ASIDE.as_bytes())
}

/// Removes what killed builds were writing. Whoever has the directory's lock is the only one who writes.
fn sweep(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if is_aside(&entry) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Replaces images of the same name, keeps the others; documents about images that are gone go as well.
fn merge(blobs: &Path, old: &[Value], publication: &Publication<'_>) -> Value {
    let named = |entry: &Value| entry["annotations"][REF_NAME].as_str().map(str::to_owned);
    let replaced =
        |entry: &Value| publication.tags.iter().any(|tag| named(entry).as_deref() == Some(&tag.name));
    let (gone, mut manifests): (Vec<Value>, Vec<Value>) = old.iter().cloned().partition(replaced);
    for tag in &publication.tags {
        let mut descriptor = tag.document.descriptor.clone();
        descriptor.annotations = BTreeMap::from([(REF_NAME.to_owned(), tag.name.clone())]);
        manifests.push(descriptor.to_json());
    }
    let gone = unreferenced::reachable(blobs, gone.iter());
    let images = manifests.iter().filter(|entry| entry.get("artifactType").is_none());
    let kept = unreferenced::reachable(blobs, images);
    manifests.retain(|entry| {
        unreferenced::subject(blobs, entry)
            .is_none_or(|subject| !gone.contains(&subject) || kept.contains(&subject))
    });
    // Documents about images have no name; programs find them by their subject.
    for referrer in &publication.referrers {
        let entry = referrer.manifest.descriptor.to_json();
        if !manifests.iter().any(|known| known["digest"] == entry["digest"]) {
            manifests.push(entry);
        }
    }
    manifests.sort_by_key(|entry| (named(entry), entry["digest"].as_str().map(str::to_owned)));
    json!({
        "schemaVersion": 2,
        "mediaType": image::INDEX,
        "manifests": manifests,
    })
}

fn read_index(path: &Path) -> Result<Option<Value>, LayoutError> {
    let fail = |source| LayoutError::Index { path: path.to_owned(), source };
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(fail(source)),
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| fail(error.into())),
    }
}

fn put_document(blobs: &Path, document: &Document) -> Result<(), LayoutError> {
    let path = blobs.join(document.descriptor.digest.hex());
    if fs::read(&path).is_ok_and(|bytes| bytes == document.bytes) {
        return Ok(());
    }
    replace(blobs, &path, &document.bytes)
}

/// Links a layer, which was verified, from the cache. What lies at the target may be damaged, unless it is that file.
fn link(cache: &Cache, blob: &Content, target: &Path) -> Result<(), LayoutError> {
    let source = &cache.path(Shelf::Blobs, &blob.digest);
    if same(source, target) || equals(target, blob) {
        return Ok(());
    }
    let directory = target.parent().unwrap_or(Path::new(""));
    // A name of our own first: a link cannot replace a short file that is there.
    let aside = tempfile::Builder::new()
        .prefix(ASIDE)
        .make_in(directory, |path| fs::hard_link(source, path))
        .map(tempfile::NamedTempFile::into_temp_path);
    let aside = if let Ok(aside) = aside {
        aside
    } else {
        let mut copy = temporary(directory).map_err(|source| fault(target, source))?;
        let mut original = cache.open_content(Shelf::Blobs, blob)?.always();
        io::copy(&mut original, copy.as_file_mut()).map_err(|source| fault(target, source))?;
        copy.as_file().sync_all().map_err(|source| fault(target, source))?;
        copy.into_temp_path()
    };
    aside.persist(target).map_err(|error| fault(target, error.error))
}

/// Whether two names are of one file.
fn same(left: &Path, right: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    id(left).is_some_and(|left| id(right) == Some(left))
}

/// Whether a file has the digest of a blob. One that cannot be read is replaced.
fn equals(path: &Path, blob: &Content) -> bool {
    let digest = || -> io::Result<Digest> {
        let mut hashing = Hashing::new(File::open(path)?);
        io::copy(&mut hashing, &mut io::sink())?;
        Ok(hashing.into_parts().1.finish())
    };
    fs::metadata(path).is_ok_and(|meta| meta.len() == blob.size)
        && digest().is_ok_and(|digest| digest == blob.digest)
}

fn replace(directory: &Path, path: &Path, bytes: &[u8]) -> Result<(), LayoutError> {
    let write = || {
        let mut file = temporary(directory)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)
    };
    write().map(|_| ()).map_err(|source| fault(path, source))
}

/// Readable for everybody, whatever the umask: layouts are handed to other programs and users.
fn temporary(directory: &Path) -> io::Result<tempfile::NamedTempFile> {
    let file = tempfile::Builder::new().prefix(ASIDE).tempfile_in(directory)?;
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    Ok(file)
}

fn fault(path: &Path, source: io::Error) -> LayoutError {
    LayoutError::Write { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::{super::Tag, *};
    use crate::{
        image::{Added, Image, Settings},
        layer::Layer,
        sbom::{self, Subject},
    };

    fn image(cache: &Cache, text: &str) -> Image {
        let blob: Content = cache.put(Shelf::Blobs, &mut text.as_bytes()).unwrap();
        let media_type = "application/vnd.oci.image.layer.v1.tar".into();
        let layer = Layer { blob, diff_id: blob.digest, media_type, annotations: BTreeMap::new() };
        image::assemble(&json!({}), &[], &[Added { label: text.into(), layer }], &Settings::default())
    }

    fn named<'a>(name: &str, image: &'a Image) -> Publication<'a> {
        let tag = Tag { name: name.to_owned(), document: image.manifest.clone() };
        Publication { images: vec![image], tags: vec![tag], referrers: Vec::new() }
    }

    fn names(directory: &Path) -> Vec<(String, String)> {
        let index: Value = serde_json::from_slice(&fs::read(directory.join("index.json")).unwrap()).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let entries = index["manifests"].as_array().unwrap().iter();
        entries.map(|entry| (text(&entry["annotations"][REF_NAME]), text(&entry["digest"]))).collect()
    }

    #[test]
    fn images_are_added_and_replaced_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("cache")).unwrap();
        let layout = directory.path().join("dist");
        let (first, second) = (image(&cache, "one"), image(&cache, "two"));
        let put = |name, image| write(&cache, &layout, &named(name, image)).unwrap();
        put("b", &first);
        put("a", &first);
        put("b", &second);
        let digest = |image: &Image| image.manifest.descriptor.digest.to_string();
        assert_eq!(names(&layout), [("a".to_owned(), digest(&first)), ("b".to_owned(), digest(&second))]);
        let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap().count();
        assert_eq!(blobs, 6, "nothing that another image may need is removed, nothing is left over");
        assert_eq!(fs::read(layout.join("oci-layout")).unwrap(), br#"{"imageLayoutVersion":"1.0.0"}"#);
    }

    #[test]
    fn blobs_that_only_a_replaced_image_needed_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("cache")).unwrap();
        let layout = directory.path().join("dist");
        let put = |name: &str, image: &Image| write(&cache, &layout, &named(name, image)).unwrap();
        let blobs = || fs::read_dir(layout.join("blobs/sha256")).unwrap().count();
        put("a", &image(&cache, "one"));
        // Another program has begun to write an image.
        let foreign = layout.join("blobs/sha256").join(Digest::of(b"foreign").hex());
        fs::write(&foreign, "foreign").unwrap();
        let second = image(&cache, "two");
        put("a", &second);
        assert_eq!(blobs(), 4, "a layer, a configuration, a manifest and what is not ours");
        let document = |image| {
            let subject = Subject { name: "a", manifest: image, created: "1980-01-01T00:00:00Z" };
            sbom::referrer(&subject, sbom::SPDX, &json!({}))
        };
        let about = document(&second.manifest.descriptor);
        write(&cache, &layout, &Publication { referrers: vec![about], ..named("a", &second) }).unwrap();
        assert_eq!(blobs(), 6, "the empty document is its own configuration");
        put("a", &image(&cache, "three"));
        assert_eq!(blobs(), 4, "documents about the old image are gone with it");
        assert!(foreign.exists());
    }

    #[test]
    fn a_short_or_damaged_blob_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("cache")).unwrap();
        let layout = directory.path().join("dist");
        let image = image(&cache, "layer");
        let path = layout.join("blobs/sha256").join(image.layers[0].blob.digest.hex());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for damaged in ["lay", "laver"] {
            // The file may be a link to the cache.
            let _ = fs::remove_file(&path);
            fs::write(&path, damaged).unwrap();
            write(&cache, &layout, &named("x", &image)).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"layer", "{damaged}");
        }
    }

    #[test]
    fn what_a_build_was_writing_when_it_was_killed_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("cache")).unwrap();
        let layout = directory.path().join("dist");
        fs::create_dir(&layout).unwrap();
        let aside = temporary(&layout).unwrap().keep().unwrap().1;
        write(&cache, &layout, &named("x", &image(&cache, "layer"))).unwrap();
        assert!(!aside.exists(), "{} is nobody's", aside.display());
    }

    #[test]
    fn a_directory_with_something_else_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("cache")).unwrap();
        let image = image(&cache, "x");
        let error = write(&cache, directory.path(), &named("x", &image)).unwrap_err();
        assert!(matches!(error, LayoutError::Foreign { .. }), "{error}");
        fs::create_dir(directory.path().join("dist")).unwrap();
        fs::write(directory.path().join("dist/oci-layout"), "{}").unwrap();
        fs::write(directory.path().join("dist/index.json"), "{").unwrap();
        let error = write(&cache, &directory.path().join("dist"), &named("x", &image));
        assert!(matches!(error, Err(LayoutError::Index { .. })), "{error:?}");
    }
}
