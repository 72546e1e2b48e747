//! Reads the file of a specification.

use std::path::Path;

pub use super::check::parse;
use super::{Matrix, SpecError};

/// A specification is a page of text; anything larger is a mistake.
const LIMIT: u64 = 1 << 20;

/// Reads and checks a specification file; `tag` replaces the one in it.
pub fn load(path: &Path, tag: Option<&str>) -> Result<Matrix, SpecError> {
    let fail = |source| SpecError::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(fail)?.len();
    if length > LIMIT {
        let text = format!("{length} bytes are more than the {LIMIT} a specification may have");
        return Err(fail(std::io::Error::new(std::io::ErrorKind::FileTooLarge, text)));
    }
    parse(path, &std::fs::read_to_string(path).map_err(fail)?, tag)
}
