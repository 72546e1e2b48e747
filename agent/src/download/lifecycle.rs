//! A download from start to end: checks the store again, then reads from the container runtime's content, from peers
//! and from the registry, verifies the digest, and commits the blob. A failed download keeps its partial blob.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    blocking::blocking, context::Context, downloader::Downloader, error::FetchError, phase::Phase, runtime,
    source::PeerSource, state::Download,
};
use crate::{
    journal::{self, millis},
    store::{Finish, Partial},
    trace,
    types::{Mismatch, RegistryHost, chain},
};

use crate::limits::download::lifecycle::{FIRST_PROBE, LONGEST_PROBE};

/// Starts the download's task.
pub(super) fn start(context: Arc<Context>, download: Arc<Download>) {
    let tasks = context.tasks.clone();
    // A part of the trace of the request that began it; later readers have traces of their own.
    let span = tracing::info_span!(
        target: trace::TARGET, parent: trace::current(), "download", digest = %download.digest(), size = download.size(),
    );
    let work = async move {
        // The next download of this blob starts when this task ends, whether it succeeds or not.
        let _ended = download.ended.clone().drop_guard();
        download.wait_for_turn().await;
        context.metrics.downloads.inc();
        let mut stages = Stages::new();
        let outcome = run(&context, &download, &mut stages).await;
        stages.record(&context, &download, outcome.as_ref().err());
        download.close();
        download.peer_requests.leave();
        download.segments.end();
        if let Err(error) = outcome {
            fail(&context, &download, error).await;
        }
        context.leave(&download);
        context.metrics.downloads.dec();
    };
    tasks.spawn("download", trace::within(span, work));
}

/// How long the parts of a download took.
#[derive(Debug)]
struct Stages {
    began: Instant,
    since: Instant,
    waited: Duration,
    transfer: Duration,
}

impl Stages {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            since: Instant::now(),
            waited: Duration::ZERO,
            transfer: Duration::ZERO,
        }
    }

    fn waited(&mut self) {
        self.waited = self.since.elapsed();
        self.since = Instant::now();
    }

    fn transferred(&mut self) {
        self.transfer = self.since.elapsed();
        self.since = Instant::now();
    }

    /// Writes what has happened into the journal. A blob that was here already was not downloaded.
    fn record(&self, context: &Context, download: &Download, error: Option<&FetchError>) {
        let quiet = matches!(error, Some(FetchError::Parked | FetchError::Stopping));
        if quiet || (download.partial().is_none() && error.is_none()) {
            return;
        }
        let unfinished = self.transfer.is_zero();
        let (from_registry, from_peers) = download.sources();
        if error.is_none() {
            context.metrics.durations.downloaded(from_registry, from_peers, self.began.elapsed());
        }
        context.journal.note_download(journal::Download {
            at: journal::now(),
            digest: download.digest().to_string(),
            repository: download.source(0).map(|repository| repository.to_string()),
            size: download.size(),
            from_registry,
            from_peers,
            waited_millis: millis(self.waited),
            transfer_millis: millis(if unfinished { self.since.elapsed() } else { self.transfer }),
            commit_millis: if unfinished { 0 } else { millis(self.since.elapsed()) },
            error: error.map(|error| chain(error)),
        });
    }
}

/// Keeps the partial blob for the next download and reports the error to all subscribers.
async fn fail(context: &Arc<Context>, download: &Arc<Download>, error: FetchError) {
    let digest = download.digest();
    match &error {
        FetchError::NotFound(_) | FetchError::Stopping | FetchError::Parked => {
            tracing::debug!(digest = %digest.short(), %error, "blob download failed");
        }
        _ => tracing::warn!(digest = %digest.short(), error = %chain(&error), "blob download failed"),
    }
    context.note_trouble(&error);
    // On a full disk the partial blob takes space from other downloads, so it is removed.
    let full = matches!(&error, FetchError::Store(error) if error.is_full());
    if let FetchError::Corrupt { origins, .. } = &error {
        context.penalties.note(digest, origins);
        if download.was_streamed() {
            context.spoiled.note(digest);
        }
    } else if let Some(partial) = download.partial().cloned()
        && let Err(error) = blocking(move || if full { partial.discard() } else { partial.park() }).await
    {
        tracing::warn!(digest = %digest.short(), error = %chain(&error), "cannot keep the partial blob");
    }
    download.enter(Phase::Failed(error));
}

async fn run(
    context: &Arc<Context>,
    download: &Arc<Download>,
    stages: &mut Stages,
) -> Result<(), FetchError> {
    // An earlier download may have ended between the check of the store and the start of this one.
    if let Some(blob) = context.store.blob(download.digest()).await? {
        download.set_found(blob);
        download.enter(Phase::Done);
        return Ok(());
    }
    let stop = context.stop.clone();
    // A partial blob of a download for peers does not limit this node's own clients.
    let (registry, for_peer) =
        (download.source(0).ok_or(FetchError::Stopping)?.registry, download.hinted_size().is_some());
    let queued = download.enter_queue(&registry);
    let permit = stop.run_until_cancelled(context.upstream.download_permit(&registry, for_peer)).await;
    let _permit = permit.ok_or(FetchError::Stopping)?;
    drop(queued);
    stages.waited();
    let found = runtime::find(context, download).await?;
    if let Some(runtime::Found::Linked(blob)) = found {
        download.set_found(blob);
        download.enter(Phase::Done);
        return Ok(());
    }
    let mut partial = open_partial(context, download).await?;
    if let Some(runtime::Found::File(file)) = found {
        if runtime::copy(context, partial.clone(), file).await? {
            download.set_partial(partial.clone());
            let source = download.source(0).ok_or(FetchError::Stopping)?;
            return land(context, download, partial, source.registry, vec![runtime::ORIGIN.to_owned()]).await;
        }
        drop(partial);
        partial = open_partial(context, download).await?;
    }
    download.set_partial(partial.clone());
    let mut downloader = Downloader::new(context.clone(), download.clone(), partial.clone());
    // A blob that has arrived completely is committed even while the agent stops.
    let filled = stop.run_until_cancelled(fill(context, download, &partial, &mut downloader)).await;
    filled.unwrap_or(Err(FetchError::Stopping))?;
    let (source, origins) = downloader.finish().await?;
    stages.transferred();
    land(context, download, partial, source, origins).await
}

/// Fetches from peers, then from the registry, and from peers again as soon as one of them sends a piece, so that a
/// short failure of the peers does not use up the registry's rate limit. Every turn but the first starts with such a
/// piece, so the loop ends.
async fn fill(
    context: &Arc<Context>,
    download: &Arc<Download>,
    partial: &Arc<Partial>,
    downloader: &mut Downloader,
) -> Result<(), FetchError> {
    // Kept over the turns: peers that answer only now and then must not make the download slower than the registry
    // alone.
    let mut pause = FIRST_PROBE;
    loop {
        let Some(peers) = context.peer_source() else { return downloader.fill().await };
        peers.clone().fill(download, partial).await?;
        tokio::select! {
            outcome = downloader.fill() => match outcome {
                Err(error @ FetchError::NotNow { .. }) => {
                    if !peers.bring_one(download, partial).await {
                        return Err(error);
                    }
                }
                outcome => return outcome,
            },
            () = peers_again(&peers, download, partial, &mut pause) => {}
        }
        tracing::info!(digest = %download.digest().short(), have = partial.total(), "peers answer again: fetching the rest from them");
        downloader.pause();
    }
}

/// Returns when a peer has sent a piece.
async fn peers_again(
    peers: &Arc<dyn PeerSource>,
    download: &Arc<Download>,
    partial: &Arc<Partial>,
    pause: &mut Duration,
) {
    loop {
        tokio::time::sleep(*pause).await;
        *pause = (*pause * 2).min(LONGEST_PROBE);
        if peers.clone().bring_one(download, partial).await {
            return;
        }
    }
}

async fn open_partial(context: &Arc<Context>, download: &Download) -> Result<Arc<Partial>, FetchError> {
    let (store, digest) = (context.store.clone(), *download.digest());
    blocking(move || {
        let partial = store.partial(&digest)?;
        partial.hash_forward()?;
        Ok(Arc::new(partial))
    })
    .await
}

/// Verifies the digest, commits the blob and reports the result to subscribers.
async fn land(
    context: &Arc<Context>,
    download: &Arc<Download>,
    partial: Arc<Partial>,
    source: RegistryHost,
    origins: Vec<String>,
) -> Result<(), FetchError> {
    let checked = partial.clone();
    if let Finish::Mismatch { found } = blocking(move || checked.finish()).await? {
        context.upstream.count_mismatch(&source);
        let kept = context.peer_source().is_some_and(|peers| peers.found_wrong(download, partial.size()));
        blocking(move || if kept { partial.park() } else { partial.discard() }).await?;
        let mismatch = Arc::new(Mismatch { expected: *download.digest(), found });
        return Err(FetchError::Corrupt { registry: source, origins, mismatch });
    }
    if download.sent_wrong_bytes() {
        // The bytes on disk are right, but clients may have received wrong ones.
        blocking(move || partial.park()).await?;
        return Err(FetchError::Changed("wrong bytes from a peer were replaced".to_owned()));
    }
    download.enter(Phase::Verified);
    if let Some(peers) = context.peer_source() {
        peers.found_right(download, &partial).await;
    }
    let room = context.clone();
    let committed = blocking(move || match partial.commit() {
        Err(error) if error.is_full() && room.room.free(partial.total()).unwrap_or(false) => partial.commit(),
        outcome => outcome,
    });
    // After a failed sync the kernel may have dropped bytes that readers still need: they continue with a stream that
    // is not cached.
    committed.await.map(|_| download.enter(Phase::Done))
}
