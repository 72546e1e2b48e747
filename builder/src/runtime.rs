//! The files that hearth itself adds to a Spark image: entry point, decommission script, user, directories;
//! and the environment that goes with them.
//!
//! ```text
//! /opt/entrypoint.sh, /opt/decom.sh   from `docker/spark/`, the same for every line
//! /opt/spark/hearth.env               what the entry point must know about this Spark line
//! /opt/spark/conf                     empty: a mount point for configuration
//! /opt/spark/work-dir                 0775, owner 185, group 0: also writable for user ids that a cluster picks
//! /opt/java, /opt/python              runtimes that the specification brings along
//! /opt/python-packages                Python packages, on `PYTHONPATH`
//! /etc/passwd, /etc/group             the base's, with `spark` (185) added when it is missing
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    cache::{Cache, CacheError, Shelf},
    image::{self, Settings},
    matrix::{
        Cell,
        compat::{self, Executor},
    },
    plan::layers::LayerName,
    sources::{
        base::Base,
        detect::{Found, SEARCH_PATH},
        spark::Distribution,
        view::{Node, View},
    },
    spec::Recipe,
    tree::{Entry, ImagePath, Kind, Tree},
    version::Version,
};

const ENTRYPOINT: &str = include_str!("../../docker/spark/entrypoint.sh");
const DECOMMISSION: &str = include_str!("../../docker/spark/decom.sh");

/// Where a Java runtime lies that the base does not have.
pub const JAVA: &str = "opt/java";

/// Where a Python lies that the base does not have.
pub const PYTHON: &str = "opt/python";

/// Where Python packages lie, as `pip install --target` puts them.
pub const WHEELS: &str = "opt/python-packages";

/// The user and group of Spark in every public image: operators and pod security settings name it.
const USER: u64 = 185;

/// Why our files cannot be added to a base.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The base has something in the way.
    #[error("the base has something other than a directory at `{0}`, where files must go")]
    Blocked(ImagePath),
    /// One input has a file where another has a directory.
    #[error("`{0}` is a file in one input and a directory in another")]
    Covered(ImagePath),
    /// A directory of the base would be hidden by a file.
    #[error(
        "a file would replace the directory `{0}` of the base: put the file into it, with `{0}/` as its place"
    )]
    Hidden(ImagePath),
    /// The base's links to this place form a loop.
    #[error("the base's symbolic links at `{0}` form a loop")]
    Loop(ImagePath),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// The files that hearth adds for a Spark.
pub fn files(cache: &Cache, spark: &Version, view: &View) -> Result<Tree, RuntimeError> {
    let mut tree = Tree::new();
    let executor = line_file(compat::line(spark).executor);
    let passwd = with_user(view.text(&ImagePath::known("etc/passwd")));
    let group = with_group(view.text(&ImagePath::known("etc/group")));
    for (path, text, mode) in [
        ("opt/entrypoint.sh", ENTRYPOINT, 0o755),
        ("opt/decom.sh", DECOMMISSION, 0o755),
        ("opt/spark/hearth.env", executor.as_str(), 0o644),
        ("etc/passwd", passwd.as_str(), 0o644),
        ("etc/group", group.as_str(), 0o644),
    ] {
        let content = cache.put(Shelf::Files, &mut text.as_bytes())?;
        tree.insert(ImagePath::known(path), Entry::file(content, mode));
    }
    for directory in ["etc", "opt", "opt/spark", "opt/spark/conf"] {
        tree.insert(ImagePath::known(directory), Entry::directory(0o755));
    }
    let work = Entry { uid: USER, gid: 0, ..Entry::directory(0o775) };
    tree.insert(ImagePath::known("opt/spark/work-dir"), work);
    Ok(tree)
}

/// Brings the parts of an image together: of two files at one place the one of the later part stays, and directories
/// that no part names are added.
pub fn arrange(mut parts: BTreeMap<LayerName, Tree>) -> Result<BTreeMap<LayerName, Tree>, RuntimeError> {
    let mut seen: BTreeMap<ImagePath, bool> = BTreeMap::new();
    for tree in parts.values_mut().rev() {
        let is_directory = |entry: &Entry| entry.kind == Kind::Directory;
        let other = |(path, entry): &(&ImagePath, &Entry)| {
            seen.get(*path).is_some_and(|directory| *directory != is_directory(entry))
        };
        if let Some((path, _)) = tree.iter().find(other) {
            return Err(RuntimeError::Covered(path.clone()));
        }
        // A directory that several parts have keeps the attributes of the last one, too.
        tree.retain(|path, _| !seen.contains_key(path));
        seen.extend(tree.iter().map(|(path, entry)| (path.clone(), entry.kind == Kind::Directory)));
    }
    for tree in parts.values_mut() {
        let above: BTreeSet<ImagePath> = tree.keys().flat_map(ImagePath::ancestors).collect();
        for path in above {
            match seen.get(&path) {
                Some(true) => {}
                Some(false) => return Err(RuntimeError::Covered(path)),
                None => {
                    seen.insert(path.clone(), true);
                    tree.insert(path, Entry::directory(0o755));
                }
            }
        }
    }
    Ok(parts)
}

/// Moves files behind the base's symbolic links, and leaves out directories that the base has: their owner and
/// mode are the base's business. A tree that lies on the base unchanged comes back unchanged, so that layers
/// are shared between bases.
pub fn fit(tree: Tree, view: &View) -> Result<Tree, RuntimeError> {
    let mut fitted = Tree::new();
    for (path, entry) in tree {
        // Files that the base has as links (such as /etc/group) are replaced where they really are.
        let follows = matches!(path.as_str(), "etc/passwd" | "etc/group");
        let place =
            if entry.kind == Kind::Directory || follows { view.real(&path) } else { view.place(&path) };
        let place = place.ok_or_else(|| RuntimeError::Loop(path.clone()))?;
        if let Some(above) =
            place.ancestors().find(|above| view.get(above).is_some() && !view.is_directory(above.as_str()))
        {
            return Err(RuntimeError::Blocked(above));
        }
        if entry.kind == Kind::Directory {
            if view.is_directory(place.as_str()) {
                continue;
            }
            if view.get(&place).is_some() {
                return Err(RuntimeError::Blocked(place));
            }
        } else if matches!(view.get(&place), Some(Node::Directory)) {
            return Err(RuntimeError::Hidden(path));
        }
        fitted.insert(place, entry);
    }
    Ok(fitted)
}

/// Where programs are looked for in the image.
pub fn search_path(base: &Base, recipe: &Recipe) -> String {
    let path = image::env(&base.config, "PATH").unwrap_or(SEARCH_PATH);
    if recipe.python.is_some() { format!("/{PYTHON}/bin:{path}") } else { path.to_owned() }
}

/// The environment and start of a Spark image.
pub fn settings(cell: &Cell, base: &Base, spark: &Distribution, found: &Found, recipe: &Recipe) -> Settings {
    let libraries = "/opt/spark/python/lib";
    let path = search_path(base, recipe);
    let mut python_path = format!("{libraries}/pyspark.zip:{libraries}/{}", spark.py4j);
    let mut programs = format!("{path}:/opt/spark/bin");
    if recipe.wheels.is_some() {
        python_path = format!("{python_path}:/{WHEELS}");
        programs = format!("{programs}:/{WHEELS}/bin");
    }
    let mut env = BTreeMap::from([
        ("SPARK_HOME".to_owned(), "/opt/spark".to_owned()),
        ("PATH".to_owned(), programs),
        ("PYTHONPATH".to_owned(), python_path),
    ]);
    if image::env(&base.config, "LANG").is_none() {
        // Without a locale Java 17 and older read and write ASCII by default.
        env.insert("LANG".to_owned(), "C.UTF-8".to_owned());
    }
    if let Some(java) = &found.java {
        env.insert("JAVA_HOME".to_owned(), java.home.to_string());
    }
    if let Some(python) = &found.python {
        // Driver and executors must run the same Python, whatever `python3` is in the base.
        env.insert("PYSPARK_PYTHON".to_owned(), python.program.to_string());
    }
    env.extend(recipe.env.clone());
    let version = |axis: &Option<Version>| axis.as_ref().map(Version::to_string);
    let labels = [
        ("dev.hearth.spark", version(&cell.spark)),
        ("dev.hearth.scala", Some(spark.scala.clone())),
        ("dev.hearth.java", version(&cell.java)),
        ("dev.hearth.python", version(&cell.python)),
        ("dev.hearth.hadoop", spark.hadoop.clone()),
        ("org.opencontainers.image.version", version(&cell.spark)),
    ];
    let labels = labels.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    Settings {
        env,
        labels,
        annotations: BTreeMap::new(),
        user: Some(recipe.user.clone().unwrap_or_else(|| USER.to_string())),
        entrypoint: Some(recipe.entrypoint.clone().unwrap_or_else(|| vec!["/opt/entrypoint.sh".to_owned()])),
        command: recipe.command.clone(),
        working_directory: Some(
            recipe.working_directory.clone().unwrap_or_else(|| "/opt/spark/work-dir".to_owned()),
        ),
        ports: recipe.ports.clone(),
        created: String::new(),
    }
}

fn line_file(executor: Executor) -> String {
    let flag = |set: bool| if set { "yes" } else { "no" };
    format!(
        "HEARTH_EXECUTOR_BACKEND={}\nHEARTH_RESOURCE_PROFILE={}\nHEARTH_POD_NAME={}\n",
        executor.backend,
        flag(executor.resource_profile),
        flag(executor.pod_name)
    )
}

/// Adds the user unless the id has an entry, under whatever name.
fn with_user(passwd: Option<&str>) -> String {
    let base = passwd.unwrap_or("root:x:0:0:root:/root:/bin/bash\n");
    with_entry(base, 2, "spark:x:185:185:Apache Spark:/opt/spark:/bin/false")
}

fn with_group(group: Option<&str>) -> String {
    with_entry(group.unwrap_or("root:x:0:\n"), 2, "spark:x:185:")
}

fn with_entry(text: &str, field: usize, entry: &str) -> String {
    let id = USER.to_string();
    if text.lines().any(|line| line.split(':').nth(field) == Some(&id)) {
        return text.to_owned();
    }
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{newline}{entry}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_added_once() {
        let root = "root:x:0:0:root:/root:/bin/bash";
        let added = with_user(Some(root));
        assert_eq!(added, format!("{root}\nspark:x:185:185:Apache Spark:/opt/spark:/bin/false\n"));
        assert_eq!(with_user(Some(&added)), added);
        let other = "app:x:185:0::/:/bin/sh\n";
        assert_eq!(with_user(Some(other)), other, "whoever has the id keeps it");
        assert_eq!(with_group(None), "root:x:0:\nspark:x:185:\n");
    }

    #[test]
    fn files_go_behind_the_links_of_the_base_and_its_directories_stay() {
        let mut view = View::default();
        for directory in ["etc", "usr", "usr/opt"] {
            view.put(directory, Node::Directory);
        }
        view.put("opt", Node::Symlink("usr/opt".to_owned()));
        view.put("etc/passwd", Node::Symlink("../usr/passwd".to_owned()));
        let mut tree = Tree::new();
        for path in ["etc", "opt", "opt/spark"] {
            tree.insert(ImagePath::known(path), Entry::directory(0o755));
        }
        for path in ["etc/passwd", "opt/spark/RELEASE"] {
            tree.insert(ImagePath::known(path), Entry::symlink("x"));
        }
        let fitted = fit(tree.clone(), &view).unwrap();
        let paths: Vec<&str> = fitted.keys().map(ImagePath::as_str).collect();
        assert_eq!(paths, ["usr/opt/spark", "usr/opt/spark/RELEASE", "usr/passwd"]);

        view.put("usr/opt/spark", Node::file(0o644));
        let error = fit(tree, &view).unwrap_err();
        assert!(matches!(error, RuntimeError::Blocked(path) if path.as_str() == "usr/opt/spark"));
    }

    #[test]
    fn a_file_replaces_no_directory() {
        let mut view = View::default();
        for directory in ["usr", "usr/bin", "etc"] {
            view.put(directory, Node::Directory);
        }
        view.put("bin", Node::Symlink("usr/bin".to_owned()));
        view.put("etc/motd", Node::file(0o644));
        let tree = |path: &'static str, entry| Tree::from([(ImagePath::known(path), entry)]);
        for path in ["usr/bin", "bin"] {
            let error = fit(tree(path, Entry::symlink("x")), &view).unwrap_err().to_string();
            assert!(error.contains(&format!("`/{path}/` as its place")), "{error}");
        }
        assert!(fit(tree("etc/motd", Entry::symlink("x")), &view).is_ok());
        let parts = |files| {
            let hearth = tree("opt/spark/conf", Entry::directory(0o755));
            BTreeMap::from([(LayerName::Hearth, hearth), (LayerName::Files, files)])
        };
        let error = arrange(parts(tree("opt/spark/conf", Entry::symlink("x")))).unwrap_err();
        assert!(matches!(error, RuntimeError::Covered(path) if path.as_str() == "opt/spark/conf"));
        assert!(arrange(parts(tree("opt/spark/conf", Entry::directory(0o700)))).is_ok());
    }

    #[test]
    fn the_entry_point_learns_its_line() {
        let text = line_file(compat::line(&"3.2.4".parse().unwrap()).executor);
        assert!(text.contains("CoarseGrainedExecutorBackend\n") && text.ends_with("POD_NAME=no\n"), "{text}");
    }
}
