//! What the demonstration shows: bars and spinners on a terminal, plain lines otherwise. The only place that prints.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

/// Terminals have so many columns at least.
const WIDTH: usize = 80;

/// The terminal or log that the demonstration writes to.
#[derive(Debug)]
pub(crate) struct Screen {
    bars: Option<MultiProgress>,
    started: Instant,
}

/// A step under way. Its last line says how long it took.
#[derive(Debug)]
pub(crate) struct Step<'a> {
    screen: &'a Screen,
    title: String,
    started: Instant,
    spinner: Option<ProgressBar>,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let bars = io::stdout().is_terminal().then(MultiProgress::new);
        Self { bars, started: Instant::now() }
    }

    /// Prints a line above whatever moves.
    pub(crate) fn line(&self, text: &str) {
        let print = || {
            // A reader that went away (`cargo demo | head`) is no reason to fail.
            let _ = writeln!(io::stdout(), "{text}");
        };
        match &self.bars {
            Some(bars) => bars.suspend(print),
            None => print(),
        }
    }

    /// Since the start of the demonstration.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Begins a step.
    pub(crate) fn step(&self, title: &str) -> Step<'_> {
        let spinner = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let spinner =
                bars.add(ProgressBar::new_spinner().with_style(style).with_message(title.to_owned()));
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        if spinner.is_none() {
            self.line(&format!("… {title}"));
        }
        Step { screen: self, title: title.to_owned(), started: Instant::now(), spinner }
    }

    /// A bar over bytes; hidden when there is no terminal.
    pub(crate) fn bytes(&self, title: &str) -> ProgressBar {
        let Some(bars) = &self.bars else { return ProgressBar::hidden() };
        let template = "  {msg:24} {wide_bar} {bytes:>11}/{total_bytes:<11} {bytes_per_sec:>13}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bars.add(ProgressBar::new(0).with_style(style).with_message(title.to_owned()))
    }
}

impl Step<'_> {
    /// Ends the step with a note of what came of it.
    pub(crate) fn done(self, note: &str) {
        let took = seconds(self.started.elapsed());
        let line = format!("✓ {:54} {took:>9}", self.title);
        let fits = line.chars().count() + note.chars().count() + 2 <= WIDTH;
        let before = if fits || note.is_empty() { "  " } else { "\n    " };
        self.screen.line(format!("{line}{before}{note}").trim_end());
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

/// A duration as people read it.
pub(crate) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(100) {
        format!("{:.2} s", time.as_secs_f64())
    } else {
        format!("{} min {} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

/// A size as people read it.
pub(crate) fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// Rows as an aligned table: the first `left` columns to the left, the rest to the right. The first row is the head; a row of one
/// cell is a heading, and as wide as it is.
pub(crate) fn table(rows: &[Vec<String>], left: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let rows = rows.iter().filter(|row| row.len() > 1);
        rows.filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column < left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    };
    let rule = format!("  {}", widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>().join("  "));
    let mut lines: Vec<_> = rows.iter().map(line).collect();
    lines.insert(1.min(lines.len()), rule);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_words_left_and_numbers_right() {
        let rows = [["image", "bytes"], ["a", "12345678"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows, 1), "  image     bytes\n  -----  --------\n  a      12345678");
    }

    #[test]
    fn the_table_of_a_round_fits_a_terminal() {
        let rows = [
            &["node", "time", "pulled", "upstream", "requests", "429s", "hits"][..],
            &["4.1.4-scala2.13-java17-python3.11"],
            &["  node 1", "10 min 59 s", "999.99 MiB", "999.99 MiB", "9999", "100", "9999"],
            &["counted by upstream", "", "99.99 GiB", "99.99 GiB", "99999", "9999"],
        ];
        let table = table(&rows.map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()), 1);
        assert!(table.lines().all(|line| line.chars().count() <= WIDTH), "{table}");
        assert!(table.contains("\n  4.1.4-scala2.13-java17-python3.11\n"), "{table}");
    }
}
