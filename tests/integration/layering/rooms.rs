//! No circles between the files of one module: what each file names of the others, read from its `use` lines and paths.
//! A name that a `mod.rs` passes on counts as a use of the file that it comes from.

use std::collections::{BTreeMap, BTreeSet};

use super::{code, sources};

/// Modules of the agent whose files are held to this.
const ROOMS: &[&str] = &["download", "peers", "swarm", "upstream"];

/// Re-exports followed in a row.
const HOPS: u32 = 4;

type Path = Vec<String>;

/// The files of one module, by their path in it: `""` is its `mod.rs`.
struct Room {
    name: String,
    paths: BTreeMap<String, Vec<Path>>,
}

impl Room {
    fn new(name: &str, files: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut room = Self { name: name.to_owned(), paths: BTreeMap::new() };
        for (file, text) in files {
            if file.ends_with("tests.rs") {
                continue;
            }
            let module = file.trim_end_matches(".rs").replace('/', "::");
            let module =
                if module == "mod" { String::new() } else { module.trim_end_matches("::mod").to_owned() };
            let text = code(text.split("#[cfg(test)]\nmod ").next().unwrap_or_default());
            // Who may see an item is no use of it.
            let text = text.replace(&format!("pub(in crate::{name})"), "pub");
            room.paths.insert(module, paths(&text));
        }
        room
    }

    /// The file that a path names, seen from `module`.
    fn resolve(&self, module: &str, path: &[String], hops: u32) -> Option<String> {
        let mut rest = path;
        let mut at = module.to_owned();
        match rest.first()?.as_str() {
            "crate" if rest.get(1) == Some(&self.name) => (at, rest) = (String::new(), &rest[2..]),
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|word| word == "super") {
                    if at.is_empty() {
                        return None;
                    }
                    (at, rest) = (parent(&at), &rest[1..]);
                }
            }
            first if self.paths.contains_key(&child(&at, first)) => {}
            _ => return None,
        }
        while let Some(below) =
            rest.first().map(|word| child(&at, word)).filter(|below| self.paths.contains_key(below))
        {
            (at, rest) = (below, &rest[1..]);
        }
        let (Some(name), true) = (rest.first(), hops > 0) else { return Some(at) };
        let passed_on =
            self.paths.get(&at)?.iter().filter(|path| path.len() > 1 && path.last() == Some(name));
        let from = passed_on.filter_map(|path| self.resolve(&at, path, hops - 1)).find(|from| *from != at);
        Some(from.unwrap_or(at))
    }

    /// Files that are part of a circle, or lead into one, each with what it uses of the others.
    fn circles(&self) -> Vec<String> {
        let mut uses: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for (module, paths) in &self.paths {
            let used = paths.iter().filter_map(|path| self.resolve(module, path, HOPS));
            uses.insert(module, used.filter(|used| used != module).collect());
        }
        loop {
            let before = uses.len();
            let left: BTreeSet<String> = uses.keys().map(|module| (*module).to_owned()).collect();
            uses.retain(|_, used| {
                used.retain(|module| left.contains(module));
                !used.is_empty()
            });
            if uses.len() == before {
                break;
            }
        }
        uses.iter().map(|(module, used)| format!("{}/{module} uses {used:?}", self.name)).collect()
    }
}

fn parent(module: &str) -> String {
    module.rsplit_once("::").map_or_else(String::new, |(above, _)| above.to_owned())
}

fn child(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

/// Every path of the text: those of `use` lines with their braces opened, and those inside the code.
fn paths(text: &str) -> Vec<Path> {
    let (mut found, mut rest, mut body) = (Vec::new(), text, String::new());
    while let Some((before, after)) = rest.split_once("use ") {
        body.push_str(before);
        // Only where a statement begins.
        if before.is_empty() || before.ends_with(['\n', ' ', ')']) {
            let (tree, after) = after.split_once(';').unwrap_or((after, ""));
            open_braces("", tree, &mut found);
            rest = after;
        } else {
            rest = after;
        }
    }
    body.push_str(rest);
    let words = body.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    found.extend(words.filter(|word| word.contains("::")).map(segments));
    found
}

fn segments(path: &str) -> Path {
    path.split("::").map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn open_braces(prefix: &str, tree: &str, found: &mut Vec<Path>) {
    let (mut depth, mut start) = (0, 0);
    let mut parts = Vec::new();
    for (at, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[start..]);
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        if let Some((path, group)) = part.split_once('{') {
            open_braces(&format!("{prefix}{path}"), group.trim_end().trim_end_matches('}'), found);
        } else {
            let path = part.split(" as ").next().unwrap_or(part).trim_end_matches("::self");
            found.push(segments(&format!("{prefix}{path}")));
        }
    }
}

#[test]
fn files_of_one_module_depend_in_one_direction() {
    let mut wrong = Vec::new();
    for name in ROOMS {
        let folder = format!("agent/src/{name}/");
        let files = sources(&folder).into_iter().map(|(path, text)| (path[folder.len()..].to_owned(), text));
        let room = Room::new(name, files);
        assert!(room.paths.len() > 5, "the files of {name} were not found");
        wrong.extend(room.circles());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_circle_is_seen_whichever_way_it_is_written() {
    let circles = |files: &[(&str, &str)]| {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        Room::new("room", files).circles().len()
    };
    let passes_on = ("mod.rs", "mod a;\nmod b;\npub use a::A;\n");
    assert_eq!(circles(&[passes_on, ("a.rs", "pub struct A;"), ("b.rs", "use super::A;")]), 0);
    for (a, b) in [
        ("use super::b::B;", "use super::A;"),
        ("use crate::{room::b::{self, B}, x};", "use super::a;"),
        ("fn f() { super::b::g() }", "fn g(_: super::a::A) {}"),
    ] {
        assert_eq!(circles(&[passes_on, ("a.rs", a), ("b.rs", b)]), 3, "{a} {b}: both, and what uses them");
    }
    assert_eq!(circles(&[("mod.rs", "mod a;\nuse a::A;\npub struct M;"), ("a.rs", "use super::M;")]), 2);
    let only_in_tests = "pub struct A;\n#[cfg(test)]\nmod tests {\n    use super::super::b::B;\n}";
    assert_eq!(circles(&[passes_on, ("a.rs", only_in_tests), ("b.rs", "use super::A;")]), 0);
}
