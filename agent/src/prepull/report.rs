//! How wished images stand, as people and the cluster see it.

use jiff::Timestamp;
use serde::Serialize;

use super::set::SetName;

/// Where an image stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum State {
    /// Not begun, or the registry's budget is spent.
    Waiting,
    /// On its way.
    Pulling,
    /// Whole.
    Ready,
    /// The last attempt failed; what was whole before still is.
    Failed,
}

impl State {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "Waiting",
            Self::Pulling => "Pulling",
            Self::Ready => "Ready",
            Self::Failed => "Failed",
        }
    }
}

/// An image of a set on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageReport {
    /// Its name, as the set has it.
    pub image: String,
    /// Where it stands.
    pub state: State,
    /// What its tag means here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// From 0 to 100.
    pub progress: u8,
    /// Bytes of the last one that was whole.
    pub bytes: u64,
    /// One is here, the newest or an older one.
    pub here: bool,
    /// Why it is not ready: one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it came to this state.
    pub since: Timestamp,
    /// When it is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Timestamp>,
}

/// A set on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetReport {
    /// Its name.
    pub name: SetName,
    /// Its images.
    pub images: Vec<ImageReport>,
}

impl SetReport {
    /// Whether every image is here, the newest or an older one.
    pub fn is_here(&self) -> bool {
        self.images.iter().all(|image| image.here)
    }
}

/// As a JSON document, for the status page.
pub fn document(sets: &[SetReport]) -> serde_json::Value {
    let set = |set: &SetReport| serde_json::json!({ "set": set.name.to_string(), "images": set.images });
    sets.iter().map(set).collect()
}
