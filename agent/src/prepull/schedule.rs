//! When a set checks for changed tags: cron expressions of five fields and the usual short names, in a time
//! zone. Pure.
//!
//! The syntax is that of Kubernetes CronJobs: lists, ranges, steps and English names; when both the day of the
//! month and the day of the week are restricted, either is enough. A time that a clock change skips fires right
//! after it, and a repeated time fires once.

use std::{fmt, str::FromStr};

use jiff::{
    Timestamp, ToSpan as _,
    civil::{Date, DateTime, Time},
    tz::TimeZone,
};

/// Years that are searched: the 29th of February comes every eighth year at worst.
const HORIZON_YEARS: i64 = 8;

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Why a text is not a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not a cron expression.
    #[error(
        "`{0}` is not a schedule: {1}; write five fields (minute, hour, day, month, weekday), for example `0 3 * * *`"
    )]
    Cron(String, String),
    /// No such zone.
    #[error("`{0}` is not a time zone: write a name such as `Europe/Berlin` or `UTC`")]
    Zone(String),
}

/// A cron expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    text: String,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    any_day: bool,
    any_weekday: bool,
}

/// A cron expression in a time zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

impl Schedule {
    /// A schedule in a time zone of the time zone database; UTC without one.
    pub fn new(cron: &str, zone: Option<&str>) -> Result<Self, ScheduleError> {
        let zone = match zone {
            None => TimeZone::UTC,
            Some(name) => {
                TimeZone::get(name).map_err(|_| ScheduleError::Zone(name.chars().take(60).collect()))?
            }
        };
        Ok(Self { cron: cron.parse()?, zone })
    }

    /// The first time after `after`; `None` when there is none (the 30th of February).
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let local = after.to_zoned(self.zone.clone()).datetime();
        let mut from = local.with().second(0).subsec_nanosecond(0).build().ok()?;
        let horizon = from.checked_add(HORIZON_YEARS.years()).ok()?;
        loop {
            from = self.cron.next_civil(from.checked_add(1.minute()).ok()?, horizon)?;
            let at = self.zone.to_ambiguous_timestamp(from).compatible().ok()?;
            // A repeated hour maps back before `after`.
            if at > after {
                return Some(at);
            }
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zone = self.zone.iana_name().unwrap_or("UTC");
        write!(f, "{} ({zone})", self.cron.text)
    }
}

impl Cron {
    /// The first minute at or after `from` that matches, before `horizon`.
    fn next_civil(&self, from: DateTime, horizon: DateTime) -> Option<DateTime> {
        let mut at = from;
        while at < horizon {
            if !has(self.months, at.month()) {
                at = midnight(at.date().first_of_month().checked_add(1.month()).ok()?);
            } else if !self.day_matches(at.date()) {
                at = midnight(at.date().tomorrow().ok()?);
            } else if !has(self.hours, at.hour()) {
                at = at.with().minute(0).build().ok()?.checked_add(1.hour()).ok()?;
            } else if !has(self.minutes, at.minute()) {
                at = at.checked_add(1.minute()).ok()?;
            } else {
                return Some(at);
            }
        }
        None
    }

    fn day_matches(&self, date: Date) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        match (self.any_day, self.any_weekday) {
            (false, false) => day || weekday,
            _ => day && weekday,
        }
    }
}

fn midnight(date: Date) -> DateTime {
    date.to_datetime(Time::midnight())
}

fn has(set: u64, number: i8) -> bool {
    u32::try_from(number).is_ok_and(|number| set & (1 << number) != 0)
}

impl FromStr for Cron {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let wrong = |reason: String| ScheduleError::Cron(text.chars().take(100).collect(), reason);
        let fields = match text.trim() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            other => other,
        };
        let fields: Vec<_> = fields.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(wrong(format!("it has {} fields", fields.len())));
        };
        let weekdays = field(weekday, 0, 7, WEEKDAYS).map_err(wrong)?;
        Ok(Self {
            text: text.trim().to_owned(),
            minutes: field(minute, 0, 59, &[]).map_err(wrong)?,
            hours: field(hour, 0, 23, &[]).map_err(wrong)?,
            days: field(day, 1, 31, &[]).map_err(wrong)?,
            months: field(month, 1, 12, MONTHS).map_err(wrong)?,
            // Sunday is 0 and 7.
            weekdays: if weekdays & (1 << 7) != 0 { weekdays | 1 } else { weekdays },
            any_day: day.starts_with(['*', '?']),
            any_weekday: weekday.starts_with(['*', '?']),
        })
    }
}

/// One field as a set of bits.
fn field(text: &str, least: u32, most: u32, names: &[&str]) -> Result<u64, String> {
    let number = |part: &str| -> Result<u32, String> {
        let named = names.iter().position(|name| part.eq_ignore_ascii_case(name));
        let named = named.and_then(|at| u32::try_from(at).ok()).map(|at| at + least.min(1));
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let number = named.or_else(|| if digits { part.parse().ok() } else { None });
        number
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| format!("`{part}` is not between {least} and {most}"))
    };
    let mut set = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                let step = step.parse::<u32>().ok().filter(|step| *step > 0);
                (range, Some(step.ok_or_else(|| format!("`{part}` has no usable step"))?))
            }
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (least, most),
            Some((first, last)) => (number(first)?, number(last)?),
            // `5/15` runs up to the greatest value.
            None => (number(range)?, if step.is_some() { most } else { number(range)? }),
        };
        if first > last {
            return Err(format!("`{range}` runs backwards"));
        }
        for at in (first..=last).step_by(step.unwrap_or(1) as usize) {
            set |= 1_u64 << at;
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(cron: &str, zone: &str, after: &str) -> Option<String> {
        let schedule = Schedule::new(cron, Some(zone)).unwrap();
        schedule.next(after.parse().unwrap()).map(|at| at.to_string())
    }

    #[test]
    fn the_next_time_is_that_of_the_expression_in_its_zone() {
        for (cron, zone, after, expected) in [
            ("0 3 * * *", "UTC", "2026-11-21T02:59:59Z", "2026-11-21T03:00:00Z"),
            ("0 3 * * *", "UTC", "2026-11-21T03:00:00Z", "2026-11-22T03:00:00Z"),
            ("0 3 * * *", "Europe/Berlin", "2026-11-21T00:00:00Z", "2026-11-21T02:00:00Z"),
            ("0 3 * * *", "Europe/Berlin", "2026-07-01T00:00:00Z", "2026-07-01T01:00:00Z"),
            ("*/15 * * * *", "UTC", "2026-11-21T10:07:00Z", "2026-11-21T10:15:00Z"),
            ("5/20 * * * *", "UTC", "2026-11-21T10:26:00Z", "2026-11-21T10:45:00Z"),
            ("0 22 * * 1-5", "UTC", "2026-11-20T22:00:00Z", "2026-11-23T22:00:00Z"),
            ("0 0 13 * fri", "UTC", "2026-11-21T00:00:00Z", "2026-11-27T00:00:00Z"),
            ("0 0 * * 7", "UTC", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"),
            ("0 0 29 2 *", "UTC", "2026-11-21T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("30 1,13 1 JAN,jul ?", "UTC", "2026-11-21T00:00:00Z", "2027-01-01T01:30:00Z"),
            ("@weekly", "UTC", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"),
            // The clock jumps from 2:00 to 3:00: what was due at 2:30 comes at 3:30 local time.
            ("30 2 * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", "2026-03-29T01:30:00Z"),
            // It jumps back from 3:00 to 2:00: once, not twice.
            ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:29:00Z", "2026-10-25T00:30:00Z"),
            ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
        ] {
            assert_eq!(next(cron, zone, after).as_deref(), Some(expected), "{cron} {zone} {after}");
        }
        assert_eq!(next("0 0 30 2 *", "UTC", "2026-11-21T00:00:00Z"), None);
    }

    #[test]
    fn an_invalid_schedule_is_rejected_with_the_reason() {
        for (cron, reason) in [
            ("", "it has 0 fields"),
            ("* * * *", "it has 4 fields"),
            ("0 0 3 * * *", "it has 6 fields"),
            ("60 * * * *", "`60` is not between 0 and 59"),
            ("* * 0 * *", "`0` is not between 1 and 31"),
            ("5-1 * * * *", "`5-1` runs backwards"),
            ("*/0 * * * *", "`*/0` has no usable step"),
            ("+1 * * * *", "`+1` is not between"),
            ("* * * foo *", "`foo` is not between 1 and 12"),
            ("@reboot", "it has 1 fields"),
        ] {
            let message = Schedule::new(cron, None).unwrap_err().to_string();
            assert!(message.contains(reason), "{cron}: {message}");
        }
        assert!(
            Schedule::new("@daily", Some("Mars/Olympus"))
                .unwrap_err()
                .to_string()
                .contains("not a time zone")
        );
    }
}
