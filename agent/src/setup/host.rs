//! The node's file system below its mount point: small text files, read with a limit, and replaced atomically.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use super::{Edit, SetupError, problem};

/// Larger files are not configuration.
const LARGEST: u64 = 4 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Host {
    root: PathBuf,
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> SetupError + 'a {
    move |source| SetupError::Io { action, path: path.to_owned(), source }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

impl Host {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The path on this machine. Absolute symbolic links of the node would lead out of its mount point, to this
    /// container's own files.
    fn locate(&self, path: &str) -> Result<PathBuf, SetupError> {
        let root = fs::canonicalize(&self.root).map_err(failed("find", &self.root))?;
        let located = root.join(path.trim_start_matches('/'));
        let there = located.ancestors().find_map(|ancestor| fs::canonicalize(ancestor).ok());
        if there.is_some_and(|there| there.starts_with(&root)) {
            Ok(located)
        } else {
            Err(problem(
                path,
                &"a symbolic link leads out of the node's file system",
                "run setup directly on the node",
            ))
        }
    }

    pub(super) fn is_directory(&self, path: &str) -> Result<bool, SetupError> {
        Ok(self.locate(path)?.is_dir())
    }

    /// A file's text; `None` when the file does not exist.
    pub(super) fn read(&self, path: &str) -> Result<Option<String>, SetupError> {
        let located = self.locate(path)?;
        let file = match File::open(&located) {
            Err(error) if is_absent(&error) => return Ok(None),
            file => file.map_err(failed("open", &located))?,
        };
        let mut bytes = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed("read", &located))?;
        if bytes.len() as u64 > LARGEST {
            return Err(problem(path, &"it is too large for a configuration file", "check the file"));
        }
        let text = String::from_utf8(bytes);
        text.map(Some).map_err(|error| problem(path, &error, "fix the file, then run setup again"))
    }

    /// Names in a directory, sorted; empty when the directory does not exist.
    pub(super) fn list(&self, path: &str) -> Result<Vec<String>, SetupError> {
        let located = self.locate(path)?;
        let entries = match fs::read_dir(&located) {
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            entries => entries.map_err(failed("list", &located))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // Names that are not UTF-8 are not those of registries or drop-ins.
            names.extend(entry.map_err(failed("list", &located))?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    /// Paths that match a pattern with one `*` in its last part.
    pub(super) fn matching(&self, pattern: &str) -> Result<Vec<String>, SetupError> {
        let Some((directory, last)) = pattern.rsplit_once('/') else { return Ok(Vec::new()) };
        let Some((start, end)) = last.split_once('*') else { return Ok(vec![pattern.to_owned()]) };
        let fits = |name: &String| {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        };
        Ok(self.list(directory)?.into_iter().filter(fits).map(|name| format!("{directory}/{name}")).collect())
    }

    fn change(&self, edit: &Edit) -> Result<(), SetupError> {
        if self.read(&edit.path)? != edit.before {
            return Err(problem(
                &edit.path,
                &"it was changed by another program meanwhile",
                "run setup again",
            ));
        }
        let path = self.locate(&edit.path)?;
        match &edit.after {
            Some(text) => replace(&path, text),
            None if edit.before.is_some() => remove(&path),
            None => Ok(()),
        }
    }
}

/// Carries out a plan, file by file. When a file fails, earlier changes stay, and the next run continues.
pub fn apply(root: &Path, edits: &[Edit]) -> Result<(), SetupError> {
    let host = Host::new(root);
    edits.iter().try_for_each(|edit| host.change(edit))
}

pub(super) fn replace(path: &Path, text: &str) -> Result<(), SetupError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(failed("create", directory))?;
    let mut aside = tempfile::Builder::new()
        .prefix(".hearth-setup-")
        .tempfile_in(directory)
        .map_err(failed("create a file in", directory))?;
    aside.write_all(text.as_bytes()).map_err(failed("write into", directory))?;
    let permissions = match fs::metadata(path) {
        Ok(metadata) => metadata.permissions(),
        // Runtimes that do not run as root read the file too.
        Err(_) => std::os::unix::fs::PermissionsExt::from_mode(0o644),
    };
    aside.as_file().set_permissions(permissions).map_err(failed("set the mode of", path))?;
    aside.as_file().sync_all().map_err(failed("sync", path))?;
    // A symbolic link is followed: its target is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    aside.persist(&target).map_err(|error| failed("replace", &target)(error.error))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("sync", directory))
}

/// Removes a file, and its directory when that is empty.
fn remove(path: &Path) -> Result<(), SetupError> {
    fs::remove_file(path).map_err(failed("remove", path))?;
    let is_registry = path.ends_with("hosts.toml");
    if let Some(directory) = path.parent().filter(|_| is_registry) {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                return Err(failed("remove", directory)(error));
            }
            _ => {}
        }
    }
    Ok(())
}
