//! Headers of requests and responses.

use http::HeaderMap;

/// Sent with every request to a registry, so that an agent detects a request to itself.
pub const AGENT_HEADER: http::HeaderName = http::HeaderName::from_static("hearth-agent");

/// The value of a header, if it is text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
