//! Decides which records of tags to remove when there are too many. Pure.
//!
//! The least recently confirmed are removed first. A tag in use is confirmed regularly, but not while its registry is
//! down; so a tag counts as confirmed when its manifest was used. Of several tags of one manifest this applies only
//! to the most recently confirmed one: a client that requests all tags of a manifest must not displace those of
//! others.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use crate::{store::TagFact, types::Digest};

/// The records to remove so that `most` of the removable ones are left; `used` holds when a manifest was last used,
/// in seconds since 1970.
pub(super) fn surplus<'a>(tags: &'a [TagFact], used: &HashMap<Digest, u64>, most: usize) -> Vec<&'a TagFact> {
    let mut newest_first: Vec<_> = tags.iter().collect();
    newest_first.sort_by_key(|fact| Reverse(fact.confirmed));
    let mut named = HashSet::new();
    let mut going = Vec::new();
    for fact in newest_first {
        let use_of_manifest = if named.insert(fact.digest) { used.get(&fact.digest) } else { None };
        if !fact.kept {
            going.push((fact.confirmed.max(use_of_manifest.copied().unwrap_or(0)), fact));
        }
    }
    going.sort_by_key(|(last, _)| *last);
    going.truncate(going.len().saturating_sub(most));
    going.into_iter().map(|(_, fact)| fact).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Repository;

    #[test]
    fn the_least_recently_confirmed_records_are_removed_unless_kept_or_in_use() {
        let repository = Repository { registry: "r.test".parse().unwrap(), name: "a".parse().unwrap() };
        let tag = |name: &str, manifest: u8, confirmed, kept| TagFact {
            repository: repository.clone(),
            tag: name.parse().unwrap(),
            digest: Digest::of(&[manifest]),
            confirmed,
            kept,
        };
        let tags = [
            tag("kept", 1, 1, true),
            tag("in-use", 2, 2, false),
            tag("a1", 3, 10, false),
            tag("a3", 3, 30, false),
            tag("a2", 3, 20, false),
        ];
        let used = HashMap::from([(Digest::of(&[2]), 90), (Digest::of(&[3]), 95)]);
        for (most, expected) in [
            (9, vec![]),
            (4, vec![]),
            (3, vec!["a1"]),
            (2, vec!["a1", "a2"]),
            (1, vec!["a1", "a2", "in-use"]),
            (0, vec!["a1", "a2", "in-use", "a3"]),
        ] {
            let going = surplus(&tags, &used, most);
            let going: Vec<_> = going.into_iter().map(|fact| fact.tag.as_str()).collect();
            assert_eq!(going, expected, "{most}");
        }
    }
}
