//! Version numbers as the axes of a matrix give them.

use std::{cmp::Ordering, fmt, str::FromStr};

/// A dotted version such as `3.5.9` or `17`, compared number by number, with the suffix of a vendor such as `-amzn-1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    numbers: Vec<u32>,
    /// Everything from the first hyphen on; empty for most.
    suffix: String,
}

/// A text that is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a version: expected numbers with dots between them and perhaps a vendor's suffix, such as `3.5.9` or `3.5.1-amzn-1`"
)]
pub struct ParseVersionError(String);

impl Version {
    /// The number at a position; what is not written is zero.
    pub fn number(&self, at: usize) -> u32 {
        self.numbers.get(at).copied().unwrap_or(0)
    }

    /// How many numbers are written.
    pub fn depth(&self) -> usize {
        self.numbers.len()
    }

    /// The suffix of a vendor with its hyphen, or nothing.
    pub fn suffix(&self) -> &str {
        &self.suffix
    }

    /// Compares as many numbers as `other` has: 3.5.9 is equal to 3.5 and greater than 3.4. Suffixes do not matter.
    pub fn compare(&self, other: &Self) -> Ordering {
        let numbers = (0..other.depth()).map(|at| self.number(at).cmp(&other.number(at)));
        numbers.fold(Ordering::Equal, Ordering::then)
    }

    /// The first two numbers: a line of releases.
    pub fn line(&self) -> (u32, u32) {
        (self.number(0), self.number(1))
    }
}

impl FromStr for Version {
    type Err = ParseVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            let canonical = digits && (part == "0" || !part.starts_with('0'));
            if canonical { part.parse().ok() } else { None }
        };
        let wrong = || ParseVersionError(text.to_owned());
        let (dotted, suffix) = text.split_at(text.find('-').unwrap_or(text.len()));
        // The suffix becomes a part of tags, paths and URLs. A snapshot is another Spark tomorrow.
        let sound = suffix.is_empty()
            || (suffix.ends_with(|c: char| c.is_ascii_alphanumeric())
                && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
                && !suffix.contains("..")
                && !suffix.to_ascii_uppercase().contains("SNAPSHOT"));
        let numbers: Option<Vec<u32>> = dotted.split('.').map(number).collect();
        let numbers = numbers.filter(|_| sound).ok_or_else(wrong)?;
        Ok(Self { numbers, suffix: suffix.to_owned() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.numbers.iter().map(u32::to_string).collect();
        write!(f, "{}{}", parts.join("."), self.suffix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(version("3.10") > version("3.9"));
        assert!(version("3.5.9") < version("3.5.10"));
        assert_eq!(version("3.5.9").line(), (3, 5));
        assert_eq!(version("17").line(), (17, 0));
        assert_eq!(version("3.5.9").to_string(), "3.5.9");
    }

    #[test]
    fn a_vendor_may_have_a_suffix() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        let vendor = version("3.5.1-amzn-1");
        assert_eq!((vendor.depth(), vendor.line(), vendor.suffix()), (3, (3, 5), "-amzn-1"));
        assert_eq!(vendor.to_string(), "3.5.1-amzn-1");
        assert_eq!(vendor.compare(&version("3.5.1")), Ordering::Equal);
        assert_ne!(vendor, version("3.5.1"));
        assert_eq!(version("3.3.2.3.3.7190.0-91").to_string(), "3.3.2.3.3.7190.0-91");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "3.5.1-",
            "3.5.1-a/b",
            "3.5.1-a b",
            "3.5.1-x..y",
            "-amzn",
            "",
            ".",
            "3.",
            "v3",
            "3.5.9-SNAPSHOT",
            "3..5",
            " 3",
            "+3",
            "03",
            "99999999999",
        ] {
            assert!(text.parse::<Version>().is_err(), "{text:?}");
        }
    }
}
