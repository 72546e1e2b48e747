//! Requests of a push: authorization that is shared and renewed, bounded waits, and what refusals mean.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::SystemTime,
};

use oci::retry::retry_after;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url, header};
use tokio::sync::Mutex;

use super::error::PushError;
use crate::{
    cache::Cache,
    digest::Digest,
    progress::{Counter, Progress, waiting},
    registry::{self, Authorization, Registry, Repository, plain_http_hint},
    retry,
};

/// Error bodies are read up to this length.
const MESSAGE: usize = 2048;

/// Pushes images to one repository.
#[derive(Debug)]
pub struct Pusher<'a> {
    /// Names and tokens.
    pub registry: &'a Registry,
    /// The HTTP client.
    pub client: &'a Client,
    /// Where the layers are.
    pub cache: &'a Cache,
    /// Where they go.
    pub repository: &'a Repository,
    /// Other repositories of the same registry that have a blob: it is taken from there instead of being sent.
    pub mounts: &'a BTreeMap<Digest, Repository>,
    /// Bars.
    pub progress: &'a Progress,
}

/// Bytes of a request that have left, for its time limit and for the bar.
pub(super) struct Moved {
    count: AtomicU64,
    counter: Counter,
}

impl Moved {
    /// None has left.
    pub(super) fn new(counter: Counter) -> Self {
        Self { count: AtomicU64::new(0), counter }
    }

    /// Counts bytes that leave.
    pub(super) fn advance(&self, bytes: u64) {
        self.count.fetch_add(bytes, Ordering::Relaxed);
        self.counter.advance(bytes);
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// Requests to one repository, with the authorization that they share.
pub(super) struct Session<'a> {
    /// What is pushed, and where.
    pub(super) pusher: &'a Pusher<'a>,
    /// Held while a token is fetched, so that requests that start together fetch one.
    authorization: Mutex<Option<Authorization>>,
    /// Whether blobs go in chunks: whole ones were cut, and the registry has taken one in chunks.
    chunks: AtomicBool,
}

/// How an attempt at a push failed.
pub(super) type Failed = retry::Failed<PushError>;

impl<T: Into<PushError>> From<T> for Failed {
    fn from(error: T) -> Self {
        Self::Final(error.into())
    }
}

impl<'a> Session<'a> {
    /// Nothing is known yet.
    pub(super) fn new(pusher: &'a Pusher<'a>) -> Self {
        Self { pusher, authorization: Mutex::new(None), chunks: AtomicBool::new(false) }
    }

    /// Sends the blobs that follow in chunks.
    pub(super) fn keep_to_chunks(&self) {
        self.chunks.store(true, Ordering::Relaxed);
    }

    /// Whether chunks are what this registry takes.
    pub(super) fn takes_chunks(&self) -> bool {
        self.chunks.load(Ordering::Relaxed)
    }

    /// Sends a small request. A 401 is answered once with a fresh token.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &str,
        add: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Failed> {
        for fresh in [false, true] {
            let request = add(self.authorized(method.clone(), url).await?).timeout(retry::STALL_TIMEOUT);
            let what = format!("`{}` to answer {method}", self.pusher.repository);
            let answer = waiting(&what, request.send()).await.map_err(|error| self.network(error))?;
            if answer.status() != StatusCode::UNAUTHORIZED || fresh {
                return Ok(answer);
            }
            self.forget().await;
        }
        unreachable!("the second round returns")
    }

    /// A request with what the registry wants to see.
    pub(super) async fn authorized(&self, method: Method, url: &str) -> Result<RequestBuilder, Failed> {
        let mut known = self.authorization.lock().await;
        let authorization = if let Some(authorization) = &*known {
            authorization.clone()
        } else {
            let fresh = self.pusher.registry.authorize_push(self.pusher.repository).await?;
            known.insert(fresh).clone()
        };
        drop(known);
        let request = self.pusher.client.request(method, url);
        // An upload may be redirected to a store that is not the registry: the credentials are not for it.
        let ours = Url::parse(url).ok().map(|url| url.origin())
            == Url::parse(&self.url("")).ok().map(|url| url.origin());
        Ok(match authorization {
            Authorization::Basic(user, password) if ours => request.basic_auth(user, Some(password)),
            Authorization::Bearer(token) if ours => request.bearer_auth(token),
            _ => request,
        })
    }

    async fn forget(&self) {
        *self.authorization.lock().await = None;
    }

    /// Repeats what may go better the next time, with the waits of [`retry`].
    pub(super) async fn retried<T>(
        &self,
        what: &str,
        mut attempt: impl AsyncFnMut() -> Result<T, Failed>,
    ) -> Result<T, PushError> {
        let mut denied = false;
        retry::retried(&format!("pushing {what}"), async || match attempt().await {
            // One more time with a new token; a user whom that does not help may not push here.
            Err(Failed::Again(error, asked))
                if matches!(error, PushError::Refused { status: StatusCode::UNAUTHORIZED, .. }) =>
            {
                Err(if std::mem::replace(&mut denied, true) {
                    Failed::Final(error)
                } else {
                    Failed::Again(error, asked)
                })
            }
            other => other,
        })
        .await
    }

    /// Waits for the answer to a large request as long as its bytes move. Bytes of a failed request are taken off the
    /// bar.
    pub(super) async fn watched(&self, request: RequestBuilder, moved: &Moved) -> Result<Response, Failed> {
        let answer = self.answer(request, moved).await;
        if !answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
            moved.counter.retract(moved.count());
        }
        answer
    }

    async fn answer(&self, request: RequestBuilder, moved: &Moved) -> Result<Response, Failed> {
        let sending = request.send();
        tokio::pin!(sending);
        let mut before = u64::MAX;
        loop {
            if let Ok(answer) = tokio::time::timeout(retry::STALL_TIMEOUT, &mut sending).await {
                return answer.map_err(|error| self.network(error));
            }
            let now = moved.count();
            if now == before {
                let repository = self.pusher.repository.to_string();
                return Err(Failed::Again(PushError::Stalled { repository }, None));
            }
            before = now;
        }
    }

    /// The URL of something in the repository.
    pub(super) fn url(&self, rest: &str) -> String {
        self.pusher.registry.url(self.pusher.repository, rest)
    }

    fn network(&self, source: reqwest::Error) -> Failed {
        let repository = self.pusher.repository.to_string();
        let connect = source.is_connect() && !source.is_timeout();
        let hint =
            if connect { plain_http_hint(self.pusher.repository.registry.as_str()) } else { String::new() };
        let error = PushError::Network { repository, hint, source: source.without_url() };
        if connect { Failed::Final(error) } else { Failed::Again(error, None) }
    }

    /// What an answer means that is not the wanted one.
    pub(super) async fn refused(&self, what: &str, answer: Response) -> Failed {
        let status = answer.status();
        let asked = answer.headers().get(header::RETRY_AFTER).cloned();
        let message = message(answer).await;
        let asked = asked.as_ref().and_then(|value| value.to_str().ok());
        let asked = retry_after(asked, &message, SystemTime::now());
        let error = PushError::Refused {
            repository: self.pusher.repository.to_string(),
            what: what.to_owned(),
            status,
            message,
            hint: hint(status, self.pusher.repository.registry.as_str()),
        };
        // A token that has run out during a long upload: the next attempt fetches a new one.
        // Another request may have noticed first and forgotten it already.
        let token = matches!(*self.authorization.lock().await, None | Some(Authorization::Bearer(_)));
        if status == StatusCode::UNAUTHORIZED && token {
            self.forget().await;
            return Failed::Again(error, None);
        }
        if retry::worth_retrying(status.as_u16()) {
            Failed::Again(error, asked)
        } else {
            Failed::Final(error)
        }
    }
}

/// What a user can do about a refusal.
fn hint(status: StatusCode, host: &str) -> String {
    match status {
        StatusCode::UNAUTHORIZED => registry::login_hint(host),
        StatusCode::FORBIDDEN => format!(" (the credentials for `{host}` do not allow to push there)"),
        StatusCode::NOT_FOUND => {
            " (some registries want a repository to be created before the first push)".to_owned()
        }
        _ => String::new(),
    }
}

/// What the registry says about a refusal, as far as it is text of reasonable length.
async fn message(mut answer: Response) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = answer.chunk().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MESSAGE {
                break;
            }
        }
    };
    if tokio::time::timeout(retry::CONNECT_TIMEOUT, read).await.is_err() {
        return String::new();
    }
    bytes.truncate(MESSAGE);
    let text: String = String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() { text } else { format!(": {text}") }
}
