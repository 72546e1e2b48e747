//! The download engine: delivers content from the store, or with one download per digest, or returns an error with a
//! cause.
//!
//! * [`Fetcher::blob`]: a whole blob of the store, or a blob that is read while it arrives. One download per digest
//!   for any number of readers; it continues when readers leave.
//! * [`Fetcher::manifest`], [`Fetcher::manifest_head`]: complete and verified, or an error. A tag is requested from
//!   the registry once per freshness period; when the registry cannot answer, the last known digest is used, marked
//!   as stale.
//! * [`Fetcher::keep`]: stores a blob that no client reads.
//! * [`Fetcher::listing`]: tag lists and referrers, forwarded.
//!
//! Invariants: content that is returned as complete matches its digest; "not found" is returned only when the
//! registry said so.
//!
//! ```text
//! keep, manifests, tags, peer_tags -> fetcher -> { lifecycle, reader -> { growing, passthrough } }
//! lifecycle -> downloader -> { range_request, schedule } -> context -> state -> caches
//! ```
//! Dependencies point in this direction only: a test checks the sources.

mod belonging;
mod blocking;
mod budget;
mod context;
mod demand;
mod descriptors;
mod downloader;
mod error;
mod expected_hashes;
mod fetcher;
mod growing;
mod growth;
mod hashing;
mod keep;
mod keyed_mutex;
mod lifecycle;
mod manifests;
mod memory;
mod negative_cache;
mod passthrough;
mod peer_requests;
mod peer_tags;
mod penalties;
mod phase;
mod range_request;
mod reader;
mod reading;
mod recheck;
mod refusals;
mod reservation;
mod runtime;
mod schedule;
mod segments;
mod source;
mod spoiled;
mod state;
mod stillness;
mod subscribers;
mod tag_slot;
mod tags;
mod verifying_stream;

pub(crate) use blocking::blocking;
pub use context::Config;
pub use error::FetchError;
pub(crate) use expected_hashes::{Claim, Verdict, is_worth_reading, judge};
pub use fetcher::Fetcher;
pub(crate) use hashing::CatchUp;
pub(crate) use keyed_mutex::KeyedMutex;
pub(crate) use peer_requests::PieceSource;
pub(crate) use phase::Phase;
pub use reader::{Content, ContentReader};
pub(crate) use reader::{Landed, Source};
pub(crate) use reading::Reading;
pub use reservation::MakeRoom;
pub(crate) use segments::ReadError;
pub(crate) use source::PeerSource;
pub(crate) use state::Download;
pub use state::TransferStatus;
pub use stillness::{CHECK, Stillness};
pub(crate) use subscribers::Asked;
pub use tag_slot::ManifestInfo;
