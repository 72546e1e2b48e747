//! Environment markers (PEP 508), as far as lock files have them, for the Python and platform of an image.
//!
//! ```text
//! marker      = and { "or" and }
//! and         = term { "and" term }
//! term        = "(" marker ")" | value operator value
//! value       = 'text' | "text" | a variable such as python_version
//! ```

use std::cmp::Ordering;

use super::super::elf::Libc;
use crate::{package::normal, platform::Platform, version::Version};

/// What markers are evaluated for.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Major and minor version of the Python.
    pub python: Version,
    /// The platform.
    pub platform: Platform,
    /// The C library.
    pub libc: Libc,
}

impl Environment {
    /// The value of a variable; `None` for an unknown one.
    fn variable(&self, name: &str) -> Option<String> {
        // Which patch release the image has is not known; uv assumes the first one, too.
        let full = || format!("{}.0", self.python);
        Some(match name {
            "python_version" => self.python.to_string(),
            "python_full_version" | "implementation_version" => full(),
            "os_name" | "os.name" => "posix".to_owned(),
            "sys_platform" | "sys.platform" => "linux".to_owned(),
            "platform_machine" | "platform.machine" => self.platform.machine().to_owned(),
            "platform_system" => "Linux".to_owned(),
            "platform_python_implementation" | "python_implementation" => "CPython".to_owned(),
            "implementation_name" => "cpython".to_owned(),
            "platform_release" | "platform_version" => String::new(),
            _ => return None,
        })
    }

    /// The marker that holds here and in no other environment of a matrix, apart from those with another C library.
    pub fn marker(&self) -> String {
        let (python, machine) = (&self.python, self.platform.machine());
        format!(
            "python_version == '{python}' and sys_platform == 'linux' and platform_machine == '{machine}' and platform_python_implementation == 'CPython'"
        )
    }

    /// Whether a marker holds, with these extras (and groups) asked for.
    pub fn holds(&self, marker: &str, extras: &[String]) -> Result<bool, String> {
        let tokens = tokens(marker)?;
        let mut parser = Parser { environment: self, extras, tokens: &tokens, at: 0, depth: 0 };
        let value = parser.any()?;
        if parser.at == tokens.len() {
            Ok(value)
        } else {
            Err(format!("the marker `{marker}` goes on strangely"))
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Text(String),
    Word(String),
    Operator(String),
    Open,
    Close,
}

fn tokens(marker: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    let mut rest = marker.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '\'' | '"' => {
                let end = rest[1..].find(first).ok_or_else(|| format!("`{marker}` has an open quote"))?;
                (Token::Text(rest[1..=end].to_owned()), end + 2)
            }
            '<' | '>' | '=' | '!' | '~' => {
                let end = rest.find(|c| !"<>=!~".contains(c)).unwrap_or(rest.len());
                (Token::Operator(rest[..end].to_owned()), end)
            }
            _ => {
                let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
                let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
                if end == 0 {
                    return Err(format!("the marker `{marker}` has a stray `{first}`"));
                }
                (Token::Word(rest[..end].to_owned()), end)
            }
        };
        found.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(found)
}

struct Parser<'a> {
    environment: &'a Environment,
    extras: &'a [String],
    tokens: &'a [Token],
    at: usize,
    depth: usize,
}

/// A side of a comparison.
enum Value {
    Text(String),
    /// `extra`, `extras` or `dependency_groups`: a set of names.
    Names,
}

/// Markers of real lock files are two or three deep.
const DEPTH: usize = 64;

impl Parser<'_> {
    fn word(&mut self, word: &str) -> bool {
        let found = self.tokens.get(self.at) == Some(&Token::Word(word.to_owned()));
        self.at += usize::from(found);
        found
    }

    fn any(&mut self) -> Result<bool, String> {
        let mut value = self.all()?;
        while self.word("or") {
            value |= self.all()?;
        }
        Ok(value)
    }

    fn all(&mut self) -> Result<bool, String> {
        let mut value = self.term()?;
        while self.word("and") {
            value &= self.term()?;
        }
        Ok(value)
    }

    fn term(&mut self) -> Result<bool, String> {
        if self.tokens.get(self.at) == Some(&Token::Open) {
            self.depth += 1;
            if self.depth > DEPTH {
                return Err("a marker is nested too deep".to_owned());
            }
            self.at += 1;
            let value = self.any()?;
            self.depth -= 1;
            if self.tokens.get(self.at) != Some(&Token::Close) {
                return Err("a marker lacks a closing bracket".to_owned());
            }
            self.at += 1;
            return Ok(value);
        }
        let left = self.value()?;
        let operator = self.operator()?;
        let right = self.value()?;
        self.compare(&left, &operator, &right)
    }

    fn value(&mut self) -> Result<Value, String> {
        let token = self.tokens.get(self.at).ok_or("a marker ends early")?;
        self.at += 1;
        match token {
            Token::Text(text) => Ok(Value::Text(text.clone())),
            Token::Word(name) if matches!(name.as_str(), "extra" | "extras" | "dependency_groups") => {
                Ok(Value::Names)
            }
            Token::Word(name) => {
                let value = self.environment.variable(name);
                value.map(Value::Text).ok_or_else(|| format!("the marker variable `{name}` is unknown"))
            }
            _ => Err("a marker lacks a value".to_owned()),
        }
    }

    fn operator(&mut self) -> Result<String, String> {
        if self.word("in") {
            return Ok("in".to_owned());
        }
        if self.word("not") && self.word("in") {
            return Ok("not in".to_owned());
        }
        let Some(Token::Operator(operator)) = self.tokens.get(self.at) else {
            return Err("a marker lacks an operator".to_owned());
        };
        self.at += 1;
        Ok(operator.clone())
    }

    fn compare(&self, left: &Value, operator: &str, right: &Value) -> Result<bool, String> {
        let (left, right) = match (left, right) {
            (Value::Text(left), Value::Text(right)) => (left, right),
            (Value::Text(name), Value::Names) | (Value::Names, Value::Text(name)) => {
                let wanted = self.extras.iter().any(|extra| normal(extra) == normal(name));
                return Ok(wanted != matches!(operator, "!=" | "not in"));
            }
            (Value::Names, Value::Names) => return Err("a marker compares names with names".to_owned()),
        };
        match operator {
            "in" => Ok(right.contains(left.as_str())),
            "not in" => Ok(!right.contains(left.as_str())),
            "===" => Ok(left == right),
            _ => compare(left, operator, right),
        }
    }
}

/// Versions are compared by number, everything else as text.
fn compare(left: &str, operator: &str, right: &str) -> Result<bool, String> {
    let (prefix, right) = match right.strip_suffix(".*") {
        Some(prefix) => (true, prefix),
        None => (false, right),
    };
    let order = match (left.parse::<Version>(), right.parse::<Version>()) {
        (Ok(left), Ok(right)) if prefix || operator == "~=" => {
            if operator == "~=" {
                let line: Vec<String> =
                    (0..right.depth().max(2) - 1).map(|at| right.number(at).to_string()).collect();
                let line = line.join(".").parse::<Version>().map_err(|error| error.to_string())?;
                let depth = left.depth().max(right.depth());
                let older = padded(&left, &right, depth) == Ordering::Less;
                return Ok(!older && left.compare(&line) == Ordering::Equal);
            }
            left.compare(&right)
        }
        (Ok(left), Ok(right)) => padded(&left, &right, left.depth().max(right.depth())),
        _ => left.cmp(right),
    };
    Ok(match operator {
        "==" => order == Ordering::Equal,
        "!=" => order != Ordering::Equal,
        "<" => order == Ordering::Less,
        "<=" => order != Ordering::Greater,
        ">" => order == Ordering::Greater,
        ">=" => order != Ordering::Less,
        _ => return Err(format!("the marker operator `{operator}` is unknown")),
    })
}

/// 3.11 and 3.11.0 are the same.
fn padded(left: &Version, right: &Version, depth: usize) -> Ordering {
    (0..depth).map(|at| left.number(at).cmp(&right.number(at))).fold(Ordering::Equal, Ordering::then)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_hold_as_pip_evaluates_them() {
        let environment = Environment {
            python: "3.11".parse().unwrap(),
            platform: Platform::Amd64,
            libc: super::super::tags::ASSUMED,
        };
        for (marker, expected) in [
            ("python_version >= '3.8'", true),
            ("python_version < '3.9'", false),
            ("python_version > '3.9'", true),
            ("python_full_version >= '3.11'", true),
            ("python_full_version < '3.11.3'", true),
            ("python_version ~= '3.8'", true),
            ("python_version == '3.*'", true),
            ("python_version != '3.11.*'", false),
            ("'3.10' <= python_version", true),
            ("sys_platform == 'win32' or platform_machine == \"x86_64\"", true),
            ("(sys_platform == 'win32' or os_name == 'posix') and python_version < '3'", false),
            ("platform_machine in 'x86_64 AMD64'", true),
            ("platform_machine not in 'x86_64 AMD64'", false),
            ("platform_python_implementation == 'PyPy'", false),
            ("extra == 'test'", false),
            ("extra == 'Socks_Proxy'", true),
            ("'socks-proxy' in extras and sys_platform == 'linux'", true),
        ] {
            let extras = ["socks-proxy".to_owned()];
            assert_eq!(environment.holds(marker, &extras), Ok(expected), "{marker}");
        }
        for marker in ["python_version", "x == 'a'", "(python_version == '3'", "python_version = 'a", "%"] {
            assert!(environment.holds(marker, &[]).is_err(), "{marker}");
        }
        let deep = "(".repeat(1000);
        assert!(environment.holds(&deep, &[]).is_err());
    }
}
