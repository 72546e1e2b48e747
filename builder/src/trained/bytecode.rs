//! Bytecode for the Python files of an image, compiled by the Python that will load it.
//!
//! Without it every driver, executor and Python worker compiles what it imports again: the user of a Spark image cannot
//! write beside root's files. The bytecode is checked by the hash of its source (PEP 552, "checked"): the image's files
//! have no meaningful times, and an image that is built on top of this one and replaces a source must not load stale
//! bytecode. Measured, reading the source for its hash costs nothing that shows. Sources in the zip archives of Spark get
//! theirs beside them in the archive, unchecked, since both change together.
//!
//! Files of tests are left out: nothing imports them when a job runs.

use std::{collections::BTreeMap, io, time::Duration};

use crate::{
    cache::{Cache, Shelf},
    digest::{Digest, Hasher},
    plan::layers::LayerName,
    runtime,
    sandbox::{Job, Root, SandboxError},
    sources::detect::Python,
    tree::{Entry, ImagePath, Tree},
};

const SCRIPT: &str = include_str!("compile.py");

/// Where the script finds its list and leaves its files: a name that no image has.
const HOME: &str = ".hearth-bytecode";

/// A thousand files take ten seconds of one processor.
const LIMIT: Duration = Duration::from_mins(5);

/// The first Python with bytecode that is checked by hash.
const OLDEST: (u32, u32) = (3, 7);

/// Larger bytecode is a mistake: that of the largest modules has a few megabytes.
const LARGEST: u64 = 256 << 20;

/// Python files of an image that come and change together.
#[derive(Debug)]
pub struct Group {
    /// What they belong to; the second word of the bytecode's name in a lock.
    pub name: &'static str,
    /// The files.
    pub sources: Tree,
}

/// The Python files of an image's parts that get bytecode.
pub fn groups(parts: &BTreeMap<LayerName, Tree>) -> Vec<Group> {
    let spark = |path: &ImagePath| {
        let archive = path.below("opt/spark/python/lib").is_some_and(|name| is(name, ".zip"));
        archive || (path.below("opt/spark/python").is_some() && is(path.as_str(), ".py"))
    };
    let wheel = |path: &ImagePath| {
        let name = path.below(runtime::WHEELS);
        name.is_some_and(|name| is(name, ".py") && !name.starts_with("bin/"))
    };
    let python = |path: &ImagePath| {
        path.below(runtime::PYTHON).is_some_and(|name| name.starts_with("lib/") && is(name, ".py"))
    };
    let found = |name, part, wanted: &dyn Fn(&ImagePath) -> bool| {
        let files = parts.get(&part).into_iter().flatten();
        let files =
            files.filter(|(path, entry)| entry.content().is_some() && !of_tests(path) && wanted(path));
        Group { name, sources: files.map(|(path, entry)| (path.clone(), entry.clone())).collect() }
    };
    let groups = [
        found("python", LayerName::Python, &python),
        found("spark", LayerName::Spark, &spark),
        found("wheels", LayerName::Wheels, &wheel),
    ];
    groups.into_iter().filter(|group| !group.sources.is_empty()).collect()
}

fn is(path: &str, suffix: &str) -> bool {
    // A line end in a name would be two names in the list.
    path.ends_with(suffix) && !path.contains('\n')
}

fn of_tests(path: &ImagePath) -> bool {
    path.as_str().rsplit('/').skip(1).any(|part| matches!(part, "test" | "tests"))
}

impl Group {
    /// Digest of everything that decides what the bytecode is. `interpreter` is that of the base or of the archive that
    /// the Python comes from.
    pub fn key(&self, python: &Python, interpreter: Digest) -> Digest {
        let mut hasher = Hasher::default();
        hasher
            .update(format!("{SCRIPT}\0{} {:?} {interpreter}\n", python.program, python.version).as_bytes());
        for (path, entry) in &self.sources {
            let digest = entry.content().map(|content| content.digest.to_string()).unwrap_or_default();
            hasher.update(format!("{path}\0{digest}\n").as_bytes());
        }
        hasher.finish()
    }
}

/// Why a Python has no bytecode of this kind.
pub fn unsuitable(python: &Python) -> Option<String> {
    let (major, minor) = python.version;
    (python.version < OLDEST)
        .then(|| format!("Python {major}.{minor} has no bytecode that is checked by hash"))
}

/// Compiles the files of a group in the tree that has them, and gives the files to add to the image.
pub fn compile(
    cache: &Cache,
    root: &Root,
    python: &Python,
    group: &Group,
    jobs: usize,
) -> Result<Tree, SandboxError> {
    let sources: Vec<&ImagePath> = group.sources.keys().collect();
    let list: Vec<String> = sources.iter().map(ToString::to_string).collect();
    let home = format!("{HOME}/{}", group.name);
    root.add(cache, &format!("{home}/sources"), list.join("\n").as_bytes())?;
    let out = root.path(&format!("{home}/out"));
    std::fs::create_dir_all(&out).map_err(|source| cache.fault("create", &out, source))?;
    let (program, inside, jobs) = (python.program.to_string(), format!("/{home}"), jobs.to_string());
    let command = [&program, "-I", "-S", "-B", "-c", SCRIPT, &inside, &jobs];
    // Sets of constants have the order of their hashes.
    let env = BTreeMap::from([("PYTHONHASHSEED".to_owned(), "0".to_owned())]);
    let what = "compiling Python files";
    let ran = root.run(&Job { what, command: &command, env: &env, limit: LIMIT, fixed_addresses: false })?;
    let tag = ran.stdout.trim();
    if tag.is_empty() || !tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(SandboxError::Failed(format!("`{program}` names its bytecode `{tag}`")));
    }
    let mut tree = Tree::new();
    for (number, source) in sources.into_iter().enumerate() {
        let path = out.join(number.to_string());
        let file = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Ok(meta) if meta.is_file() && meta.len() <= LARGEST => std::fs::File::open(&path),
            Ok(_) => {
                return Err(SandboxError::Failed(format!("the bytecode of `{source}` is no small file")));
            }
            Err(error) => Err(error),
        };
        let mut file = file.map_err(|error| cache.fault("read", &path, error))?;
        let content = cache.put(Shelf::Files, &mut file)?;
        if let Some(place) = place(source, tag) {
            tree.insert(place, Entry::file(content, 0o644));
        }
    }
    Ok(tree)
}

/// Where the bytecode of a source lies; an archive has its own in it and keeps its place.
fn place(source: &ImagePath, tag: &str) -> Option<ImagePath> {
    let Some(stem) = source.name().strip_suffix(".py") else { return Some(source.clone()) };
    source.parent()?.join(&format!("__pycache__/{stem}.{tag}.pyc")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Content;

    fn tree(paths: &[&str]) -> Tree {
        let content = Content { digest: Digest::of(b"x"), size: 1 };
        paths.iter().map(|path| (ImagePath::new(path).unwrap(), Entry::file(content, 0o644))).collect()
    }

    #[test]
    fn importable_files_get_bytecode_and_tests_do_not() {
        let spark = tree(&[
            "opt/spark/bin/tool.py",
            "opt/spark/examples/src/main/python/pi.py",
            "opt/spark/python/lib/pyspark.zip",
            "opt/spark/python/pyspark/a.py",
            "opt/spark/python/pyspark/data.txt",
            "opt/spark/python/pyspark/sql/tests/test_a.py",
        ]);
        let wheels = tree(&["opt/python-packages/bin/run.py", "opt/python-packages/six.py"]);
        let parts = BTreeMap::from([(LayerName::Spark, spark), (LayerName::Wheels, wheels)]);
        let found: Vec<(&str, Vec<String>)> = groups(&parts)
            .iter()
            .map(|group| (group.name, group.sources.keys().map(ToString::to_string).collect()))
            .collect();
        let expected = [
            ("spark", vec!["/opt/spark/python/lib/pyspark.zip", "/opt/spark/python/pyspark/a.py"]),
            ("wheels", vec!["/opt/python-packages/six.py"]),
        ];
        let expected: Vec<(&str, Vec<String>)> = expected
            .into_iter()
            .map(|(name, paths)| (name, paths.iter().map(ToString::to_string).collect()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn bytecode_lies_where_python_looks_for_it() {
        let placed =
            |source: &'static str| place(&ImagePath::known(source), "cpython-311").unwrap().to_string();
        assert_eq!(placed("opt/p/a/__init__.py"), "/opt/p/a/__pycache__/__init__.cpython-311.pyc");
        assert_eq!(placed("opt/spark/python/lib/pyspark.zip"), "/opt/spark/python/lib/pyspark.zip");
    }

    #[test]
    fn another_python_or_source_is_another_key() {
        let python =
            |minor| Python { program: ImagePath::known("usr/bin/python3"), version: (3, minor), libc: None };
        let group = |paths: &[&str]| Group { name: "wheels", sources: tree(paths) };
        let key = group(&["a.py"]).key(&python(11), Digest::of(b"base"));
        assert_eq!(group(&["a.py"]).key(&python(11), Digest::of(b"base")), key);
        for other in [
            group(&["b.py"]).key(&python(11), Digest::of(b"base")),
            group(&["a.py"]).key(&python(12), Digest::of(b"base")),
            group(&["a.py"]).key(&python(11), Digest::of(b"other")),
        ] {
            assert_ne!(other, key);
        }
        assert!(unsuitable(&python(6)).is_some() && unsuitable(&python(7)).is_none());
    }
}
