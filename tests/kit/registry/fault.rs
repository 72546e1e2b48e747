//! Faults per request: which requests ([`On`]), and what goes wrong with them ([`Fault`]).

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, header};

use super::{log::Entry, path::Kind};

/// Which requests a fault hits. Starts from [`On::any`] or a kind; every call narrows it.
#[derive(Clone, Debug, Default)]
pub struct On {
    kind: Option<Kind>,
    method: Option<Method>,
    repository: Option<String>,
    reference: Option<String>,
    ranged: Option<bool>,
}

impl On {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests for one kind of resource.
    pub fn kind(kind: Kind) -> Self {
        Self { kind: Some(kind), ..Self::default() }
    }

    /// Requests for manifests.
    pub fn manifest() -> Self {
        Self::kind(Kind::Manifest)
    }

    /// Requests for blobs.
    pub fn blob() -> Self {
        Self::kind(Kind::Blob)
    }

    /// Requests to the token endpoint.
    pub fn token() -> Self {
        Self::kind(Kind::Token)
    }

    /// Requests that followed a redirect.
    pub fn cdn() -> Self {
        Self::kind(Kind::Cdn)
    }

    /// Only `GET`.
    #[must_use]
    pub fn get(self) -> Self {
        Self { method: Some(Method::GET), ..self }
    }

    /// Only `HEAD`.
    #[must_use]
    pub fn head(self) -> Self {
        Self { method: Some(Method::HEAD), ..self }
    }

    /// Only `POST`: the beginning of an upload.
    #[must_use]
    pub fn post(self) -> Self {
        Self { method: Some(Method::POST), ..self }
    }

    /// Only `PUT`: the end of an upload, or a manifest.
    #[must_use]
    pub fn put(self) -> Self {
        Self { method: Some(Method::PUT), ..self }
    }

    /// Only for this repository.
    #[must_use]
    pub fn repository(self, name: &str) -> Self {
        Self { repository: Some(name.to_owned()), ..self }
    }

    /// Only for this tag or digest.
    #[must_use]
    pub fn reference(self, reference: &str) -> Self {
        Self { reference: Some(reference.to_owned()), ..self }
    }

    /// Only with a `Range` header.
    #[must_use]
    pub fn ranged(self) -> Self {
        Self { ranged: Some(true), ..self }
    }

    /// Only without a `Range` header.
    #[must_use]
    pub fn whole(self) -> Self {
        Self { ranged: Some(false), ..self }
    }

    fn hits(&self, entry: &Entry) -> bool {
        let target = &entry.target;
        self.kind.is_none_or(|kind| kind == target.kind)
            && self.method.as_ref().is_none_or(|method| method == entry.method)
            && self.repository.as_ref().is_none_or(|name| *name == target.repository)
            && self.reference.as_ref().is_none_or(|reference| target.reference.ends_with(reference.as_str()))
            && self.ranged.is_none_or(|ranged| ranged == entry.headers.contains_key(header::RANGE))
    }
}

/// A byte of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// The first.
    First,
    /// The one in the middle.
    Middle,
    /// The last.
    Last,
}

impl Where {
    pub(super) fn offset(self, length: u64) -> u64 {
        match self {
            Self::First => 0,
            Self::Middle => length / 2,
            Self::Last => length.saturating_sub(1),
        }
    }
}

/// Where a redirect leads. Every target but [`RedirectTo::Loop`] looks like a presigned URL: bound to the method, with
/// an expiry, and answered 400 when an `Authorization` header comes along from another origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectTo {
    /// Another host name and port.
    OtherHost,
    /// The same host name, another port.
    OtherPort,
    /// A `Location` without a host.
    Relative,
    /// So many more redirects across two hosts, then the content.
    Chain(u8),
    /// The same URL again, for ever.
    Loop,
    /// Another host whose signature is already too old: 403.
    Expired,
}

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// No answer for so long, then the right one.
    Delay(Duration),
    /// The connection ends (FIN) before any answer.
    Close,
    /// The connection is reset before any answer.
    Reset,
    /// The body pauses after so many bytes for so long, then goes on.
    Stall(u64, Duration),
    /// The body ends after so many bytes with FIN, short of `Content-Length`.
    Cut(u64),
    /// The body ends after so many bytes with RST.
    CutReset(u64),
    /// `Content-Length` is off by so much; the body is right.
    LengthOff(i64),
    /// So many bytes follow a right body.
    Extra(usize),
    /// One byte of the body is wrong.
    Corrupt(Where),
    /// The body is something else; headers (digest, type) stay.
    Replace(Bytes),
    /// `Range` is ignored: 200 and everything.
    IgnoreRange,
    /// `Range` is ignored, and every body ends after so many bytes with FIN.
    CutWhole(u64),
    /// A 206 that begins so many bytes off, and says so in `Content-Range`.
    WrongOffset(i64),
    /// A plain request answered 206.
    Unasked206,
    /// So many bytes a second.
    Rate(u64),
    /// This status instead, sent to another place.
    Redirect(u16, RedirectTo),
    /// Another status, with headers and body.
    Status(u16, Vec<(&'static str, String)>, Bytes),
    /// These bytes on the wire instead of any HTTP answer, then FIN.
    Raw(Bytes),
    /// Every token handed out so far is invalid from here on; then as usual (401).
    ExpireTokens,
    /// A response header is replaced, or left out.
    Header(&'static str, Option<String>),
    /// Chunked transfer, no `Content-Length`.
    Chunked,
    /// `Content-Encoding: gzip`.
    Gzip,
}

impl Fault {
    /// An error status with the error body of the distribution protocol.
    pub fn status(status: u16) -> Self {
        let body = r#"{"errors":[{"code":"UNKNOWN","message":"fault asked for by a test"}]}"#;
        Self::Status(
            status,
            vec![("content-type", "application/json".to_owned())],
            Bytes::from_static(body.as_bytes()),
        )
    }

    /// 429 with this `Retry-After` (seconds or a date), or none.
    pub fn too_many(retry_after: Option<&str>) -> Self {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"toomanyrequests: You have reached your pull rate limit."}]}"#;
        let mut headers = vec![("content-type", "application/json".to_owned())];
        headers.extend(retry_after.map(|value| ("retry-after", value.to_owned())));
        Self::Status(429, headers, Bytes::from_static(body.as_bytes()))
    }

    /// GHCR's 429: the wait is in the text only.
    pub fn too_many_ghcr() -> Self {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"retry-after: 985.86µs, allowed: 44000/minute"}]}"#;
        Self::Status(
            429,
            vec![("content-type", "application/json".to_owned())],
            Bytes::from_static(body.as_bytes()),
        )
    }

    /// The abuse limit of a large registry as once seen on the wire: line feeds only, plain text. (It said 60 seconds;
    /// tests have less time.)
    pub fn too_many_line_feeds() -> Self {
        Self::Raw(Bytes::from_static(
            b"HTTP/1.1 429 Too Many Requests\nContent-Type: text/plain\nRetry-After: 1\nContent-Length: 18\n\nToo Many Requests\n",
        ))
    }
}

#[derive(Debug)]
struct Rule {
    on: On,
    fault: Fault,
    skip: AtomicUsize,
    left: AtomicUsize,
    hits: AtomicUsize,
}

/// A programmed fault; stays in force when this is dropped.
#[derive(Clone, Debug)]
pub struct FaultHandle(Arc<Rule>);

impl FaultHandle {
    /// Only the next `count` matching requests.
    #[expect(
        clippy::return_self_not_must_use,
        reason = "a setting on a shared rule: the result is a convenience"
    )]
    pub fn times(self, count: usize) -> Self {
        self.0.left.store(count, Ordering::SeqCst);
        self
    }

    /// Leave the first `count` matching requests alone.
    #[expect(
        clippy::return_self_not_must_use,
        reason = "a setting on a shared rule: the result is a convenience"
    )]
    pub fn skip(self, count: usize) -> Self {
        self.0.skip.store(count, Ordering::SeqCst);
        self
    }

    /// How many requests it hit.
    pub fn hits(&self) -> usize {
        self.0.hits.load(Ordering::SeqCst)
    }

    /// Ends it.
    pub fn clear(&self) {
        self.0.left.store(0, Ordering::SeqCst);
    }
}

/// All programmed faults; the first one that matches a request is applied to it.
#[derive(Debug, Default)]
pub(super) struct Rules(Mutex<Vec<Arc<Rule>>>);

impl Rules {
    pub(super) fn add(&self, on: On, fault: Fault) -> FaultHandle {
        let rule = Arc::new(Rule {
            on,
            fault,
            skip: AtomicUsize::new(0),
            left: AtomicUsize::new(usize::MAX),
            hits: AtomicUsize::new(0),
        });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&rule));
        FaultHandle(rule)
    }

    pub(super) fn pick(&self, entry: &Entry) -> Option<Fault> {
        let rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rules.iter().find(|rule| rule.on.hits(entry) && rule.claim()).map(|rule| rule.fault.clone())
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Rule {
    /// Takes one of the applications left. Called under the lock of [`Rules`], so plain loads and stores suffice.
    fn claim(&self) -> bool {
        let (skip, left) = (self.skip.load(Ordering::SeqCst), self.left.load(Ordering::SeqCst));
        if left == 0 {
            return false;
        }
        if skip > 0 {
            self.skip.store(skip - 1, Ordering::SeqCst);
            return false;
        }
        if left != usize::MAX {
            self.left.store(left - 1, Ordering::SeqCst);
        }
        self.hits.fetch_add(1, Ordering::SeqCst);
        true
    }
}
