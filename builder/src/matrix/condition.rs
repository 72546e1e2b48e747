//! Conditions on the axes, as `when:` and `exclude:` of a specification write them.
//!
//! ```text
//! condition    = alternative { "|" alternative }       one of them has to hold
//! alternative  = term { " " term }                     all of them have to hold
//! term         = "3.5"       this version or one below it (3.5.9)
//!              | ">=3.4" "<=" ">" "<"                  compared number by number, as far as it is written
//!              | "!" term    not so
//!              | "geo"       exactly this word (platforms and variants)
//! ```

use std::{cmp::Ordering, collections::BTreeMap, fmt};

use super::cell::Cell;
use crate::version::Version;

/// The axes that a condition may name.
pub const AXES: [&str; 6] = ["spark", "scala", "java", "python", "platform", "variant"];

/// A condition per axis; all have to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    axes: BTreeMap<&'static str, Vec<Vec<Term>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    negated: bool,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Word(String),
    Below(Version),
    Compared(&'static [Ordering], Version),
}

/// What is wrong with a condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no condition: {problem}")]
pub struct ConditionError {
    text: String,
    problem: String,
}

const OPERATORS: [(&str, &[Ordering]); 4] = [
    (">=", &[Ordering::Greater, Ordering::Equal]),
    ("<=", &[Ordering::Less, Ordering::Equal]),
    (">", &[Ordering::Greater]),
    ("<", &[Ordering::Less]),
];

impl Condition {
    /// Adds what one axis has to fulfil.
    pub fn add(&mut self, axis: &'static str, text: &str) -> Result<(), ConditionError> {
        let versions = !matches!(axis, "platform" | "variant");
        let fail = |problem: String| ConditionError { text: text.to_owned(), problem };
        let alternative = |part: &str| -> Result<Vec<Term>, ConditionError> {
            let terms: Vec<Term> = part
                .split_whitespace()
                .map(|word| term(word, versions).map_err(fail))
                .collect::<Result<_, _>>()?;
            if terms.is_empty() { Err(fail("a part of it is empty".to_owned())) } else { Ok(terms) }
        };
        let parsed = text.split('|').map(alternative).collect::<Result<_, _>>()?;
        self.axes.insert(axis, parsed);
        Ok(())
    }

    /// Whether a cell fulfils every part. An axis that the cell does not have fulfils none.
    pub fn holds(&self, cell: &Cell) -> bool {
        self.axes.iter().all(|(axis, alternatives)| {
            let Some(value) = value(cell, axis) else { return false };
            alternatives.iter().any(|terms| terms.iter().all(|term| term.holds(&value)))
        })
    }
}

fn value(cell: &Cell, axis: &str) -> Option<Value> {
    match axis {
        "spark" => cell.spark.clone().map(Value::Version),
        "java" => cell.java.clone().map(Value::Version),
        "scala" => cell.scala.clone().map(Value::Version),
        "python" => cell.python.clone().map(Value::Version),
        "platform" => Some(Value::Word(cell.platform.to_string())),
        _ => cell.variant.clone().map(Value::Word),
    }
}

enum Value {
    Version(Version),
    Word(String),
}

fn term(word: &str, versions: bool) -> Result<Term, String> {
    let (negated, rest) = match word.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, word),
    };
    if !versions {
        return if rest.is_empty() {
            Err("`!` stands alone".to_owned())
        } else {
            Ok(Term { negated, test: Test::Word(rest.to_owned()) })
        };
    }
    let version = |text: &str| text.parse::<Version>().map_err(|error| error.to_string());
    for (operator, orders) in OPERATORS {
        if let Some(text) = rest.strip_prefix(operator) {
            return Ok(Term { negated, test: Test::Compared(orders, version(text)?) });
        }
    }
    Ok(Term { negated, test: Test::Below(version(rest)?) })
}

impl Term {
    fn holds(&self, value: &Value) -> bool {
        let holds = match (&self.test, value) {
            (Test::Word(wanted), Value::Word(word)) => wanted == word,
            (Test::Below(wanted), Value::Version(version)) => {
                let suffix = wanted.suffix().is_empty() || wanted.suffix() == version.suffix();
                suffix && version.compare(wanted) == Ordering::Equal
            }
            (Test::Compared(orders, wanted), Value::Version(version)) => {
                orders.contains(&version.compare(wanted))
            }
            _ => false,
        };
        holds != self.negated
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.axes.keys().copied().collect();
        write!(f, "a condition on {}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::cell;

    #[test]
    fn conditions_hold_for_the_cells_they_name() {
        let cell = cell("3.5.9", "17", "3.11");
        for (axis, text, expected) in [
            ("spark", "3.5", true),
            ("spark", "3.5.9", true),
            ("spark", "3.5.8", false),
            ("spark", "3", true),
            ("spark", ">=3.4 <4", true),
            ("spark", ">3.5", false),
            ("spark", "<=3.5", true),
            ("spark", "4 | 3.5.9", true),
            ("spark", "!3.5", false),
            ("java", "11 | 17", true),
            ("python", "!3.10 !3.12", true),
            ("scala", "2.12", false),
            ("variant", "geo", false),
        ] {
            let mut condition = Condition::default();
            condition.add(axis, text).unwrap();
            assert_eq!(condition.holds(&cell), expected, "{axis}: {text}");
        }
        let mut both = Condition::default();
        both.add("spark", "3.5").unwrap();
        both.add("java", "11").unwrap();
        assert!(!both.holds(&cell));
    }

    #[test]
    fn a_suffix_counts_when_it_is_written() {
        let vendor = cell("3.5.1-amzn-1", "17", "3.11");
        for (text, expected) in
            [("3.5.1", true), ("3.5.1-amzn-1", true), ("3.5.1-amzn-0", false), (">=3.5.1 <3.5.2", true)]
        {
            let mut condition = Condition::default();
            condition.add("spark", text).unwrap();
            assert_eq!(condition.holds(&vendor), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        for text in ["", "3.5 |", ">=x", "latest", "!"] {
            let error = Condition::default().add("spark", text).unwrap_err().to_string();
            assert!(error.contains("is no condition"), "{error}");
        }
        assert!(Condition::default().add("variant", "!").is_err());
    }
}
