//! Pulls one complete image into the store: resolves the tag, then fetches the index, the manifests of the
//! wanted platforms, their configurations and layers. Content in the store costs nothing; downloads are shared
//! with other nodes.
//!
//! Before every step that needs a registry the rate limit is checked, and before requests that registries count also with the other
//! nodes: when only the reserve is left, the task ends with the reason `RateLimited` and starts again later.

use std::{fmt::Write as _, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::Instant;

use super::{
    load::Loader,
    platform::{Chosen, choose},
    progress::Progress,
    queue::PullTask,
};
use crate::{
    access::{Access, Client, Content},
    download::{FetchError, Fetcher},
    types::{
        ByteRange, Descriptor, Digest, ManifestLinks, Platform, RangeHeader, Reference, Repository, Role,
        format_size,
    },
    upstream::{Upstream, UpstreamError},
    verify::{Urgency, Verifier},
};

/// Most blobs of one image at once, as in container runtimes.
const BLOBS_AT_ONCE: usize = 3;

/// Deepest nesting of indexes.
const MAX_DEPTH: u32 = 3;

/// The smallest range that a bandwidth-limited download requests.
const LEAST_SLICE: u64 = 1 << 20;

/// Longest wait for the rate limit before the next check.
const LONGEST_WAIT: Duration = Duration::from_mins(15);

/// A pulled image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pulled {
    /// The digest that the tag resolves to.
    pub(super) digest: Digest,
    /// Bytes of configurations and layers.
    pub(super) bytes: u64,
}

/// Why an image could not be pulled: a reason for programs and a message for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
}

impl Problem {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after: None }
    }

    /// Whether the problem is a failure; a spent rate limit is not.
    pub(super) fn counts(&self) -> bool {
        self.reason != RATE_LIMITED
    }
}

const RATE_LIMITED: &str = "RateLimited";

impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(next) = cause {
            let _ = write!(message, ": {next}");
            cause = next.source();
        }
        let (reason, retry_after) = match error {
            FetchError::NotFound(_) => ("NotFound", None),
            FetchError::Denied(_) | FetchError::Unauthorized(_) => ("Denied", None),
            FetchError::Unsigned(_) => ("NotSigned", None),
            FetchError::NotNow { retry_after, .. } => ("NotAvailable", retry_after),
            FetchError::Reserved { wait, .. } => (RATE_LIMITED, Some(wait.min(LONGEST_WAIT))),
            FetchError::Corrupt { .. } => ("WrongBytes", None),
            FetchError::Unsupported { .. } => ("Unsupported", None),
            FetchError::Store(_) | FetchError::Disk(_) => ("StoreFailed", None),
            FetchError::Changed(_) | FetchError::Parked => ("Interrupted", None),
            FetchError::Stopping => ("Stopping", None),
        };
        Self { reason, message, retry_after }
    }
}

/// What must allow content before it is fetched: the same as for a client.
#[derive(Clone, Copy)]
pub(super) struct Checks<'a> {
    pub(super) access: &'a Access,
    pub(super) verifier: &'a Verifier,
}

impl Checks<'_> {
    async fn manifest(self, repository: &Repository, digest: &Digest) -> Result<(), FetchError> {
        self.access.check(repository, digest, Content::Manifest, &Client::Anyone).await?;
        self.verifier.manifest(repository, digest, &Client::Anyone, Urgency::InTurn).await
    }

    async fn blob(self, repository: &Repository, digest: &Digest) -> Result<(), FetchError> {
        self.access.check(repository, digest, Content::Blob, &Client::Anyone).await?;
        self.verifier.blob(repository, digest).await
    }
}

/// Runs a task.
pub(super) async fn pull(
    fetcher: &Fetcher,
    upstream: &Upstream,
    checks: Checks<'_>,
    loader: &Loader,
    task: &PullTask,
) -> Result<Pulled, Problem> {
    let repository = &task.image.repository;
    if !fetcher.serves(repository) {
        let message = format!("`{}` is not one of the agent's `registries`", repository.registry);
        return Err(Problem::new("NotServed", message));
    }
    if task.public.is_some() {
        fetcher.within_budget(repository)?;
        check_public(upstream, task).await?;
    }
    let digest = match &task.reference {
        Reference::Digest(digest) => *digest,
        Reference::Tag(tag) => fetcher.digest_in_turn(repository, tag).await?,
    };
    let here = [Platform::here()];
    let platforms = if task.platforms.is_empty() { &here[..] } else { &task.platforms };
    let contents = manifests(fetcher, checks, repository, digest, platforms).await?;
    if matches!(task.reference, Reference::Tag(_)) {
        // Now that the manifest is here, the tag is recorded for clients.
        fetcher.manifest_head(repository, &task.reference).await?;
    }
    for blob in &contents.blobs {
        task.progress.needs(blob.digest, blob.size);
    }
    within_limit(task)?;
    let pace = task.bandwidth.map(Pace::new);
    let bring = |blob: Descriptor| bring(fetcher, checks, repository, blob, pace.as_ref(), &task.progress);
    stream::iter(contents.blobs).map(bring).buffer_unordered(BLOBS_AT_ONCE).try_collect::<()>().await?;
    if let Some(problem) = contents.lacking {
        return Err(problem);
    }
    if task.runtime {
        loader.load(&task.image).await?;
    }
    Ok(Pulled { digest, bytes: task.progress.total() })
}

/// Images of applications must be public: an application that names an image must not get with the agent's
/// credentials what its own namespace could not pull.
async fn check_public(upstream: &Upstream, task: &PullTask) -> Result<(), Problem> {
    match upstream.check_public(&task.image.repository, &task.reference).await {
        Err(UpstreamError::Denied { .. }) => {
            let message = "it is not public, and images of applications are pre-pulled without credentials: name it in an \
                           ImageSet with `pullSecrets` for that";
            Err(Problem::new("Denied", message))
        }
        checked => checked.map_err(|error| FetchError::from(error).into()),
    }
}

fn within_limit(task: &PullTask) -> Result<(), Problem> {
    let total = task.progress.total();
    match task.public {
        Some(limit) if total > limit => {
            let message = format!(
                "it needs {}, and applications of its namespace may bring {} more to this node (`kubernetes.sparkBytes`)",
                format_size(total),
                format_size(limit)
            );
            Err(Problem::new("OverLimit", message))
        }
        _ => Ok(()),
    }
}

/// The parts of an image that are needed.
#[derive(Default)]
struct Contents {
    blobs: Vec<Descriptor>,
    /// Platforms that the image lacks: reported at the end, when the others are complete.
    lacking: Option<Problem>,
}

async fn manifests(
    fetcher: &Fetcher,
    checks: Checks<'_>,
    repository: &Repository,
    root: Digest,
    platforms: &[Platform],
) -> Result<Contents, Problem> {
    let mut contents = Contents::default();
    let mut open = vec![(root, MAX_DEPTH)];
    while let Some((digest, depth)) = open.pop() {
        if !fetcher.has(&digest).await {
            fetcher.turn(repository, &Reference::Digest(digest)).await?;
        }
        checks.manifest(repository, &digest).await?;
        let (_, bytes) = fetcher.manifest(repository, &Reference::Digest(digest)).await?;
        match choose(&bytes, platforms) {
            Chosen::Index { manifests, missing, offered } if depth > 0 => {
                if !missing.is_empty() {
                    contents.lacking = Some(lacking(&missing, &offered));
                }
                open.extend(manifests.into_iter().map(|digest| (digest, depth - 1)));
            }
            Chosen::Index { .. } => {
                return Err(Problem::new("Unsupported", "indexes within indexes go too deep"));
            }
            Chosen::Image => {
                let links = ManifestLinks::parse(&bytes)
                    .map_err(|error| Problem::new("Unsupported", format!("`{digest}`: {error}")))?;
                for blob in links.descriptors {
                    // Registries do not have to store foreign layers.
                    let wanted = matches!(blob.role, Role::Config | Role::Layer);
                    if wanted && !contents.blobs.iter().any(|known| known.digest == blob.digest) {
                        contents.blobs.push(blob);
                    }
                }
            }
        }
    }
    Ok(contents)
}

fn lacking(missing: &[Platform], offered: &[Platform]) -> Problem {
    let list = |platforms: &[Platform]| {
        platforms.iter().map(|platform| format!("`{platform}`")).collect::<Vec<_>>().join(", ")
    };
    let message = format!("the image has no manifest for {}, only for {}", list(missing), list(offered));
    Problem::new("PlatformMissing", message)
}

async fn bring(
    fetcher: &Fetcher,
    checks: Checks<'_>,
    repository: &Repository,
    blob: Descriptor,
    pace: Option<&Pace>,
    progress: &Progress,
) -> Result<(), Problem> {
    checks.blob(repository, &blob.digest).await?;
    if !fetcher.has(&blob.digest).await {
        fetcher.within_budget(repository)?;
        if let Some(pace) = pace {
            bring_slowly(fetcher, repository, &blob, pace, progress).await?;
        }
    }
    fetcher.keep(repository, &blob.digest).await?;
    progress.came(&blob.digest);
    Ok(())
}

/// Requests one slice after the other, each when it is due; the caller fetches the rest.
async fn bring_slowly(
    fetcher: &Fetcher,
    repository: &Repository,
    blob: &Descriptor,
    pace: &Pace,
    progress: &Progress,
) -> Result<(), Problem> {
    let mut first = 0;
    while first < blob.size {
        let last = first.saturating_add(pace.slice()).min(blob.size) - 1;
        tokio::time::sleep_until(pace.due(last + 1 - first, Instant::now())).await;
        let range = RangeHeader::One(ByteRange::From { first, last: Some(last) });
        let content = fetcher.blob(repository, &blob.digest, range).await?;
        let mut reader = content.read(first..last + 1);
        while reader.next().await?.is_some() {}
        first = last + 1;
        progress.reached(&blob.digest, first);
    }
    Ok(())
}

/// The rate of one image, which all its blobs share: one that comes alone has all of it.
#[derive(Debug)]
struct Pace {
    rate: u64,
    /// When the next slice may be requested.
    next: parking_lot::Mutex<Option<Instant>>,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), next: parking_lot::Mutex::new(None) }
    }

    /// Bytes of a slice: what may arrive in a third of a second.
    fn slice(&self) -> u64 {
        (self.rate / 3).max(LEAST_SLICE)
    }

    /// When to request so many bytes. Unused time is not made up for.
    fn due(&self, bytes: u64, now: Instant) -> Instant {
        let mut next = self.next.lock();
        let at = next.map_or(now, |next| next.max(now));
        #[expect(clippy::cast_precision_loss, reason = "slices are far below 2^52 bytes")]
        let taken = Duration::try_from_secs_f64(bytes as f64 / self.rate as f64).unwrap_or(LONGEST_WAIT);
        *next = Some(at + taken);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_that_comes_alone_has_the_whole_rate_and_several_share_it() {
        let (pace, start) = (Pace::new(6 << 20), Instant::now());
        assert_eq!(pace.slice(), 2 << 20);
        let third = Duration::from_secs(1) / 3;
        let at = |due: Instant| (due.duration_since(start) + Duration::from_micros(500)).as_millis();
        // Six slices of 2 MiB in two seconds, for one blob or several.
        let due: Vec<_> = (0..6).map(|_| at(pace.due(pace.slice(), start))).collect();
        assert_eq!(due, [0, 333, 667, 1000, 1333, 1667]);
        let later = start + Duration::from_secs(10);
        assert_eq!(at(pace.due(pace.slice(), later)), 10_000);
        assert_eq!(pace.due(1, later), later + third);
        assert_eq!(Pace::new(1).slice(), LEAST_SLICE);
    }
}
