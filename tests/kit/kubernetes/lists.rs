//! Lists in pages, and watches.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    kinds::Kind,
    objects::Failure,
    selector::Selector,
    serve::{Outcome, Shared, Target},
};

/// Most objects in one page of a list that asked for pages: small, so that lists have several.
const PAGE: usize = 1;

/// Pages of lists that are large: more than this many objects.
const LARGE: usize = 100;

fn selector(target: &Target) -> Selector {
    let of = |name: &str| target.query.get(name).map(String::as_str).unwrap_or_default();
    Selector::new(target.namespace.clone(), of("labelSelector"), of("fieldSelector"))
}

/// A page of a list. All pages of one list show the objects as they were at its first page, as in a real server: a client watches
/// from the version of the list, and would never hear of what changed between two pages.
pub(super) fn list(shared: &Shared, kind: &Kind, target: &Target) -> Result<Outcome, Failure> {
    let objects = shared.objects();
    let (version, from) = match target.query.get("continue").map(String::as_str).unwrap_or_default() {
        "" => (objects.version(), 0),
        token => {
            parse_token(token).ok_or_else(|| Failure::new(400, "BadRequest", "continue key is not valid"))?
        }
    };
    let all = objects
        .matching(kind, &selector(target), version)
        .ok_or_else(|| Failure::new(410, "Expired", "The provided continue parameter is too old"))?;
    let limit =
        target.query.get("limit").and_then(|limit| limit.parse::<usize>().ok()).filter(|limit| *limit > 0);
    let most = if all.len() > LARGE { usize::MAX } else { PAGE };
    let page = limit.map_or(usize::MAX, |limit| limit.min(most));
    let items: Vec<_> = all.iter().skip(from).take(page).cloned().collect();
    let next = from + items.len();
    let more = if next < all.len() { format!("{version}-{next}") } else { String::new() };
    Ok(Outcome::Document(
        StatusCode::OK,
        json!({
            "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(),
            "metadata": {"resourceVersion": version.to_string(), "continue": more}, "items": items,
        }),
    ))
}

/// The version of the first page, and how many objects were on the pages so far.
fn parse_token(token: &str) -> Option<(u64, usize)> {
    let (version, from) = token.split_once('-')?;
    Some((version.parse().ok()?, from.parse().ok()?))
}

pub(super) fn watch(shared: &Arc<Shared>, kind: Kind, target: &Target) -> Result<Outcome, Failure> {
    if target.query.contains_key("sendInitialEvents") {
        let message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        return Err(Failure::new(422, "Invalid", message));
    }
    let from = target.query.get("resourceVersion").and_then(|version| version.parse::<u64>().ok());
    let limit = target.query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(300);
    let bookmarks = target.query.contains_key("allowWatchBookmarks");
    let selector = selector(target);
    // The client is slower than the server at times: what it has not taken waits here.
    let (sender, receiver) = mpsc::channel::<Bytes>(64);
    let feed = Feed { shared: shared.clone(), kind, selector, sender, bookmarks };
    tokio::spawn(async move {
        let _ = tokio::time::timeout(Duration::from_secs(limit), feed.run(from.unwrap_or(0))).await;
    });
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
        let bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), receiver))
    });
    Ok(Outcome::Watch(Response::new(StreamBody::new(stream).boxed_unsync())))
}

/// One watch.
struct Feed {
    shared: Arc<Shared>,
    kind: Kind,
    selector: Selector,
    sender: mpsc::Sender<Bytes>,
    bookmarks: bool,
}

impl Feed {
    async fn send(&self, event: &Value) -> bool {
        let line = format!("{event}\n");
        *self.shared.watched().entry(self.kind.plural.clone()).or_default() += line.len() as u64;
        self.sender.send(line.into()).await.is_ok()
    }

    async fn run(self, mut version: u64) {
        let mut news = self.shared.news.subscribe();
        let ends = news.borrow_and_update().1;
        if version == 0 {
            version = self.shared.objects().version();
        }
        loop {
            let (events, now) = {
                let objects = self.shared.objects();
                (objects.since(&self.kind, version, &self.selector), objects.version())
            };
            let Some(events) = events else {
                let expired = json!({"type": "ERROR", "object": {
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 410,
                    "reason": "Expired", "message": format!("too old resource version: {version}"),
                }});
                self.send(&expired).await;
                return;
            };
            // The version moves on with objects of other kinds too: a bookmark tells, before the watch ends.
            for event in &events {
                if !self.send(event).await {
                    return;
                }
            }
            version = now;
            tokio::select! {
                changed = news.changed() => {
                    if changed.is_err() || news.borrow().1 != ends {
                        if self.bookmarks {
                            self.send(&bookmark(&self.kind, version)).await;
                        }
                        return;
                    }
                }
                () = self.sender.closed() => return,
            }
        }
    }
}

fn bookmark(kind: &Kind, version: u64) -> Value {
    json!({"type": "BOOKMARK", "object": {
        "kind": kind.kind, "apiVersion": kind.api_version(), "metadata": {"resourceVersion": version.to_string()},
    }})
}
