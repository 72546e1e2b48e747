//! Bodies of responses.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, SizeHint};

use prometheus_client::metrics::counter::Counter;

use crate::{download::ContentReader, peers::Upload, types::chain};

/// What every answer carries.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Bytes sent between two yields to other tasks: keeps the first byte of small blobs quick beside bulk streams.
const YIELD_EVERY: usize = 512 * 1024;

/// A body that is in memory.
pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// No body.
pub(super) fn empty() -> Body {
    full(Bytes::new())
}

/// Answers of a connection that are not over: each holds a clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Open(Arc<()>);

impl Open {
    /// Whether there is one beside the connection's own.
    pub(super) fn is_busy(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// What knows of them without counting.
    pub(super) fn watch(&self) -> OpenWatch {
        OpenWatch(Arc::downgrade(&self.0))
    }
}

/// Knows of the answers of a connection without being one.
#[derive(Clone, Debug)]
pub(super) struct OpenWatch(Weak<()>);

impl OpenWatch {
    /// As [`Open::is_busy`].
    pub(super) fn is_busy(&self) -> bool {
        self.0.strong_count() > 1
    }
}

/// A body that says by a clone of [`Open`] how long it lives.
struct Counted {
    body: Body,
    _open: Open,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The same body, counted as long as it lives.
pub(super) fn counted(body: Body, open: Open) -> Body {
    Counted { body, _open: open }.boxed_unsync()
}

/// What a body belongs to, for the log.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// Id of the request; a peer's has none.
    pub(super) request: Option<String>,
    /// The content.
    pub(super) what: String,
}

struct Sending {
    reader: ContentReader,
    subject: Subject,
    sent: Counter,
    upload: Option<Upload>,
    since_yield: usize,
}

/// Content as it becomes readable. When it cannot be completed the body ends with an error: the connection is closed
/// short of `Content-Length`, and the client resumes from there. `sent` counts bytes, `upload` sets the pace.
pub(super) fn content(
    reader: ContentReader,
    sent: Counter,
    upload: Option<Upload>,
    subject: Subject,
) -> Body {
    let sending = Sending { reader, subject, sent, upload, since_yield: 0 };
    StreamBody::new(stream::unfold(Some(sending), |sending| async {
        let mut sending = sending?;
        if sending.since_yield >= YIELD_EVERY {
            sending.since_yield = 0;
            tokio::task::yield_now().await;
        }
        match sending.reader.next().await {
            Ok(Some(bytes)) => {
                sending.since_yield += bytes.len();
                if let Some(upload) = &mut sending.upload {
                    upload.pass(bytes.len()).await;
                }
                sending.sent.inc_by(bytes.len() as u64);
                Some((Ok(Frame::data(bytes)), Some(sending)))
            }
            Ok(None) => None,
            Err(error) => {
                let Subject { request, what } = &sending.subject;
                tracing::warn!(
                    request, subject = what, error = %chain(&error), next = "the client has to ask for the rest",
                    "answer ended early"
                );
                Some((Err(io::Error::other(error)), None))
            }
        }
    }))
    .boxed_unsync()
}
