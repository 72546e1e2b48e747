//! Lays out an archive with a Java or a Python wherever the image wants it.
//!
//! Such archives have everything below a directory of some name (`jdk-17.0.9+9-jre/`, `python/`); it is found by
//! the files that mark it. The programs have to be relocatable: nothing in them is changed.

use crate::tree::{Entry, ImagePath, Kind, Tree};

/// Why an archive cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum RelocateError {
    /// The marks are missing.
    #[error("it has no directory with `{0}`")]
    Missing(String),
}

/// Moves the directory with the marks to `home`. Owners and times are normalised.
pub fn relocate(source: &Tree, home: &str, marks: &[&str]) -> Result<Tree, RelocateError> {
    let root = root(source, marks).ok_or_else(|| RelocateError::Missing(marks.join("` and `")))?;
    let mut tree = Tree::new();
    for (path, entry) in source {
        let Some(below) = path.as_str().strip_prefix(&root) else { continue };
        if super::is_compiled_python(below) {
            continue;
        }
        let Ok(place) = ImagePath::new(&format!("{home}/{below}")) else { continue };
        let program = entry.mode & 0o111 != 0;
        let moved = match &entry.kind {
            Kind::Directory => Entry::directory(0o755),
            Kind::Symlink(target) => Entry::symlink(target),
            Kind::File { content, .. } => Entry::file(*content, if program { 0o755 } else { 0o644 }),
            // Source archives with anything else were refused when they were read.
            Kind::Character { .. } | Kind::Block { .. } | Kind::Fifo => continue,
        };
        tree.insert(place, moved);
    }
    Ok(tree)
}

/// The outermost directory with all the marks, with a slash at its end; empty for the archive itself.
fn root(source: &Tree, marks: &[&str]) -> Option<String> {
    let first = marks.first()?;
    let candidates = source.keys().filter_map(|path| {
        let root = path.as_str().strip_suffix(first)?;
        (root.is_empty() || root.ends_with('/')).then(|| root.to_owned())
    });
    candidates
        .filter(|root| marks.iter().all(|mark| source.contains_key(format!("{root}{mark}").as_str())))
        .min_by_key(String::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cache::Content, digest::Digest};

    #[test]
    fn a_runtime_is_found_by_its_marks_and_moved() {
        let content = Content { digest: Digest::of(b""), size: 0 };
        let mut source = Tree::new();
        for (path, mode) in [
            ("jdk-17/bin/java", 0o700),
            ("jdk-17/release", 0o600),
            ("jdk-17/lib/modules", 0o644),
            ("jdk-17/demo/bin/java", 0o755),
            ("README", 0o644),
        ] {
            let entry = Entry { uid: 1000, ..Entry::file(content, mode) };
            source.insert(ImagePath::new(path).unwrap(), entry);
        }
        let moved = relocate(&source, "opt/java", &["bin/java", "release"]).unwrap();
        let shown: Vec<(&str, u32)> = moved.iter().map(|(path, entry)| (path.as_str(), entry.mode)).collect();
        let expected = [
            ("opt/java/bin/java", 0o755),
            ("opt/java/demo/bin/java", 0o755),
            ("opt/java/lib/modules", 0o644),
            ("opt/java/release", 0o644),
        ];
        assert_eq!(shown, expected);
        let error = relocate(&source, "opt/java", &["bin/python3"]).unwrap_err();
        assert!(error.to_string().contains("bin/python3"));
    }
}
