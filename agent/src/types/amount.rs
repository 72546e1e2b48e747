//! Amounts of disk space in the configuration: a size (`200GiB`) or a share of the file system (`50%`).

use std::str::FromStr;

use super::parse_size;

/// Bytes, or a share of a size that is known later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// This many bytes.
    Bytes(u64),
    /// A percentage.
    Percent(u8),
}

impl Amount {
    /// The amount in bytes, for a total of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => share(total, percent),
        }
    }
}

/// A percentage of a number, without overflow.
pub fn share(total: u64, percent: u8) -> u64 {
    let product = u128::from(total) * u128::from(percent) / 100;
    u64::try_from(product).unwrap_or(u64::MAX)
}

/// Reads `80%`: a whole number from 0 to 100.
pub fn parse_percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
    number
        .filter(|number| *number <= 100)
        .ok_or_else(|| format!("`{text}` is not a percentage: write a whole number from 0 to 100 and `%`"))
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.ends_with('%') {
            return parse_percent(text).map(Self::Percent);
        }
        parse_size(text).map(Self::Bytes).map_err(|error| format!("{error}, or `50%` of the file system"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_sizes_or_shares() {
        for (text, amount) in [
            ("0", Amount::Bytes(0)),
            ("10GiB", Amount::Bytes(10 << 30)),
            ("0%", Amount::Percent(0)),
            ("100%", Amount::Percent(100)),
        ] {
            assert_eq!(text.parse(), Ok(amount), "{text}");
        }
        for text in ["", "%", "101%", "-1%", "1.5%", "10GB"] {
            assert!(text.parse::<Amount>().is_err(), "{text}");
        }
        assert_eq!(Amount::Percent(50).of(u64::MAX), u64::MAX / 2);
        assert_eq!(Amount::Bytes(7).of(1), 7);
    }
}
