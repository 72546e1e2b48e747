//! What is wrong with a configuration: where, which key, and what to write instead.

use std::fmt;

use serde_saphyr::Location;

/// A wrong configuration.
#[derive(Debug, thiserror::Error)]
#[error("{origin}{}: {problem}", At(*line, *column))]
pub struct ConfigError {
    /// File, environment variable or flag.
    pub origin: String,
    /// Line in the file, from 1; 0 when there is none.
    pub line: u64,
    /// Column in the file, from 1; 0 when there is none.
    pub column: u64,
    /// Key and problem.
    pub problem: String,
}

struct At(u64, u64);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, ":{}:{}", self.0, self.1) }
    }
}

impl ConfigError {
    pub(super) fn new(origin: &str, location: Option<Location>, problem: impl Into<String>) -> Self {
        let (line, column) = location.map_or((0, 0), |location| (location.line(), location.column()));
        Self { origin: origin.to_owned(), line, column, problem: problem.into() }
    }
}

/// The closest of some words to a misspelt one, when it is close enough to be meant.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(&word.to_lowercase(), &known.to_lowercase()), known));
    scored
        .filter(|(distance, known)| *distance <= known.len().max(3) / 3 + 1)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}
