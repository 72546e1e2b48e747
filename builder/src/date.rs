//! Dates as JSON documents spell them.

use jiff::Timestamp;

/// Seconds since 1970 as `2026-11-21T10:00:00Z`. Later than the year 9999 there is no such form: the last moment with one.
pub fn rfc3339(seconds: u64) -> String {
    let moment = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    moment.unwrap_or(Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::FIXED_TIME;

    #[test]
    fn times_are_written_as_registries_expect_them() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (FIXED_TIME, "1980-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_255_199, "2026-11-21T09:59:59Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (u64::MAX, &Timestamp::MAX.to_string()),
        ] {
            assert_eq!(rfc3339(seconds), expected);
        }
    }
}
