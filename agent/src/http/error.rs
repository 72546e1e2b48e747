//! Errors as the protocol has them: status and code of the OCI distribution specification ("Error Codes").
//!
//! The policy: 404 only for what upstream says does not exist; what cannot be had now is 503 with `Retry-After`,
//! never 429, which clients repeat at once or sleep on for half a minute. Docker repeats 5xx on blobs for over a
//! minute but moves on at a 404, so Docker gets that for blobs.

use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header};

use super::{
    body::{self, Body},
    client,
    route::RouteError,
};
use crate::{
    download::FetchError,
    metrics::Kind,
    types::{NameError, chain},
};

/// `Retry-After` when upstream named no time.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Basic, never Bearer: containerd would post the password to where a Bearer challenge says.
const CHALLENGE: &str = r#"Basic realm="hearth: the pull secret for this registry", charset="UTF-8""#;

/// An error as the client gets it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after: Option<Duration>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// The message for the client.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// What happens next, for the log. Pure.
    pub(super) fn next(&self) -> &'static str {
        match (self.status, self.retry_after) {
            (StatusCode::SERVICE_UNAVAILABLE, _) => {
                "the client may try again; container runtimes ask the registry itself meanwhile"
            }
            (StatusCode::NOT_FOUND, _) => "container runtimes ask the registry itself",
            (StatusCode::UNAUTHORIZED, _) => {
                "container runtimes request it again, with the pod's pull secret"
            }
            (StatusCode::FORBIDDEN, _) => {
                "container runtimes ask the registry itself, with their own credentials"
            }
            (StatusCode::LOOP_DETECTED, _) => {
                "nothing: two mirrors point at each other; remove this agent from the registry's `endpoints`"
            }
            _ => "nothing: the same request fails again",
        }
    }

    fn not_now(message: String, retry_after: Option<Duration>) -> Self {
        let retry_after = Some(retry_after.unwrap_or(RETRY_AFTER));
        Self { retry_after, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message) }
    }

    /// Nothing of the answer has arrived for so long.
    pub(super) fn late(limit: Duration) -> Self {
        Self::not_now(
            format!("nothing arrived from the registry or a peer for {limit:?}; the download continues"),
            None,
        )
    }

    /// Every connection that may be open is.
    pub(super) fn busy(limit: usize) -> Self {
        let message = format!(
            "all {limit} client connections of this agent are in use (`limits.connections`): retry later"
        );
        Self::not_now(message, None)
    }

    /// What a failed fetch means for this request.
    pub(super) fn of_fetch(error: &FetchError, kind: Kind) -> Self {
        let unknown = match kind {
            Kind::blob => "BLOB_UNKNOWN",
            Kind::tags => "NAME_UNKNOWN",
            _ => "MANIFEST_UNKNOWN",
        };
        match error {
            FetchError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, unknown, error.to_string()),
            FetchError::Unauthorized(_) => {
                Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", error.to_string())
            }
            FetchError::Denied(_) | FetchError::Unsigned(_) => {
                Self::new(StatusCode::FORBIDDEN, "DENIED", error.to_string())
            }
            FetchError::NotNow { retry_after, .. } => Self::not_now(chain(error), *retry_after),
            FetchError::Reserved { wait, .. } => Self::not_now(chain(error), Some(*wait)),
            FetchError::Corrupt { .. }
            | FetchError::Store(_)
            | FetchError::Disk(_)
            | FetchError::Changed(_)
            | FetchError::Parked
            | FetchError::Stopping => Self::not_now(chain(error), None),
            FetchError::Unsupported { .. } => {
                Self::new(StatusCode::NOT_ACCEPTABLE, "MANIFEST_INVALID", error.to_string())
            }
        }
    }

    /// What a request that is none means.
    pub(super) fn of_route(error: &RouteError) -> Self {
        let message = error.to_string();
        match error {
            RouteError::NotApi => Self::new(StatusCode::NOT_FOUND, "UNSUPPORTED", message),
            RouteError::Method => Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message),
            RouteError::Name(NameError::Digest(_)) => {
                Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
            }
            RouteError::Name(NameError::Tag(_)) => {
                Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
            }
            RouteError::Name(
                NameError::Repository(_) | NameError::Registry(_) | NameError::NotRepository(_),
            )
            | RouteError::Namespace(_)
            | RouteError::NoRegistry => Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", message),
            RouteError::NotServed(_) => Self::new(StatusCode::FORBIDDEN, "DENIED", message),
            RouteError::Loop => Self::new(StatusCode::LOOP_DETECTED, "UNSUPPORTED", message),
        }
    }

    /// Docker's way to be told "ask someone else" for a blob.
    pub(super) fn for_client(self, user_agent: Option<&str>, kind: Kind) -> Self {
        if client::is_docker(user_agent)
            && kind == Kind::blob
            && self.status == StatusCode::SERVICE_UNAVAILABLE
        {
            return Self {
                retry_after: None,
                ..Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", self.message)
            };
        }
        self
    }

    /// The answer.
    pub(super) fn into_response(self) -> Response<Body> {
        let document =
            serde_json::json!({ "errors": [{ "code": self.code, "message": self.message, "detail": {} }] });
        let mut response = Response::new(body::full(document.to_string()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            // Whole seconds, rounded up: a client must not come back too early.
            response.headers_mut().insert(
                header::RETRY_AFTER,
                HeaderValue::from(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)),
            );
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_now_is_never_429_and_never_404_except_for_dockers_blobs() {
        let error = FetchError::NotNow {
            reason: "throttled".into(),
            retry_after: Some(Duration::from_millis(1_500)),
        };
        for (agent, kind, status) in [
            (Some("containerd/1.7"), Kind::blob, 503),
            (Some("docker/20.10.24 go/go1.19"), Kind::blob, 404),
            (Some("docker/20.10.24 go/go1.19"), Kind::manifest, 503),
            (None, Kind::blob, 503),
        ] {
            let response = Refusal::of_fetch(&error, kind).for_client(agent, kind).into_response();
            assert_eq!(response.status().as_u16(), status, "{agent:?} {kind:?}");
            let wait =
                response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(wait.as_deref(), (status == 503).then_some("2"));
        }
    }
}
