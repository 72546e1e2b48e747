//! The wait that a registry asks for.

use std::time::{Duration, SystemTime};

/// The wait in a 429 or 503: `Retry-After` in seconds or as a date (RFC 9110, 10.2.3), else a wait in the message, as one
/// large registry writes it: `retry-after: 985.86µs, allowed: 44000/minute`.
pub fn retry_after(header: Option<&str>, message: &str, now: SystemTime) -> Option<Duration> {
    header.and_then(|value| of_header(value.trim(), now)).or_else(|| of_message(message))
}

fn of_header(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    // A date in the past: no wait.
    httpdate::parse_http_date(value).ok().map(|date| date.duration_since(now).unwrap_or_default())
}

fn of_message(message: &str) -> Option<Duration> {
    let rest = message.split("retry-after:").nth(1)?.trim_start();
    let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let number: f64 = rest[..digits].parse().ok()?;
    let unit: String = rest[digits..].chars().take_while(|c| c.is_alphabetic()).collect();
    let seconds = match unit.as_str() {
        "ns" => 1e-9,
        "µs" | "μs" | "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_in_every_form() {
        let now = httpdate::parse_http_date("Sat, 21 Nov 2026 10:00:00 GMT").unwrap();
        let table = [
            (Some("60"), "", Some(Duration::from_mins(1))),
            (Some(" 0 "), "", Some(Duration::ZERO)),
            (Some("Sat, 21 Nov 2026 10:00:30 GMT"), "", Some(Duration::from_secs(30))),
            (Some("Sat, 21 Nov 2026 09:00:00 GMT"), "", Some(Duration::ZERO)),
            (Some("soon"), "", None),
            (None, "retry-after: 985.86µs, allowed: 44000/minute", Some(Duration::from_nanos(985_860))),
            (None, "retry-after: 12ms, allowed", Some(Duration::from_millis(12))),
            (None, "retry-after: 1.5s", Some(Duration::from_millis(1_500))),
            (None, "retry-after: lots", None),
            (None, "You have reached your pull rate limit", None),
            (Some("7"), "retry-after: 12ms", Some(Duration::from_secs(7))),
        ];
        for (header, message, expected) in table {
            assert_eq!(retry_after(header, message, now), expected, "{header:?} {message:?}");
        }
    }
}
