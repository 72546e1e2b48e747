//! The labels of a node that say which sets are warm there: `hearth.dev/warm.<set>: "true"`. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::Digest;

/// What every key begins with. The admission policy lets agents change these labels of their own node and no others.
pub(crate) const PREFIX: &str = "hearth.dev/warm.";

/// The only value.
pub(crate) const WARM: &str = "true";

/// Longest name of a set in a key: the part behind the slash has 63 characters at most.
const LONGEST: usize = 63 - "warm.".len();

/// Characters of the hash in the key of a set with a longer name.
const HASH: usize = 8;

/// The key for a set. A longer name is cut, and ends in a hash of the whole.
pub(crate) fn key(set: &str) -> String {
    if set.len() <= LONGEST {
        return format!("{PREFIX}{set}");
    }
    let start: String = set.chars().take(LONGEST - HASH - 1).collect();
    let hash = Digest::of(set.as_bytes()).to_string();
    format!("{PREFIX}{start}-{}", &hash[hash.len() - HASH..])
}

/// What to change on a node with the labels `now`: keys to set, and with `None` keys to remove.
pub(crate) fn changes<'a>(
    now: &'a BTreeMap<String, String>,
    warm: &'a BTreeSet<String>,
) -> BTreeMap<&'a str, Option<&'static str>> {
    let stale = now.keys().filter(|key| key.starts_with(PREFIX) && !warm.contains(*key));
    let new = warm.iter().filter(|key| now.get(*key).is_none_or(|value| value != WARM));
    stale.map(|key| (key.as_str(), None)).chain(new.map(|key| (key.as_str(), Some(WARM)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_short_enough_and_differ() {
        assert_eq!(key("spark-3.5"), "hearth.dev/warm.spark-3.5");
        let long = |end: char| key(&format!("{}{end}", "a".repeat(100)));
        for key in [key(&"a".repeat(LONGEST)), long('b')] {
            let name = key.strip_prefix("hearth.dev/").unwrap();
            assert!(name.len() == 63 && name.ends_with(|c: char| c.is_ascii_alphanumeric()), "{name}");
        }
        assert_ne!(long('b'), long('c'));
    }

    #[test]
    fn labels_of_sets_that_are_gone_or_cold_are_removed_and_others_stay() {
        let labels = |all: &[(&str, &str)]| {
            all.iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        let now = labels(&[
            ("hearth.dev/warm.a", "true"),
            ("hearth.dev/warm.b", "true"),
            ("hearth.dev/warm.c", "no"),
            ("hearth.dev/other", "true"),
            ("zone", "z"),
        ]);
        let warm = ["a", "c", "d"].iter().map(|set| key(set)).collect();
        let expected = BTreeMap::from([
            ("hearth.dev/warm.b", None),
            ("hearth.dev/warm.c", Some("true")),
            ("hearth.dev/warm.d", Some("true")),
        ]);
        assert_eq!(changes(&now, &warm), expected);
        let right = labels(&[("hearth.dev/warm.a", "true"), ("zone", "z")]);
        assert!(changes(&right, &BTreeSet::from([key("a")])).is_empty());
    }
}
