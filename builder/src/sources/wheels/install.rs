//! Lays the files of a wheel out as `pip install --target` does (binary distribution format, PEP 427 and followers).
//!
//! ```text
//! <wheel>/X                        ->  <target>/X
//! <wheel>/N.data/{purelib,platlib}/X, N.data/data/X  ->  <target>/X
//! <wheel>/N.data/scripts/X         ->  <target>/bin/X        (#!python becomes the image's Python)
//! <wheel>/N.data/headers/X         ->  <target>/include/<package>/X
//! entry_points.txt [console_scripts], [gui_scripts]  ->  <target>/bin/NAME
//! ```
//!
//! Nothing of the package is run and nothing is compiled. Every file is held against the `RECORD` of the wheel.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{
    cache::{Cache, CacheError, Shelf},
    digest::Digest,
    tree::{Entry, ImagePath, PathError, Tree},
};

/// `RECORD` and `entry_points.txt` of real wheels are far smaller.
const TEXT: u64 = 64 << 20;

/// Scripts that are rewritten.
const SCRIPT: u64 = 4 << 20;

/// Why a wheel cannot be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A part is missing.
    #[error("it is no wheel: it has no `{0}`")]
    Missing(&'static str),
    /// It is of a version that nobody knows.
    #[error("its wheel version `{0}` is not one that hearth installs (1.x)")]
    Version(String),
    /// A file is not what the wheel says.
    #[error("its file `{0}` is not the one that its RECORD names")]
    Record(String),
    /// A name leads out of the target.
    #[error("it has a file that is not allowed")]
    Path(#[source] PathError),
    /// An entry point cannot be read.
    #[error("its entry point `{0}` cannot be read")]
    EntryPoint(String),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Where wheels are installed and for whom.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    /// The directory.
    pub directory: &'a str,
    /// The image's Python as scripts start it: an absolute path.
    pub python: String,
}

/// The files of an unpacked wheel at their places.
pub fn install(cache: &Cache, wheel: &Tree, target: &Target<'_>) -> Result<Tree, InstallError> {
    let info = info(wheel)?;
    let text = |name: &str| -> Result<Option<String>, InstallError> {
        let entry = wheel.get(format!("{info}/{name}").as_str()).and_then(Entry::content);
        let bytes = entry.map(|content| cache.read_small(&content, TEXT)).transpose()?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    let version = text("WHEEL")?.ok_or(InstallError::Missing("WHEEL"))?;
    let version =
        version.lines().find_map(|line| line.strip_prefix("Wheel-Version:")).unwrap_or("1.0").trim();
    if version.split('.').next() != Some("1") {
        return Err(InstallError::Version(version.to_owned()));
    }
    check_record(wheel, &info, &text("RECORD")?.ok_or(InstallError::Missing("RECORD"))?)?;
    let mut placed = Tree::new();
    for (path, entry) in wheel {
        if super::super::is_compiled_python(path.as_str()) {
            continue;
        }
        let Some((place, script)) = place(path.as_str(), &info) else { continue };
        let entry = if script { rewrite(cache, entry, target)? } else { entry.clone() };
        put(&mut placed, target, &place, entry)?;
    }
    for (name, callable) in entry_points(text("entry_points.txt")?.as_deref().unwrap_or_default()) {
        let script = launcher(&callable, target).ok_or_else(|| InstallError::EntryPoint(name.clone()))?;
        let content = cache.put(Shelf::Files, &mut script.as_bytes())?;
        put(&mut placed, target, &format!("bin/{name}"), Entry::file(content, 0o755))?;
    }
    let installer = cache.put(Shelf::Files, &mut &b"hearth"[..])?;
    put(&mut placed, target, &format!("{info}/INSTALLER"), Entry::file(installer, 0o644))?;
    Ok(placed)
}

fn put(placed: &mut Tree, target: &Target<'_>, place: &str, entry: Entry) -> Result<(), InstallError> {
    // The rest of the path has to be sound by itself: `..` must not climb through the target.
    let below = ImagePath::new(place).map_err(InstallError::Path)?;
    let path =
        ImagePath::new(&format!("{}/{}", target.directory, below.as_str())).map_err(InstallError::Path)?;
    placed.insert(path, entry);
    Ok(())
}

/// The name of the `.dist-info` directory.
fn info(wheel: &Tree) -> Result<String, InstallError> {
    let marks = wheel.keys().filter_map(|path| path.as_str().strip_suffix("/WHEEL"));
    let mut infos = marks.filter(|directory| !directory.contains('/') && directory.ends_with(".dist-info"));
    infos.next().map(str::to_owned).ok_or(InstallError::Missing(".dist-info/WHEEL"))
}

/// Where a member goes below the target, and whether it is a script; `None` for what is not installed.
fn place(path: &str, info: &str) -> Option<(String, bool)> {
    let data = info.strip_suffix(".dist-info").map(|name| format!("{name}.data/"))?;
    let Some(rest) = path.strip_prefix(&data) else { return Some((path.to_owned(), false)) };
    let (scheme, rest) = rest.split_once('/')?;
    let package = info.split('-').next().unwrap_or(info);
    match scheme {
        "purelib" | "platlib" | "data" => Some((rest.to_owned(), false)),
        "scripts" => Some((format!("bin/{rest}"), true)),
        "headers" => Some((format!("include/{package}/{rest}"), false)),
        _ => None,
    }
}

/// A script that starts with `#!python` starts with the image's Python.
fn rewrite(cache: &Cache, entry: &Entry, target: &Target<'_>) -> Result<Entry, InstallError> {
    let Some(content) = entry.content().filter(|content| content.size <= SCRIPT) else {
        return Ok(Entry { mode: 0o755, ..entry.clone() });
    };
    let bytes = cache.read_small(&content, SCRIPT)?;
    let Some(rest) = bytes.strip_prefix(b"#!python") else {
        return Ok(Entry { mode: 0o755, ..entry.clone() });
    };
    // `#!pythonw` is for windows without a console.
    let line = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    let mut script = format!("#!{}", target.python).into_bytes();
    script.extend_from_slice(&rest[line..]);
    Ok(Entry::file(cache.put(Shelf::Files, &mut &script[..])?, 0o755))
}

fn check_record(wheel: &Tree, info: &str, record: &str) -> Result<(), InstallError> {
    let mut named: BTreeMap<String, Option<String>> = BTreeMap::new();
    for line in record.lines().filter(|line| !line.trim().is_empty()) {
        // The name is quoted when it has a comma; hash and size never do.
        let mut fields = line.rsplitn(3, ',');
        let (_, hash, name) =
            (fields.next(), fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let name = name.trim_matches('"').replace("\"\"", "\"");
        named.insert(name, hash.strip_prefix("sha256=").map(str::to_owned));
    }
    for (path, entry) in wheel {
        let signature = ["RECORD", "RECORD.jws", "RECORD.p7s"];
        if signature.iter().any(|name| path.as_str() == format!("{info}/{name}")) {
            continue;
        }
        let found = entry.content().map(|content| content.digest);
        let expected = named.get(path.as_str());
        let fine = match expected {
            // Hashes other than SHA-256 are not checked: the whole wheel was.
            Some(None) => true,
            Some(Some(hash)) => found.is_some_and(|digest| url_base64(&digest) == *hash),
            None => false,
        };
        if !fine {
            return Err(InstallError::Record(path.as_str().to_owned()));
        }
    }
    Ok(())
}

/// As `RECORD` writes digests.
fn url_base64(digest: &Digest) -> String {
    URL_SAFE_NO_PAD.encode(digest.as_bytes())
}

/// Names and callables of the scripts that an installer makes.
fn entry_points(text: &str) -> Vec<(String, String)> {
    let mut wanted = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            wanted = matches!(section.trim(), "console_scripts" | "gui_scripts");
        } else if let Some((name, callable)) =
            line.split_once('=').filter(|_| wanted && !line.starts_with('#'))
        {
            // Extras behind the callable are a thing of the past.
            let callable = callable.split('[').next().unwrap_or(callable);
            found.push((name.trim().to_owned(), callable.trim().to_owned()));
        }
    }
    found
}

/// The script of an entry point `module:function.attribute`.
fn launcher(callable: &str, target: &Target<'_>) -> Option<String> {
    let (module, function) = callable.split_once(':')?;
    let (module, function) = (module.trim(), function.trim());
    let identifier =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.'));
    if !identifier(module) || !identifier(function) {
        return None;
    }
    let import = function.split('.').next().unwrap_or(function);
    Some(format!(
        "#!{}\n# -*- coding: utf-8 -*-\nimport sys\nfrom {module} import {import}\nif __name__ == \"__main__\":\n    sys.exit({function}())\n",
        target.python
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(members: &[(&str, u32, &[u8])]) -> String {
        let line = |(name, _, content): &(&str, u32, &[u8])| {
            format!("{name},sha256={},{}\n", url_base64(&Digest::of(content)), content.len())
        };
        members.iter().map(line).collect::<String>() + "a-1.dist-info/RECORD,,\n"
    }

    fn wheel(cache: &Cache, members: &[(&str, u32, &[u8])], record: &str) -> Tree {
        let mut tree = Tree::new();
        for (name, mode, content) in
            members.iter().chain([&("a-1.dist-info/RECORD", 0o644, record.as_bytes())])
        {
            let content = cache.put(Shelf::Files, &mut &**content).unwrap();
            tree.insert(ImagePath::new(name).unwrap(), Entry::file(content, *mode));
        }
        tree
    }

    const MEMBERS: &[(&str, u32, &[u8])] = &[
        ("a/__init__.py", 0o644, b"x"),
        ("a/helper", 0o755, b"y"),
        ("a/__pycache__/b.cpython-311.pyc", 0o644, b"z"),
        ("a-1.data/purelib/a/more.py", 0o644, b"m"),
        ("a-1.data/scripts/tool", 0o644, b"#!python\nprint()\n"),
        ("a-1.data/scripts/plain.sh", 0o644, b"#!/bin/sh\n"),
        ("a-1.data/data/share/a.txt", 0o644, b"d"),
        ("a-1.data/headers/a.h", 0o644, b"h"),
        ("a-1.dist-info/WHEEL", 0o644, b"Wheel-Version: 1.0\n"),
        (
            "a-1.dist-info/entry_points.txt",
            0o644,
            b"[console_scripts]\nrun-a = a.cli:Main.start [fast]\n[other]\nx = y:z\n",
        ),
    ];

    #[test]
    fn a_wheel_is_laid_out_as_pip_does() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let target = Target { directory: "opt/p", python: "/usr/bin/python3.11".to_owned() };
        let tree = install(&cache, &wheel(&cache, MEMBERS, &record(MEMBERS)), &target).unwrap();
        let shown: Vec<(&str, u32)> =
            tree.iter().map(|(path, entry)| (path.below("opt/p").unwrap(), entry.mode)).collect();
        let expected = [
            ("a/__init__.py", 0o644),
            ("a/helper", 0o755),
            ("a/more.py", 0o644),
            ("a-1.dist-info/INSTALLER", 0o644),
            ("a-1.dist-info/RECORD", 0o644),
            ("a-1.dist-info/WHEEL", 0o644),
            ("a-1.dist-info/entry_points.txt", 0o644),
            ("bin/plain.sh", 0o755),
            ("bin/run-a", 0o755),
            ("bin/tool", 0o755),
            ("include/a/a.h", 0o644),
            ("share/a.txt", 0o644),
        ];
        let mut expected = expected.to_vec();
        expected.sort_unstable_by_key(|(path, _)| ImagePath::new(path).unwrap());
        assert_eq!(shown, expected);
        let text = |path: &str| {
            let content = tree[format!("opt/p/{path}").as_str()].content().unwrap();
            String::from_utf8(cache.read_small(&content, 1000).unwrap()).unwrap()
        };
        assert_eq!(text("bin/tool"), "#!/usr/bin/python3.11\nprint()\n");
        let launcher = text("bin/run-a");
        assert!(launcher.contains("from a.cli import Main\n") && launcher.contains("sys.exit(Main.start())"));
    }

    #[test]
    fn a_wheel_that_is_not_what_it_says_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let target = Target { directory: "opt/p", python: "/python".to_owned() };
        let good = record(MEMBERS);
        let refused = |members: &[(&str, u32, &[u8])], record: &str| {
            install(&cache, &wheel(&cache, members, record), &target).unwrap_err().to_string()
        };
        assert!(refused(MEMBERS, &good.replace("a/helper", "a/other")).contains("`a/helper`"));
        let changed: Vec<_> = MEMBERS
            .iter()
            .map(|member| if member.0 == "a/helper" { ("a/helper", 0o755, &b"evil"[..]) } else { *member })
            .collect();
        assert!(refused(&changed, &good).contains("`a/helper`"));
        let without: Vec<_> =
            MEMBERS.iter().filter(|member| !member.0.ends_with("/WHEEL")).copied().collect();
        assert!(refused(&without, &good).contains("no wheel"));
        let future: Vec<_> = MEMBERS
            .iter()
            .map(|member| {
                if member.0.ends_with("/WHEEL") {
                    (member.0, 0o644, &b"Wheel-Version: 2.0\n"[..])
                } else {
                    *member
                }
            })
            .collect();
        assert!(refused(&future, &record(&future)).contains("`2.0`"));
        let evil: Vec<_> = MEMBERS
            .iter()
            .map(|member| {
                let points = &b"[console_scripts]\n../../etc/x = a:b\n"[..];
                if member.0.ends_with("points.txt") { (member.0, 0o644, points) } else { *member }
            })
            .collect();
        assert!(refused(&evil, &record(&evil)).contains("not allowed"));
    }
}
