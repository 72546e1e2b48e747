//! Cuts groups of files into layers of sensible size.
//!
//! A group above [`Limits::largest`] is cut into parts of about the same size, in the order of the paths: container
//! runtimes fetch and unpack layers in parallel, but each on one stream.
//!
//! JARs are divided before that, into portions of about [`Limits::portion`] that change independently: a patch release
//! of Spark exchanges a few small JARs of a few families (`jersey-*`, `orc-*`) and none of the giants, so large JARs lie
//! apart from small ones, and both are dealt out by family. Where a JAR lies depends on its own name and size and on
//! little else: two releases that are planned apart, or one after the other under a lock, still have most portions in
//! common (from 3.5.8 to 3.5.9 six of seven).
//!
//! Python packages are divided by distribution: a large one is a portion of its own, since a new version of it changes
//! most of its files and none of the others; small ones are dealt out by name.

use std::collections::BTreeMap;

use super::parts::{LayerName, Limits, Planned};
use crate::{
    digest::Digest,
    tree::{Entry, ImagePath, Tree},
};

/// Files of a group that will be one layer.
type Portion<'a> = Vec<(&'a ImagePath, &'a Entry)>;

/// Python distributions that get a portion of their own; with more, only the larger ones do.
const DISTRIBUTIONS: usize = 8;

/// The directory of the Python packages of an image.
const PACKAGES: &str = "python-packages";

/// Which groups are divided into portions that change independently. Finer layers are worth less than shared ones: the
/// planner takes the finest that keeps every image within its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Division {
    /// JARs and Python packages.
    Packages,
    /// JARs.
    Jars,
    /// None.
    Nothing,
}

impl Division {
    /// From the finest to the coarsest.
    pub(super) const ALL: [Self; 3] = [Self::Packages, Self::Jars, Self::Nothing];
}

/// How many layers a group will be.
pub(super) fn count(name: LayerName, tree: &Tree, limits: Limits, division: Division) -> usize {
    portions(name, tree, limits, division).len()
}

/// The layers of a group.
pub(super) fn cut(
    name: LayerName,
    images: &[usize],
    tree: &Tree,
    limits: Limits,
    division: Division,
) -> Vec<Planned> {
    let portions = portions(name, tree, limits, division);
    let of = portions.len();
    let planned = portions.into_iter().enumerate().map(|(at, portion)| Planned {
        name,
        part: (at + 1, of),
        images: images.to_vec(),
        tree: portion.into_iter().map(|(path, entry)| (path.clone(), entry.clone())).collect(),
    });
    planned.collect()
}

fn portions(name: LayerName, tree: &Tree, limits: Limits, division: Division) -> Vec<Portion<'_>> {
    let all: Portion<'_> = tree.iter().collect();
    let divided = match (division, name) {
        (Division::Packages | Division::Jars, _) if name.is_jars() => families(all, limits),
        (Division::Packages, LayerName::Wheels | LayerName::Bytecode) => distributions(all, limits),
        _ => vec![all],
    };
    divided.into_iter().flat_map(|portion| evenly(portion, limits.largest)).collect()
}

fn size(entry: &Entry) -> u64 {
    entry.content().map_or(0, |content| content.size)
}

fn bytes(portion: &[(&ImagePath, &Entry)]) -> u64 {
    portion.iter().map(|(_, entry)| size(entry)).sum()
}

/// Large files apart from small ones, and both by family.
fn families<'a>(all: Portion<'a>, limits: Limits) -> Vec<Portion<'a>> {
    if bytes(&all) <= limits.portion {
        return vec![all];
    }
    let (large, small): (Portion<'a>, Portion<'a>) =
        all.into_iter().partition(|(_, entry)| size(entry) >= limits.smallest);
    let mut found: Vec<Portion<'a>> = Vec::new();
    for class in [large, small] {
        found.extend(dealt(class, |path| family(path.name()).to_owned(), limits));
    }
    joined(found, limits)
}

/// Large Python distributions by themselves, and the small ones dealt out.
fn distributions<'a>(all: Portion<'a>, limits: Limits) -> Vec<Portion<'a>> {
    let mut known: BTreeMap<String, Portion<'a>> = BTreeMap::new();
    for (path, entry) in all {
        known.entry(distribution(path)).or_default().push((path, entry));
    }
    let mut smallest = limits.smallest.max(1);
    while known.values().filter(|files| bytes(files) >= smallest).count() > DISTRIBUTIONS {
        smallest *= 2;
    }
    let (large, small): (Vec<Portion<'a>>, Vec<Portion<'a>>) =
        known.into_values().partition(|files| bytes(files) >= smallest);
    let mut found = dealt(small.into_iter().flatten().collect(), distribution, limits);
    found.extend(large);
    joined(found, limits)
}

/// Deals files out by family, into as many portions as their size asks for.
fn dealt<'a>(files: Portion<'a>, family: impl Fn(&ImagePath) -> String, limits: Limits) -> Vec<Portion<'a>> {
    // A power of two: half of the families stay where they are when the number doubles.
    let wanted = bytes(&files).div_ceil(limits.portion.max(1)).next_power_of_two();
    let mut dealt: Vec<Portion<'a>> = vec![Vec::new(); usize::try_from(wanted).unwrap_or(1)];
    for (path, entry) in files {
        let at = usize::from(Digest::of(family(path).as_bytes()).as_bytes()[0]) % dealt.len();
        dealt[at].push((path, entry));
    }
    dealt
}

/// Portions that are not worth a request of their own go along with another.
fn joined<'a>(portions: Vec<Portion<'a>>, limits: Limits) -> Vec<Portion<'a>> {
    let (mut found, tiny): (Vec<Portion<'a>>, Vec<Portion<'a>>) =
        portions.into_iter().partition(|portion| bytes(portion) >= limits.smallest);
    let mut rest: Portion<'a> = tiny.into_iter().flatten().collect();
    if let Some(last) = found.last_mut() {
        last.append(&mut rest);
    } else {
        found.push(rest);
    }
    for portion in &mut found {
        portion.sort_unstable_by_key(|(path, _)| *path);
    }
    found
}

/// `shapely` of `opt/python-packages/shapely.libs/x.so` and of `opt/python-packages/Shapely-2.0.6.dist-info/RECORD`.
fn distribution(path: &ImagePath) -> String {
    let mut parts = path.as_str().split('/');
    let top = parts.by_ref().find(|part| *part == PACKAGES).and_then(|_| parts.next());
    // A module that is one file has its bytecode beside those of others.
    let top = match top {
        Some("__pycache__") => parts.next(),
        top => top,
    };
    // What is not a package has bytecode of Spark or of a Python: each changes as a whole.
    let top = top.or_else(|| path.as_str().split('/').nth(1)).unwrap_or(path.as_str());
    top.split(['-', '.']).next().unwrap_or(top).to_lowercase()
}

/// `jersey` of `jersey-client-2.47.jar`: what is released together.
fn family(name: &str) -> &str {
    name.split(['-', '_', '.']).next().unwrap_or(name)
}

/// Parts of about the same size, none much above `largest`.
fn evenly(portion: Portion<'_>, largest: u64) -> Vec<Portion<'_>> {
    let total = bytes(&portion);
    let count = total.div_ceil(largest.max(1)).max(1);
    let target = total.div_ceil(count).max(1);
    let mut parts = vec![Vec::new()];
    let mut filled = 0;
    for (path, entry) in portion {
        let size = size(entry);
        // Half of a file over the mark is as good as half a file under it.
        if filled > 0 && filled + size / 2 > target && (parts.len() as u64) < count {
            parts.push(Vec::new());
            filled = 0;
        }
        filled += size;
        parts.last_mut().expect("there is always one").push((path, entry));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Content;

    const MB: u64 = 1 << 20;

    fn jars<'a>(names: impl Iterator<Item = (&'a str, u64)>) -> Tree {
        let entry = |(name, size): (&str, u64)| {
            let content = Content { digest: Digest::of(name.as_bytes()), size };
            (ImagePath::new(&format!("opt/spark/jars/{name}")).unwrap(), Entry::file(content, 0o644))
        };
        names.map(entry).collect()
    }

    fn trees(tree: &Tree) -> Vec<Tree> {
        let planned = cut(LayerName::SparkJars, &[0], tree, Limits::default(), Division::Jars);
        planned.into_iter().map(|layer| layer.tree).collect()
    }

    #[test]
    fn a_changed_jar_takes_few_others_along() {
        let names: Vec<String> = (0..200).map(|at| format!("family{}-part{at}-1.0.jar", at / 4)).collect();
        let small = || names.iter().map(|name| (name.as_str(), MB / 2));
        let large = [
            ("hadoop-client-runtime-3.3.4.jar", 30 * MB),
            ("rocksdbjni-8.3.2.jar", 59 * MB),
            ("breeze-2.jar", 13 * MB),
        ];
        let before = trees(&jars(small().chain(large)));
        let changed = |name: &'static str| {
            trees(&jars(
                small()
                    .map(move |(own, size)| (if own == "family7-part30-1.0.jar" { name } else { own }, size))
                    .chain(large),
            ))
        };
        let after = changed("family7-part30-1.1.jar");
        assert_eq!(before.len(), after.len());
        let stays: u64 = after.iter().filter(|tree| before.contains(tree)).map(crate::tree::bytes).sum();
        let total: u64 = after.iter().map(crate::tree::bytes).sum();
        assert!(stays * 4 > total * 3, "{} of {} MB stay", stays / MB, total / MB);
        assert!(after.iter().all(|tree| crate::tree::bytes(tree) >= Limits::default().smallest));
        // Every file is in exactly one portion.
        let all: Tree = before.iter().flatten().map(|(path, entry)| (path.clone(), entry.clone())).collect();
        assert_eq!(all, jars(small().chain(large)));
        assert_eq!(before.iter().map(Tree::len).sum::<usize>(), all.len());
    }

    #[test]
    fn what_is_small_or_no_jars_stays_together() {
        let few = jars([("a-1.jar", 20 * MB), ("b-1.jar", 20 * MB)].into_iter());
        assert_eq!(count(LayerName::SparkJars, &few, Limits::default(), Division::Packages), 1);
        let many = jars([("a-1.jar", 100 * MB), ("b-1.jar", 100 * MB)].into_iter());
        assert_eq!(count(LayerName::Spark, &many, Limits::default(), Division::Packages), 1);
        assert_eq!(count(LayerName::SparkJars, &many, Limits::default(), Division::Nothing), 1);
        for name in [LayerName::SparkJars, LayerName::Wheels] {
            assert_eq!(count(name, &Tree::new(), Limits::default(), Division::Packages), 1);
        }
    }

    /// Distributions (name, version, size of their library) as wheels are laid out.
    fn packages(distributions: &[(&str, &str, u64)]) -> Tree {
        let mut tree = Tree::new();
        for (name, version, size) in distributions {
            for (path, size) in [
                (format!("{name}/__init__.py"), 1000),
                (format!("{name}.libs/library.so"), *size),
                (format!("{name}-{version}.dist-info/RECORD"), 100),
            ] {
                let content = Content { digest: Digest::of(format!("{path} {version}").as_bytes()), size };
                let path = ImagePath::new(&format!("opt/python-packages/{path}")).unwrap();
                tree.insert(path, Entry::file(content, 0o644));
            }
        }
        tree
    }

    fn wheel_layers(tree: &Tree) -> Vec<Tree> {
        let planned = cut(LayerName::Wheels, &[0], tree, Limits::default(), Division::Packages);
        planned.into_iter().map(|layer| layer.tree).collect()
    }

    #[test]
    fn a_changed_distribution_takes_no_other_large_one_along() {
        let with = |shapely| {
            packages(&[
                ("numpy", "2.2.1", 60 * MB),
                ("pandas", "2.2.3", 50 * MB),
                ("shapely", shapely, 9 * MB),
                ("six", "1.16", MB / 10),
                ("dateutil", "2.9", MB / 2),
            ])
        };
        let (before, after) = (wheel_layers(&with("2.0.6")), wheel_layers(&with("2.0.7")));
        let new: u64 = after.iter().filter(|tree| !before.contains(tree)).map(crate::tree::bytes).sum();
        assert!(new < 11 * MB, "{} MB are new", new / MB);
        let all: Tree = before.iter().flatten().map(|(path, entry)| (path.clone(), entry.clone())).collect();
        assert_eq!(all, with("2.0.6"));
        assert_eq!(before.iter().map(Tree::len).sum::<usize>(), all.len());
    }

    #[test]
    fn many_distributions_stay_a_few_layers() {
        let names: Vec<String> = (0..60).map(|at| format!("package{at}")).collect();
        let many: Vec<(&str, &str, u64)> = names
            .iter()
            .enumerate()
            .map(|(at, name)| (name.as_str(), "1", (at as u64 + 1) * MB / 4))
            .collect();
        let layers = wheel_layers(&packages(&many));
        assert!((2..=DISTRIBUTIONS + 16).contains(&layers.len()), "{}", layers.len());
        assert!(layers.iter().all(|tree| crate::tree::bytes(tree) >= Limits::default().smallest));
    }
}
