//! Headers of requests and answers.

use http::HeaderMap;

/// Sent with every request to a registry, so that an agent that reaches itself in a circle notices.
pub const AGENT_HEADER: http::HeaderName = http::HeaderName::from_static("hearth-agent");

/// The value of a header, where it is text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
