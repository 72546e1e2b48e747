//! Clients that cost little themselves: blocking sockets on own threads, large reads, bytes counted and dropped.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};

use kit::{agent::CLIENT, registry::MANIFEST};

use crate::rivals::Contestant;

/// A transfer that stands still for so long has failed.
const SILENCE: Duration = Duration::from_mins(1);
const BUFFER: usize = 256 << 10;
/// Blobs of an image that a client fetches at once, as containerd does.
const AT_ONCE: usize = 3;

/// One transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    /// From the request to the first byte of the body.
    pub(crate) first_byte: Duration,
    /// From the request to the last byte.
    pub(crate) total: Duration,
}

/// A connection that is used again for further requests.
pub(crate) struct Connection {
    stream: TcpStream,
    path: String,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr, path: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Self { stream, path: path.to_owned(), buffer: vec![0; BUFFER] })
    }

    /// Fetches the path and checks status and size.
    pub(crate) fn get(&mut self, size: u64) -> Result<Transfer> {
        self.get_from(0, size, |_| ())
    }

    /// Fetches the path from byte `offset` on, up to `size`, and hands over what arrives, also before a failure.
    pub(crate) fn get_from(
        &mut self,
        offset: u64,
        size: u64,
        mut sink: impl FnMut(&[u8]),
    ) -> Result<Transfer> {
        let started = Instant::now();
        let (range, expected) =
            if offset > 0 { (format!("Range: bytes={offset}-\r\n"), "206") } else { (String::new(), "200") };
        // One write: a request in pieces would meet Nagle and delayed acknowledgements.
        // Without the media type docker-registry does not find an OCI manifest.
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: bench\r\nUser-Agent: {CLIENT}\r\nAccept: {MANIFEST}\r\n{range}\r\n",
            self.path
        );
        self.stream.write_all(request.as_bytes())?;
        let mut head = Vec::new();
        let rest = loop {
            let read = self.stream.read(&mut self.buffer)?;
            ensure!(read > 0, "`{}`: the connection ended inside the head", self.path);
            head.extend_from_slice(&self.buffer[..read]);
            if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                break head.split_off(end + 4);
            }
        };
        let head = String::from_utf8_lossy(&head);
        let status = head.split(' ').nth(1).unwrap_or_default();
        ensure!(
            status == expected,
            "`{}` was answered {}",
            self.path,
            head.lines().next().unwrap_or_default()
        );
        let mut first_byte = (!rest.is_empty()).then(|| started.elapsed());
        let mut got = offset + rest.len() as u64;
        ensure!(got <= size, "`{}` has more than {size} bytes", self.path);
        sink(&rest);
        while got < size {
            let read = self.stream.read(&mut self.buffer)?;
            ensure!(read > 0, "`{}` ended after {got} of {size} bytes", self.path);
            first_byte.get_or_insert_with(|| started.elapsed());
            got += read as u64;
            ensure!(got <= size, "`{}` has more than {size} bytes", self.path);
            sink(&self.buffer[..read]);
        }
        Ok(Transfer { first_byte: first_byte.unwrap_or_default(), total: started.elapsed() })
    }
}

/// So many clients that all begin at the same moment, each fetching the path `times` times.
pub(crate) fn burst(
    address: SocketAddr,
    path: &str,
    size: u64,
    clients: u64,
    times: u32,
) -> Result<Vec<Transfer>> {
    let barrier = Arc::new(Barrier::new(usize::try_from(clients)?));
    let threads: Vec<_> = (0..clients)
        .map(|_| {
            let (barrier, path) = (Arc::clone(&barrier), path.to_owned());
            thread::spawn(move || {
                let connection = Connection::open(address, &path);
                barrier.wait();
                let mut connection = connection?;
                (0..times).map(|_| connection.get(size)).collect::<Result<Vec<_>>>()
            })
        })
        .collect();
    let mut transfers = Vec::new();
    for thread in threads {
        transfers.extend(thread.join().ok().context("a client's thread panicked")??);
    }
    Ok(transfers)
}

/// This program as one client in a process of its own: waits for a moment, fetches the first part and then the others,
/// [`AT_ONCE`] at a time, and prints how many seconds that took. What the address refuses it requests from the registry, as
/// containerd does, unless that is `-`. Words: address, the registry's address, milliseconds since 1970, and `path size`
/// each.
pub(crate) async fn run_alone(words: &[String]) -> Result<()> {
    let request = PullRequest::parse(words)?;
    let started = request.wait().await;
    tokio::task::spawn_blocking(move || pull(&request)).await??;
    writeln!(io::stdout(), "{}", started.elapsed().as_secs_f64())?;
    Ok(())
}

/// What such a client is to fetch, from where, and when.
#[derive(Debug)]
pub(crate) struct PullRequest {
    /// In the order in which they are asked.
    pub(crate) places: Vec<SocketAddr>,
    begin: SystemTime,
    parts: Vec<(String, u64)>,
}

impl PullRequest {
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let [address, registry, begin, parts @ ..] = words else {
            anyhow::bail!("a client needs two addresses and a moment")
        };
        let places = [address, registry].into_iter().filter(|place| *place != "-");
        let places = places.map(|place| place.parse()).collect::<Result<Vec<SocketAddr>, _>>()?;
        let begin = UNIX_EPOCH + Duration::from_millis(begin.parse()?);
        let parts = parts.iter().map(|part| {
            let (path, size) = part.rsplit_once(' ').context("a part is `path size`")?;
            Ok((path.to_owned(), size.parse::<u64>()?))
        });
        Ok(Self { places, begin, parts: parts.collect::<Result<Vec<_>>>()? })
    }

    /// Until its moment, which is given back.
    pub(crate) async fn wait(&self) -> Instant {
        tokio::time::sleep(self.begin.duration_since(SystemTime::now()).unwrap_or_default()).await;
        Instant::now()
    }

    /// Fetches the manifest, then the blobs, [`AT_ONCE`] at a time, up to the first failure.
    pub(crate) fn fetch(
        &self,
        manifest: impl FnOnce(&(String, u64)) -> Result<()>,
        blob: impl Fn(&(String, u64)) -> Result<()> + Sync,
    ) -> Result<()> {
        let (first, blobs) = self.parts.split_first().context("there is nothing to fetch")?;
        manifest(first)?;
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let one = || {
                while let Some(part) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    blob(part)?;
                }
                Ok(())
            };
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(one)).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().ok().context("a client's thread panicked")?)
        })
    }
}

fn pull(request: &PullRequest) -> Result<()> {
    let get = |(path, size): &(String, u64)| {
        let mut outcome = Err(anyhow::anyhow!("there is nobody to ask"));
        for place in &request.places {
            outcome = burst(*place, path, *size, 1, 1).map(drop);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    };
    request.fetch(get, get)
}

/// [`burst`] of a contestant's blob, beside the asynchronous part of the program. A failure carries the contestant's log.
pub(crate) async fn burst_aside(
    one: &Contestant,
    digest: &str,
    size: u64,
    clients: u64,
    times: u32,
) -> Result<Vec<Transfer>> {
    let (address, path) = (one.address, one.path(digest));
    let transfers = tokio::task::spawn_blocking(move || burst(address, &path, size, clients, times)).await?;
    transfers.with_context(|| format!("{} failed; its log:\n{}", one.name, one.log()))
}
