//! The archive of class data of an image: classes of Spark and of Java as Java has them in memory, which a driver or an
//! executor maps instead of finding, reading and verifying each in a JAR.
//!
//! ```text
//! /opt/spark/hearth/bin/java       starts Java with the archive (docker/spark/java.sh)
//! /opt/spark/hearth/classes.jsa    the archive (`-Xshare:dump`)
//! /opt/spark/hearth/classes.list   the classes that the training job loaded
//! /opt/spark/hearth/classes.path   the directory of Java, and the class path that the archive belongs to
//! /opt/spark/hearth/classes.top    names at the top of these JARs, which no directory behind them may have
//! ```
//!
//! Java accepts an archive when the class path begins with that of the archive, every JAR has the size and the time that it
//! had, and Java itself is the same. The training job is `classes.py`: a driver and an executor as in Kubernetes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read as _,
    path::Path,
    time::Duration,
};

use super::class_list;
use crate::{
    cache::{Cache, CacheError, Content, Shelf},
    digest::{Digest, Hasher},
    sandbox::{Job, Root, SandboxError},
    sources::{detect::Java, zip},
    tree::{Entry, ImagePath, Tree},
};

const JOB: &str = include_str!("classes.py");
const CLUSTER: &str = include_str!("cluster.py");
const JAVA: &str = include_str!("../../../docker/spark/java.sh");

/// Where it lies in an image.
const DIRECTORY: &str = "opt/spark/hearth";

/// Where training leaves its files: a name that no image has.
const HOME: &str = ".hearth-classes";

/// Training takes half a minute on two processors, and the archive as long again.
const LIMIT: Duration = Duration::from_mins(10);

/// The first Java whose archives have lambdas, of which Spark is full.
const OLDEST: u32 = 17;

const LARGEST_LIST: u64 = 64 << 20;
const LARGEST_ARCHIVE: u64 = 2 << 30;

/// Why an image has no archive. `runnable`: there is a Python for the job, or the classes are known without it.
pub fn unsuitable(java: &Java, runnable: bool) -> Option<String> {
    if java.major < OLDEST {
        return Some(format!("Java {} is too old, {OLDEST} is the first one that suits", java.major));
    }
    (!runnable).then(|| "the training job needs a Python: name one on the axis `python`".to_owned())
}

/// The JARs of an image in the order of the class path. The launcher of Spark 4 wants that of slf4j before all others.
fn jars(tree: &Tree) -> Vec<(&ImagePath, Content)> {
    let jars = tree.iter().filter_map(|(path, entry)| {
        let name = path.below("opt/spark/jars")?;
        let plain = name.strip_suffix(".jar").is_some_and(|stem| !stem.contains(['/', ':', '\n']));
        Some((path, entry.content()?)).filter(|_| plain)
    });
    let mut jars: Vec<_> = jars.collect();
    jars.sort_by_key(|(path, _)| !path.name().starts_with("slf4j-api-"));
    jars
}

fn class_path(tree: &Tree) -> String {
    jars(tree).iter().map(|(path, _)| path.to_string()).collect::<Vec<_>>().join(":")
}

/// Digest of everything that decides which classes are in the archive. `runtime` is that of the files of Java.
pub fn key(java: &Java, runtime: Digest, tree: &Tree) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(
        format!("{JOB}\0{CLUSTER}\0{JAVA}\0{DUMP:?} {} {} {runtime}\n", java.home, java.major).as_bytes(),
    );
    for (path, content) in jars(tree) {
        hasher.update(format!("{path}\0{}\n", content.digest).as_bytes());
    }
    hasher.finish()
}

/// All files but the list and the archive.
pub fn starter(cache: &Cache, java: &Java, tree: &Tree) -> Result<Tree, SandboxError> {
    let mut top = BTreeSet::new();
    for (path, content) in jars(tree) {
        let names = zip::top_names(&cache.verified(Shelf::Files, &content)?)
            .map_err(|error| SandboxError::Failed(format!("the JAR `{path}` cannot be read: {error}")))?;
        top.extend(names.into_iter().filter(|name| !name.contains('\n')));
    }
    let top: String = top.into_iter().map(|name| name + "\n").collect();
    let path = format!("{}\n{}\n", java.home, class_path(tree));
    let mut files = Tree::from([
        (ImagePath::known(DIRECTORY), Entry::directory(0o755)),
        (ImagePath::known("opt/spark/hearth/bin"), Entry::directory(0o755)),
    ]);
    for (name, text, mode) in [
        ("opt/spark/hearth/bin/java", JAVA, 0o755),
        ("opt/spark/hearth/classes.path", &path, 0o644),
        ("opt/spark/hearth/classes.top", &top, 0o644),
    ] {
        let content = cache.put(Shelf::Files, &mut text.as_bytes())?;
        files.insert(ImagePath::known(name), Entry::file(content, mode));
    }
    Ok(files)
}

/// The list of classes in the files of an image.
pub fn list(cache: &Cache, files: &Tree) -> Result<Option<String>, CacheError> {
    let Some(content) = files.get(format!("{DIRECTORY}/classes.list").as_str()).and_then(Entry::content)
    else {
        return Ok(None);
    };
    Ok(Some(String::from_utf8_lossy(&cache.read_small(&content, LARGEST_LIST)?).into_owned()))
}

/// Runs the job in a tree that has the whole image with [`starter`] in it, and gives the list of classes.
pub fn train(cache: &Cache, root: &Root, env: &BTreeMap<String, String>) -> Result<String, SandboxError> {
    let home = format!("/{HOME}");
    let job = format!("{home}/classes.py");
    root.add(cache, &format!("{HOME}/classes.py"), JOB.as_bytes())?;
    root.add(cache, &format!("{HOME}/cluster.py"), CLUSTER.as_bytes())?;
    let mut env = env.clone();
    for (name, value) in
        [("HEARTH_TRAINING", home.as_str()), ("SPARK_DRIVER_BIND_ADDRESS", "127.0.0.1"), ("HOME", "/tmp")]
    {
        env.insert(name.to_owned(), value.to_owned());
    }
    let mut command = vec!["/opt/entrypoint.sh", "driver"];
    for setting in SETTINGS {
        command.extend(["--conf", setting]);
    }
    command.extend([job.as_str(), home.as_str()]);
    let what = "the training job";
    root.run(&Job { what, command: &command, env: &env, limit: LIMIT, fixed_addresses: false })?;
    merged(cache, &root.path(HOME))
}

/// How the job is submitted. Its executor has two processors' worth of tasks and little memory.
const SETTINGS: [&str; 8] = [
    "spark.driver.host=127.0.0.1",
    "spark.executor.instances=1",
    "spark.executor.cores=2",
    "spark.executor.memory=1g",
    "spark.kubernetes.container.image=hearth",
    "spark.kubernetes.executor.podNamePrefix=hearth",
    "spark.scheduler.minRegisteredResourcesRatio=1",
    "spark.ui.showConsoleProgress=false",
];

/// The lists of all processes, merged.
fn merged(cache: &Cache, directory: &Path) -> Result<String, SandboxError> {
    let fault = |error| SandboxError::Cache(cache.fault("read", directory, error));
    let mut lists = Vec::new();
    for file in fs::read_dir(directory).map_err(fault)? {
        let file = file.map_err(fault)?;
        let is_list = file.path().extension().is_some_and(|extension| extension == "classes");
        if is_list && file.file_type().map_err(fault)?.is_file() {
            let mut bytes = Vec::new();
            File::open(file.path())
                .and_then(|file| file.take(LARGEST_LIST).read_to_end(&mut bytes))
                .map_err(fault)?;
            lists.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    // The launcher, the driver and an executor.
    if lists.len() < 3 {
        let why = format!("{} of launcher, driver and executor left a list of their classes", lists.len());
        return Err(SandboxError::Failed(why));
    }
    Ok(class_list::merge(lists.iter().map(String::as_str)))
}

/// Options under which Java 17 archives the same classes in the same bytes nearly always. With G1 it also archives objects,
/// whose order is another one each time; measured, they save nothing that shows.
const DUMP: [&str; 6] =
    ["-Xshare:dump", "-XX:+UseSerialGC", "-Xint", "-XX:ActiveProcessorCount=1", "-Xms512m", "-Xmx512m"];

/// Archives the classes of a list, and gives the files that the image gets.
pub fn archive(
    cache: &Cache,
    root: &Root,
    java: &Java,
    starter: &Tree,
    tree: &Tree,
    list: &str,
) -> Result<Tree, SandboxError> {
    let home = format!("/{HOME}");
    root.add(cache, &format!("{HOME}/classes.list"), list.as_bytes())?;
    let program = format!("{}/bin/java", java.home);
    let options = [
        format!("-XX:SharedClassListFile={home}/classes.list"),
        format!("-XX:SharedArchiveFile={home}/classes.jsa"),
    ];
    let path = class_path(tree);
    let mut command = vec![program.as_str()];
    command.extend(DUMP);
    command.extend([options[0].as_str(), &options[1], "-cp", &path]);
    let env = BTreeMap::from([("LANG".to_owned(), "C.UTF-8".to_owned())]);
    let what = "archiving class data";
    root.run(&Job { what, command: &command, env: &env, limit: LIMIT, fixed_addresses: true })?;
    let made = root.path(&format!("{HOME}/classes.jsa"));
    let fault = |error| cache.fault("read", &made, error);
    let meta = fs::symlink_metadata(&made).map_err(fault)?;
    if !meta.is_file() || meta.len() > LARGEST_ARCHIVE {
        return Err(SandboxError::Failed(format!("Java wrote an archive of {} bytes", meta.len())));
    }
    let mut files = starter.clone();
    let content = cache.put(Shelf::Files, &mut File::open(&made).map_err(fault)?)?;
    files.insert(ImagePath::known("opt/spark/hearth/classes.jsa"), Entry::file(content, 0o644));
    let content = cache.put(Shelf::Files, &mut list.as_bytes())?;
    files.insert(ImagePath::known("opt/spark/hearth/classes.list"), Entry::file(content, 0o644));
    Ok(files)
}
