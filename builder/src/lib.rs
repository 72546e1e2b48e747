//! Builds reproducible Spark images, and plain ones, without a container engine and without root.
//!
//! # One build
//!
//! ```text
//! hearth.yaml -> spec -> matrix      -> sources (base, Spark) -> runtime -> plan::layers -> layer -> image -> publish
//!                (strict)  (compat)     (cache, by digest)       (our files)                (cache)           (layout, push)
//! ```
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`build`] | the order of the steps; the only file that names every other module |
//! | [`spec`] | `hearth.yaml`: parsing and every check that needs no other input |
//! | [`lock`] | `hearth.lock`: inputs by digest, layers as they were planned |
//! | [`matrix`] | pure: the cells, and which Spark runs with which Java, Scala and Python |
//! | [`plan`] | pure: files to layers |
//! | [`fetch`] | files of servers and object stores: side by side, resumed, with the user's logins |
//! | [`sources`] | reading what images are made of: archives, packages, bases |
//! | [`runtime`], [`plain`] | the files and the environment that hearth itself adds to Spark images; images without Spark |
//! | [`sandbox`], [`trained`] | programs of the image that a build runs, and what they make: bytecode, class data |
//! | [`tree`], [`layer`] | files as an image sees them, and their way into layer blobs |
//! | [`image`] | configurations and manifests in one canonical form |
//! | [`sbom`], [`purl`] | documents about images: SPDX, CycloneDX, provenance; names of packages in them |
//! | [`publish`] | OCI layout and registry |
//! | [`convert`] | finished images of any builder, rewritten as zstd:chunked |
//! | [`platform`], [`version`], [`digest`], [`checksum`], [`coordinate`], [`date`], [`package`] | the words that all of them use |
//! | [`registry`] | names, credentials, tokens, pulls; the only module that knows `oci-client` |
//! | [`cache`] | everything on disk between builds |
//!
//! # Invariants
//!
//! * The same inputs give the same bytes: nothing in a layer depends on the time, the machine, the locale, the
//!   umask, the working directory, the number of threads, or what the cache already had.
//! * No file is ever whole in memory; memory is bounded by the number of threads, not by the image.
//! * Every byte that is read is checked against the digest that named it before anything is published.
//! * A killed build leaves nothing to repair: files are written aside and renamed.

pub mod build;
pub mod cache;
pub mod checksum;
pub mod convert;
pub mod coordinate;
pub mod date;
pub mod fetch;
#[doc(hidden)]
pub mod fuzz;
pub mod image;
pub mod layer;
pub mod lock;
pub mod matrix;
pub mod package;
pub mod plain;
pub mod plan;
pub mod platform;
pub mod progress;
pub mod publish;
pub mod purl;
pub mod registry;
pub mod report;
pub mod retry;
pub mod runtime;
pub mod sandbox;
pub mod sbom;
pub mod sources;
pub mod spec;
pub mod trained;
pub mod tree;
pub mod version;

pub use oci::digest;

/// The word that was probably meant; `None` when none is near.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |known: &str| strsim::damerau_levenshtein(&word.to_lowercase(), &known.to_lowercase());
    let (distance, near) = known.iter().map(|known| (distance(known), *known)).min()?;
    // Half of the letters wrong is no misspelling any more.
    (distance * 2 <= near.len().max(word.len())).then_some(near)
}
