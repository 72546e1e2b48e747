//! Numbers that differ by node and stay the same on each, so that thousands of agents do not act at the same
//! time. Pure.

use std::time::Duration;

use crate::types::Digest;

/// From 0 to just below 1, derived from a text.
pub(crate) fn fraction(text: &str) -> f64 {
    let digest = Digest::of(text.as_bytes());
    let first = digest.as_bytes().iter().take(4).fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    f64::from(first) / (f64::from(u32::MAX) + 1.0)
}

/// Twelve hexadecimal digits, derived from a text.
pub(crate) fn hex_name(text: &str) -> String {
    Digest::of(text.as_bytes()).hex().chars().take(12).collect()
}

/// A span up to a tenth shorter or longer, by a fraction.
pub(crate) fn around(span: Duration, fraction: f64) -> Duration {
    span.mul_f64(0.9 + 0.2 * fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_map_to_the_whole_range() {
        let fractions: Vec<_> = (0..1_000).map(|n| fraction(&format!("node-{n}"))).collect();
        assert!(fractions.iter().all(|fraction| (0.0..1.0).contains(fraction)));
        let below = fractions.iter().filter(|fraction| **fraction < 0.5).count();
        assert!((430..570).contains(&below), "{below}");
        assert_eq!(fraction("node-1").to_bits(), fraction("node-1").to_bits());
        let spans = [around(Duration::from_secs(100), 0.0), around(Duration::from_secs(100), 1.0)];
        assert_eq!(spans.map(|span| span.as_millis()), [90_000, 110_000]);
    }
}
