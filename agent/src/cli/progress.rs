//! The progress of a long step: a bar on a terminal, log lines elsewhere.

use std::{
    io::{IsTerminal as _, Read},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::types::format_size;

/// Interval of the log lines.
const EVERY: Duration = Duration::from_secs(10);

/// A step that moves bytes; the bar disappears when it is dropped.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    total: Option<u64>,
}

impl Progress {
    pub(super) fn start(what: &'static str, total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let (bar, template) = match total {
                Some(total) => (
                    ProgressBar::new(total),
                    "{msg} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}",
                ),
                None => (ProgressBar::new_spinner(), "{spinner} {msg} {bytes} {binary_bytes_per_sec}"),
            };
            let style = ProgressStyle::with_template(template).expect("the template is written here");
            bar.with_style(style).with_message(what)
        });
        Self { bar, what, total }
    }

    /// Counts what is read.
    pub(super) fn reader<R: Read>(self, inner: R) -> Counted<R> {
        Counted { inner, progress: self, count: 0, said: Instant::now() }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A reader whose bytes are counted.
pub(super) struct Counted<R> {
    inner: R,
    progress: Progress,
    count: u64,
    said: Instant,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        match &self.progress.bar {
            Some(bar) => bar.set_position(self.count),
            None if self.said.elapsed() >= EVERY => {
                self.said = Instant::now();
                let total = self.progress.total.map(|total| format!(" of {}", format_size(total)));
                tracing::info!(
                    "{}: {}{}",
                    self.progress.what,
                    format_size(self.count),
                    total.unwrap_or_default()
                );
            }
            None => {}
        }
        Ok(read)
    }
}
