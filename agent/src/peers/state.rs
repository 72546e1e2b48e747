//! What a node reports about itself to its peers, for the view of the cluster.
//!
//! Without names: anybody who reaches the peer listener may ask when peers have no TLS. A set of images is named by the hash
//! of its name, which a node that has the same set knows too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::Digest;

/// Most sets in one answer: it stays below the limit of small answers.
pub const MOST_SETS: usize = 200;

/// Longest version that is believed.
const LONGEST_VERSION: usize = 64;

/// What a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// Version of the agent.
    pub version: String,
    /// Bytes in its store.
    pub bytes: u64,
    /// Most bytes that the store may have; `None` before that is known.
    #[serde(default)]
    pub allowed_bytes: Option<u64>,
    /// Whether the disk is in trouble: then content is streamed through.
    #[serde(default)]
    pub trouble: bool,
    /// Downloads under way.
    #[serde(default)]
    pub downloads: u64,
    /// Sets of images by [`key`]; at most [`MOST_SETS`].
    #[serde(default)]
    pub sets: BTreeMap<String, SetState>,
}

/// How far a node is with a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetState {
    /// Images of the set for this node.
    pub images: u64,
    /// Images that are complete: the newest, or an older one.
    pub here: u64,
    /// Images whose last pull failed.
    pub failed: u64,
}

impl SetState {
    /// Whether every image is complete.
    pub fn is_warm(self) -> bool {
        self.here >= self.images
    }
}

impl NodeState {
    /// Whether every set is complete.
    pub fn is_warm(&self) -> bool {
        self.sets.values().all(|set| set.is_warm())
    }

    /// What is kept of an answer: a peer may send anything. Pure.
    pub(super) fn bounded(mut self) -> Self {
        self.version = self.version.chars().filter(|c| !c.is_control()).take(LONGEST_VERSION).collect();
        self.sets.retain(|key, _| is_key(key));
        while self.sets.len() > MOST_SETS {
            self.sets.pop_last();
        }
        self
    }
}

/// A set's name for peers: 16 hexadecimal digits of its hash.
pub fn key(set: &str) -> String {
    Digest::of(set.as_bytes()).hex().chars().take(16).collect()
}

fn is_key(key: &str) -> bool {
    key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_bounded_and_fits_the_limit_of_small_answers() {
        let most = SetState { images: u64::MAX, here: u64::MAX, failed: u64::MAX };
        let sets = (0..500).map(|at| (key(&format!("set {at}")), most)).chain([("<b>".into(), most)]);
        let state = NodeState {
            version: "\n".to_owned() + &"9".repeat(100),
            bytes: u64::MAX,
            allowed_bytes: Some(u64::MAX),
            trouble: true,
            downloads: u64::MAX,
            sets: sets.collect(),
        };
        let bounded = state.bounded();
        assert_eq!(bounded.version, "9".repeat(LONGEST_VERSION));
        assert_eq!(bounded.sets.len(), MOST_SETS);
        assert!(bounded.sets.keys().all(|key| is_key(key)));
        let usual = SetState { images: 9_999, here: 9_999, failed: 9_999 };
        let sets = bounded.sets.keys().map(|key| (key.clone(), usual)).collect();
        let bytes = serde_json::to_vec(&NodeState { sets, ..bounded }).expect("JSON");
        assert!(bytes.len() < crate::limits::peers::client::MAX_ANSWER_BYTES, "{}", bytes.len());
    }

    #[test]
    fn a_node_is_warm_when_every_set_is() {
        let set = |images, here| (key(&format!("{images}")), SetState { images, here, failed: 0 });
        for (sets, expected) in
            [(vec![], true), (vec![set(2, 2), set(0, 0)], true), (vec![set(2, 2), set(3, 1)], false)]
        {
            let state = NodeState { sets: sets.into_iter().collect(), ..NodeState::default() };
            assert_eq!(state.is_warm(), expected, "{state:?}");
        }
    }

    #[test]
    fn fields_that_another_version_adds_or_lacks_do_not_matter() {
        let read: NodeState =
            serde_json::from_str(r#"{"version":"9","bytes":1,"new":[]}"#).expect("it reads");
        assert_eq!(read, NodeState { version: "9".into(), bytes: 1, ..NodeState::default() });
    }
}
