//! One gRPC call over a unix socket, as one HTTP/2 request: the body is a flag byte (0, not compressed), the length (four
//! bytes, most significant first) and the message; the outcome is in the trailers, or among the headers when there is no
//! body. Dropping a call ends its stream, which the other side takes for a cancellation.

use std::{path::Path, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;

use super::{Code, RuntimeError};

/// Flag byte and length.
const PREFIX: usize = 5;

/// Larger responses do not occur for the calls in this file.
const LARGEST_ANSWER: usize = 1024 * 1024;

/// Longest wait for a socket of the same node.
const CONNECT: Duration = Duration::from_secs(5);

/// A method and its parameters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method {
    /// `/package.Service/Method`.
    pub(super) path: &'static str,
    /// containerd's own services need one of its namespaces.
    pub(super) namespace: Option<&'static str>,
    /// Longest time for the whole call.
    pub(super) limit: Duration,
}

/// Calls the method and waits for the response.
pub(super) async fn call<Answer: Message + Default>(
    socket: &Path,
    method: Method,
    request: &impl Message,
) -> Result<Answer, RuntimeError> {
    let answered = tokio::time::timeout(method.limit, exchange(socket, method, request)).await;
    let bytes =
        answered.map_err(|_| RuntimeError::TimedOut { method: method.path, limit: method.limit })??;
    let message = bytes.get(PREFIX..).ok_or_else(|| strange(method, "it is too short"))?;
    Answer::decode(message).map_err(|error| strange(method, &error))
}

fn strange(method: Method, what: &(impl ToString + ?Sized)) -> RuntimeError {
    RuntimeError::Protocol { method: method.path, what: what.to_string() }
}

fn broke_off(method: Method, error: &hyper::Error) -> RuntimeError {
    let cause = std::error::Error::source(error)
        .map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    RuntimeError::BrokeOff { method: method.path, cause }
}

async fn exchange(socket: &Path, method: Method, request: &impl Message) -> Result<Bytes, RuntimeError> {
    let unreachable = |source| RuntimeError::Unreachable { socket: socket.to_owned(), source };
    let connected = tokio::time::timeout(CONNECT, UnixStream::connect(socket)).await;
    let stream =
        connected.map_err(|_| unreachable(std::io::ErrorKind::TimedOut.into()))?.map_err(unreachable)?;
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| strange(method, &error))?;
    let asking = async move {
        let mut builder = http::Request::post(format!("http://localhost{}", method.path))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", format!("{}S", method.limit.as_secs()));
        if let Some(namespace) = method.namespace {
            builder = builder.header("containerd-namespace", namespace);
        }
        let request = builder.body(Full::new(framed(request))).map_err(|error| strange(method, &error))?;
        let response = sender.send_request(request).await.map_err(|error| broke_off(method, &error))?;
        let (head, body) = response.into_parts();
        if !head.status.is_success() {
            return Err(strange(method, &format!("it has the HTTP status {}", head.status)));
        }
        let body = Limited::new(body, LARGEST_ANSWER).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => broke_off(method, &error),
            Err(other) => strange(method, &other),
        })?;
        outcome(method, body.trailers(), &head.headers)?;
        Ok(body.to_bytes())
    };
    // The connection exists only for this call.
    tokio::pin!(connection, asking);
    tokio::select! {
        answer = &mut asking => answer,
        ended = &mut connection => match ended {
            // Data that arrived before the end is still to be read.
            Ok(()) => asking.await,
            Err(error) => Err(broke_off(method, &error)),
        },
    }
}

/// A response without a message has its outcome in the headers.
fn outcome(method: Method, trailers: Option<&HeaderMap>, headers: &HeaderMap) -> Result<(), RuntimeError> {
    let fields = trailers.filter(|trailers| trailers.contains_key("grpc-status")).unwrap_or(headers);
    let text = |name: &str| fields.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").map(str::parse::<u32>) {
        Some(Ok(0)) => Ok(()),
        Some(Ok(code)) => Err(RuntimeError::Refused {
            method: method.path,
            code: Code(code),
            message: unescaped(text("grpc-message").unwrap_or_default()),
        }),
        Some(Err(_)) | None => Err(strange(method, "it has no `grpc-status`")),
    }
}

/// `grpc-message` is percent-encoded.
fn unescaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let byte = tail.get(..2).filter(|_| *first == b'%').and_then(|digits| hex::decode(digits).ok());
        if let Some(byte) = byte {
            out.extend(byte);
            rest = &tail[2..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("a request is a few hundred bytes"));
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const METHOD: Method = Method { path: "/a.B/C", namespace: None, limit: Duration::from_secs(1) };

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_outcome_is_in_the_trailers_or_else_among_the_headers() {
        let refused = |trailers: Option<&[_]>, headers: &[_]| match outcome(
            METHOD,
            trailers.map(map).as_ref(),
            &map(headers),
        ) {
            Ok(()) => "fine".to_owned(),
            Err(RuntimeError::Refused { code, message, .. }) => format!("{}: {message}", code.0),
            Err(other) => other.to_string(),
        };
        for (trailers, headers, expected) in [
            (Some(&[("grpc-status", "0")][..]), &[][..], "fine"),
            (
                Some(&[("grpc-status", "5"), ("grpc-message", "no 100%25 %C3%A9 %zz")]),
                &[],
                "5: no 100% é %zz",
            ),
            (Some(&[("x", "y")]), &[("grpc-status", "12")], "12: "),
            (None, &[("grpc-status", "14"), ("grpc-message", "down")], "14: down"),
            (None, &[], "invalid response to `/a.B/C`: it has no `grpc-status`"),
            (None, &[("grpc-status", "x")], "invalid response to `/a.B/C`: it has no `grpc-status`"),
        ] {
            assert_eq!(refused(trailers, headers), expected);
        }
    }
}
