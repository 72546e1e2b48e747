//! Errors and their causes as text.

use std::{error::Error, fmt::Write as _};

/// An error and all of its causes in one line, for logs and messages.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}

/// The innermost cause, for example the error of the operating system.
#[must_use]
pub fn root_cause(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(next) = innermost.source() {
        innermost = next;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read `{0}`")]
    struct Outer(&'static str, #[source] Middle);

    #[derive(Debug, thiserror::Error)]
    #[error("the disk is away")]
    struct Middle(#[source] std::io::Error);

    #[test]
    fn every_cause_is_named() {
        let error = Outer("a", Middle(std::io::Error::other("unplugged")));
        assert_eq!(chain(&error), "cannot read `a`: the disk is away: unplugged");
        assert_eq!(root_cause(&error), "unplugged");
    }
}
