//! The node's container runtime, through its socket: loads images into it and pins them if it supports that.
//!
//! Pulls use the interface of the kubelet (CRI `ImageService`), so that the image arrives in the same way as for a
//! pod: the runtime requests it from its mirrors, including this agent, unpacks it, and records it. A pin protects it
//! from the kubelet's image garbage collection:
//!
//! | runtime | pin |
//! | --- | --- |
//! | containerd from 1.7 on | the label `io.cri-containerd.pinned` on the image's record, by containerd's own API |
//! | containerd before | the label is set but ignored: [`Pin::Unsupported`] |
//! | CRI-O | only by `pinned_images` in its configuration: [`Pin::Unsupported`] |
//!
//! Access to the socket is equivalent to root on the node: it is used only when the operator configures it.

mod grpc;
mod guard;
mod messages;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message;

use grpc::Method;
pub use guard::Stopped;
use guard::{Guard, Outcome};
use messages::{
    AuthConfig, FieldMask, GetImageRequest, GetImageResponse, Image, ImageRequest, ImageSpec,
    ImageStatusResponse, PullImageRequest, PullImageResponse, Record, RemoveImageResponse,
    UpdateImageRequest, UpdateImageResponse, VersionRequest, VersionResponse,
};

/// The usual sockets of runtimes, most common first.
pub const SOCKETS: [&str; 3] =
    ["/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock", "/run/crio/crio.sock"];

/// Longest time for a pull and its unpacking: ten gigabytes on a slow disk.
const PULL_LIMIT: Duration = Duration::from_hours(1);

/// Longest time for calls that look something up or change a record. Removing an image waits for its files.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// A process that crashes closes its connections and its listening socket at the same time, in any order.
const GONE_AFTER: Duration = Duration::from_millis(100);

const PINNED: &str = "io.cri-containerd.pinned";

/// The only namespace of containerd that CRI uses.
const NAMESPACE: &str = "k8s.io";

const VERSION: Method =
    Method { path: "/runtime.v1.RuntimeService/Version", namespace: None, limit: CALL_LIMIT };
const PULL: Method =
    Method { path: "/runtime.v1.ImageService/PullImage", namespace: None, limit: PULL_LIMIT };
const STATUS: Method =
    Method { path: "/runtime.v1.ImageService/ImageStatus", namespace: None, limit: CALL_LIMIT };
const REMOVE: Method =
    Method { path: "/runtime.v1.ImageService/RemoveImage", namespace: None, limit: CALL_LIMIT };
const RECORD: Method = Method {
    path: "/containerd.services.images.v1.Images/Get",
    namespace: Some(NAMESPACE),
    limit: CALL_LIMIT,
};
const LABEL: Method = Method {
    path: "/containerd.services.images.v1.Images/Update",
    namespace: Some(NAMESPACE),
    limit: CALL_LIMIT,
};

/// A gRPC status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    const NOT_FOUND: Self = Self(5);
    const UNIMPLEMENTED: Self = Self(12);
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nothing answers at the socket.
    #[error("no container runtime answers at `{}`: check that it is running and that the agent has access to the socket", socket.display())]
    Unreachable {
        /// Path of the socket.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The runtime returned an error.
    #[error("the container runtime failed `{method}` (gRPC code {}): {message}", code.0)]
    Refused {
        /// The call.
        method: &'static str,
        /// The gRPC status code.
        code: Code,
        /// The runtime's message.
        message: String,
    },
    /// The call timed out.
    #[error("the container runtime did not answer `{method}` within {limit:?}")]
    TimedOut {
        /// The call.
        method: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The runtime crashed during the call, or closed the connection.
    #[error("the container runtime closed the connection during `{method}`: {cause}")]
    BrokeOff {
        /// The call.
        method: &'static str,
        /// The cause.
        cause: String,
    },
    /// The runtime crashed twice right after the same call.
    #[error(
        "the container runtime stopped twice right after `{}`: it is not called again until the agent restarts; see the \
         runtime's log, and set `runtime: false` in the image sets if its version is not supported",
        .0.method
    )]
    Stopped(Stopped),
    /// The response is not that of a container runtime.
    #[error("invalid response to `{method}`: {what}")]
    Protocol {
        /// The call.
        method: &'static str,
        /// What is wrong with the response.
        what: String,
    },
}

impl RuntimeError {
    /// Whether no registry has the image with this name, as far as the runtime could find out.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: Code::NOT_FOUND, .. })
    }
}

/// A name and a password for the registry. The runtime sends them only to registries that require authentication.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    /// The name.
    pub username: String,
    /// The password or token.
    pub password: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Whether an image is protected from the kubelet's garbage collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// The runtime lists it as pinned.
    Held,
    /// The runtime does not support pins by clients: its own configuration has to list the image.
    Unsupported,
}

/// An image in the runtime, unpacked and ready for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The runtime's id of the image.
    pub id: String,
    /// Whether the image is protected when the disk fills.
    pub pin: Pin,
}

/// A container runtime. Cheap to clone: every call has a connection of its own, so that a restart of the runtime only
/// fails the running calls.
#[derive(Clone, Debug)]
pub struct Runtime {
    socket: PathBuf,
    guard: Arc<Guard>,
}

impl Runtime {
    /// The runtime behind a socket; connects only when called.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), guard: Arc::default() }
    }

    /// The path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Why the runtime is not called any more, if so.
    pub fn stopped(&self) -> Option<Stopped> {
        self.guard.stopped()
    }

    /// Calls the runtime, unless it crashed twice right after such a call.
    async fn call<Answer: Message + Default>(
        &self,
        method: Method,
        request: &impl Message,
    ) -> Result<Answer, RuntimeError> {
        if let Some(stopped) = self.guard.stopped() {
            return Err(RuntimeError::Stopped(stopped));
        }
        let began = Instant::now();
        let answer = grpc::call(&self.socket, method, request).await;
        let outcome = match &answer {
            Ok(_) | Err(RuntimeError::Refused { .. }) => Outcome::Answered,
            Err(RuntimeError::BrokeOff { .. }) if self.is_gone().await => Outcome::Gone,
            Err(_) => Outcome::Other,
        };
        if self.guard.note(method.path, outcome, began.elapsed()) {
            tracing::error!(
                socket = %self.socket.display(), method = method.path,
                "the container runtime stopped twice right after this call: it is not called again until the agent restarts"
            );
        }
        answer
    }

    /// Whether nothing listens at the socket shortly after a connection was closed.
    async fn is_gone(&self) -> bool {
        tokio::time::sleep(GONE_AFTER).await;
        tokio::net::UnixStream::connect(&self.socket).await.is_err()
    }

    /// The runtime's name (`containerd`, `cri-o`) and version; fails when it does not answer.
    pub async fn version(&self) -> Result<(String, String), RuntimeError> {
        let answer: VersionResponse = self.call(VERSION, &VersionRequest {}).await?;
        Ok((answer.runtime_name, answer.runtime_version))
    }

    /// Pulls, unpacks and pins `image` in the runtime. When the image exists and the tag has not changed, only the
    /// tag is resolved. Dropping the future cancels the pull.
    pub async fn load(&self, image: &str, auth: Option<Auth>) -> Result<Loaded, RuntimeError> {
        let id = self.pull(image, auth).await?;
        let pin = self.set_pin(image, true).await?;
        Ok(Loaded { id, pin })
    }

    /// Pulls and unpacks `image`; returns the image's id.
    pub async fn pull(&self, image: &str, auth: Option<Auth>) -> Result<String, RuntimeError> {
        let auth = auth.map(|Auth { username, password }| AuthConfig { username, password });
        let request = PullImageRequest { image: Some(named(image)), auth };
        let answer: PullImageResponse = self.call(PULL, &request).await?;
        Ok(answer.image_ref)
    }

    /// Removes the pin of [`Self::load`]; the kubelet removes the image when it needs the space. Succeeds when the
    /// image does not exist.
    pub async fn release(&self, image: &str) -> Result<(), RuntimeError> {
        self.set_pin(image, false).await.map(drop)
    }

    /// Removes an image and all its names. Succeeds when it does not exist.
    pub async fn remove(&self, image: &str) -> Result<(), RuntimeError> {
        let request = ImageRequest { image: Some(named(image)) };
        self.call(REMOVE, &request).await.map(|RemoveImageResponse {}| ())
    }

    /// Whether the image exists, unpacked.
    pub async fn has(&self, image: &str) -> Result<bool, RuntimeError> {
        Ok(self.status(image).await?.is_some())
    }

    async fn status(&self, image: &str) -> Result<Option<Image>, RuntimeError> {
        let request = ImageRequest { image: Some(named(image)) };
        let answer: ImageStatusResponse = self.call(STATUS, &request).await?;
        Ok(answer.image)
    }

    async fn set_pin(&self, image: &str, pinned: bool) -> Result<Pin, RuntimeError> {
        let Some(found) = self.status(image).await? else { return Ok(Pin::Unsupported) };
        let Some(name) = record_name(&found, image) else { return Ok(Pin::Unsupported) };
        let Some(record) = self.record(name).await? else { return Ok(Pin::Unsupported) };
        let request = update(record, pinned);
        match self.call(LABEL, &request).await {
            Ok(UpdateImageResponse {}) => {}
            // The record is gone, and with it the need for a label.
            Err(RuntimeError::Refused { code: Code::NOT_FOUND, .. }) => return Ok(Pin::Unsupported),
            Err(error) => return Err(error),
        }
        // The runtime updates its list from a changed record a moment later, if its version does so at all.
        for pause in PIN_PAUSES {
            tokio::time::sleep(pause).await;
            if self.status(image).await?.is_some_and(|image| image.pinned == pinned) {
                return Ok(if pinned { Pin::Held } else { Pin::Unsupported });
            }
        }
        Ok(Pin::Unsupported)
    }

    /// containerd's record of an image; `None` when there is none, or the runtime has no such service (CRI-O).
    async fn record(&self, name: &str) -> Result<Option<Record>, RuntimeError> {
        let request = GetImageRequest { name: name.to_owned() };
        match self.call(RECORD, &request).await {
            Ok(GetImageResponse { image }) => Ok(image),
            Err(RuntimeError::Refused { code: Code::UNIMPLEMENTED | Code::NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Sets or removes the pin in a complete record; the mask leaves its other fields unchanged.
fn update(mut record: Record, pinned: bool) -> UpdateImageRequest {
    // An empty value removes the label.
    let value = if pinned { "pinned" } else { "" };
    record.labels.insert(PINNED.to_owned(), value.to_owned());
    let mask = FieldMask { paths: vec![format!("labels.{PINNED}")] };
    UpdateImageRequest { image: Some(record), update_mask: Some(mask) }
}

/// Pauses before the checks of whether a pin is in force.
const PIN_PAUSES: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(200), Duration::from_secs(1)];

fn named(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned() }
}

/// The name of the record for `image`: the same name, as the runtime spells it.
fn record_name<'a>(found: &'a Image, image: &str) -> Option<&'a str> {
    let all = || found.repo_tags.iter().chain(&found.repo_digests);
    all().find(|name| *name == image).or_else(|| all().next()).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_with_the_same_name_is_labelled() {
        let found = Image {
            repo_tags: vec!["r.test/a:v1".into(), "r.test/a:v2".into()],
            repo_digests: vec!["r.test/a@sha256:1".into()],
            ..Image::default()
        };
        for (image, expected) in [
            ("r.test/a:v2", "r.test/a:v2"),
            ("r.test/a@sha256:1", "r.test/a@sha256:1"),
            ("a:v1", "r.test/a:v1"),
        ] {
            assert_eq!(record_name(&found, image), Some(expected));
        }
        assert_eq!(record_name(&Image::default(), "a"), None);
    }

    /// The field of a record that containerd dereferences.
    #[derive(Clone, PartialEq, prost::Message)]
    struct OnTheWire {
        #[prost(message, optional, tag = "3")]
        target: Option<messages::Target>,
    }

    /// `Images/Update` without `target` crashed containerd 1.7.24 and 2.1.9: a nil dereference in the daemon.
    #[test]
    fn a_written_record_has_a_target_also_when_it_is_empty() {
        let target = messages::Target { digest: "sha256:1".into(), size: 7, ..messages::Target::default() };
        let full = Record { name: "r.test/a:v1".into(), target: target.clone(), ..Record::default() };
        for (record, expected) in [(full, target), (Record::default(), messages::Target::default())] {
            let sent = update(record, true).image.unwrap().encode_to_vec();
            assert_eq!(OnTheWire::decode(&sent[..]).unwrap().target, Some(expected));
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let auth = Auth { username: "u".into(), password: "secret".into() };
        let request = PullImageRequest {
            image: None,
            auth: Some(AuthConfig { username: "u".into(), password: "secret".into() }),
        };
        assert!(!format!("{auth:?} {request:?}").contains("secret"));
    }

    /// Listens, reads the beginning of a request, and ends like a process that crashes: connection and listener
    /// close.
    async fn end_at_a_call(listener: tokio::net::UnixListener) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut preface = [0; 24];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut preface).await.unwrap();
    }

    #[tokio::test]
    async fn a_runtime_that_crashes_twice_at_the_same_call_is_not_called_again() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("containerd.sock");
        let listen = || {
            let _ = std::fs::remove_file(&socket);
            tokio::net::UnixListener::bind(&socket).unwrap()
        };
        let runtime = Runtime::new(&socket);
        for attempt in 1..=2 {
            let (answer, ()) = tokio::join!(runtime.has("r.test/a:v1"), end_at_a_call(listen()));
            let error = answer.unwrap_err();
            assert!(matches!(error, RuntimeError::BrokeOff { .. }), "attempt {attempt}: {error}");
        }
        let listener = listen();
        let error = runtime.has("r.test/a:v1").await.unwrap_err().to_string();
        assert!(error.contains("ImageStatus"), "{error}");
        assert!(runtime.version().await.is_err(), "no other call either");
        let called = futures_util::FutureExt::now_or_never(listener.accept());
        assert!(called.is_none(), "a connection was made");
    }

    #[tokio::test]
    async fn an_error_contains_the_socket_that_does_not_answer() {
        let error = Runtime::new("/nowhere/x.sock").load("a", None).await.unwrap_err();
        assert!(error.to_string().contains("/nowhere/x.sock") && !error.is_not_found(), "{error}");
    }
}
