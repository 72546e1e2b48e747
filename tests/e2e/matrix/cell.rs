//! One cell of the table: how a scenario ends, in what time, and what it costs the registry.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Error, Result};

/// The limits that a cell can name, in seconds. They are wide: a slow machine is no change of behaviour.
const CLASSES: [u64; 3] = [60, 120, 240];

/// What is measured is taken times this for the limit that is written down.
const MARGIN: u32 = 3;

/// The outcome in which a client got everything.
const PULLED: &str = "pulled";

/// Between outcomes.
const OR: &str = " or ";

/// From the least to the most that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    least: u64,
    most: u64,
}

impl Span {
    const fn exactly(number: u64) -> Self {
        Self { least: number, most: number }
    }

    const fn contains(self, other: Self) -> bool {
        self.least <= other.least && other.most <= self.most
    }

    fn both(self, other: Self) -> Self {
        Self { least: self.least.min(other.least), most: self.most.max(other.most) }
    }

    /// From nothing to twice as much, in tens.
    const fn loosened(self) -> Self {
        Self { least: 0, most: (2 * self.most).next_multiple_of(10) }
    }

    fn parse(text: &str) -> Result<Self> {
        let (least, most) = text.split_once('–').unwrap_or((text, text));
        let number = |text: &str| text.parse().with_context(|| format!("`{text}` is no number"));
        Ok(Self { least: number(least)?, most: number(most)? })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, most } = self;
        if least == most { write!(f, "{least}") } else { write!(f, "{least}–{most}") }
    }
}

/// What a registry was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    requests: Span,
    /// Of bodies, in thousands of bytes.
    kilobytes: Span,
}

impl Load {
    /// What was measured once.
    pub const fn new(requests: u64, bytes: u64) -> Self {
        Self { requests: Span::exactly(requests), kilobytes: Span::exactly(bytes.div_ceil(1000)) }
    }

    const fn contains(self, other: Self) -> bool {
        self.requests.contains(other.requests) && self.kilobytes.contains(other.kilobytes)
    }

    /// Wide enough for `seen` too, which is not widened where it lies within already. Where it does not, chance has a part
    /// in it, and the next run may go beyond either.
    fn widened(self, seen: Self, chance: Option<Chance>, complete: bool) -> Self {
        let loose = chance.map_or_else(
            || Self { requests: seen.requests.loosened(), kilobytes: seen.kilobytes.loosened() },
            |chance| seen.loosened(chance, complete),
        );
        let widened =
            |old: Span, seen: Span, loose: Span| if old.contains(seen) { old } else { old.both(loose) };
        Self {
            requests: widened(self.requests, seen.requests, loose.requests),
            kilobytes: widened(self.kilobytes, seen.kilobytes, loose.kilobytes),
        }
    }

    /// Bytes that are those of the whole image, give or take the manifests, stay. Others become three whole images where
    /// layers are tried again, or twice as much as was seen. What is not `complete` may have failed after any byte.
    fn loosened(self, chance: Chance, complete: bool) -> Self {
        let (whole, most) = (chance.whole.div_ceil(1000), self.kilobytes.most);
        let kilobytes = if complete && (whole..=whole + 2).contains(&most) {
            Span { least: whole, most: whole + 2 }
        } else if chance.layers {
            Span { least: 0, most: (3 * whole).max((2 * most).next_multiple_of(whole.max(1))) }
        } else {
            self.kilobytes.loosened()
        };
        Self { requests: self.requests.loosened(), kilobytes }
    }

    fn parse(text: &str) -> Result<Self> {
        let (requests, bytes) = text.split_once(" requests, ").context("`requests` is missing")?;
        let kilobytes = Span::parse(bytes.strip_suffix(" kB").context("`kB` is missing")?)?;
        Ok(Self { requests: Span::parse(requests)?, kilobytes })
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests, {} kB", self.requests, self.kilobytes)
    }
}

/// How far chance has a part in a scenario, in which something is tried as often as time allows.
#[derive(Clone, Copy, Debug)]
pub struct Chance {
    /// Bytes of the configuration and the layers.
    pub whole: u64,
    /// Whether layers are tried, and not manifests alone.
    pub layers: bool,
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// How it ends, in a word or a few. Where chance decides: one or the other.
    outcome: String,
    /// Limit of the time in seconds.
    limit: u64,
    /// Of the registry behind the agent, where the scenario has one.
    upstream: Option<Load>,
    /// Of the registry that the client falls back to, when it was asked.
    direct: Option<Load>,
}

impl Cell {
    /// What was seen once.
    pub fn new(outcome: &str, took: Duration) -> Self {
        let limit = CLASSES.into_iter().find(|limit| took * MARGIN < Duration::from_secs(*limit));
        let limit = limit.unwrap_or_else(|| took.as_secs().next_multiple_of(CLASSES[CLASSES.len() - 1]));
        Self { outcome: outcome.to_owned(), limit, upstream: None, direct: None }
    }

    /// With what the registry behind the agent was asked.
    #[must_use]
    pub fn upstream(self, load: Load) -> Self {
        Self { upstream: Some(load), ..self }
    }

    /// With what the registry that the client falls back to was asked.
    #[must_use]
    pub fn direct(self, load: Load) -> Self {
        Self { direct: (load != Load::new(0, 0)).then_some(load), ..self }
    }

    /// Where the client knows no registry but the one behind the agent.
    #[must_use]
    pub fn without_direct(self) -> Self {
        Self { direct: None, ..self }
    }

    /// Whether a registry other than the one behind the agent was asked.
    pub const fn went_round_the_agent(&self) -> bool {
        self.direct.is_some()
    }

    /// Whether what was seen once, after `took`, is what this cell says.
    pub fn holds(&self, seen: &Self, took: Duration) -> bool {
        let within = |expected: Option<Load>, seen: Option<Load>| match (expected, seen) {
            (Some(expected), Some(seen)) => expected.contains(seen),
            (Some(expected), None) => expected.contains(Load::new(0, 0)),
            (None, seen) => seen.is_none(),
        };
        self.outcome.split(OR).any(|outcome| outcome == seen.outcome)
            && took <= Duration::from_secs(self.limit)
            && within(self.upstream, seen.upstream)
            && within(self.direct, seen.direct)
    }

    /// This cell for a scenario in which chance has a part.
    #[must_use]
    pub fn loosened(self, chance: Chance) -> Self {
        let complete = self.outcome == PULLED;
        let loosened = |load: Load| load.loosened(chance, complete);
        Self { upstream: self.upstream.map(loosened), direct: self.direct.map(loosened), ..self }
    }

    /// This cell, wide enough for another run of the same behaviour as well; when it is another, that one alone, unless
    /// `chance` has a part in how it ends.
    #[must_use]
    pub fn widened(&self, seen: &Self, chance: Option<Chance>) -> Self {
        let nothing = Load::new(0, 0);
        let both = |old: Option<Load>, load: Option<Load>| match (old, load) {
            (None, None) => None,
            (old, load) => {
                Some(old.unwrap_or(nothing).widened(load.unwrap_or(nothing), chance, seen.outcome == PULLED))
            }
        };
        let mut outcomes: Vec<_> = self.outcome.split(OR).collect();
        if !outcomes.contains(&seen.outcome.as_str()) {
            if chance.is_none() {
                return seen.clone();
            }
            outcomes.push(&seen.outcome);
            outcomes.sort_unstable();
        }
        Self {
            outcome: outcomes.join(OR),
            limit: self.limit.max(seen.limit),
            upstream: both(self.upstream, seen.upstream),
            direct: both(self.direct, seen.direct),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outcome, limit, upstream, direct } = self;
        write!(f, "{outcome}, < {limit} s")?;
        upstream.iter().try_for_each(|load| write!(f, "; {load}"))?;
        direct.iter().try_for_each(|load| write!(f, "; direct {load}"))
    }
}

impl std::str::FromStr for Cell {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split("; ");
        let head = parts.next().unwrap_or_default();
        let (outcome, limit) = head.rsplit_once(", < ").with_context(|| format!("`{head}` has no limit"))?;
        let limit = limit.strip_suffix(" s").and_then(|limit| limit.parse().ok());
        let limit = limit.with_context(|| format!("`{head}` has no limit in seconds"))?;
        let mut cell = Self { outcome: outcome.to_owned(), limit, upstream: None, direct: None };
        for part in parts {
            match part.strip_prefix("direct ") {
                Some(load) => cell.direct = Some(Load::parse(load)?),
                None => cell.upstream = Some(Load::parse(part)?),
            }
        }
        Ok(cell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pulled(requests: u64, bytes: u64) -> Cell {
        Cell::new("pulled", SECOND).upstream(Load::new(requests, bytes))
    }

    #[test]
    fn a_cell_reads_as_it_was_written() -> Result<()> {
        for text in [
            "pinned, < 60 s",
            "pulled, < 60 s; 6 requests, 7612 kB",
            "fails, < 60 s; 6–9 requests, 0 kB; direct 0–3 requests, 0–7612 kB",
        ] {
            assert_eq!(text.parse::<Cell>()?.to_string(), text);
        }
        for text in
            ["pulled", "pulled, < soon", "pulled, < 60 s; 6, 7 kB", "pulled, < 60 s; 6 requests, 7 MB"]
        {
            assert!(text.parse::<Cell>().is_err(), "{text}");
        }
        Ok(())
    }

    #[test]
    fn a_cell_holds_for_what_lies_within_it_alone() -> Result<()> {
        let expected: Cell = "pulled, < 60 s; 6–7 requests, 8 kB; direct 0–1 requests, 0–2 kB".parse()?;
        for (seen, took, holds) in [
            (pulled(6, 8000), SECOND, true),
            (pulled(7, 7001).direct(Load::new(1, 2000)), SECOND, true),
            (pulled(8, 8000), SECOND, false),
            (pulled(6, 9000), SECOND, false),
            (pulled(6, 8000), 61 * SECOND, false),
            (pulled(6, 8000).direct(Load::new(2, 0)), SECOND, false),
            (Cell::new("fails", SECOND).upstream(Load::new(6, 8000)), SECOND, false),
        ] {
            assert_eq!(expected.holds(&seen, took), holds, "{seen} after {took:?}");
        }
        assert!(!pulled(6, 8000).holds(&pulled(6, 8000).direct(Load::new(1, 1)), SECOND));
        Ok(())
    }

    #[test]
    fn a_loose_cell_keeps_the_bytes_of_the_whole_image() {
        let cell = pulled(12, 4_405_900).direct(Load::new(3, 3_200_000));
        for (layers, expected) in [
            (true, "pulled, < 60 s; 0–30 requests, 4406–4408 kB; direct 0–10 requests, 0–13218 kB"),
            (false, "pulled, < 60 s; 0–30 requests, 4406–4408 kB; direct 0–10 requests, 0–6400 kB"),
        ] {
            assert_eq!(cell.clone().loosened(Chance { whole: 4_405_100, layers }).to_string(), expected);
        }
        let failed = Cell { outcome: "fails".to_owned(), direct: None, ..cell };
        let failed = failed.loosened(Chance { whole: 4_405_100, layers: true });
        assert_eq!(failed.to_string(), "fails, < 60 s; 0–30 requests, 0–13218 kB", "it may fail earlier");
    }

    #[test]
    fn what_lies_within_a_loose_cell_leaves_it_as_it_is() -> Result<()> {
        let chance = Some(Chance { whole: 8000, layers: true });
        let cell: Cell = "pulled, < 60 s; 0–20 requests, 0–24 kB; direct 0–10 requests, 0–24 kB".parse()?;
        assert_eq!(cell.widened(&pulled(15, 23_000), chance), cell);
        let more = cell.widened(&pulled(21, 23_000), chance).to_string();
        assert_eq!(more, "pulled, < 60 s; 0–50 requests, 0–24 kB; direct 0–10 requests, 0–24 kB");
        Ok(())
    }

    #[test]
    fn a_cell_is_widened_by_the_same_outcome_and_replaced_by_another() {
        let one = pulled(6, 8000);
        let other = pulled(9, 8000).direct(Load::new(1, 1000));
        let both = one.widened(&other, None);
        assert_eq!(both.to_string(), "pulled, < 60 s; 0–20 requests, 8 kB; direct 0–10 requests, 0–10 kB");
        assert!(both.holds(&one, SECOND) && both.holds(&other, SECOND));
        let failed = Cell::new("fails", 11 * SECOND);
        assert_eq!(one.widened(&failed, None), failed);
        let chance = Some(Chance { whole: 8000, layers: true });
        let either = one.widened(&failed, chance);
        assert_eq!(either.to_string(), "fails or pulled, < 60 s; 0–6 requests, 0–24 kB");
        assert!(either.holds(&one, SECOND) && either.holds(&failed, SECOND));
        assert_eq!(either.widened(&one, chance), either);
        assert_eq!(failed.to_string(), "fails, < 60 s");
    }
}
