//! Reads zip archives (wheels, JARs) into the cache, and refuses those that mean harm.
//!
//! The same rules hold as for source archives in tar: no absolute path, no `..`, links stay inside, a bound on what
//! it may unpack to. Of the attributes only "executable or not" is kept.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use ::zip::{ZipArchive, result::ZipError};

use super::tarball::Limits;
use crate::{
    cache::{Cache, CacheError, Shelf},
    digest::Digest,
    tree::{Entry, ImagePath, PathError, Tree},
};

/// No wheel, no JAR and no JDK of this world comes near this.
const LIMITS: Limits = Limits { bytes: 8 << 30, members: 500_000, headers: 0 };

/// What is read of an archive into memory, all members together.
const TEXTS: u64 = 64 << 20;

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ZipFileError {
    /// It cannot be opened.
    #[error("cannot open `{}`", path.display())]
    Open {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is damaged.
    #[error("it is damaged or no zip archive")]
    Read(#[source] ZipError),
    /// A member cannot be read.
    #[error("its member `{member}` cannot be read")]
    Member {
        /// The member.
        member: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name leads out of the tree.
    #[error("it has a member that is not allowed")]
    Path(#[source] PathError),
    /// A kind of member that is not expected.
    #[error("its member `{0}` is a symbolic link, which is not expected here")]
    Link(String),
    /// It unpacks to too much.
    #[error("it unpacks to more than {limit} {unit}: refused")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Whether a file is a zip archive.
pub fn is_zip(path: &Path) -> bool {
    let mut start = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *b"PK\x03\x04"
}

/// The members of an archive with the given digest, from the cache when an earlier run has read it.
pub fn unpack(cache: &Cache, path: &Path, digest: Digest) -> Result<Tree, ZipFileError> {
    let key = Digest::of(format!("tree 1 zip {digest}").as_bytes());
    if let Some(tree) = cache.note::<Tree>("trees-v2", &key)
        && tree
            .values()
            .filter_map(Entry::content)
            .all(|content| cache.find(Shelf::Files, &content).is_some())
    {
        return Ok(tree);
    }
    cache.verify_archive(path, digest)?;
    let tree = members(cache, path, LIMITS)?;
    cache.leave_note("trees-v2", &key, &tree)?;
    Ok(tree)
}

/// The members of an archive; for the fuzz target.
pub(crate) fn unpack_within(cache: &Cache, path: &Path, limits: Limits) -> Result<Tree, ZipFileError> {
    members(cache, path, limits)
}

fn members(cache: &Cache, path: &Path, limits: Limits) -> Result<Tree, ZipFileError> {
    let mut archive = open(path)?;
    if archive.len() as u64 > limits.members {
        return Err(ZipFileError::TooLarge { limit: limits.members, unit: "members" });
    }
    let (mut tree, mut total) = (Tree::new(), 0_u64);
    for at in 0..archive.len() {
        let mut member = archive.by_index(at).map_err(ZipFileError::Read)?;
        let name = member.name().map_err(ZipFileError::Read)?.into_owned();
        if member.is_dir() {
            continue;
        }
        let path = ImagePath::new(&name).map_err(ZipFileError::Path)?;
        if member.is_symlink() {
            return Err(ZipFileError::Link(name));
        }
        let executable = member.unix_mode().is_some_and(|mode| mode & 0o111 != 0);
        // What the directory says of the size is the archive's word: what comes is counted.
        let mut bounded = Read::take(&mut member, limits.bytes - total + 1);
        let content = cache.put(Shelf::Files, &mut bounded).map_err(|error| match error {
            CacheError::Input(source) => ZipFileError::Member { member: name, source },
            other => other.into(),
        })?;
        total += content.size;
        if total > limits.bytes {
            return Err(ZipFileError::TooLarge { limit: limits.bytes, unit: "bytes" });
        }
        tree.insert(path, Entry::file(content, if executable { 0o755 } else { 0o644 }));
    }
    Ok(tree)
}

/// Reads the members whose names are wanted, each at most `limit` bytes, without touching the cache. An archive with
/// too many of them is refused.
pub fn texts(
    path: &Path,
    limit: u64,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<(String, String)>, ZipFileError> {
    let mut archive = open(path)?;
    let names = archive.file_names().filter_map(Result::ok).map(std::borrow::Cow::into_owned);
    let names: Vec<String> = names.filter(|name| wanted(name)).collect();
    let (mut found, mut total) = (Vec::new(), 0);
    for name in names {
        let member = archive.by_name(&name).map_err(ZipFileError::Read)?;
        let mut bytes = Vec::new();
        let read = member.take(limit).read_to_end(&mut bytes);
        total += read.map_err(|source| ZipFileError::Member { member: name.clone(), source })? as u64;
        if total > TEXTS {
            return Err(ZipFileError::TooLarge { limit: TEXTS, unit: "bytes of texts" });
        }
        found.push((name, String::from_utf8_lossy(&bytes).into_owned()));
    }
    Ok(found)
}

/// The names at the top of an archive: of files, and of directories by what is in them. What is no archive has none.
pub fn top_names(path: &Path) -> Result<BTreeSet<String>, ZipFileError> {
    let archive = match open(path) {
        Err(ZipFileError::Read(_)) => return Ok(BTreeSet::new()),
        other => other?,
    };
    let names = archive.file_names().filter_map(Result::ok);
    let top = names.filter_map(|name| name.split('/').next().map(str::to_owned));
    Ok(top.filter(|name| !name.is_empty()).collect())
}

fn open(path: &Path) -> Result<ZipArchive<File>, ZipFileError> {
    let file = File::open(path).map_err(|source| ZipFileError::Open { path: path.to_owned(), source })?;
    ZipArchive::new(file).map_err(ZipFileError::Read)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use ::zip::{ZipWriter, write::SimpleFileOptions};

    use super::*;

    /// Writes an archive of (name, mode, content).
    pub(crate) fn write(path: &Path, members: &[(&str, u32, &[u8])]) -> Digest {
        let mut archive = ZipWriter::new(File::create(path).unwrap());
        for (name, mode, content) in members {
            archive.start_file(*name, SimpleFileOptions::default().unix_permissions(*mode)).unwrap();
            archive.write_all(content).unwrap();
        }
        archive.finish().unwrap();
        Digest::of(&std::fs::read(path).unwrap())
    }

    #[test]
    fn members_are_read_and_harm_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("cache")).unwrap();
        let path = directory.path().join("a.whl");
        let digest = write(&path, &[("pkg/a.py", 0o644, b"a"), ("pkg/run", 0o775, b"b")]);
        assert!(is_zip(&path));
        for _ in 0..2 {
            let tree = unpack(&cache, &path, digest).unwrap();
            let shown: Vec<(&str, u32)> =
                tree.iter().map(|(path, entry)| (path.as_str(), entry.mode)).collect();
            assert_eq!(shown, [("pkg/a.py", 0o644), ("pkg/run", 0o755)]);
        }
        let texts = texts(&path, 10, |name| name == "pkg/a.py").unwrap();
        assert_eq!(texts, [("pkg/a.py".to_owned(), "a".to_owned())]);
        for name in ["../evil", "/etc/passwd", "a/../../b"] {
            let digest = write(&path, &[(name, 0o644, b"x")]);
            assert!(matches!(unpack(&cache, &path, digest), Err(ZipFileError::Path(_))), "{name}");
        }
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 10]).unwrap();
        assert!(matches!(unpack(&cache, &path, Digest::of(b"z")), Err(ZipFileError::Read(_))));
    }

    #[test]
    fn bombs_links_and_damaged_members_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("cache")).unwrap();
        let path = directory.path().join("a.whl");
        let zeros = vec![0; 1 << 20];
        write(&path, &[("a", 0o644, &zeros), ("b", 0o644, &zeros)]);
        assert!(std::fs::metadata(&path).unwrap().len() < 10_000, "it is small");
        let within = |bytes, entries| members(&cache, &path, Limits { bytes, members: entries, headers: 0 });
        assert!(within(2 << 20, 2).is_ok());
        for (error, unit) in [(within((2 << 20) - 1, 2), "bytes"), (within(2 << 20, 1), "members")] {
            assert!(
                matches!(error, Err(ZipFileError::TooLarge { unit: found, .. }) if found == unit),
                "{error:?}"
            );
        }
        let many: Vec<String> = (0..70).map(|at| format!("t{at}")).collect();
        let many: Vec<(&str, u32, &[u8])> =
            many.iter().map(|name| (name.as_str(), 0o644, &zeros[..])).collect();
        write(&path, &many);
        let error = texts(&path, 1 << 20, |_| true);
        assert!(matches!(error, Err(ZipFileError::TooLarge { .. })), "texts are read into memory");

        let mut archive = ZipWriter::new(File::create(&path).unwrap());
        archive.add_symlink("lib", "/etc", SimpleFileOptions::default()).unwrap();
        archive.finish().unwrap();
        assert!(matches!(within(1, 1), Err(ZipFileError::Link(name)) if name == "lib"));

        write(&path, &[("a", 0o644, b"some text that is long enough to be damaged in the middle")]);
        let mut bytes = std::fs::read(&path).unwrap();
        let content = 30 + "a".len() + 5;
        bytes[content] ^= 0xff;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(within(1000, 1), Err(ZipFileError::Member { member, .. }) if member == "a"));
    }
}
