//! A marked part of a text file: inserts it, finds it, and removes it so that the rest stays the same byte for byte.

const BEGIN: &str =
    "# hearth: begin (written by `hearth-agent setup`, removed by `hearth-agent setup --uninstall`)\n";
/// The same, where the text before did not end with a line end.
const BEGIN_ADDED: &str = "# hearth: begin after an added line end (written by `hearth-agent setup`, removed by `hearth-agent setup --uninstall`)\n";
const BEGIN_ANY: &str = "# hearth: begin";
const END: &str = "# hearth: end\n";

/// Markers that are not a pair: the file was edited.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "its lines `# hearth: begin` and `# hearth: end` do not form one pair: remove them and the lines between them by hand"
)]
pub struct Torn;

/// Inserts `body` at byte `at`, which is the start of a line or the end.
pub fn insert(text: &str, at: usize, body: &str) -> String {
    let (before, after) = text.split_at(at);
    let added = !before.is_empty() && !before.ends_with('\n');
    let begin = if added { format!("\n{BEGIN_ADDED}") } else { BEGIN.to_owned() };
    let line_end = if body.ends_with('\n') { "" } else { "\n" };
    format!("{before}{begin}{body}{line_end}{END}{after}")
}

/// The text without the marked part; `None` when it has none.
pub fn remove(text: &str) -> Result<Option<String>, Torn> {
    let (begins, ends) = (text.matches(BEGIN_ANY).count(), text.matches(END).count());
    if begins == 0 && ends == 0 {
        return Ok(None);
    }
    let (Some(begin), Some(end)) = (text.find(BEGIN_ANY), text.find(END)) else { return Err(Torn) };
    if begins != 1 || ends != 1 || end < begin {
        return Err(Torn);
    }
    let added = text[begin..].starts_with(BEGIN_ADDED);
    let before = &text[..begin];
    let before = if added { before.strip_suffix('\n').unwrap_or(before) } else { before };
    Ok(Some(format!("{before}{}", &text[end + END.len()..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inserted_part_is_removed_byte_for_byte() {
        for (text, at) in [
            ("", 0),
            ("a = 1\n[b]\n", 0),
            ("a = 1\n[b]\n", 6),
            ("a = 1", 5),
            ("a = 1\r\n\r\n[b]", 9),
            ("a = 1\n\n", 7),
        ] {
            for body in ["x", "x\n", "[x]\ny = 1\n"] {
                let with = insert(text, at, body);
                assert!(with.contains(body));
                assert_eq!(remove(&with), Ok(Some(text.to_owned())), "{text:?} at {at}");
            }
            assert_eq!(remove(text), Ok(None));
        }
    }

    #[test]
    fn unpaired_markers_are_an_error() {
        let whole = insert("a\n", 0, "x");
        for torn in [
            whole.replace(END, ""),
            whole.replace(BEGIN, ""),
            format!("{whole}{whole}"),
            format!("{END}{BEGIN}"),
        ] {
            assert_eq!(remove(&torn), Err(Torn), "{torn}");
        }
    }
}
