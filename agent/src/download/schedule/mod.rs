//! Decides which bytes the next connection should fetch. Pure: values in, a decision out.
//!
//! A download has range requests, each one connection that fills a span from its start. The first request takes everything. As soon
//! as several make the whole faster, the blob is handed out in strides from its beginning: the requests stay close
//! together, so that hashing and streaming to a client go on beside the transfer instead of after it. Strides get
//! shorter towards the end, where all requests should finish at once. What a waiting reader needs comes before everything
//! A request that is silent or far slower than others is hedged: a second request fetches the rest of its span. The
//! first of the two to receive bytes continues, and the other is aborted ([`superseded`]), so that no byte is read
//! twice.

use std::{ops::Range, time::Duration};

use crate::store::RangeSet;

use crate::limits::download::schedule::{FAR_BEHIND, NEAR, SPLIT_FROM, STRIDE};
pub(super) use crate::limits::download::schedule::{PIECE, SILENT};

/// Why a request is hedged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hedge {
    /// The request receives nothing.
    Silent,
    /// The request is far slower than another one was.
    Slow,
}

/// One request as the schedule sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestView {
    /// Offset of the next byte.
    pub(super) position: u64,
    /// One past the last byte; `u64::MAX` while the size is not known.
    pub(super) end: u64,
    /// For how long the request has waited for the network; zero before the response header.
    pub(super) silent: Duration,
    /// Time since the response header; zero before it.
    pub(super) age: Duration,
    /// Average rate, in bytes per second.
    pub(super) rate: u64,
    /// Another request already fetches the same bytes.
    pub(super) hedged: bool,
}

/// Everything a decision needs.
#[derive(Debug)]
pub(super) struct View<'a> {
    /// The blob's size, once known.
    pub(super) size: Option<u64>,
    /// Bytes that have arrived.
    pub(super) have: &'a RangeSet,
    /// Running requests.
    pub(super) requests: &'a [RequestView],
    /// Ranges that readers wait for, the longest waiting first.
    pub(super) wants: &'a [Range<u64>],
    /// Everything is to be fetched, not only what readers wait for.
    pub(super) whole: bool,
    /// Number of requests that makes the download fastest, as far as known.
    pub(super) target: usize,
    /// Most requests allowed.
    pub(super) most: usize,
    /// Average rate of the request that finished last, in bytes per second.
    pub(super) pace: Option<u64>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Open a request; `cut` names the request that now ends where the new one begins.
    Open {
        /// First byte.
        start: u64,
        /// One past the last byte; `None` means to the end.
        end: Option<u64>,
        /// Index of the request to shorten to `start`.
        cut: Option<usize>,
        /// Index of the request that this one hedges.
        hedges: Option<(usize, Hedge)>,
    },
    /// Wait for an event.
    Wait,
    /// All bytes have arrived.
    Complete,
    /// All requested ranges have arrived; no client needs the rest.
    Satisfied,
}

impl Step {
    fn open(span: Range<u64>) -> Self {
        Self::Open { start: span.start, end: Some(span.end), cut: None, hedges: None }
    }
}

/// Decides; to be called again until it returns something other than `Open`.
pub(super) fn next(view: &View<'_>) -> Step {
    let Some(size) = view.size else {
        let start = view.have.end_from(0);
        return if view.requests.is_empty() {
            Step::Open { start, end: None, cut: None, hedges: None }
        } else {
            Step::Wait
        };
    };
    let missing = view.have.gaps(0..size);
    if missing.is_empty() {
        return Step::Complete;
    }
    let free = free(&missing, view.requests);
    if let Some(step) = for_reader(view, size) {
        return step;
    }
    if !view.whole {
        let waiting = view.wants.iter().any(|want| !view.have.gaps(within(want, size)).is_empty());
        return if waiting || !view.requests.is_empty() { Step::Wait } else { Step::Satisfied };
    }
    if view.requests.len() < view.most
        && let Some(step) = hedge(view)
    {
        return step;
    }
    if view.requests.len() >= view.target.max(1) {
        return Step::Wait;
    }
    let stride = stride(missing.iter().map(|gap| gap.end - gap.start).sum(), view.target);
    match free.into_iter().next() {
        Some(gap) => Step::open(gap.start..stride_end(&gap, stride)),
        None => split(view, stride).unwrap_or(Step::Wait),
    }
}

/// How many bytes a request gets at once: a fair share of the missing ones, within limits.
fn stride(missing: u64, target: usize) -> u64 {
    if target <= 1 {
        return u64::MAX;
    }
    let share = missing / target as u64;
    share.next_multiple_of(PIECE).clamp(STRIDE.0, STRIDE.1)
}

/// Where the first stride of a gap ends; a small remainder is included.
fn stride_end(gap: &Range<u64>, stride: u64) -> u64 {
    let end = gap.start.saturating_add(stride);
    let end = end - end % PIECE;
    if gap.end.saturating_sub(end) < stride / 2 { gap.end } else { end }
}

fn within(want: &Range<u64>, size: u64) -> Range<u64> {
    want.start.min(size)..want.end.min(size)
}

/// Missing bytes that no request fetches.
fn free(missing: &[Range<u64>], requests: &[RequestView]) -> Vec<Range<u64>> {
    let claimed = RangeSet::from_ranges(requests.iter().map(|request| request.position..request.end));
    missing.iter().flat_map(|gap| claimed.gaps(gap.clone())).collect()
}

/// A request for the first reader whose next byte no running request will fetch soon.
fn for_reader(view: &View<'_>, size: u64) -> Option<Step> {
    for want in view.wants {
        let Some(gap) = view.have.gaps(within(want, size)).into_iter().next() else { continue };
        let at = gap.start;
        // The closest request: a hedged request and its hedge fetch the same bytes.
        let requests = view.requests.iter().enumerate();
        let covering = requests
            .filter(|(_, request)| request.position <= at && at < request.end)
            .max_by_key(|(_, request)| request.position);
        let covering = covering.map(|(index, _)| index);
        let cut = match covering {
            Some(request) if at - view.requests[request].position <= NEAR => continue,
            covering => covering,
        };
        // One request beyond the target: a waiting client comes before the best number of connections.
        if view.requests.len() >= view.most.max(view.target + 1) {
            return None;
        }
        let start = (at - at % PIECE).max(cut.map_or(0, |request| view.requests[request].position));
        let start = view.have.end_from(start).min(at);
        let next_request =
            view.requests.iter().map(|request| request.position).filter(|position| *position > at).min();
        let wanted_end = gap.end.div_ceil(PIECE).saturating_mul(PIECE).min(size);
        let end = match cut {
            Some(request) => view.requests[request].end.min(size),
            None => wanted_end.min(next_request.unwrap_or(size)),
        };
        return Some(Step::Open { start, end: Some(end), cut, hedges: None });
    }
    None
}

/// A second request for the rest of a request that receives nothing, or very little.
fn hedge(view: &View<'_>) -> Option<Step> {
    let why = |request: &RequestView| {
        let why = if request.silent >= SILENT { Some(Hedge::Silent) } else { None };
        why.or_else(|| is_far_behind(request, view.pace).then_some(Hedge::Slow))
    };
    let open = |request: &RequestView| !request.hedged && request.end != u64::MAX;
    let mut requests = view.requests.iter().enumerate().filter(|(_, request)| open(request));
    let (at, request, why) = requests.find_map(|(at, request)| Some((at, request, why(request)?)))?;
    Some(Step::Open { start: request.position, end: Some(request.end), cut: None, hedges: Some((at, why)) })
}

/// One of two requests for the same bytes has received some: returns the index of the one to abort. `pairs` holds for
/// each request the index of the request that it hedges; `at` is the request that received bytes.
pub(super) fn superseded(pairs: &[Option<(usize, Hedge)>], at: usize) -> Option<usize> {
    if let Some((hedged, _)) = pairs.get(at).copied().flatten() {
        return Some(hedged);
    }
    // A slow request receives bytes all the time: only bytes of its hedge decide.
    pairs.iter().position(|pair| *pair == Some((at, Hedge::Silent)))
}

fn is_far_behind(request: &RequestView, pace: Option<u64>) -> bool {
    let slow = pace.is_some_and(|pace| request.rate < pace / FAR_BEHIND);
    let left = request.end.saturating_sub(request.position);
    slow && request.age >= SILENT && left / request.rate.max(1) > SILENT.as_secs()
}

/// The next stride of the request that has most left, or its second half.
fn split(view: &View<'_>, stride: u64) -> Option<Step> {
    let (at, request) = view
        .requests
        .iter()
        .enumerate()
        .max_by_key(|(_, request)| request.end.saturating_sub(request.position))?;
    let left = request.end - request.position;
    if left < SPLIT_FROM {
        return None;
    }
    let start = (request.position + stride.min(left / 2)).div_ceil(PIECE) * PIECE;
    Some(Step::Open {
        start,
        end: Some(stride_end(&(start..request.end), stride)),
        cut: Some(at),
        hedges: None,
    })
}

#[cfg(test)]
mod tests;
