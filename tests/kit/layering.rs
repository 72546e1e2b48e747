//! Reads sources for tests of how modules and files depend on each other: `use` lines, and paths inside the code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

/// The root of the workspace.
pub fn root() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace")
        .to_owned()
}

/// Every Rust file below a directory of the workspace: its path and its text.
pub fn sources(below: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(below)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("the sources are readable and named in UTF-8") {
            let path = entry.expect("the sources are readable and named in UTF-8").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .strip_prefix(root())
                    .expect("the sources are readable and named in UTF-8")
                    .to_str()
                    .expect("the sources are readable and named in UTF-8")
                    .to_owned();
                found.push((
                    name,
                    fs::read_to_string(&path).expect("the sources are readable and named in UTF-8"),
                ));
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {below}");
    found
}

/// The code without comment lines, where crates are named freely.
pub fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Re-exports followed in a row.
const HOPS: u32 = 4;

type Path = Vec<String>;

/// What the programs of the builder call its library.
const LIBRARY: &str = "hearth_builder";

/// The files of one module, by their path in it: `""` is its `mod.rs`. A room without a name is a whole crate.
#[derive(Debug)]
pub struct Room {
    name: String,
    paths: BTreeMap<String, Vec<Path>>,
}

impl Room {
    /// Reads the files of the module `name`: their paths in it, and their texts.
    pub fn new(name: &str, files: impl IntoIterator<Item = (String, String)>) -> Self {
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
            "crate" | LIBRARY if self.name.is_empty() => (at, rest) = (String::new(), &rest[1..]),
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

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// What each file uses of the others.
    fn uses(&self) -> BTreeMap<String, BTreeSet<String>> {
        let of = |(module, paths): (&String, &Vec<Path>)| {
            let used = paths.iter().filter_map(|path| self.resolve(module, path, HOPS));
            (module.clone(), used.filter(|used| used != module).collect())
        };
        self.paths.iter().map(of).collect()
    }

    /// Files that are part of a circle, or lead into one, each with what it uses of the others.
    pub fn circles(&self) -> Vec<String> {
        let shown = |(module, used)| format!("{}/{module} uses {used:?}", self.name);
        circles(self.uses()).into_iter().map(shown).collect()
    }

    /// The same for the modules directly below: a module uses what any of its files uses.
    pub fn circles_of_modules(&self) -> Vec<String> {
        let top = |path: &str| path.split("::").next().unwrap_or_default().to_owned();
        let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (file, used) in self.uses() {
            let module = top(&file);
            let others = used.iter().map(|used| top(used)).filter(|used| *used != module);
            uses.entry(module.clone()).or_default().extend(others.collect::<Vec<_>>());
        }
        circles(uses).into_iter().map(|(module, used)| format!("{module} uses {used:?}")).collect()
    }
}

/// What is left when everything that uses nothing of the rest is taken away, again and again.
fn circles(mut uses: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let before = uses.len();
        let left: BTreeSet<String> = uses.keys().cloned().collect();
        uses.retain(|_, used| {
            used.retain(|module| left.contains(module));
            !used.is_empty()
        });
        if uses.len() == before {
            return uses;
        }
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
