//! A marked part of somebody else's text file: put in, found again, taken out so that not a byte of the rest differs.

const BEGIN: &str =
    "# hearth: begin (written by `hearth-agent setup`, removed by `hearth-agent setup --uninstall`)\n";
/// The same, where the text before had no line end of its own.
const BEGIN_ADDED: &str = "# hearth: begin after an added line end (written by `hearth-agent setup`, removed by `hearth-agent setup --uninstall`)\n";
const BEGIN_ANY: &str = "# hearth: begin";
const END: &str = "# hearth: end\n";

/// Markers that do not belong together: somebody edited them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "its lines `# hearth: begin` and `# hearth: end` do not form one pair: remove what lies between by hand"
)]
pub struct Torn;

/// Puts `body` in at byte `at`, which begins a line or is the end.
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
    fn what_was_put_in_is_taken_out_byte_for_byte() {
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
    fn torn_markers_are_not_guessed_at() {
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
