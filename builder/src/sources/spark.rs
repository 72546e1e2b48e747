//! Lays out Spark: from a release archive, or from a `pyspark` source distribution.
//!
//! ```text
//! pyspark-3.5.9/deps/jars       ->  /opt/spark/jars
//! pyspark-3.5.9/deps/bin, sbin  ->  /opt/spark/bin, sbin
//! pyspark-3.5.9/deps/data       ->  /opt/spark/data
//! pyspark-3.5.9/deps/licenses   ->  /opt/spark/licenses
//! pyspark-3.5.9/deps/examples   ->  /opt/spark/examples/src/main/python
//! pyspark-3.5.9/pyspark         ->  /opt/spark/python/pyspark
//! pyspark-3.5.9/lib             ->  /opt/spark/python/lib        (pyspark.zip, py4j-*-src.zip)
//! pyspark-3.5.9/LICENSE, NOTICE ->  /opt/spark
//!                                   /opt/spark/RELEASE           (made here: marks a distribution)
//!
//! spark-3.5.9-bin-hadoop3/X     ->  /opt/spark/X                 (jars bin sbin data licenses examples R yarn
//!                                                                 python/pyspark python/lib RELEASE LICENSE NOTICE)
//! ```
//!
//! Owners, times and permission bits are normalised: root, a fixed time, 0755 for directories and programs,
//! 0644 for the rest. Compiled Python files are left out: their headers hold times, and the image's own Python makes
//! others ([`crate::trained::bytecode`]). What a release archive has beyond the package (other languages' examples, R, most of `sbin`) is missing
//! from images that are made of the package.

use crate::{
    cache::{Cache, CacheError, Content, Shelf},
    tree::{Entry, ImagePath, Kind, Tree},
    version::Version,
};

/// Where Spark lies in an image.
pub const HOME: &str = "opt/spark";

/// Why an archive is no Spark.
#[derive(Debug, thiserror::Error)]
pub enum SparkError {
    /// A part is missing.
    #[error("the archive is neither a Spark release nor a pyspark source distribution: it has no `{0}`")]
    Missing(String),
    /// It is another version.
    #[error(
        "the archive holds Spark {found}, but {wanted} is asked for: write `{found}` on the axis `spark`, or use another archive"
    )]
    Version {
        /// What its JARs say.
        found: String,
        /// What the axis says.
        wanted: Version,
    },
    /// It is built for another Scala.
    #[error("the archive holds Spark for Scala {found}, but {wanted} is asked for")]
    Scala {
        /// What its JARs say.
        found: String,
        /// What the axis says.
        wanted: Version,
    },
    /// It has no Kubernetes support.
    #[error("the archive has no `spark-kubernetes` JAR: executors could not start in Kubernetes")]
    Kubernetes,
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// A laid-out Spark.
#[derive(Debug)]
pub struct Distribution {
    /// Its files, at their places in the image.
    pub tree: Tree,
    /// The Scala it is built for.
    pub scala: String,
    /// The Hadoop client in it, when its JAR names a version.
    pub hadoop: Option<String>,
    /// The name of the py4j archive in `python/lib`.
    pub py4j: String,
}

/// Lays out an unpacked archive and checks that it is what the cell asks for.
pub fn lay_out(
    cache: &Cache,
    source: &Tree,
    version: &Version,
    scala: Option<&Version>,
) -> Result<Distribution, SparkError> {
    let (root, moves) = root(source)?;
    let mut tree = Tree::new();
    for (path, entry) in source {
        let Some(place) = path.below(&root).and_then(|path| place(path, moves)) else { continue };
        let Ok(place) = ImagePath::new(&format!("{HOME}/{place}")) else { continue };
        let program = matches!(entry.kind, Kind::File { .. }) && entry.mode & 0o111 != 0;
        let mode = if program || entry.kind == Kind::Directory { 0o755 } else { 0o644 };
        let entry = match &entry.kind {
            Kind::Directory => Entry::directory(0o755),
            Kind::File { content, .. } => Entry::file(*content, mode),
            Kind::Symlink(target) => Entry::symlink(target),
            // Source archives with anything else were refused when they were read.
            Kind::Character { .. } | Kind::Block { .. } | Kind::Fifo => continue,
        };
        tree.insert(place, entry);
    }
    for needed in
        ["bin/spark-submit", "bin/spark-class", "python/pyspark/__init__.py", "python/lib/pyspark.zip"]
    {
        if !tree.contains_key(format!("{HOME}/{needed}").as_str()) {
            return Err(SparkError::Missing(needed.to_owned()));
        }
    }
    let jars = jars(&tree);
    let (found_scala, found) = jars
        .iter()
        .find_map(|jar| spark_jar(jar, "spark-core_"))
        .ok_or(SparkError::Missing("jars/spark-core".into()))?;
    if found != version.to_string() {
        return Err(SparkError::Version { found, wanted: version.clone() });
    }
    if let Some(wanted) = scala
        && wanted.to_string() != found_scala
    {
        return Err(SparkError::Scala { found: found_scala, wanted: wanted.clone() });
    }
    if !jars.iter().any(|jar| jar.starts_with("spark-kubernetes_")) {
        return Err(SparkError::Kubernetes);
    }
    let hadoop = hadoop(&jars);
    let py4j = tree
        .keys()
        .filter_map(|path| path.below("opt/spark/python/lib"))
        .find(|name| name.starts_with("py4j-") && name.ends_with("-src.zip"))
        .ok_or(SparkError::Missing("python/lib/py4j-*-src.zip".to_owned()))?
        .to_owned();
    for directory in ["opt", HOME] {
        tree.insert(ImagePath::known(directory), Entry::directory(0o755));
    }
    if !tree.contains_key("opt/spark/RELEASE") {
        let release = release(cache, version, hadoop.as_deref())?;
        tree.insert(ImagePath::known("opt/spark/RELEASE"), Entry::file(release, 0o644));
    }
    crate::tree::complete(&mut tree);
    Ok(Distribution { tree, scala: found_scala, hadoop, py4j })
}

/// The directory of the archive that everything lies in, and where its parts go.
fn root(source: &Tree) -> Result<(String, &'static Moves), SparkError> {
    let below = |suffix: &str| source.keys().find_map(|path| path.as_str().strip_suffix(suffix));
    if let Some(root) = below("/deps/bin/spark-submit") {
        return Ok((root.to_owned(), &PACKAGE));
    }
    // `RELEASE` is what marks a release.
    let release =
        below("/RELEASE").filter(|root| source.contains_key(format!("{root}/bin/spark-submit").as_str()));
    match release {
        Some(root) => Ok((root.to_owned(), &RELEASE)),
        None => Err(SparkError::Missing("deps/bin/spark-submit".to_owned())),
    }
}

/// Folders of an archive and their places below Spark's home.
type Moves = [(&'static str, &'static str)];

const PACKAGE: [(&str, &str); 10] = [
    ("deps/jars", "jars"),
    ("deps/bin", "bin"),
    ("deps/sbin", "sbin"),
    ("deps/data", "data"),
    ("deps/licenses", "licenses"),
    ("deps/examples", "examples/src/main/python"),
    ("pyspark", "python/pyspark"),
    ("lib", "python/lib"),
    ("LICENSE", "LICENSE"),
    ("NOTICE", "NOTICE"),
];

const RELEASE: [(&str, &str); 13] = [
    ("jars", "jars"),
    ("bin", "bin"),
    ("sbin", "sbin"),
    ("data", "data"),
    ("licenses", "licenses"),
    ("examples", "examples"),
    ("R", "R"),
    ("yarn", "yarn"),
    ("python/pyspark", "python/pyspark"),
    ("python/lib", "python/lib"),
    ("RELEASE", "RELEASE"),
    ("LICENSE", "LICENSE"),
    ("NOTICE", "NOTICE"),
];

/// Where a path of the archive goes below Spark's home.
fn place(path: &str, moves: &Moves) -> Option<String> {
    if super::is_compiled_python(path) {
        return None;
    }
    moves.iter().find_map(|(from, to)| match path.strip_prefix(from)? {
        "" => Some((*to).to_owned()),
        rest => rest.strip_prefix('/').map(|rest| format!("{to}/{rest}")),
    })
}

fn jars(tree: &Tree) -> Vec<String> {
    tree.keys().filter_map(|path| path.below("opt/spark/jars")).map(str::to_owned).collect()
}

/// Splits `spark-core_2.12-3.5.9.jar` into Scala and Spark version.
fn spark_jar(jar: &str, prefix: &str) -> Option<(String, String)> {
    let (scala, version) = jar.strip_prefix(prefix)?.strip_suffix(".jar")?.split_once('-')?;
    Some((scala.to_owned(), version.to_owned()))
}

/// The version of the Hadoop client: `hadoop-client-api-3.3.4.jar`, before 3.2 `hadoop-common-3.2.0.jar`.
fn hadoop(jars: &[String]) -> Option<String> {
    ["hadoop-client-api-", "hadoop-common-"].iter().find_map(|prefix| {
        let version = jars.iter().find_map(|jar| jar.strip_prefix(prefix))?;
        version.strip_suffix(".jar").map(str::to_owned)
    })
}

/// The first line is what release tarballs have; programs look for the file, and people read it.
fn release(cache: &Cache, version: &Version, hadoop: Option<&str>) -> Result<Content, CacheError> {
    let built = hadoop.map(|hadoop| format!(" built for Hadoop {hadoop}")).unwrap_or_default();
    let text = format!("Spark {version}{built}\nLaid out from the pyspark source distribution by hearth\n");
    cache.put(Shelf::Files, &mut text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The members that matter of a 3.5.9 source distribution.
    fn sdist(cache: &Cache) -> Tree {
        let content = cache.put(Shelf::Files, &mut &b"x"[..]).unwrap();
        let mut tree = Tree::new();
        for (path, mode) in [
            ("deps/bin/spark-submit", 0o755),
            ("deps/bin/spark-class", 0o775),
            ("deps/bin/load-spark-env.sh", 0o664),
            ("deps/sbin/spark-daemon.sh", 0o755),
            ("deps/jars/spark-core_2.12-3.5.9.jar", 0o644),
            ("deps/jars/spark-kubernetes_2.12-3.5.9.jar", 0o644),
            ("deps/jars/hadoop-client-api-3.3.4.jar", 0o644),
            ("deps/data/graphx/users.txt", 0o644),
            ("deps/examples/pi.py", 0o644),
            ("deps/licenses/LICENSE-CC0.txt", 0o644),
            ("pyspark/__init__.py", 0o644),
            ("pyspark/__pycache__/x.cpython-311.pyc", 0o644),
            ("pyspark/old.pyc", 0o644),
            ("lib/pyspark.zip", 0o644),
            ("lib/py4j-0.10.9.7-src.zip", 0o644),
            ("PKG-INFO", 0o644),
            ("setup.py", 0o644),
        ] {
            let entry = Entry { uid: 1_311_767_953, mtime: 1, ..Entry::file(content, mode) };
            tree.insert(ImagePath::new(&format!("pyspark-3.5.9/{path}")).unwrap(), entry);
        }
        crate::tree::complete(&mut tree);
        tree
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        (directory, cache)
    }

    #[test]
    fn a_source_distribution_becomes_a_spark_home() {
        let (_directory, cache) = cache();
        let spark = lay_out(&cache, &sdist(&cache), &"3.5.9".parse().unwrap(), None).unwrap();
        let files: Vec<&str> = spark
            .tree
            .iter()
            .filter(|(_, entry)| entry.content().is_some())
            .filter_map(|(path, _)| path.below(HOME))
            .collect();
        let expected = [
            "RELEASE",
            "bin/load-spark-env.sh",
            "bin/spark-class",
            "bin/spark-submit",
            "data/graphx/users.txt",
            "examples/src/main/python/pi.py",
            "jars/hadoop-client-api-3.3.4.jar",
            "jars/spark-core_2.12-3.5.9.jar",
            "jars/spark-kubernetes_2.12-3.5.9.jar",
            "licenses/LICENSE-CC0.txt",
            "python/lib/py4j-0.10.9.7-src.zip",
            "python/lib/pyspark.zip",
            "python/pyspark/__init__.py",
            "sbin/spark-daemon.sh",
        ];
        assert_eq!(files, expected);
        assert_eq!(spark.tree["opt/spark/bin/spark-class"].mode, 0o755);
        assert_eq!(spark.tree["opt/spark/bin/load-spark-env.sh"].mode, 0o644);
        assert!(spark.tree.values().all(|entry| entry.uid == 0 && entry.mtime == crate::tree::FIXED_TIME));
        assert_eq!((spark.scala.as_str(), spark.hadoop.as_deref()), ("2.12", Some("3.3.4")));
        assert_eq!(spark.py4j, "py4j-0.10.9.7-src.zip");
        let release = spark.tree["opt/spark/RELEASE"].content().unwrap();
        let text = cache.read_small(&release, 1000).unwrap();
        assert!(text.starts_with(b"Spark 3.5.9 built for Hadoop 3.3.4\n"));
    }

    #[test]
    fn a_vendor_names_its_spark_with_a_suffix() {
        let (_directory, cache) = cache();
        let vendor: Tree = sdist(&cache)
            .into_iter()
            .map(|(path, entry)| {
                (ImagePath::new(&path.as_str().replace("-3.5.9.jar", "-3.5.1-amzn-1.jar")).unwrap(), entry)
            })
            .collect();
        assert!(lay_out(&cache, &vendor, &"3.5.1-amzn-1".parse().unwrap(), None).is_ok());
        let error = lay_out(&cache, &vendor, &"3.5.1".parse().unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("write `3.5.1-amzn-1` on the axis `spark`"), "{error}");
    }

    #[test]
    fn what_is_not_the_spark_that_was_asked_for_is_refused() {
        let (_directory, cache) = cache();
        let full = sdist(&cache);
        let lay_out = |tree: &Tree, version: &str, scala: Option<&str>| {
            let scala = scala.map(|text| text.parse().unwrap());
            lay_out(&cache, tree, &version.parse().unwrap(), scala.as_ref()).unwrap_err().to_string()
        };
        assert!(lay_out(&full, "3.5.8", None).contains("holds Spark 3.5.9, but 3.5.8"));
        assert!(lay_out(&full, "3.5.9", Some("2.13")).contains("for Scala 2.12, but 2.13"));
        for (part, expected) in [
            ("deps/bin/spark-submit", "deps/bin/spark-submit"),
            ("lib/pyspark.zip", "python/lib/pyspark.zip"),
            ("lib/py4j-0.10.9.7-src.zip", "py4j"),
            ("deps/jars/spark-core_2.12-3.5.9.jar", "spark-core"),
            ("deps/jars/spark-kubernetes_2.12-3.5.9.jar", "spark-kubernetes"),
        ] {
            let mut tree = full.clone();
            tree.remove(format!("pyspark-3.5.9/{part}").as_str()).unwrap();
            let error = lay_out(&tree, "3.5.9", None);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_release_archive_becomes_the_same_home() {
        let (_directory, cache) = cache();
        let mut release = Tree::new();
        for (path, entry) in sdist(&cache) {
            let below =
                path.as_str().replace("pyspark-3.5.9/deps/examples", "spark-3.5.9/examples/src/main/python");
            let below = below.replace("pyspark-3.5.9/deps", "spark-3.5.9");
            let below = below.replace("pyspark-3.5.9/lib", "spark-3.5.9/python/lib");
            let below = below.replace("pyspark-3.5.9/pyspark", "spark-3.5.9/python/pyspark");
            release.insert(ImagePath::new(&below).unwrap(), entry);
        }
        let text = cache.put(Shelf::Files, &mut &b"Spark 3.5.9 built for Hadoop 3.3.4\n"[..]).unwrap();
        for (path, content) in [
            ("spark-3.5.9/RELEASE", text),
            ("spark-3.5.9/kubernetes/dockerfiles/spark/Dockerfile", text),
            ("spark-3.5.9/conf/spark-env.sh.template", text),
            ("spark-3.5.9/sbin/start-master.sh", text),
        ] {
            release.insert(ImagePath::known(path), Entry::file(content, 0o755));
        }
        let version = "3.5.9".parse().unwrap();
        let (from_release, from_package) = (
            lay_out(&cache, &release, &version, None).unwrap(),
            lay_out(&cache, &sdist(&cache), &version, None).unwrap(),
        );
        let mut expected = from_package.tree;
        expected.insert(ImagePath::known("opt/spark/RELEASE"), Entry::file(text, 0o755));
        expected.insert(ImagePath::known("opt/spark/sbin/start-master.sh"), Entry::file(text, 0o755));
        assert_eq!(from_release.tree, expected);
    }
}
