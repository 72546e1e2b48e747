//! Finds the Java and the Python of a base image.
//!
//! A Java runtime is a directory with `bin/java` and a `release` file, which names its version and its modules:
//! both matter (Spark 4 does not start without `jdk.incubator.vector`, which slimmed runtimes lack). A Python
//! is a program `pythonX.Y` in a directory of the search path.

use super::{
    elf::Libc,
    view::{Node, View},
};
use crate::{
    matrix::{Cell, compat},
    platform::Platform,
    tree::ImagePath,
    version::Version,
};

/// Where programs are looked for when the base has no `PATH`.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A Java runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Java {
    /// Its directory.
    pub home: ImagePath,
    /// Its major version.
    pub major: u32,
    /// Its modules; empty when the `release` file has none (Java 8).
    pub modules: Vec<String>,
}

/// A Python interpreter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Python {
    /// The program.
    pub program: ImagePath,
    /// Major and minor version.
    pub version: (u32, u32),
    /// The C library that it uses; `None` when the base does not show it.
    pub libc: Option<Libc>,
}

/// Why a base does not suit a cell.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// It has no Java at all.
    #[error("the base has no Java (no directory with `bin/java` and `release`): add a JRE to it")]
    NoJava,
    /// It has another Java.
    #[error(
        "the base has Java {found}, but the cell asks for Java {wanted}: use another base, or another `java` axis"
    )]
    OtherJava {
        /// What it has.
        found: String,
        /// What the cell asks for.
        wanted: u32,
    },
    /// Its programs are for another processor.
    #[error(
        "`{program}` is a program for `linux/{found}`, but the image is for `{wanted}`: use a base (and `sources.java`, `sources.python`) of that platform"
    )]
    Platform {
        /// The program.
        program: ImagePath,
        /// Its architecture.
        found: String,
        /// The platform of the image.
        wanted: Platform,
    },
    /// Its Java lacks a module.
    #[error("the Java in `{home}` lacks the module `{module}`, without which Spark {spark} does not start")]
    Module {
        /// The runtime.
        home: ImagePath,
        /// What is missing.
        module: &'static str,
        /// The Spark.
        spark: Version,
    },
    /// It has no such Python.
    #[error("the base has no Python {wanted} (it has {found}): use another base, or another `python` axis")]
    Python {
        /// What it has.
        found: String,
        /// What the cell asks for.
        wanted: Version,
    },
    /// A program that the entry point needs is missing.
    #[error("the base has no `{program}`, which the entry point needs: add the package `{package}` to it")]
    Program {
        /// The program.
        program: &'static str,
        /// Where it comes from on Debian.
        package: &'static str,
    },
}

/// What a cell uses of its base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The Java, when the cell asks for one.
    pub java: Option<Java>,
    /// The Python, when the cell asks for one.
    pub python: Option<Python>,
    /// What is missing but not needed for a start.
    pub warnings: Vec<String>,
}

/// Checks that a base has what a cell needs. `java_home` and `path` are those of the base's environment.
pub fn check(
    view: &View,
    cell: &Cell,
    java_home: Option<&str>,
    path: Option<&str>,
) -> Result<Found, DetectError> {
    let java = cell.java.as_ref().map(|wanted| java(view, wanted.number(0), java_home)).transpose()?;
    if let (Some(spark), Some(java)) = (&cell.spark, &java) {
        let modules = compat::line(spark).java_modules;
        if let Some(module) = modules.iter().find(|module| !java.modules.iter().any(|has| has == *module)) {
            return Err(DetectError::Module { home: java.home.clone(), module, spark: spark.clone() });
        }
    }
    let python = match &cell.python {
        None => None,
        Some(wanted) => Some(python(view, wanted, cell.platform, path.unwrap_or(SEARCH_PATH))?),
    };
    let bash = program(view, "bash");
    if cell.spark.is_some() && bash.is_none() {
        return Err(DetectError::Program { program: "/bin/bash", package: "bash" });
    }
    let programs = [
        bash,
        java.as_ref().and_then(|java| java.home.join("bin/java").ok()),
        python.as_ref().map(|python| python.program.clone()),
    ];
    for path in programs.into_iter().flatten() {
        if let Some(binary) = view.binary(&path).filter(|binary| !binary.is_for(cell.platform)) {
            let (found, wanted) = (binary.architecture(), cell.platform);
            let program = view.real(&path).unwrap_or(path);
            return Err(DetectError::Platform { program, found, wanted });
        }
    }
    let optional = [
        ("tini", "`tini` is missing: Spark will be process 1 and nobody reaps its orphans (package `tini`)"),
        (
            "ps",
            "`ps` is missing: Spark's daemon scripts (history server, Connect) need it (package `procps`)",
        ),
    ];
    let missing =
        optional.into_iter().filter(|(name, _)| cell.spark.is_some() && program(view, name).is_none());
    let warnings = missing.map(|(_, text)| text.to_owned()).collect();
    Ok(Found { java, python, warnings })
}

/// The place of a program that the entry point starts by its name.
fn program(view: &View, name: &str) -> Option<ImagePath> {
    let places = ["bin", "usr/bin", "sbin", "usr/sbin", "usr/local/bin"];
    places
        .iter()
        .filter_map(|directory| ImagePath::new(&format!("{directory}/{name}")).ok())
        .find(|path| view.has_program(path))
}

fn java(view: &View, wanted: u32, java_home: Option<&str>) -> Result<Java, DetectError> {
    let mut javas: Vec<Java> = view
        .nodes()
        .filter_map(|(path, node)| match node {
            Node::File { text: Some(text), .. } => java_at(view, path.strip_suffix("/release")?, text),
            _ => None,
        })
        .collect();
    let preferred = java_home.and_then(|home| ImagePath::new(home.trim_start_matches('/')).ok());
    let preferred = preferred.and_then(|home| view.real(&home));
    javas.sort_by_key(|java| Some(&java.home) != preferred.as_ref());
    if let Some(java) = javas.iter().find(|java| java.major == wanted) {
        return Ok(java.clone());
    }
    if javas.is_empty() {
        return Err(DetectError::NoJava);
    }
    let found: Vec<String> = javas.iter().map(|java| java.major.to_string()).collect();
    Err(DetectError::OtherJava { found: found.join(" and "), wanted })
}

/// What a `release` file of a Java runtime says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The major version.
    pub major: u32,
    /// The version with all that the vendor writes.
    pub version: String,
}

/// Reads the version of a `release` file.
pub fn release(text: &str) -> Option<Release> {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim().trim_matches('"').to_owned())
    };
    let version = value("JAVA_VERSION")?;
    let mut numbers = version.split(['.', '_', '-', '+']).map(|part| part.parse::<u32>().ok());
    // Java 8 calls itself 1.8.0.
    let major = match numbers.next()?? {
        1 => numbers.next()??,
        major => major,
    };
    Some(Release { major, version: value("JAVA_RUNTIME_VERSION").unwrap_or(version) })
}

fn java_at(view: &View, home: &str, release: &str) -> Option<Java> {
    let home = ImagePath::new(home).ok()?;
    if !view.has_program(&home.join("bin/java").ok()?) {
        return None;
    }
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim().trim_matches('"').to_owned())
    };
    let Release { major, .. } = self::release(release)?;
    let modules = value("MODULES").unwrap_or_default();
    Some(Java { home, major, modules: modules.split_whitespace().map(str::to_owned).collect() })
}

fn python(view: &View, wanted: &Version, platform: Platform, path: &str) -> Result<Python, DetectError> {
    let directories: Vec<&str> = path.split(':').map(|directory| directory.trim_start_matches('/')).collect();
    let at = |directory: &str, name: &str| ImagePath::new(&format!("{directory}/{name}")).ok();
    let name = format!("python{wanted}");
    let found =
        directories.iter().filter_map(|directory| at(directory, &name)).find(|path| view.has_program(path));
    if let Some(program) = found {
        let libc = view.libc(&program, platform);
        return Ok(Python { program, version: wanted.line(), libc });
    }
    let mut others: Vec<&str> = view
        .nodes()
        .filter_map(|(path, _)| path.rsplit_once('/'))
        .filter(|(directory, _)| directories.contains(directory))
        .filter_map(|(_, name)| name.strip_prefix("python"))
        .filter(|version| version.parse::<Version>().is_ok_and(|version| version.depth() == 2))
        .collect();
    others.sort_unstable();
    others.dedup();
    let found = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
    Err(DetectError::Python { found, wanted: wanted.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::cell;

    const RELEASE_17: &str =
        "IMPLEMENTOR=\"X\"\nJAVA_VERSION=\"17.0.21\"\nMODULES=\"java.base jdk.incubator.vector\"\n";

    fn program_node() -> Node {
        Node::file(0o755)
    }

    fn put_java(view: &mut View, home: &str, release: &str) {
        view.put(
            &format!("{home}/release"),
            Node::File { mode: 0o644, text: Some(release.to_owned()), binary: None },
        );
        view.put(&format!("{home}/bin/java"), program_node());
    }

    fn base() -> View {
        let mut view = View::default();
        view.put("bin", Node::Symlink("usr/bin".to_owned()));
        for name in ["bash", "python3.11", "tini", "ps"] {
            view.put(&format!("usr/bin/{name}"), program_node());
        }
        put_java(&mut view, "usr/lib/jvm/java-17", RELEASE_17);
        view
    }

    #[test]
    fn java_and_python_of_a_base_are_found() {
        let found = check(&base(), &cell("4.1.4", "17", "3.11"), None, None).unwrap();
        assert_eq!(found.java.unwrap().home.as_str(), "usr/lib/jvm/java-17");
        assert_eq!(found.python.unwrap().program.as_str(), "usr/bin/python3.11");
        assert!(found.warnings.is_empty());
    }

    #[test]
    fn a_plain_image_needs_nothing_that_it_does_not_ask_for() {
        let plain = Cell { spark: None, java: None, ..cell("3.5.9", "17", "") };
        let found = check(&View::default(), &plain, None, None).unwrap();
        assert_eq!(found, Found { java: None, python: None, warnings: Vec::new() });
        let java = Cell { java: Some("17".parse().unwrap()), ..plain };
        assert!(matches!(check(&View::default(), &java, None, None), Err(DetectError::NoJava)));
    }

    #[test]
    fn an_unsuitable_base_is_refused_with_what_it_has() {
        let mut slim = base();
        put_java(&mut slim, "usr/lib/jvm/java-17", "JAVA_VERSION=\"17.0.9\"\nMODULES=\"java.base\"\n");
        let mut bare = base();
        bare.remove("usr/bin/bash");
        let mut none = base();
        none.remove("usr/lib");
        let cases = [
            (&base(), cell("3.5.9", "11", "3.11"), "has Java 17, but the cell asks for Java 11"),
            (&base(), cell("3.5.9", "17", "3.10"), "no Python 3.10 (it has 3.11)"),
            (&slim, cell("4.1.4", "17", "3.11"), "lacks the module `jdk.incubator.vector`"),
            (&bare, cell("3.5.9", "17", "3.11"), "no `/bin/bash`"),
            (&none, cell("3.5.9", "17", "3.11"), "no Java"),
        ];
        for (view, cell, expected) in cases {
            let error = check(view, &cell, None, None).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(check(&slim, &cell("3.5.9", "17", "3.11"), None, None).is_ok(), "only Spark 4 needs it");
    }

    fn elf(platform: Platform, loader: &str, text: &[u8]) -> Node {
        let bytes = crate::sources::elf::samples::program(platform, loader, text);
        let binary = crate::sources::elf::Interest::Library.read(&bytes[..]).unwrap();
        Node::File { mode: 0o755, text: None, binary }
    }

    #[test]
    fn programs_for_another_processor_are_refused() {
        let other = if Platform::host() == Platform::Amd64 { Platform::Arm64 } else { Platform::Amd64 };
        for path in ["usr/bin/bash", "usr/bin/python3.11", "usr/lib/jvm/java-17/bin/java"] {
            let mut view = base();
            view.put(path, elf(other, "/lib/ld-linux.so", b""));
            let error = check(&view, &cell("3.5.9", "17", "3.11"), None, None).unwrap_err().to_string();
            let expected =
                format!("`/{path}` is a program for `{other}`, but the image is for `{}`", Platform::host());
            assert!(error.contains(&expected), "{error}");
            view.put(path, elf(Platform::host(), "/lib/ld-linux.so", b""));
            assert!(check(&view, &cell("3.5.9", "17", "3.11"), None, None).is_ok());
        }
    }

    #[test]
    fn the_c_library_of_the_python_is_found() {
        let libc =
            |view: &View| check(view, &cell("3.5.9", "17", "3.11"), None, None).unwrap().python.unwrap().libc;
        let host = Platform::host();
        let mut view = base();
        assert_eq!(libc(&view), None);
        view.put("usr/lib/libc.so.6", elf(host, "", b"GNU C Library (X) stable release version 2.31.\n"));
        view.put("lib/ld-musl-x86_64.so.1", elf(host, "", b"musl libc (x)\0\x001.2.4\0"));
        view.put("usr/bin/python3.11", elf(host, "/lib64/ld-linux-x86-64.so.2", b""));
        assert_eq!(libc(&view), Some(Libc::Glibc(2, 31)));
        view.put("usr/bin/python3.11", elf(host, "/lib/ld-musl-x86_64.so.1", b""));
        assert_eq!(libc(&view), Some(Libc::Musl(1, 2)));
    }

    #[test]
    fn the_base_prefers_its_own_java_home() {
        let mut view = base();
        put_java(&mut view, "opt/java/openjdk", RELEASE_17);
        put_java(&mut view, "opt/jdk8", "JAVA_VERSION=\"1.8.0_392\"\n");
        let home = |java: &str, home| {
            check(&view, &cell("3.5.9", java, "3.11"), home, None).unwrap().java.unwrap().home
        };
        assert_eq!(home("17", Some("/opt/java/openjdk")).as_str(), "opt/java/openjdk");
        assert_eq!(home("17", Some("/usr/lib/jvm/java-17")).as_str(), "usr/lib/jvm/java-17");
        assert_eq!(home("8", None).as_str(), "opt/jdk8");
    }

    #[test]
    fn what_is_only_useful_is_a_warning() {
        let mut view = base();
        view.remove("usr/bin/tini");
        view.remove("usr/bin/ps");
        assert_eq!(check(&view, &cell("3.5.9", "17", ""), None, None).unwrap().warnings.len(), 2);
    }
}
