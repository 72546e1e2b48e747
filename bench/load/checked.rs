//! A client that checks digests, as real ones do: a body that ends early is resumed, what the mirror refuses is requested
//! from the registry, and a blob with a wrong digest is reported and fetched once more.
//!
//! A container runtime fails the pull at a wrong digest and the kubelet pulls again later; this client begins with the
//! blob again at once, so that its time is what was transferred and not how long somebody waits between two pulls.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::client::{Connection, PullRequest};

/// Tries without a new byte before a blob is given up: containerd's number.
const TRIES: u32 = 3;
/// How often a blob may have a wrong digest.
const WRONG: u32 = 5;

/// This program as such a client in a process of its own, with the words of [`crate::client::run_alone`]. Prints how many
/// seconds the pull took, how many blobs had a wrong digest at first, what the mirror refused, and why the pull failed, if it
/// did.
pub(crate) async fn run_alone(words: &[String]) -> Result<()> {
    let request = PullRequest::parse(words)?;
    let started = request.wait().await;
    let (outcome, seen) = tokio::task::spawn_blocking(move || {
        let seen = Seen::default();
        (pull(&request, &seen), seen)
    })
    .await?;
    let failure = outcome.err().map(|error| format!("{error:#}"));
    let told = json!({
        "seconds": started.elapsed().as_secs_f64(),
        "wrong": seen.wrong.into_inner(),
        "refusals": seen.refusals.into_inner().map_err(|_| anyhow::anyhow!("a client's thread panicked"))?,
        "failure": failure,
    });
    writeln!(io::stdout(), "{told}")?;
    Ok(())
}

/// What happened to a client besides the pull itself.
#[derive(Debug, Default)]
struct Seen {
    /// Blobs whose first bytes had another digest.
    wrong: AtomicU64,
    /// Why the registry was asked instead of the mirror, each with the time since the request for the body.
    refusals: Mutex<Vec<String>>,
}

fn pull(request: &PullRequest, seen: &Seen) -> Result<()> {
    let places = &request.places;
    request.fetch(
        |(path, size)| body(places, path, *size, seen, |_| ()),
        |(path, size)| {
            let digest = digest_in(path).context("a blob's path names its digest")?;
            for attempt in 0..WRONG {
                let mut hash = Sha256::new();
                body(places, path, *size, seen, |bytes| hash.update(bytes))?;
                if hex::encode(hash.finalize()) == digest {
                    return Ok(());
                }
                if attempt == 0 {
                    seen.wrong.fetch_add(1, Ordering::Relaxed);
                }
            }
            bail!("`{path}` had a wrong digest {WRONG} times")
        },
    )
}

/// One body, resumed as often as it ends early, and given up after [`TRIES`] without a new byte.
fn body(
    places: &[SocketAddr],
    path: &str,
    size: u64,
    seen: &Seen,
    mut sink: impl FnMut(&[u8]),
) -> Result<()> {
    let (mut have, mut idle, began) = (0, 0, Instant::now());
    loop {
        let before = have;
        let mut outcome = Err(anyhow::anyhow!("no address to request it from"));
        for place in places {
            outcome = Connection::open(*place, path).map_err(Into::into).and_then(|mut connection| {
                connection.get_from(have, size, |bytes| {
                    have += bytes.len() as u64;
                    sink(bytes);
                })
            });
            // What ended early is resumed from the first place.
            if outcome.is_ok() || have > before {
                break;
            }
            if let (Err(error), Ok(mut refusals)) = (&outcome, seen.refusals.lock()) {
                refusals
                    .push(format!("after {:.1} s at byte {have}: {error:#}", began.elapsed().as_secs_f64()));
            }
        }
        let Err(error) = outcome else { return Ok(()) };
        // Everything is here, and the end was not what it should be.
        ensure!(have < size, error);
        idle = if have > before { 0 } else { idle + 1 };
        if idle == TRIES {
            return Err(error);
        }
    }
}

/// The digest, in hexadecimal, at the end of a blob's path.
fn digest_in(path: &str) -> Option<&str> {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    path.rsplit_once("/blobs/sha256:").map(|(_, digest)| digest)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one connection each with these bytes, whatever the request.
    fn server(answers: Vec<Vec<u8>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                io::Read::read(&mut stream, &mut [0; 1024]).unwrap();
                stream.write_all(&answer).unwrap();
            }
        });
        address
    }

    #[test]
    fn a_body_that_ends_early_is_resumed() {
        let address = server(vec![
            b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc".to_vec(),
            b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\ndef".to_vec(),
        ]);
        let mut got = Vec::new();
        body(&[address], "/", 6, &Seen::default(), |bytes| got.extend_from_slice(bytes)).unwrap();
        assert_eq!(got, b"abcdef");
    }

    #[test]
    fn what_the_mirror_refuses_is_requested_from_the_registry() {
        let refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_vec();
        let (mirror, registry) =
            (server(vec![refusal]), server(vec![b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx".to_vec()]));
        let mut got = Vec::new();
        let seen = Seen::default();
        body(&[mirror, registry], "/", 1, &seen, |bytes| got.extend_from_slice(bytes)).unwrap();
        assert_eq!(got, b"x");
        let refusals = seen.refusals.into_inner().unwrap();
        assert!(refusals.len() == 1 && refusals[0].contains("503"), "{refusals:?}");
    }

    #[test]
    fn the_digest_is_read_from_the_path() {
        assert_eq!(digest_in("/v2/a/blobs/sha256:12ab?ns=r.test"), Some("12ab"));
        assert_eq!(digest_in("/v2/a/manifests/v1"), None);
    }
}
