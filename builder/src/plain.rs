//! Images without Spark: files on a base, or on nothing. What the specification does not set stays as the base has it.
//!
//! The program that containers start with is checked while the image is built. Otherwise a program for another processor, or
//! one whose loader the image lacks, would be noticed by a container that fails with "no such file or directory".

use std::collections::BTreeMap;

use crate::{
    cache::{Cache, CacheError, Shelf},
    image::{self, Settings},
    matrix::Cell,
    plan::layers::LayerName,
    platform::Platform,
    runtime::{JAVA, WHEELS, search_path},
    sources::{
        base::Base,
        detect::Found,
        elf::{Binary, Interest},
        view::{Node, View},
    },
    spec::Recipe,
    tree::{ImagePath, Tree},
    version::Version,
};

/// Why containers of an image could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no such file.
    #[error("containers start `{0}`, but the image has no such file: compare `entrypoint` and `files.to`")]
    Absent(String),
    /// It is no program.
    #[error("containers start `{0}`, which is not executable: set `mode: \"0755\"` where `files` adds it")]
    NotExecutable(String),
    /// It is for another processor.
    #[error(
        "`{program}` is a program for `linux/{found}`, but the image is for `{wanted}`: choose the file by platform, with `{{arch}}` in its path"
    )]
    Platform {
        /// The program.
        program: String,
        /// Its architecture.
        found: String,
        /// The platform of the image.
        wanted: Platform,
    },
    /// The file that loads it is missing.
    #[error(
        "`{program}` needs the loader `{loader}`, which the image does not have: link the program statically, or use a base with its C library"
    )]
    Loader {
        /// The program.
        program: String,
        /// What it names.
        loader: String,
    },
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// The environment and start of the image.
pub fn settings(cell: &Cell, base: &Base, found: &Found, recipe: &Recipe) -> Settings {
    let mut env = BTreeMap::new();
    let mut path = search_path(base, recipe);
    if let Some(java) = &found.java {
        env.insert("JAVA_HOME".to_owned(), java.home.to_string());
    }
    if recipe.java.is_some() {
        path = format!("/{JAVA}/bin:{path}");
    }
    if recipe.wheels.is_some() {
        path = format!("{path}:/{WHEELS}/bin");
        env.insert("PYTHONPATH".to_owned(), format!("/{WHEELS}"));
    }
    if image::env(&base.config, "PATH") != Some(&path) {
        env.insert("PATH".to_owned(), path);
    }
    env.extend(recipe.env.clone());
    let version = |axis: &Option<Version>| axis.as_ref().map(Version::to_string);
    let labels =
        [("dev.hearth.java", version(&cell.java)), ("dev.hearth.python", version(&cell.python))].into_iter();
    let labels = labels.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Settings {
        env,
        labels: labels.chain(recipe.labels.clone()).collect(),
        annotations: BTreeMap::new(),
        user: recipe.user.clone(),
        entrypoint: recipe.entrypoint.clone(),
        command: recipe.command.clone(),
        working_directory: recipe.working_directory.clone(),
        ports: recipe.ports.clone(),
        created: String::new(),
    }
}

/// Checks the program that the specification starts containers with, when it is named by its path.
pub fn check_start(
    cache: &Cache,
    cell: &Cell,
    base: &Base,
    parts: &BTreeMap<LayerName, Tree>,
    recipe: &Recipe,
) -> Result<(), StartError> {
    let of_base = base.config["config"]["Entrypoint"].as_array().is_some_and(|words| !words.is_empty());
    // With an entry point of the base the command is an argument of it.
    let start = recipe.entrypoint.as_ref().or_else(|| recipe.command.as_ref().filter(|_| !of_base));
    let Some(program) = start.and_then(|words| words.first()).filter(|word| word.starts_with('/')) else {
        return Ok(());
    };
    let mut view = base.view.clone();
    for tree in parts.values() {
        for (path, node) in View::of_tree(cache, tree)?.nodes() {
            view.put(path, node.clone());
        }
    }
    let path = ImagePath::new(&program[1..]).ok().and_then(|path| view.real(&path));
    let node = path.as_ref().and_then(|path| view.get(path));
    let binary = match (&path, node) {
        (Some(path), Some(Node::File { binary, .. })) => match added(parts, path) {
            Some(content) => read(cache, &content)?,
            None => binary.clone(),
        },
        _ => return Err(StartError::Absent(program.clone())),
    };
    judge(program, node, binary.as_ref(), cell.platform, &view)
}

/// The content of a file that the image adds to its base.
fn added(parts: &BTreeMap<LayerName, Tree>, path: &ImagePath) -> Option<crate::cache::Content> {
    parts.values().find_map(|tree| tree.get(path)?.content())
}

fn read(cache: &Cache, content: &crate::cache::Content) -> Result<Option<Binary>, CacheError> {
    let file = cache.open_content(Shelf::Files, content)?;
    let fault = |error| cache.fault("read", &cache.path(Shelf::Files, &content.digest), error);
    Interest::Program.read(file).map_err(fault)
}

fn judge(
    program: &str,
    node: Option<&Node>,
    binary: Option<&Binary>,
    platform: Platform,
    view: &View,
) -> Result<(), StartError> {
    let program = program.to_owned();
    if !matches!(node, Some(Node::File { mode, .. }) if mode & 0o111 != 0) {
        return Err(StartError::NotExecutable(program));
    }
    let Some(binary) = binary else { return Ok(()) };
    if !binary.is_for(platform) {
        return Err(StartError::Platform { program, found: binary.architecture(), wanted: platform });
    }
    match &binary.loader {
        Some(loader) if !has(view, loader) => Err(StartError::Loader { program, loader: loader.clone() }),
        _ => Ok(()),
    }
}

fn has(view: &View, path: &str) -> bool {
    ImagePath::new(path.trim_start_matches('/')).is_ok_and(|path| view.get(&path).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::elf::samples;

    #[test]
    fn a_program_that_cannot_start_is_refused() {
        let binary = |platform, loader: &str| {
            Interest::Program.read(&samples::program(platform, loader, b"")[..]).unwrap()
        };
        let (program, data) = (Node::file(0o755), Node::file(0o644));
        let mut view = View::default();
        view.put("lib/ld.so", Node::file(0o755));
        let amd64 = Platform::Amd64;
        for (node, binary, expected) in [
            (&program, None, ""),
            (&program, binary(amd64, "/lib/ld.so"), ""),
            (&data, None, "not executable"),
            (&program, binary(Platform::Arm64, "/lib/ld.so"), "for `linux/arm64`, but the image is for"),
            (&program, binary(amd64, "/lib64/ld.so"), "needs the loader `/lib64/ld.so`"),
        ] {
            let result = judge("/app", Some(node), binary.as_ref(), amd64, &view);
            let error = result.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(expected) && error.is_empty() == expected.is_empty(), "{error}");
        }
    }
}
