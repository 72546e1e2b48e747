//! Which manifests of an index a node needs. Pure.

use serde::Deserialize;

use crate::types::{Digest, Platform};

/// The kind of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    /// An image.
    Image,
    /// An index, and its manifests that are needed.
    Index {
        /// Manifests for the wanted platforms, each once.
        manifests: Vec<Digest>,
        /// Wanted platforms that the index lacks.
        missing: Vec<Platform>,
        /// Platforms in the index.
        offered: Vec<Platform>,
    },
}

#[derive(Deserialize)]
struct RawIndex {
    manifests: Option<Vec<RawEntry>>,
}

#[derive(Deserialize)]
struct RawEntry {
    digest: String,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

/// Chooses for each wanted platform the closest entry, the first of equals.
pub(super) fn choose(document: &[u8], wanted: &[Platform]) -> Chosen {
    let parsed: Option<RawIndex> = serde_json::from_slice(document).ok();
    let Some(entries) = parsed.and_then(|index| index.manifests) else { return Chosen::Image };
    let entries: Vec<(Digest, Option<Platform>)> = entries.iter().filter_map(read).collect();
    let (mut manifests, mut missing) = (Vec::new(), Vec::new());
    for platform in wanted {
        match closest(&entries, platform) {
            Some(digest) if manifests.contains(&digest) => {}
            Some(digest) => manifests.push(digest),
            None => missing.push(platform.clone()),
        }
    }
    let offered = entries.into_iter().filter_map(|(_, platform)| platform).collect();
    Chosen::Index { manifests, missing, offered }
}

/// Entries with an invalid platform (attestations) are ignored; entries without a platform match all.
fn read(entry: &RawEntry) -> Option<(Digest, Option<Platform>)> {
    let digest = entry.digest.parse().ok()?;
    match &entry.platform {
        None => Some((digest, None)),
        Some(raw) => Some((digest, Some(Platform::of(&raw.os, &raw.architecture, raw.variant.as_deref())?))),
    }
}

fn closest(entries: &[(Digest, Option<Platform>)], wanted: &Platform) -> Option<Digest> {
    let mut best: Option<(u8, Digest)> = None;
    for (digest, platform) in entries {
        let closeness = platform.as_ref().map_or(Some(0), |offered| wanted.closeness(offered));
        if let Some(closeness) = closeness
            && best.is_none_or(|(before, _)| closeness > before)
        {
            best = Some((closeness, *digest));
        }
    }
    best.map(|(_, digest)| digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_entry_of_each_platform_is_needed_and_attestations_are_not() {
        let name = |n: u8| Digest::of(&[n]);
        let entry = |n: u8, os: &str, architecture: &str, variant: Option<&str>| {
            serde_json::json!({"digest": name(n).to_string(), "size": 1,
                "platform": {"os": os, "architecture": architecture, "variant": variant}})
        };
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [
            entry(1, "linux", "amd64", None), entry(2, "linux", "arm", Some("v6")), entry(3, "linux", "arm", Some("v7")),
            entry(4, "linux", "arm64", Some("v8")), entry(5, "unknown", "unknown", None),
        ]})
        .to_string();
        for (wanted, needed, lacking) in [
            (&["linux/amd64"][..], &[1][..], &[][..]),
            (&["linux/arm/v7", "linux/arm64"], &[3, 4], &[]),
            (&["linux/arm"], &[2], &[]),
            (&["linux/amd64", "linux/s390x"], &[1], &["linux/s390x"]),
            (&["windows/amd64"], &[], &["windows/amd64"]),
        ] {
            let parse =
                |list: &[&str]| list.iter().map(|one| one.parse().unwrap()).collect::<Vec<Platform>>();
            let Chosen::Index { manifests, missing, offered } = choose(index.as_bytes(), &parse(wanted))
            else {
                panic!("an index")
            };
            assert_eq!(manifests, needed.iter().map(|n| name(*n)).collect::<Vec<_>>(), "{wanted:?}");
            assert_eq!(missing, parse(lacking));
            assert_eq!(offered.len(), 4);
        }
        assert_eq!(choose(br#"{"schemaVersion":2,"layers":[]}"#, &[]), Chosen::Image);
    }
}
