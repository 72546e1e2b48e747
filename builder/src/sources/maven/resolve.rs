//! From coordinates to everything that they need, as Maven 3 resolves it for running.
//!
//! * Breadth first: of several versions the nearest to what was asked for wins, then the one that was named first;
//!   what a loser needs is not needed.
//! * `compile` and `runtime` are needed, `test`, `provided` and `system` are not, and nothing optional.
//! * An exclusion holds for everything below where it stands.
//! * What Spark has already is left out with everything below it; another version of it is a conflict.
//! * Version ranges are refused: what they come to depends on the day. `[1.2]` is 1.2.
//!
//! Pure: works on the POMs that are there, and says which others it needs.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::{
    model::{Lack, Model, Poms, kind, model},
    pom::Dependency,
};
use crate::coordinate::{Coordinate, Project, matches};

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted<'a> {
    /// The coordinates, in their order.
    pub packages: Vec<Coordinate>,
    /// `group:artifact` that are left out everywhere.
    pub exclude: &'a [String],
    /// `group:artifact` of which Spark's version is kept.
    pub keep: &'a [String],
    /// What Spark has.
    pub provided: Option<&'a Provided>,
}

/// What the Spark distribution has.
#[derive(Debug, Clone, Default)]
pub struct Provided {
    /// Versions by group and artifact, from the JARs that say so themselves.
    pub exact: HashMap<(String, String), String>,
    /// Versions by artifact, from the file names of the others.
    pub by_name: HashMap<String, String>,
}

impl Provided {
    fn version(&self, project: &Project) -> Option<&String> {
        let exact = self.exact.get(&(project.group.clone(), project.artifact.clone()));
        exact.or_else(|| self.by_name.get(&project.artifact))
    }
}

/// Something that may be needed, with the way to it.
#[derive(Clone)]
struct Step {
    coordinate: Coordinate,
    exclusions: Vec<String>,
    path: Vec<Project>,
}

/// A dependency deeper than this is a cycle of relocations or the like.
const DEPTH: usize = 200;

/// Everything that is needed, in the order in which it was found.
pub fn resolve(wanted: &Wanted<'_>, poms: &Poms) -> Result<Vec<Coordinate>, Lack> {
    let mut open: VecDeque<Step> = VecDeque::new();
    for coordinate in &wanted.packages {
        let exclusions = wanted.exclude.to_vec();
        open.push_back(Step { coordinate: coordinate.clone(), exclusions, path: Vec::new() });
    }
    let (mut chosen, mut seen) = (Vec::new(), HashSet::new());
    let (mut needed, mut conflicts) = (BTreeSet::new(), Vec::new());
    while let Some(step) = open.pop_front() {
        let Coordinate { project, extension, classifier } = &step.coordinate;
        let id = (project.group.clone(), project.artifact.clone(), extension.clone(), classifier.clone());
        if seen.contains(&id) {
            continue;
        }
        if step.path.len() > DEPTH {
            return Err(Lack::Wrong(format!("the dependencies of `{}` never end", step.path[0])));
        }
        match provided(&step, wanted) {
            Ok(false) => {}
            Ok(true) => {
                seen.insert(id);
                continue;
            }
            Err(conflict) => {
                seen.insert(id);
                conflicts.push(conflict);
                continue;
            }
        }
        let model = match model(project, poms) {
            Ok(model) => model,
            Err(Lack::Need(more)) => {
                // What else is needed can be found meanwhile; the answer waits for everything.
                needed.extend(more);
                seen.insert(id);
                continue;
            }
            Err(Lack::Wrong(problem)) => return Err(Lack::Wrong(format!("{problem}{}", way(&step)))),
        };
        if let Some(relocated) = &model.relocation {
            let coordinate = Coordinate { project: relocated.clone(), ..step.coordinate.clone() };
            let path = step.path.iter().cloned().chain([project.clone()]).collect();
            open.push_front(Step { coordinate, exclusions: step.exclusions.clone(), path });
            continue;
        }
        seen.insert(id);
        // A POM alone only gathers others.
        if extension != "pom" {
            chosen.push(step.coordinate.clone());
        }
        below(&step, &model, &mut open)?;
    }
    if !needed.is_empty() {
        return Err(Lack::Need(needed));
    }
    if conflicts.is_empty() { Ok(chosen) } else { Err(Lack::Wrong(conflicts.join("; "))) }
}

/// Adds what a project needs.
fn below(step: &Step, model: &Model, open: &mut VecDeque<Step>) -> Result<(), Lack> {
    let path: Vec<Project> = step.path.iter().cloned().chain([step.coordinate.project.clone()]).collect();
    for dependency in &model.dependencies {
        let scope = dependency.scope.as_deref().unwrap_or("compile");
        let optional = dependency.optional.as_deref() == Some("true");
        let excluded = |pattern: &String| matches(pattern, &dependency.group, &dependency.artifact);
        if !matches!(scope, "compile" | "runtime") || optional || step.exclusions.iter().any(excluded) {
            continue;
        }
        let coordinate = coordinate(dependency).map_err(|problem| {
            Lack::Wrong(format!("{problem}, which `{}` needs{}", path[path.len() - 1], way(step)))
        })?;
        let exclusions = step.exclusions.iter().chain(&dependency.exclusions).cloned().collect();
        open.push_back(Step { coordinate, exclusions, path: path.clone() });
    }
    Ok(())
}

fn coordinate(dependency: &Dependency) -> Result<Coordinate, String> {
    let Dependency { group, artifact, version, .. } = dependency;
    let name = format!("{group}:{artifact}");
    let version = version.as_deref().ok_or_else(|| format!("nobody says which version of `{name}`"))?;
    let exact =
        version.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|text| !text.contains(','));
    let version = exact.unwrap_or(version);
    if version.contains(['[', '(', ',']) {
        return Err(format!(
            "`{name}` is asked for as the range `{version}`, which comes to another version as time goes by: name one in `jars.packages`"
        ));
    }
    if version.ends_with("-SNAPSHOT") {
        return Err(format!(
            "`{name}:{version}` is a snapshot, which changes under its name: release it first"
        ));
    }
    let (kind, classifier) = kind(dependency);
    // Types of Maven's own plug-ins that are JARs with a flag.
    let (extension, classifier) = match kind {
        "test-jar" => ("jar", if classifier.is_empty() { "tests" } else { classifier }),
        "bundle" | "ejb" | "maven-plugin" | "eclipse-plugin" | "orbit" => ("jar", classifier),
        other => (other, classifier),
    };
    let text = match classifier {
        "" => format!("{name}:{extension}:{version}"),
        classifier => format!("{name}:{extension}:{classifier}:{version}"),
    };
    text.parse().map_err(|_| format!("`{text}` is no name of an artifact"))
}

/// Whether Spark has it; an error when it has another version.
fn provided(step: &Step, wanted: &Wanted<'_>) -> Result<bool, String> {
    let project = &step.coordinate.project;
    let Some(version) = wanted.provided.and_then(|provided| provided.version(project)) else {
        return Ok(false);
    };
    let keep = wanted.keep.iter().any(|pattern| matches(pattern, &project.group, &project.artifact));
    if *version == project.version || keep {
        return Ok(true);
    }
    let name = format!("{}:{}", project.group, project.artifact);
    Err(format!(
        "`{project}` is needed{}, but Spark has `{name}:{version}`: both on one class path do not work; ask for a version that was built against this Spark, or keep Spark's with `jars.keepSpark: [\"{name}\"]`",
        way(step)
    ))
}

/// How something came to be needed, for messages.
fn way(step: &Step) -> String {
    if step.path.is_empty() {
        return String::new();
    }
    let path: Vec<String> = step.path.iter().map(ToString::to_string).collect();
    format!(" (by {})", path.join(" -> "))
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
