//! Access to the API server: a client, time limits, and watching a kind of objects.
//!
//! kube's watcher lists in pages, watches from there, and starts again after 410. After errors it is polled again after 1 s, doubling up
//! to 30 s; the last known objects stay in force meanwhile.

mod outage;
pub(crate) mod rights;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    future::Future,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use futures_util::{StreamExt as _, pin_mut};
use kube::{
    Api, Client, Config, Resource,
    client::ClientBuilder,
    runtime::watcher::{self, Event},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// Longest wait for a response; watches have limits of their own.
const ANSWER: Duration = Duration::from_secs(15);

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Longest silence of a connection: longer than the server keeps an idle watch (290 s) on a connection that was idle
/// before (90 s). Without it, a list that is never answered would block for ever.
const SILENCE: Duration = Duration::from_secs(400);

/// Pauses between attempts to create a client, and to list objects.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Longest pause between attempts to list objects.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Returns a client as soon as there is one; `what` is what depends on it, for the log.
pub(crate) async fn connect(url: Option<&str>, what: &str) -> Client {
    let mut pause = FIRST_PAUSE;
    loop {
        match client(url).await {
            Ok(client) => return client,
            Err(problem) => {
                tracing::error!(problem, "cannot connect to the API server for {what}: retrying");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// A client for the server at `url`; without a URL for the cluster in which this process runs, or that in
/// `KUBECONFIG`.
async fn client(url: Option<&str>) -> Result<Client, String> {
    let mut config = match url {
        Some(url) => {
            Config::new(url.parse::<http::Uri>().map_err(|error| format!("`{url}` is not a URL: {error}"))?)
        }
        None => Config::infer().await.map_err(|error| format!("no cluster configuration found: {error}"))?,
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    let observe = outage::Observe::new(&config.cluster_url.to_string());
    let builder = ClientBuilder::try_from(config);
    let builder = builder.map_err(|error| format!("cannot create a client for the API server: {error}"))?;
    Ok(builder.with_layer(&observe).build())
}

/// Aborts a request that is not answered in time.
pub(crate) async fn within<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    let late = || kube::Error::Service(format!("the API server did not answer within {ANSWER:?}").into());
    tokio::time::timeout(ANSWER, request).await.unwrap_or_else(|_| Err(late()))
}

/// Logs what failed and is retried. That the API server cannot be reached is logged once for all requests (`outage`).
pub(crate) fn log_failure(error: &kube::Error, what: &str) {
    if matches!(error, kube::Error::Api(_)) {
        tracing::warn!(%error, "{what}: retrying");
    } else {
        tracing::debug!(%error, "{what}: retrying");
    }
}

/// Whether the server denies the request for lack of permissions.
pub(crate) fn forbidden(error: &kube::Error) -> bool {
    has_code(error, &[401, 403])
}

/// Whether the server answered with one of these status codes.
pub(crate) fn has_code(error: &kube::Error, codes: &[u16]) -> bool {
    matches!(error, kube::Error::Api(status) if codes.contains(&status.code))
}

/// The objects of one kind by their name (`namespace/name`), reduced to the needed part.
#[derive(Clone, Debug)]
pub(crate) struct Known<T> {
    /// The first list is complete.
    pub(crate) synced: bool,
    pub(crate) objects: BTreeMap<String, T>,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self { synced: false, objects: BTreeMap::new() }
    }
}

/// Watches a kind until it is dropped. `keep` reduces an object to the needed part.
pub(crate) async fn follow<K, T>(
    api: Api<K>,
    config: watcher::Config,
    keep: impl Fn(K) -> T,
    known: watch::Sender<Known<T>>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    // kube's own back-off starts again with each attempt to list, which it takes for a success.
    let events = kube::runtime::watcher(api, config);
    pin_mut!(events);
    let (mut listed, mut trouble, mut pause) = (BTreeMap::new(), false, FIRST_PAUSE);
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed = BTreeMap::new(),
            Ok(Event::InitApply(object)) => {
                listed.insert(name(&object), keep(object));
            }
            Ok(Event::InitDone) => {
                (trouble, pause) = (false, FIRST_PAUSE);
                let objects = std::mem::take(&mut listed);
                known.send_modify(|known| *known = Known { synced: true, objects });
            }
            Ok(Event::Apply(object)) => {
                let name = name(&object);
                let object = keep(object);
                known.send_modify(|known| {
                    known.objects.insert(name, object);
                });
            }
            Ok(Event::Delete(object)) => known.send_modify(|known| {
                known.objects.remove(&name(&object));
            }),
            Err(error) => {
                trouble |= log_watch_failure::<K>(&error, trouble);
                tokio::time::sleep(jittered(pause)).await;
                pause = (pause * 2).min(LONGEST_RETRY);
            }
        }
    }
}

/// Between half and all of a pause, so that the agents of a cluster do not come back at the same moment.
fn jittered(pause: Duration) -> Duration {
    let share = RandomState::new().hash_one(()) % 512;
    pause * u32::try_from(512 + share).unwrap_or(1_024) / 1_024
}

/// Logs why objects cannot be watched: once, and not with every attempt, when it was not `known`. Returns whether it is known now.
pub(crate) fn log_watch_failure<K>(error: &watcher::Error, known: bool) -> bool {
    let kind = std::any::type_name::<K>();
    // It is not an error if the definition of a kind is not installed.
    if matches!(error, watcher::Error::InitialListFailed(cause) if has_code(cause, &[404])) {
        tracing::debug!(%error, kind, "a kind of objects is not installed: retrying");
        return true;
    }
    if is_out_of_reach(error) {
        tracing::debug!(%error, kind, "cannot watch objects: keeping the last known ones and retrying");
        return known;
    }
    if !known {
        tracing::warn!(%error, kind, "cannot watch objects: keeping the last known ones and retrying");
    }
    true
}

/// Whether no answer came. The outage has its own log.
fn is_out_of_reach(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(cause)
        | watcher::Error::WatchStartFailed(cause)
        | watcher::Error::WatchFailed(cause) => !matches!(cause, kube::Error::Api(_)),
        _ => false,
    }
}

fn name<K: Resource>(object: &K) -> String {
    let metadata = object.meta();
    let name = metadata.name.as_deref().unwrap_or_default();
    metadata.namespace.as_ref().map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"))
}
