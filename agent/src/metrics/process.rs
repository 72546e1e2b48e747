//! What the operating system says of this process, under the names that Prometheus' client libraries use.

#![expect(clippy::disallowed_methods, reason = "`/proc` is no disk")]

use std::{fs, sync::atomic::AtomicU64};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// Clock ticks of a second in `/proc`: `USER_HZ`, which Linux has at 100 on every platform that the agent is built for (time(7)).
const TICKS: f64 = 100.0;

/// The metrics. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Process {
    cpu: Counter<f64, AtomicU64>,
    resident: Gauge,
    open_files: Gauge,
    max_files: Gauge,
    started: Gauge<f64, AtomicU64>,
}

/// What is read from `/proc/self/stat`, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Stat {
    cpu: f64,
    /// After the machine's start.
    started: f64,
}

impl Process {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let process = Self::default();
        registry.register("process_cpu_seconds", "User and system processor time spent", process.cpu.clone());
        registry.register("process_resident_memory_bytes", "Resident memory", process.resident.clone());
        registry.register("process_open_fds", "Open file descriptors", process.open_files.clone());
        registry.register(
            "process_max_fds",
            "Most file descriptors that may be open",
            process.max_files.clone(),
        );
        registry.register(
            "process_start_time_seconds",
            "When the process started, in seconds since 1970",
            process.started.clone(),
        );
        process
    }

    /// Reads the numbers anew. What cannot be read keeps its value.
    pub(super) fn read(&self) {
        let stat = fs::read_to_string("/proc/self/stat").ok().and_then(|text| parse_stat(&text));
        if let Some(stat) = stat {
            // A counter takes increments.
            self.cpu.inc_by((stat.cpu - self.cpu.get()).max(0.0));
            if let Some(boot) = fs::read_to_string("/proc/stat").ok().and_then(|text| boot_time(&text)) {
                self.started.set(boot + stat.started);
            }
        }
        let status = fs::read_to_string("/proc/self/status").ok();
        if let Some(kib) = status.and_then(|text| resident_kib(&text)) {
            self.resident.set(kib.saturating_mul(1024));
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // Without the descriptor of this very listing.
            self.open_files.set(i64::try_from(files.count().saturating_sub(1)).unwrap_or(i64::MAX));
        }
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        self.max_files.set(i64::try_from(most).unwrap_or(i64::MAX));
    }
}

/// proc_pid_stat(5). The name of the program, in parentheses, may contain anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    // Numbered from 3 (the state) in the manual: utime is 14, stime 15, starttime 22.
    #[expect(clippy::cast_precision_loss, reason = "ticks of a process are far below 2^52")]
    let seconds = |number: usize| {
        let ticks: u64 = fields.get(number - 3)?.parse().ok()?;
        Some(ticks as f64 / TICKS)
    };
    Some(Stat { cpu: seconds(14)? + seconds(15)?, started: seconds(22)? })
}

/// `VmRSS` of proc_pid_status(5), in KiB.
fn resident_kib(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// `btime` of proc_stat(5): seconds since 1970.
fn boot_time(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_s_words_are_read() {
        let text = "42 (a) b) R 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 1234 100 25 18446744073709551615";
        assert_eq!(parse_stat(text), Some(Stat { cpu: 3.0, started: 12.34 }));
        assert_eq!(parse_stat("42 (a) R 1"), None);
        assert_eq!(resident_kib("VmPeak:\t 9 kB\nVmRSS:\t   1234 kB\n"), Some(1234));
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000.0));
    }

    #[test]
    fn this_process_is_seen() {
        let process = Process::register(&mut Registry::default());
        process.read();
        assert!(process.resident.get() > 0 && process.open_files.get() > 0);
        assert!(process.max_files.get() >= process.open_files.get());
        assert!(process.started.get() > 1.0e9);
    }
}
