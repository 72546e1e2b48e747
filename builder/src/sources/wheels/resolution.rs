//! Resolves the Python packages of all images, with as few runs of uv as possible.
//!
//! 1. Images with the same request and without contradicting locked versions are resolved in one run, for all their
//!    Pythons and platforms at once. They then share versions, and layers, where their Pythons allow it.
//! 2. Such a run does not look at C libraries, and one image can make it fail for all. An image that gets no complete
//!    set of wheels from it is resolved by itself.
//!
//! Runs of both kinds are side by side, up to `RUNS`.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Request, WheelsError, lockfile::Wheel, marker::Environment};

/// Runs of uv at once: each has a process and a few dozen connections to the index.
const RUNS: usize = 4;

/// What an image needs.
#[derive(Debug)]
pub struct Wanted {
    /// The packages.
    pub request: Request,
    /// Where they are to run.
    pub environment: Environment,
    /// Versions that are taken where the request allows it, by package.
    pub preferred: BTreeMap<String, String>,
}

/// Images that are resolved together, by position.
#[derive(Debug, Default, PartialEq, Eq)]
struct Group {
    images: Vec<usize>,
    preferred: BTreeMap<String, String>,
}

/// The wheels of every image, in its order.
pub async fn resolve(wanted: &[Wanted], offline: bool) -> Result<Vec<Vec<Wheel>>, WheelsError> {
    let together = async |group: Group| (together(wanted, &group, offline).await, group.images);
    let runs = stream::iter(groups(wanted).into_iter().map(together)).buffer_unordered(RUNS);
    let mut found: Vec<Option<Vec<Wheel>>> = vec![None; wanted.len()];
    for (wheels, images) in runs.collect::<Vec<_>>().await {
        for (at, wheels) in images.into_iter().zip(wheels) {
            found[at] = wheels;
        }
    }
    let single = async |(one, known): (&Wanted, Option<Vec<Wheel>>)| match known {
        Some(wheels) => Ok(wheels),
        None => alone(one, offline).await,
    };
    stream::iter(wanted.iter().zip(found).map(single)).buffered(RUNS).try_collect().await
}

/// The wheels of each image of a group; `None` for an image that is to be resolved by itself.
async fn together(wanted: &[Wanted], group: &Group, offline: bool) -> Vec<Option<Vec<Wheel>>> {
    let images: Vec<&Wanted> = group.images.iter().map(|at| &wanted[*at]).collect();
    let [first, _, ..] = images.as_slice() else { return vec![None; images.len()] };
    let environments: Vec<&Environment> = images.iter().map(|image| &image.environment).collect();
    let lock = match first.request.lock(&environments, &group.preferred, offline).await {
        Ok(lock) => lock,
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::new(error));
            tracing::debug!(images = images.len(), error, "no common resolution: resolving one by one");
            return vec![None; images.len()];
        }
    };
    let choose = |image: &&Wanted| image.request.choose(&lock, &image.environment).ok();
    images.iter().map(choose).collect()
}

async fn alone(wanted: &Wanted, offline: bool) -> Result<Vec<Wheel>, WheelsError> {
    let Wanted { request, environment, preferred } = wanted;
    let lock = request.lock(&[environment], preferred, offline).await?;
    request.choose(&lock, environment)
}

/// Puts images together that have the same request, and no package that is locked in two versions.
fn groups(wanted: &[Wanted]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (at, one) in wanted.iter().enumerate() {
        let fits = |group: &&mut Group| {
            let same = wanted[group.images[0]].request.digest() == one.request.digest();
            let agrees = |(package, version)| group.preferred.get(package).is_none_or(|own| own == version);
            same && one.preferred.iter().all(agrees)
        };
        let group = match groups.iter_mut().find(fits) {
            Some(group) => group,
            None => groups.push_mut(Group::default()),
        };
        group.images.push(at);
        group.preferred.extend(one.preferred.clone());
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{platform::Platform, sources::wheels::tags, spec::Wheels};

    fn wanted(packages: &[&str], python: &str, preferred: &[(&str, &str)]) -> Wanted {
        let packages = packages.iter().map(|package| (*package).to_owned()).collect();
        let own = |(name, version): &(&str, &str)| ((*name).to_owned(), (*version).to_owned());
        Wanted {
            request: Request::read(&Wheels::Requirements(None, packages)).unwrap(),
            environment: Environment {
                python: python.parse().unwrap(),
                platform: Platform::Amd64,
                libc: tags::ASSUMED,
            },
            preferred: preferred.iter().map(own).collect(),
        }
    }

    #[test]
    fn images_are_resolved_together_while_their_locked_versions_agree() {
        let all = [
            wanted(&["six"], "3.11", &[("six", "1.16")]),
            wanted(&["six", "attrs"], "3.11", &[]),
            wanted(&["six"], "3.12", &[("attrs", "25")]),
            wanted(&["six"], "3.13", &[("six", "1.17")]),
            wanted(&["six"], "3.14", &[("attrs", "25")]),
        ];
        let groups: Vec<Vec<usize>> = groups(&all).into_iter().map(|group| group.images).collect();
        assert_eq!(groups, [vec![0, 2, 4], vec![1], vec![3]]);
    }
}
