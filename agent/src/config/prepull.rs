//! `prepull`: images that are to be on this node before anyone asks.

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use super::raw::{Bytes, RawPrepull, Text};
use crate::{
    prepull::{Config, Origin, PullPolicy, Schedule, Set, SetName},
    types::{ImageName, Platform},
    upstream::RegistryConfig,
};

/// Longest name of a set.
const LONGEST: usize = 63;

/// A key that is wrong: its path, its place, and what is wrong.
type Wrong = (&'static str, Option<Location>, String);

/// One entry of `prepull.sets`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawSet {
    name: Spanned<String>,
    images: Spanned<Vec<Spanned<Text<ImageName>>>>,
    #[serde(default)]
    platforms: Vec<Text<Platform>>,
    schedule: Option<Spanned<String>>,
    time_zone: Option<Spanned<String>>,
    pull_policy: Option<Text<PullPolicy>>,
    pin: Option<Text<bool>>,
    bandwidth: Option<Text<Bytes>>,
    runtime: Option<Text<bool>>,
}

/// Holds the keys against each other and against the registries that are served.
pub(super) fn check(
    raw: RawPrepull,
    defaults: RawPrepull,
    registries: &[RegistryConfig],
    node: &str,
    in_cluster: bool,
) -> Result<Config, Wrong> {
    let mut sets: Vec<Set> = Vec::new();
    for set in raw.sets.unwrap_or_default() {
        let place = Some(set.value.name.referenced);
        let set = check_set(set.value, registries)?;
        if sets.iter().any(|other| other.name == set.name) {
            return Err(("prepull.sets", place, format!("`{}` is listed twice", set.name.name)));
        }
        sets.push(set);
    }
    Ok(Config {
        sets,
        parallel: raw.parallel.or(defaults.parallel).expect("`prepull.parallel` has a default").0.0,
        interval: raw.interval.or(defaults.interval).expect("`prepull.interval` has a default").0.0,
        node: node.to_owned(),
        in_cluster,
    })
}

fn check_set(raw: RawSet, registries: &[RegistryConfig]) -> Result<Set, Wrong> {
    let wrong = |place: Location, problem: String| ("prepull.sets", Some(place), problem);
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let name = &raw.name.value;
    if name.is_empty() || name.len() > LONGEST || !name.chars().all(fits) {
        let problem = format!(
            "`{name}` is not a valid name of a set: at most {LONGEST} letters, digits, `.`, `-` and `_`"
        );
        return Err(wrong(raw.name.referenced, problem));
    }
    if raw.images.value.is_empty() {
        return Err(wrong(
            raw.images.referenced,
            format!(
                "`{name}` lists no images, for example `images: [registry.example.com/team/spark:3.5.9]`"
            ),
        ));
    }
    let mut images: Vec<ImageName> = Vec::new();
    for image in raw.images.value {
        let served = |registry: &RegistryConfig| {
            registry.pattern.closeness(&image.value.0.repository.registry).is_some()
        };
        // `registries` may be left out where nothing is fetched.
        if !registries.is_empty() && !registries.iter().any(served) {
            let registry = &image.value.0.repository.registry;
            return Err(wrong(image.referenced, format!("`{registry}` is not among `registries`")));
        }
        if !images.contains(&image.value.0) {
            images.push(image.value.0);
        }
    }
    let schedule = match (&raw.schedule, &raw.time_zone) {
        (None, None) => None,
        (None, Some(zone)) => {
            return Err(wrong(zone.referenced, "`timeZone` needs a `schedule`".to_owned()));
        }
        (Some(cron), zone) => {
            let zone = zone.as_ref().map(|zone| zone.value.as_str());
            let schedule = Schedule::new(&cron.value, zone);
            Some(schedule.map_err(|error| wrong(cron.referenced, error.to_string()))?)
        }
    };
    Ok(Set {
        platforms: raw.platforms.into_iter().map(|platform| platform.0).collect(),
        schedule,
        policy: raw.pull_policy.map(|policy| policy.0).unwrap_or_default(),
        pin: raw.pin.is_none_or(|pin| pin.0),
        bandwidth: raw.bandwidth.map(|bandwidth| bandwidth.0.0).filter(|bandwidth| *bandwidth > 0),
        runtime: raw.runtime.is_some_and(|runtime| runtime.0),
        ..Set::of(SetName { origin: Origin::File, name: name.clone() }, images)
    })
}

#[cfg(test)]
mod tests {
    use crate::{config::Config, prepull::PullPolicy};

    fn read(sets: &str) -> Result<crate::prepull::Config, String> {
        let text = format!("registries: [{{host: r.test}}]\nprepull: {{sets: {sets}}}");
        Config::from_yaml(&text).map(|config| config.prepull).map_err(|error| error.to_string())
    }

    #[test]
    fn a_set_is_read_with_its_defaults() {
        let config = read("[{name: a, images: [\"r.test/x:1\", \"r.test/x:1\"]}]").unwrap();
        let set = &config.sets[0];
        assert_eq!((set.images.len(), set.policy, set.pin), (1, PullPolicy::IfChanged, true));
        assert_eq!((config.parallel, config.interval.as_secs()), (2, 300));
        let full = "[{name: a, images: [\"r.test/x:1\"], platforms: [linux/amd64], schedule: \"0 3 * * *\", \
                    timeZone: Europe/Berlin, pullPolicy: Once, pin: false, bandwidth: 20MiB, runtime: true}]";
        let set = &read(full).unwrap().sets[0];
        assert_eq!((set.policy, set.pin, set.bandwidth), (PullPolicy::Once, false, Some(20 << 20)));
        assert!(set.runtime);
        assert_eq!(set.schedule.as_ref().unwrap().to_string(), "0 3 * * * (Europe/Berlin)");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (sets, expected) in [
            ("[{name: \"a b\", images: [\"r.test/x\"]}]", "`a b` is not a valid name of a set"),
            ("[{name: a, images: []}]", "`a` lists no images"),
            ("[{name: a, images: [\"s.test/x\"]}]", "`s.test` is not among `registries`"),
            ("[{name: a, images: [\"r.test/X\"]}]", "`prepull.sets[0].images[0]`"),
            ("[{name: a, images: [\"r.test/x\"], schedule: \"* *\"}]", "it has 2 fields"),
            (
                "[{name: a, images: [\"r.test/x\"], schedule: \"@daily\", timeZone: Nowhere}]",
                "not a time zone",
            ),
            ("[{name: a, images: [\"r.test/x\"], timeZone: UTC}]", "`timeZone` needs a `schedule`"),
            ("[{name: a, images: [\"r.test/x\"], pullPolicy: Always}]", "neither `IfChanged` nor `Once`"),
            ("[{name: a, images: [\"r.test/x\"], pins: true}]", "did you mean `pin`?"),
            ("[{name: a, images: [\"r.test/x\"]}, {name: a, images: [\"r.test/x\"]}]", "`a` is listed twice"),
        ] {
            let message = read(sets).unwrap_err();
            assert!(message.contains(expected) && message.starts_with("hearth-agent.yaml:2:"), "{message}");
        }
    }
}
