//! Requests without their endpoint, and the position of the bytes in a response. Pure.

use std::ops::Range;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::Caller;
use crate::{
    metrics::Kind,
    types::{Digest, MANIFEST_ACCEPT, Reference, RepoName, Validator},
};

/// The requested bytes of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last byte; `None` means to the end.
    pub end: Option<u64>,
}

impl Span {
    /// The whole blob.
    pub const WHOLE: Self = Self { start: 0, end: None };
}

impl From<Range<u64>> for Span {
    fn from(range: Range<u64>) -> Self {
        Self { start: range.start, end: Some(range.end) }
    }
}

/// The position of a body's bytes and the size of the blob, or why the response cannot be used. The rules are
/// those of RFC 9110, 14.4 and 15.3.7.
pub(super) fn place_answer(
    status: StatusCode,
    content_range: Option<&str>,
    length: Option<u64>,
    span: Span,
) -> Result<(u64, Option<u64>), String> {
    if status != StatusCode::PARTIAL_CONTENT {
        return Ok((0, length));
    }
    if span == Span::WHOLE {
        return Err("the response is partial although the whole blob was requested".into());
    }
    let parsed = content_range.and_then(parse_content_range);
    let Some((first, last, size)) = parsed else {
        return Err("the response is partial and has no valid Content-Range".into());
    };
    if first != span.start || span.end.is_some_and(|end| last >= end) {
        return Err(format!("the response has bytes {first}-{last} instead of the requested ones"));
    }
    if let Some(length) = length.filter(|length| *length != last - first + 1) {
        return Err(format!("the response has bytes {first}-{last}, but a body of {length} bytes"));
    }
    Ok((first, size))
}

/// `bytes first-last/size`, where the size may be `*`.
fn parse_content_range(value: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let size: Option<u64> = if size.trim() == "*" { None } else { Some(size.trim().parse().ok()?) };
    (first <= last && size.is_none_or(|size| last < size)).then_some((first, last, size))
}

/// One request, without its endpoint.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Below `/v2/<name>/`.
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) kind: Kind,
    pub(super) headers: HeaderMap,
    /// For a part: the versions of the other parts.
    pub(super) conditions: Vec<Validator>,
    /// Whose credentials are shown.
    pub(super) caller: Caller,
    /// A cached token is not used: the registry judges the credentials again.
    pub(super) fresh_token: bool,
}

impl Ask {
    /// Whether the request is for content with a digest: a pull that has started cannot continue without it.
    pub(super) fn is_content(&self) -> bool {
        let by_digest = self.path.strip_prefix("manifests/").is_some_and(|reference| reference.contains(':'));
        self.method == Method::GET && (self.kind == Kind::blob || by_digest)
    }

    /// The key under which failures are counted: the same for every range of a blob.
    pub(super) fn subject(&self, name: &RepoName) -> String {
        format!("{} {name}/{}", self.method, self.path)
    }

    pub(super) fn manifest(method: Method, reference: &Reference) -> Self {
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(MANIFEST_ACCEPT))]);
        Self {
            method,
            path: format!("manifests/{reference}"),
            query: None,
            kind: Kind::manifest,
            headers,
            conditions: Vec::new(),
            caller: Caller::Agent,
            fresh_token: false,
        }
    }

    /// The same for another caller. What a client may read is judged anew.
    pub(super) fn by(self, caller: Caller) -> Self {
        let fresh_token = matches!(caller, Caller::Client(_));
        Self { caller, fresh_token, ..self }
    }

    pub(super) fn blob(method: Method, digest: &Digest, span: Option<Span>, known: &[Validator]) -> Self {
        let (mut headers, mut conditions) = (HeaderMap::new(), Vec::new());
        if let Some(span) = span.filter(|span| *span != Span::WHOLE) {
            let last = span.end.map_or(String::new(), |end| end.saturating_sub(1).to_string());
            let value = format!("bytes={}-{last}", span.start);
            headers.insert(
                header::RANGE,
                HeaderValue::try_from(value).expect("digits are a valid header value"),
            );
            conditions = known.to_vec();
        }
        Self {
            method,
            path: format!("blobs/{digest}"),
            query: None,
            kind: Kind::blob,
            headers,
            conditions,
            caller: Caller::Agent,
            fresh_token: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_response_to_a_range_is_placed_or_rejected() {
        let ok = StatusCode::OK;
        let part = StatusCode::PARTIAL_CONTENT;
        let from = |start| Span { start, end: None };
        let table = [
            (ok, None, Some(10), Span::WHOLE, Some((0, Some(10)))),
            (ok, None, None, Span::WHOLE, Some((0, None))),
            // A registry that ignores ranges starts again from the beginning.
            (ok, None, Some(10), from(4), Some((0, Some(10)))),
            (part, Some("bytes 4-9/10"), Some(6), from(4), Some((4, Some(10)))),
            (part, Some("bytes 4-9/*"), Some(6), from(4), Some((4, None))),
            (part, Some("bytes 4-5/10"), Some(2), Span { start: 4, end: Some(6) }, Some((4, Some(10)))),
            (part, Some("bytes 0-9/10"), Some(10), Span::WHOLE, None),
            (part, Some("bytes 4-9/10"), None, from(4), Some((4, Some(10)))),
            (part, Some("bytes 4-9/10"), Some(2), from(4), None),
            (part, Some("bytes 3-9/10"), Some(7), from(4), None),
            (part, Some("bytes 4-9/10"), Some(6), Span { start: 4, end: Some(6) }, None),
            (part, Some("bytes 9-4/10"), Some(6), from(9), None),
            (part, Some("bytes 4-10/10"), Some(6), from(4), None),
            (part, None, Some(6), from(4), None),
            (part, Some("rubbish"), Some(6), from(4), None),
        ];
        for (status, range, length, span, expected) in table {
            assert_eq!(
                place_answer(status, range, length, span).ok(),
                expected,
                "{status} {range:?} {span:?}"
            );
        }
    }
}
