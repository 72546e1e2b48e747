//! The state of the sets and their images, for people and the cluster.

use jiff::Timestamp;
use serde::Serialize;

use super::set::SetName;

/// The state of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum State {
    /// Not started, or the registry's rate limit is used up.
    Waiting,
    /// Being pulled.
    Pulling,
    /// Complete.
    Ready,
    /// The last attempt failed; an older complete image stays.
    Failed,
}

impl State {
    /// The name of the state.
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
    /// The image's name, as in the set.
    pub image: String,
    /// The image's state.
    pub state: State,
    /// The digest that the image's tag resolves to on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// From 0 to 100.
    pub progress: u8,
    /// Bytes of the last complete image.
    pub bytes: u64,
    /// Whether an image is complete, the newest or an older one.
    pub here: bool,
    /// Whether an earlier process completed the image and this one has not checked it yet.
    #[serde(skip)]
    pub unchecked: bool,
    /// Why the image is not ready: one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When the image entered this state.
    pub since: Timestamp,
    /// When the pull is retried.
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
    /// Whether every image is complete, the newest or an older one.
    pub fn is_here(&self) -> bool {
        self.images.iter().all(|image| image.here)
    }

    /// How many images are complete, and how many failed.
    pub fn progress(&self) -> (usize, usize) {
        let count = |is: fn(&ImageReport) -> bool| self.images.iter().filter(|image| is(image)).count();
        (count(|image| image.here), count(|image| image.state == State::Failed))
    }
}

/// How many images there are in each state: without names, which may be secrets.
pub fn counts(sets: &[SetReport]) -> serde_json::Value {
    let images = || sets.iter().flat_map(|set| &set.images);
    let count = |state: State| images().filter(|image| image.state == state).count();
    serde_json::json!({
        "sets": sets.len(),
        "images": images().count(),
        "waiting": count(State::Waiting),
        "pulling": count(State::Pulling),
        "ready": count(State::Ready),
        "failed": count(State::Failed),
    })
}

/// The sets as a JSON document, for the status page.
pub fn document(sets: &[SetReport]) -> serde_json::Value {
    let set = |set: &SetReport| serde_json::json!({ "set": set.name.to_string(), "images": set.images });
    sets.iter().map(set).collect()
}
