//! The two calls of the container runtime interface that the tests make: gRPC on the runtime's socket.
//!
//! Written out, because the bindings that exist are generated with `protoc`, which a machine that only wants the
//! demo need not have. A call is one HTTP/2 request: the body is a flag byte (0, not compressed), the length (four
//! bytes, most significant first) and the message; the outcome is in the trailers.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;

/// Flag byte and length.
const PREFIX: usize = 5;

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

#[derive(Clone, PartialEq, Message)]
struct VersionRequest {}

#[derive(Clone, PartialEq, Message)]
struct VersionResponse {
    #[prost(string, tag = "2")]
    runtime_name: String,
}

/// Has the runtime pull `image`, anonymously; gives the image's id.
pub(super) async fn pull_image(socket: &Path, image: &str) -> Result<String> {
    let request = PullImageRequest { image: Some(ImageSpec { image: image.to_owned() }) };
    let response: PullImageResponse = call(socket, "/runtime.v1.ImageService/PullImage", &request).await?;
    Ok(response.image_ref)
}

/// The runtime's name; answered as soon as the interface is served.
pub(super) async fn version(socket: &Path) -> Result<String> {
    let response: VersionResponse =
        call(socket, "/runtime.v1.RuntimeService/Version", &VersionRequest {}).await?;
    Ok(response.runtime_name)
}

async fn call<Answer: Message + Default>(
    socket: &Path,
    method: &str,
    request: &impl Message,
) -> Result<Answer> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("cannot connect to `{}`", socket.display()))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // Ends when `sender` is dropped, which is when this call returns.
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(framed(request)))?;
    let response =
        sender.send_request(request).await.with_context(|| format!("`{method}` was not answered"))?;
    let (head, body) = response.into_parts();
    ensure!(head.status.is_success(), "`{method}` was answered with {}", head.status);
    let body = body.collect().await.with_context(|| format!("the answer to `{method}` was cut"))?;
    // An error without a message has its outcome among the headers.
    let outcome =
        body.trailers().filter(|trailers| trailers.contains_key("grpc-status")).unwrap_or(&head.headers);
    let text = |name: &str| outcome.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if text("grpc-status") != "0" {
        bail!("`{method}` failed with code {}: {}", text("grpc-status"), text("grpc-message"));
    }
    let body = body.to_bytes();
    let message = body.get(PREFIX..).with_context(|| format!("the answer to `{method}` is too short"))?;
    Answer::decode(message).with_context(|| format!("the answer to `{method}` is not understood"))
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("a request is a few hundred bytes"));
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}
