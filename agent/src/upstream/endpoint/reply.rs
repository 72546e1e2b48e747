//! A response whose header has arrived; its body is read with a limit on every silence.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};

use super::super::{error::UpstreamError, headers::text};
use crate::{
    metrics::{Metrics, RegistryLabels},
    types::{RegistryHost, chain},
};

/// An answer whose header has arrived.
#[derive(Debug)]
pub(in crate::upstream) struct Reply {
    pub(super) response: reqwest::Response,
    pub(super) registry: RegistryHost,
    pub(super) origin: String,
    pub(super) idle_limit: Duration,
    pub(super) metrics: Metrics,
}

impl Reply {
    pub(in crate::upstream) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(in crate::upstream) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(in crate::upstream) fn origin(&self) -> &str {
        &self.origin
    }

    /// The header's value: for HEAD there is no body to measure.
    pub(in crate::upstream) fn content_length(&self) -> Option<u64> {
        text(self.headers(), header::CONTENT_LENGTH.as_str())?.parse().ok()
    }

    /// The next bytes of the body; `None` at its end. A body that ends before its `Content-Length` is an error.
    pub(in crate::upstream) async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let next = tokio::time::timeout(self.idle_limit, self.response.chunk()).await;
        match next {
            Ok(Ok(Some(bytes))) => {
                let labels = RegistryLabels { registry: self.registry.to_string() };
                self.metrics.upstream_bytes.get_or_create(&labels).inc_by(bytes.len() as u64);
                Ok(Some(bytes))
            }
            Ok(Ok(None)) => Ok(None),
            Ok(Err(error)) => Err(self.broken(format!("`{}` broke off: {}", self.origin, causes(&error)))),
            Err(_) => Err(self.broken(format!("`{}` sent nothing for {:?}", self.origin, self.idle_limit))),
        }
    }

    fn broken(&self, reason: String) -> UpstreamError {
        UpstreamError::Unavailable { registry: self.registry.clone(), reason }
    }
}

/// The causes of an error, in one line, without URLs (they may be presigned).
pub(super) fn causes(error: &reqwest::Error) -> String {
    std::error::Error::source(error).map_or_else(|| "transport error".to_owned(), chain)
}
