//! What a user sees while it works: bars on a terminal, log lines elsewhere. Everything goes to standard
//! error; standard output belongs to the report.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// A server that answers later than this is mentioned, again and again until it does.
const SLOW: Duration = Duration::from_secs(5);

/// Waits for an answer, and says so every few seconds while there is none.
pub async fn waiting<T>(what: &str, answer: impl Future<Output = T>) -> T {
    let started = tokio::time::Instant::now();
    tokio::pin!(answer);
    loop {
        if let Ok(answer) = tokio::time::timeout(SLOW, &mut answer).await {
            return answer;
        }
        tracing::warn!(seconds = started.elapsed().as_secs(), "still waiting for {what}");
    }
}

/// Makes bars; cheap to clone.
#[derive(Clone, Debug)]
pub struct Progress {
    bars: Option<MultiProgress>,
}

impl Progress {
    /// Bars when standard error is a terminal, log lines otherwise.
    pub fn detect() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { bars: terminal.then(MultiProgress::new) }
    }

    /// Neither bars nor log lines of its own.
    pub fn hidden() -> Self {
        Self { bars: None }
    }

    /// Whether bars are drawn, so that log lines would tear them apart.
    pub fn draws(&self) -> bool {
        self.bars.is_some()
    }

    /// A step that handles `total` bytes.
    pub fn bytes(&self, what: &str, total: u64) -> Bar {
        let Some(bars) = &self.bars else {
            tracing::info!(bytes = total, "{what}");
            return Bar {
                shown: ProgressBar::hidden(),
                what: what.to_owned(),
                started: Instant::now(),
                log: true,
            };
        };
        let style =
            "{spinner} {msg:44!} {bar:24} {bytes:>11}/{total_bytes:11} {binary_bytes_per_sec:>12} {eta}";
        let style = ProgressStyle::with_template(style).expect("the template is written here");
        let bar = bars.add(ProgressBar::new(total).with_style(style).with_message(what.to_owned()));
        Bar { shown: bar, what: what.to_owned(), started: Instant::now(), log: false }
    }

    /// A step of unknown length.
    pub fn step(&self, what: &str) -> Bar {
        let Some(bars) = &self.bars else {
            tracing::info!("{what}");
            return Bar {
                shown: ProgressBar::hidden(),
                what: what.to_owned(),
                started: Instant::now(),
                log: true,
            };
        };
        let style =
            ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("the template is written here");
        let bar = bars.add(ProgressBar::new_spinner().with_style(style).with_message(what.to_owned()));
        bar.enable_steady_tick(Duration::from_millis(120));
        Bar { shown: bar, what: what.to_owned(), started: Instant::now(), log: false }
    }
}

/// One step under way; dropping it removes the bar.
#[derive(Debug)]
pub struct Bar {
    shown: ProgressBar,
    what: String,
    started: Instant,
    log: bool,
}

impl Bar {
    /// A bar nobody sees.
    pub fn hidden() -> Self {
        Self { shown: ProgressBar::hidden(), what: String::new(), started: Instant::now(), log: false }
    }

    /// Counts what a task of its own handles; may outlive the bar.
    pub fn counter(&self) -> Counter {
        Counter(self.shown.clone())
    }

    /// Counts handled bytes.
    pub fn advance(&self, bytes: u64) {
        self.shown.inc(bytes);
    }

    /// Sets the total, when it becomes known.
    pub fn expect(&self, total: u64) {
        self.shown.set_length(total);
    }

    /// Sets the count, for resumed transfers.
    pub fn set(&self, bytes: u64) {
        self.shown.set_position(bytes);
    }

    /// Says what `reader` gives.
    pub fn reader<R: std::io::Read>(&self, reader: R) -> impl std::io::Read + use<R> {
        self.shown.wrap_read(reader)
    }
}

/// Counts bytes of a [`Bar`] from elsewhere.
#[derive(Clone, Debug)]
pub struct Counter(ProgressBar);

impl Counter {
    /// Counts handled bytes.
    pub fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Takes bytes back: they have to be handled again.
    pub fn retract(&self, bytes: u64) {
        self.0.dec(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.shown.finish_and_clear();
        if self.log {
            let seconds = (self.started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
            tracing::info!(seconds, "done: {}", self.what);
        }
    }
}
