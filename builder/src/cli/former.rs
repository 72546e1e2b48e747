//! Flags of earlier versions: still accepted, with a warning. Until 0.1 `--output` named the directory of the layout, and
//! `--output-format` the format.

use std::ffi::{OsStr, OsString};

/// The arguments with flags of today, and a warning for each that was replaced.
pub fn replace(arguments: impl IntoIterator<Item = OsString>) -> (Vec<OsString>, Vec<String>) {
    let (mut replaced, mut warnings) = (Vec::new(), Vec::new());
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let (flag, joined) = match argument.to_str().and_then(|text| text.split_once('=')) {
            Some((flag, value)) => (OsStr::new(flag), Some(OsString::from(value))),
            None => (argument.as_os_str(), None),
        };
        if flag != "--output" && flag != "--output-format" {
            replaced.push(argument);
            continue;
        }
        let Some(value) = joined.or_else(|| arguments.next()) else {
            replaced.push(argument);
            continue;
        };
        let (now, value) = match (flag == "--output", value.to_str()) {
            (true, Some("table" | "json" | "yaml")) => ("--output", value),
            (true, _) => ("--to", value),
            (false, Some("text")) => ("--output", OsString::from("table")),
            (false, _) => ("--output", value),
        };
        if flag != now {
            let (before, value) = (flag.display(), value.display());
            warnings.push(format!("`{before}` is deprecated: use `{now} {value}`"));
        }
        replaced.extend([now.into(), value]);
    }
    (replaced, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_earlier_versions_are_replaced_with_a_warning() {
        for (before, after, warnings) in [
            ("build --output dist", "build --to dist", 1),
            ("build --output=dist --push", "build --to dist --push", 1),
            ("build --output-format json", "build --output json", 1),
            ("plan --output-format=text", "plan --output table", 1),
            ("build --to dist --output json", "build --to dist --output json", 0),
            ("build -o yaml", "build -o yaml", 0),
            ("build --output", "build --output", 0),
        ] {
            let (replaced, said) = replace(before.split(' ').map(OsString::from));
            assert_eq!(replaced.join(OsStr::new(" ")), after);
            assert_eq!(said.len(), warnings, "{before}: {said:?}");
        }
    }
}
