//! Docker's own API on its socket: pulls an image, removes it (Docker Engine API, "Create an image", "Remove an
//! image").

use std::{path::Path, time::Duration};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::CheckError;

/// Progress of a pull of a few hundred bytes.
const LARGEST_ANSWER: usize = 1024 * 1024;

const CONNECT: Duration = Duration::from_secs(5);

/// Pulls `repository:tag` with Docker.
pub(super) async fn pull(socket: &Path, repository: &str, tag: &str) -> Result<(), CheckError> {
    let path = format!("/images/create?fromImage={}&tag={tag}", repository.replace('/', "%2F"));
    let answer = call(socket, Method::POST, &path).await?;
    problem(&answer).map_or(Ok(()), |problem| Err(CheckError::Refused(problem)))
}

/// Removes the pulled image with Docker.
pub(super) async fn remove(socket: &Path, repository: &str, tag: &str) -> Result<(), CheckError> {
    call(socket, Method::DELETE, &format!("/images/{repository}:{tag}?force=true")).await.map(drop)
}

async fn call(socket: &Path, method: Method, path: &str) -> Result<String, CheckError> {
    let unreachable = |what: String| CheckError::Unreachable { socket: socket.to_owned(), what };
    let connected = tokio::time::timeout(CONNECT, UnixStream::connect(socket)).await;
    let stream = connected
        .map_err(|_| unreachable(format!("no answer within {CONNECT:?}")))?
        .map_err(|error| unreachable(error.to_string()))?;
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| unreachable(error.to_string()))?;
    let asking = async move {
        let request = Request::builder().method(method).uri(path).header("host", "docker");
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| unreachable(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| unreachable(error.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        let body = body.map_err(|error| unreachable(error.to_string()))?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() {
            return Ok(text);
        }
        let said = problem(&text).unwrap_or_else(|| text.trim().to_owned());
        Err(CheckError::Refused(format!("{status}: {said}")))
    };
    tokio::pin!(connection, asking);
    tokio::select! {
        answer = &mut asking => answer,
        _ = &mut connection => asking.await,
    }
}

/// The response to a pull has the status 200 and a line of JSON per step; an error is one of the lines.
fn problem(answer: &str) -> Option<String> {
    let lines = answer.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut said =
        lines.filter_map(|line| Some(line.get("error").or(line.get("message"))?.as_str()?.to_owned()));
    said.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_found_among_the_steps() {
        let steps = "{\"status\":\"Pulling from a/b\",\"id\":\"v1\"}\r\n{\"errorDetail\":{\"message\":\"manifest unknown\"},\"error\":\"manifest unknown\"}\r\n";
        assert_eq!(problem(steps).as_deref(), Some("manifest unknown"));
        assert_eq!(problem("{\"status\":\"Download complete\"}\r\n"), None);
        assert_eq!(problem("{\"message\":\"denied\"}").as_deref(), Some("denied"));
        assert_eq!(problem("<html>"), None);
    }
}
