//! Tables on standard output.

use std::io::IsTerminal as _;

/// Spaces between two columns.
const GAP: usize = 2;

/// A column is not made narrower than this.
const NARROWEST: usize = 12;

/// Columns are as wide as their widest cell, with two spaces between them and no trailing spaces. On a terminal long cells
/// are folded, so that a line fits its width; a pipe or file gets each row as one line.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let terminal = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    let width = std::io::stdout().is_terminal().then(terminal).flatten();
    table_within(heading, rows, width)
}

fn table_within(heading: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let heading: Vec<String> = heading.iter().map(|cell| (*cell).to_owned()).collect();
    let lines = || std::iter::once(&heading).chain(rows);
    let widest = |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths = fit((0..heading.len()).map(widest).collect(), width);
    let mut out = String::new();
    for line in lines() {
        let cells: Vec<Vec<String>> =
            line.iter().zip(&widths).map(|(cell, width)| fold(cell, *width)).collect();
        for at in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
            let parts = cells.iter().map(|cell| cell.get(at).map_or("", String::as_str));
            let parts: Vec<_> = parts.zip(&widths).map(|(part, width)| format!("{part:width$}")).collect();
            out.push_str(parts.join(&" ".repeat(GAP)).trim_end());
            out.push('\n');
        }
    }
    out
}

/// Takes from the widest column until all fit. Pure.
fn fit(mut widths: Vec<usize>, width: Option<usize>) -> Vec<usize> {
    let Some(width) = width else { return widths };
    let gaps = GAP * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > width {
        match widths.iter_mut().max() {
            Some(widest) if *widest > NARROWEST => *widest -= 1,
            _ => break,
        }
    }
    widths
}

/// A cell in lines of at most `width` characters, broken behind a space or a separator of image names where one is in the
/// second half of the line. Pure.
fn fold(cell: &str, width: usize) -> Vec<String> {
    let mut rest: Vec<char> = cell.chars().collect();
    let mut lines = Vec::new();
    while rest.len() > width {
        let is_break = |c: &char| matches!(c, ' ' | '/' | ':' | '@' | ',');
        let at = rest[..width].iter().rposition(is_break).map(|at| at + 1).filter(|at| *at > width / 2);
        let left = rest.split_off(at.unwrap_or(width));
        lines.push(rest.into_iter().collect::<String>().trim_end().to_owned());
        rest = left;
    }
    lines.push(rest.into_iter().collect());
    lines
}

/// How long ago something was, in the largest unit.
pub(super) fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => "now".to_owned(),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..86_400 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = table_within(&["A", "LONG"], &[row(&["wide cell", ""]), row(&["x", "y"])], None);
        assert_eq!(text, "A          LONG\nwide cell\nx          y\n");
        assert_eq!(table_within(&["A", "B"], &[], None), "A  B\n");
    }

    #[test]
    fn long_cells_are_folded_to_the_width_of_the_terminal() {
        let rows = [row(&[
            "registry.test/data-platform/spark-python:3.5.9-java17-python3.11",
            "8d0c1a2b3c4d",
            "432.1 MiB",
            "complete, pinned",
        ])];
        let text = table_within(&["IMAGE", "DIGEST", "SIZE", "STATE"], &rows, Some(80));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let expected = "\
IMAGE                                  DIGEST        SIZE       STATE
registry.test/data-platform/           8d0c1a2b3c4d  432.1 MiB  complete, pinned
spark-python:3.5.9-java17-python3.11
";
        assert_eq!(text, expected);
        // Nothing is lost, however narrow the terminal.
        let narrow: String = table_within(&["IMAGE"], &[row(&[&rows[0][0]])], Some(5));
        assert_eq!(narrow.lines().skip(1).collect::<String>(), rows[0][0]);
    }

    #[test]
    fn a_fold_is_behind_a_separator_where_there_is_one() {
        for (cell, width, expected) in [
            ("abc", 3, vec!["abc"]),
            ("abcdef", 3, vec!["abc", "def"]),
            ("not found here", 10, vec!["not found", "here"]),
            ("a/bcdefgh", 4, vec!["a/bc", "defg", "h"]),
            ("", 4, vec![""]),
        ] {
            assert_eq!(fold(cell, width), expected, "{cell}");
        }
    }
}
