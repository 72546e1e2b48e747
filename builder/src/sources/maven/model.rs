//! Effective POMs: parents, properties, managed versions and imported BOMs applied, as Maven 3 does.
//!
//! Pure: works on the POMs that are there, and says which others it needs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::pom::{Dependency, Pom};
use crate::coordinate::Project;

/// Parents above parents, and BOMs within BOMs.
const DEPTH: usize = 40;

/// BOMs that are imported for one project, each as often as it is: real ones import a few dozens.
const IMPORTS: usize = 5000;

/// Properties within properties.
const NESTING: usize = 20;

/// The POMs that were fetched; an entry without one does not exist in any repository.
pub type Poms = HashMap<Project, Option<Pom>>;

/// A POM with everything filled in.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// What it needs; versions are filled in where they are known.
    pub dependencies: Vec<Dependency>,
    /// Where the project went.
    pub relocation: Option<Project>,
}

/// Why there is no model yet, or never will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// These POMs have to be fetched first.
    Need(BTreeSet<Project>),
    /// It cannot be.
    Wrong(String),
}

/// Type and classifier of a dependency with its defaults.
pub fn kind(dependency: &Dependency) -> (&str, &str) {
    (dependency.kind.as_deref().unwrap_or("jar"), dependency.classifier.as_deref().unwrap_or_default())
}

type Key = (String, String, String, String);

fn key(dependency: &Dependency) -> Key {
    let (kind, classifier) = kind(dependency);
    (dependency.group.clone(), dependency.artifact.clone(), kind.to_owned(), classifier.to_owned())
}

/// The effective model of a project.
pub fn model(project: &Project, poms: &Poms) -> Result<Model, Lack> {
    let lineage = lineage(project, poms)?;
    let values = Values::of(project, &lineage);
    let managed =
        managed(&lineage, &values, &mut Imports { poms, chain: vec![project.clone()], left: IMPORTS })?;
    let mut dependencies: Vec<Dependency> = Vec::new();
    let mut seen: BTreeSet<Key> = BTreeSet::new();
    for pom in &lineage {
        for dependency in &pom.dependencies {
            let mut dependency = values.fill_all(dependency);
            if let Some(entry) = managed.get(&key(&dependency)) {
                manage(&mut dependency, entry);
            }
            if seen.insert(key(&dependency)) {
                dependencies.push(dependency);
            }
        }
    }
    let relocation = lineage[0].relocation.clone().map(|(group, artifact, version)| Project {
        group: group.map_or_else(|| project.group.clone(), |text| values.fill(&text)),
        artifact: artifact.map_or_else(|| project.artifact.clone(), |text| values.fill(&text)),
        version: version.map_or_else(|| project.version.clone(), |text| values.fill(&text)),
    });
    Ok(Model { dependencies, relocation })
}

/// Fills in what the dependency does not say itself.
fn manage(dependency: &mut Dependency, entry: &Dependency) {
    let fill = |own: &mut Option<String>, managed: &Option<String>| {
        if own.is_none() {
            own.clone_from(managed);
        }
    };
    fill(&mut dependency.version, &entry.version);
    fill(&mut dependency.scope, &entry.scope);
    fill(&mut dependency.optional, &entry.optional);
    if dependency.exclusions.is_empty() {
        dependency.exclusions.clone_from(&entry.exclusions);
    }
}

/// The POM itself, then its parents.
fn lineage<'a>(project: &Project, poms: &'a Poms) -> Result<Vec<&'a Pom>, Lack> {
    let mut found: Vec<&Pom> = Vec::new();
    let mut next = Some(project.clone());
    while let Some(project) = next {
        let pom = match poms.get(&project) {
            None => return Err(Lack::Need(BTreeSet::from([project]))),
            Some(None) => return Err(Lack::Wrong(format!("no repository has the POM of `{project}`"))),
            Some(Some(pom)) => pom,
        };
        if found.len() > DEPTH {
            return Err(Lack::Wrong(format!("the parents of `{project}` form a cycle")));
        }
        found.push(pom);
        next = pom.parent.clone().map(|(group, artifact, version)| Project { group, artifact, version });
    }
    Ok(found)
}

/// The way to an imported BOM, and how many may still be imported.
struct Imports<'a> {
    poms: &'a Poms,
    chain: Vec<Project>,
    left: usize,
}

impl Imports<'_> {
    /// What a BOM manages.
    fn entries(&mut self, bom: Project) -> Result<BTreeMap<Key, Dependency>, Lack> {
        if self.chain.contains(&bom) {
            let chain: Vec<String> = self.chain.iter().chain([&bom]).map(ToString::to_string).collect();
            return Err(Lack::Wrong(format!("imported BOMs form a cycle: {}", chain.join(" imports "))));
        }
        if self.chain.len() > DEPTH {
            return Err(Lack::Wrong(format!("`{}` imports BOMs more than {DEPTH} deep", self.chain[0])));
        }
        let too_many = || Lack::Wrong(format!("`{}` imports more than {IMPORTS} BOMs", self.chain[0]));
        self.left = self.left.checked_sub(1).ok_or_else(too_many)?;
        let lineage = lineage(&bom, self.poms)?;
        let values = Values::of(&bom, &lineage);
        self.chain.push(bom);
        let entries = managed(&lineage, &values, self);
        self.chain.pop();
        entries
    }
}

/// What is managed, the nearest first: own entries, those of parents, then those of imported BOMs in their order.
fn managed(
    lineage: &[&Pom],
    values: &Values,
    all: &mut Imports<'_>,
) -> Result<BTreeMap<Key, Dependency>, Lack> {
    let (mut found, mut imports, mut needed) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
    for entry in lineage.iter().flat_map(|pom| &pom.managed) {
        let entry = values.fill_all(entry);
        if kind(&entry).0 == "pom" && entry.scope.as_deref() == Some("import") {
            imports.push(entry);
        } else {
            found.entry(key(&entry)).or_insert(entry);
        }
    }
    for import in imports {
        let version = import.version.clone().unwrap_or_default();
        let bom = Project { group: import.group, artifact: import.artifact, version };
        match all.entries(bom) {
            Ok(entries) => {
                for (key, entry) in entries {
                    found.entry(key).or_insert(entry);
                }
            }
            Err(Lack::Need(more)) => needed.extend(more),
            Err(wrong) => return Err(wrong),
        }
    }
    if needed.is_empty() { Ok(found) } else { Err(Lack::Need(needed)) }
}

/// What `${...}` stands for in a project: inherited properties with the project's own values.
struct Values(BTreeMap<String, String>);

impl Values {
    fn of(project: &Project, lineage: &[&Pom]) -> Self {
        let mut values = BTreeMap::new();
        for pom in lineage.iter().rev() {
            values.extend(pom.properties.clone());
        }
        let mut set = |name: &str, value: &str| {
            for prefix in ["project.", "pom.", ""] {
                // Properties of the user's own do not hide what the project says of itself.
                values.insert(format!("{prefix}{name}"), value.to_owned());
            }
        };
        set("groupId", &project.group);
        set("artifactId", &project.artifact);
        set("version", &project.version);
        if let Some((group, artifact, version)) = lineage.first().and_then(|pom| pom.parent.as_ref()) {
            set("parent.groupId", group);
            set("parent.artifactId", artifact);
            set("parent.version", version);
        }
        Self(values)
    }

    /// Replaces what is known; the rest stays, and is an error where it matters.
    fn fill(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for _ in 0..NESTING {
            let Some(filled) = self.fill_once(&text) else { break };
            text = filled;
        }
        text
    }

    fn fill_once(&self, text: &str) -> Option<String> {
        let mut from = 0;
        while let Some(start) = text[from..].find("${").map(|at| at + from) {
            let end = text[start..].find('}')? + start;
            if let Some(value) = self.0.get(&text[start + 2..end]) {
                return Some(format!("{}{value}{}", &text[..start], &text[end + 1..]));
            }
            from = end;
        }
        None
    }

    fn fill_all(&self, dependency: &Dependency) -> Dependency {
        let fill = |text: &Option<String>| text.as_deref().map(|text| self.fill(text));
        Dependency {
            group: self.fill(&dependency.group),
            artifact: self.fill(&dependency.artifact),
            version: fill(&dependency.version),
            kind: fill(&dependency.kind),
            classifier: fill(&dependency.classifier),
            scope: fill(&dependency.scope),
            optional: fill(&dependency.optional),
            exclusions: dependency.exclusions.iter().map(|text| self.fill(text)).collect(),
        }
    }
}
