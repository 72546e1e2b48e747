//! The tables in `tests/README.md`, which are what the tests expect. With `HEARTH_WRITE_TABLE=1` a test writes what it saw:
//! a cell that ends the same way as before is widened by it, any other one is replaced; with `HEARTH_WRITE_TABLE=new`
//! every one is.
//!
//! Each table lies between `<!-- NAME -->` and `<!-- end of NAME -->`; each test owns one column of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FlockOperation, flock};

use super::cell::{Cell, Chance};

/// Columns in their order.
const RELEASES: [&str; 3] = ["bookworm", "trixie", "sid"];

/// Where a column has no such scenario.
const NONE: &str = "–";

/// What was seen of one scenario.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The scenario.
    pub row: String,
    /// What it came to.
    pub cell: Cell,
    /// In what time.
    pub took: Duration,
    /// Why it failed, if it did.
    pub why: Option<String>,
    /// Where chance has a part.
    pub chance: Option<Chance>,
}

impl Seen {
    /// What is not a pull.
    pub fn of(row: &str, outcome: &str, took: Duration) -> Self {
        Self { row: row.to_owned(), cell: Cell::new(outcome, took), took, why: None, chance: None }
    }
}

/// Compares a column of the table `name` with what was seen, or writes it there.
pub fn compare(name: &str, column: &str, seen: &[Seen]) -> Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Tests of several columns run side by side.
    let lock = File::open(directory).context("the tests have a directory")?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the directory of the tests")?;
    let file = directory.join("README.md");
    let text = fs::read_to_string(&file).context("cannot read the tables")?;
    let (before, table, after) = parts(&text, name)?;
    let mut table = Table::parse(table)?;
    let write = std::env::var_os("HEARTH_WRITE_TABLE");
    if let Some(how) = write.filter(|value| !value.is_empty()) {
        table.write(column, seen, how == "new")?;
        return replace(&file, &format!("{before}{table}{after}"));
    }
    let changes = table.changes(column, seen)?;
    ensure!(
        changes.is_empty(),
        "{} cells of `{column}` in the table `{name}` of tests/README.md changed; HEARTH_WRITE_TABLE=1 writes them:\n{}",
        changes.len(),
        changes.join("\n")
    );
    Ok(())
}

fn replace(file: &PathBuf, text: &str) -> Result<()> {
    let partial = file.with_extension("partial");
    fs::write(&partial, text).context("cannot write the tables")?;
    fs::rename(&partial, file).context("cannot replace the tables")
}

/// The text before, within and after the marks of a table.
fn parts<'a>(text: &'a str, name: &str) -> Result<(&'a str, &'a str, &'a str)> {
    let (first, last) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let missing = || format!("`{}` is not in tests/README.md", first.trim_end());
    let from = text.find(&first).with_context(missing)? + first.len();
    let to = from + text[from..].find(&last).with_context(missing)?;
    Ok((&text[..from], &text[from..to], &text[to..]))
}

/// A Markdown table whose first column names the rows.
#[derive(Debug, Default)]
struct Table {
    columns: Vec<String>,
    rows: Vec<(String, Vec<String>)>,
}

impl Table {
    fn parse(text: &str) -> Result<Self> {
        let words = |line: &str| -> Vec<String> {
            line.trim().trim_matches('|').split('|').map(|word| word.trim().to_owned()).collect()
        };
        let mut lines = text.lines().filter(|line| !line.trim().is_empty()).map(words);
        let Some(head) = lines.next() else { return Ok(Self::default()) };
        let columns: Vec<_> = head.into_iter().skip(1).collect();
        let mut rows = Vec::new();
        for mut line in lines.skip(1) {
            let cells = line.split_off(1);
            let row = line.pop().unwrap_or_default();
            ensure!(cells.len() == columns.len(), "the row `{row}` has {} cells", cells.len());
            rows.push((row, cells));
        }
        Ok(Self { columns, rows })
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    fn cell(&self, row: &str, column: usize) -> Option<&str> {
        let (_, cells) = self.rows.iter().find(|(name, _)| name == row)?;
        cells.get(column).map(String::as_str).filter(|cell| *cell != NONE)
    }

    /// One line for every cell that is not what was seen.
    fn changes(&self, column: &str, seen: &[Seen]) -> Result<Vec<String>> {
        let index = self.column(column).with_context(|| format!("the table has no column `{column}`"))?;
        let mut changes = Vec::new();
        for Seen { row, cell, took, why, .. } in seen {
            match self.cell(row, index) {
                Some(text) if text.parse::<Cell>()?.holds(cell, *took) => {}
                expected => changes.push(format!(
                    "{row}: expected `{}`, seen `{cell}` after {took:.1?}{}{}",
                    expected.unwrap_or(NONE),
                    if why.is_some() { ": " } else { "" },
                    why.as_deref().unwrap_or_default()
                )),
            }
        }
        let gone = self.rows.iter().filter(|(row, _)| self.cell(row, index).is_some());
        let gone = gone.filter(|(row, _)| !seen.iter().any(|one| one.row == *row));
        changes.extend(gone.map(|(row, _)| format!("{row}: not tried")));
        Ok(changes)
    }

    /// The rows become those that were seen; other columns keep their cells.
    fn write(&mut self, column: &str, seen: &[Seen], anew: bool) -> Result<()> {
        let index = self.column(column).unwrap_or_else(|| {
            // From the oldest release to the newest, whatever test is the first.
            let age =
                |name: &str| RELEASES.iter().position(|release| *release == name).unwrap_or(RELEASES.len());
            let index = self.columns.partition_point(|name| age(name) <= age(column));
            self.columns.insert(index, column.to_owned());
            self.rows.iter_mut().for_each(|(_, cells)| cells.insert(index, NONE.to_owned()));
            index
        });
        let mut rows = Vec::new();
        for Seen { row, cell, chance, .. } in seen {
            let old = self.rows.iter().find(|(name, _)| name == row);
            let mut cells =
                old.map_or_else(|| vec![NONE.to_owned(); self.columns.len()], |(_, cells)| cells.clone());
            let new = match self.cell(row, index) {
                Some(text) if !anew => text.parse::<Cell>()?.widened(cell, *chance),
                _ => chance.map_or_else(|| cell.clone(), |chance| cell.clone().loosened(chance)),
            };
            cells[index] = new.to_string();
            rows.push((row.clone(), cells));
        }
        // What other releases do and this one does not need.
        let others = self.rows.drain(..).filter(|(name, cells)| {
            let elsewhere = cells.iter().enumerate().any(|(at, cell)| at != index && cell != NONE);
            elsewhere && !seen.iter().any(|one| one.row == *name)
        });
        let others = others.map(|(name, mut cells)| {
            NONE.clone_into(&mut cells[index]);
            (name, cells)
        });
        rows.extend(others);
        self.rows = rows;
        Ok(())
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "| scenario | {} |", self.columns.join(" | "))?;
        writeln!(f, "|{}", " --- |".repeat(self.columns.len() + 1))?;
        self.rows.iter().try_for_each(|(row, cells)| writeln!(f, "| {row} | {} |", cells.join(" | ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(row: &str, outcome: &str) -> Seen {
        Seen::of(row, outcome, SECOND)
    }

    #[test]
    fn what_was_written_is_found_again_and_a_change_is_named() -> Result<()> {
        let mut table = Table::default();
        table.write("new", &[seen("a", "pulled"), seen("b", "pulled")], false)?;
        table.write("bookworm", &[seen("a", "pulled"), seen("b", "fails")], false)?;
        let text = table.to_string();
        assert_eq!(
            text,
            "| scenario | bookworm | new |\n| --- | --- | --- |\n\
             | a | pulled, < 60 s | pulled, < 60 s |\n| b | fails, < 60 s | pulled, < 60 s |\n"
        );
        let table = Table::parse(&text)?;
        assert_eq!(table.changes("bookworm", &[seen("a", "pulled"), seen("b", "fails")])?, [""; 0]);
        let changes = table.changes("bookworm", &[seen("b", "pulled"), seen("c", "pulled")])?;
        assert_eq!(
            changes,
            [
                "b: expected `fails, < 60 s`, seen `pulled, < 60 s` after 1.0s",
                "c: expected `–`, seen `pulled, < 60 s` after 1.0s",
                "a: not tried",
            ]
        );
        assert!(table.changes("other", &[]).is_err());
        Ok(())
    }

    #[test]
    fn a_row_stays_as_long_as_a_column_has_it() -> Result<()> {
        let mut table = Table::default();
        table.write("bookworm", &[seen("a", "pulled"), seen("b", "pulled")], false)?;
        table.write("sid", &[seen("a", "pulled")], false)?;
        assert_eq!(table.changes("bookworm", &[seen("a", "pulled"), seen("b", "pulled")])?, [""; 0]);
        assert_eq!(table.changes("sid", &[seen("a", "pulled")])?, [""; 0]);
        table.write("bookworm", &[seen("a", "pulled")], false)?;
        assert_eq!(table.rows.len(), 1);
        Ok(())
    }

    #[test]
    fn a_table_is_the_text_between_its_marks() -> Result<()> {
        let text = "# T\n<!-- one -->\n| x |\n<!-- end of one -->\nrest\n";
        assert_eq!(parts(text, "one")?, ("# T\n<!-- one -->\n", "| x |\n", "<!-- end of one -->\nrest\n"));
        assert!(parts(text, "two").is_err());
        Ok(())
    }
}
