//! Decides the names of imported images. Pure.

use std::collections::HashMap;

use super::ArchiveError;
use crate::types::{Digest, ImageName, MediaType, Reference, Tag};

/// One image of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its manifest or index.
    pub(super) digest: Digest,
    /// The size in the archive's index.
    pub(super) size: Option<u64>,
    /// Its media type.
    pub(super) media_type: MediaType,
    /// Its names in the archive, best first.
    pub(super) names: Vec<String>,
}

/// Assigns names: those in the archive, or the one from the user. Every image gets a name; entries without one are
/// left out when others have one (signatures, for example).
pub(super) fn assign(
    entries: &[Entry],
    given: Option<&ImageName>,
) -> Result<Vec<(ImageName, Entry)>, ArchiveError> {
    let wrong = |problem: String| Err(ArchiveError::Name(problem));
    if entries.is_empty() {
        return wrong("the archive contains no image".to_owned());
    }
    let named: Vec<(ImageName, Entry)> = match given {
        Some(name) if name.reference.is_some() => match entries {
            [only] => vec![(name.clone(), only.clone())],
            _ => {
                return wrong(format!(
                    "the archive contains {} images and `{name}` can name only one: use `--name {}` without a tag",
                    entries.len(),
                    name.repository
                ));
            }
        },
        Some(name) => {
            entries.iter().filter_map(|entry| Some((tagged(name, entry)?, entry.clone()))).collect()
        }
        None => entries.iter().filter_map(own_names).collect(),
    };
    if named.is_empty() {
        return wrong(match (given, entries[0].names.first()) {
            (Some(name), _) => format!("the image has no tag in the archive: use `--name {name}:TAG`"),
            (None, Some(tag)) => {
                format!("the image has only the tag `{tag}` in the archive: use `--name REGISTRY/REPOSITORY`")
            }
            (None, None) => {
                "the image has no name in the archive: use `--name REGISTRY/REPOSITORY:TAG`".to_owned()
            }
        });
    }
    let mut seen: HashMap<String, Digest> = HashMap::new();
    for (name, entry) in &named {
        if let Reference::Digest(digest) = name.reference()
            && digest != entry.digest
        {
            return wrong(format!("`{name}` is not the digest of the image, which is `{}`", entry.digest));
        }
        if seen.insert(name.to_string(), entry.digest).is_some_and(|other| other != entry.digest) {
            return wrong(format!("the archive has two different images with the name `{name}`"));
        }
    }
    Ok(named)
}

/// The user's repository with the tag from the archive.
fn tagged(given: &ImageName, entry: &Entry) -> Option<ImageName> {
    let tag = entry.names.iter().find_map(|name| {
        let whole = name.parse::<ImageName>().ok().filter(|_| name.contains([':', '/']));
        match whole.map(|name| name.reference) {
            Some(Some(Reference::Tag(tag))) => Some(tag),
            Some(_) => None,
            None => name.parse::<Tag>().ok(),
        }
    })?;
    Some(ImageName { repository: given.repository.clone(), reference: Some(Reference::Tag(tag)) })
}

/// Whole names only: a tag alone has no repository.
fn own_names(entry: &Entry) -> Option<(ImageName, Entry)> {
    let mut whole = entry.names.iter().filter(|name| name.contains([':', '/']));
    let name = whole.find_map(|name| name.parse::<ImageName>().ok())?;
    Some((ImageName { reference: Some(name.reference()), ..name }, entry.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u8, names: &[&str]) -> Entry {
        Entry {
            digest: Digest::of(&[n]),
            size: None,
            media_type: MediaType::parse("a/b").unwrap(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn images_get_the_archives_names_or_the_users() {
        let tags = || vec![entry(1, &["v1"]), entry(2, &["r.test/b:v2", "v2"]), entry(3, &[])];
        let by_digest = format!("r.test/a@{}", Digest::of(&[1]));
        for (entries, given, expected) in [
            (vec![entry(1, &["r.test/a:v1", "v1"])], None, Ok(vec!["r.test/a:v1"])),
            (vec![entry(1, &["spark:3.5"])], None, Ok(vec!["docker.io/library/spark:3.5"])),
            (vec![entry(1, &["r.test/a"])], None, Ok(vec!["r.test/a:latest"])),
            (vec![entry(1, &["v1"])], None, Err("has only the tag `v1`")),
            (vec![entry(1, &[])], None, Err("has no name")),
            (vec![], None, Err("contains no image")),
            (tags(), None, Ok(vec!["r.test/b:v2"])),
            (tags(), Some("r.test/x"), Ok(vec!["r.test/x:v1", "r.test/x:v2"])),
            (tags(), Some("r.test/x:v1"), Err("contains 3 images")),
            (vec![entry(1, &[])], Some("r.test/x:v1"), Ok(vec!["r.test/x:v1"])),
            (vec![entry(1, &[])], Some("r.test/x"), Err("has no tag")),
            (vec![entry(1, &["v1"]), entry(2, &["v1"])], Some("r.test/x"), Err("two different images")),
            (vec![entry(1, &[])], Some(&by_digest), Ok(vec![by_digest.as_str()])),
            (vec![entry(2, &[])], Some(&by_digest), Err("is not the digest")),
        ] {
            let given = given.map(|name| name.parse().unwrap());
            match (assign(&entries, given.as_ref()), expected) {
                (Ok(named), Ok(expected)) => {
                    let names: Vec<_> = named.iter().map(|(name, _)| name.to_string()).collect();
                    assert_eq!(names, expected);
                }
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (outcome, expected) => panic!("{outcome:?} instead of {expected:?}"),
            }
        }
    }
}
