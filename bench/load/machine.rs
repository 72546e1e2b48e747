//! What a result depends on: the machine, the commit, and how much processor time a process took.

use std::{fs, process::Command};

use anyhow::{Context, Result};

/// Processor, number of them, memory, kernel.
pub(crate) fn describe() -> String {
    let model = field(&read("/proc/cpuinfo"), "model name");
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kib = meminfo_kib("MemTotal");
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{processors} x {model}, {} GiB, Linux {}", kib >> 20, kernel.trim())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The value after `name` in a file of lines like `name : value`.
fn field(text: &str, name: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn meminfo_kib(name: &str) -> u64 {
    field(&read("/proc/meminfo"), name).trim_end_matches(" kB").parse().unwrap_or(0)
}

/// The commit that was measured, marked when the tree had changes.
pub(crate) fn commit() -> String {
    // `bench/run` saves several results, each of which changes the tree.
    if let Ok(commit) = std::env::var("HEARTH_BENCH_COMMIT") {
        return commit;
    }
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".to_owned() };
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    if changed { format!("{commit}-dirty") } else { commit }
}

/// Makes turns equal: `bytes` of memory are touched and given back, for a hypervisor may hand memory out at its first
/// use only, at a tenth of a disk's speed; and what was written so far goes to the disk, for with enough unwritten pages
/// Linux makes whoever writes next wait.
pub(crate) async fn settle(bytes: u64) -> Result<()> {
    let settled = tokio::task::spawn_blocking(move || {
        touch(bytes);
        rustix::fs::sync();
    });
    settled.await.context("the machine was not settled")
}

fn touch(bytes: u64) {
    const BLOCK: usize = 64 << 20;
    const PAGE: usize = 4096;
    let available = meminfo_kib("MemAvailable") << 10;
    let blocks = usize::try_from(bytes.min(available / 2)).unwrap_or(0).div_ceil(BLOCK);
    let mut held = Vec::with_capacity(blocks);
    for _ in 0..blocks {
        let mut block = vec![0_u8; BLOCK];
        block.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        held.push(std::hint::black_box(block));
    }
}

/// Processor seconds of a process and its children so far.
pub(crate) fn processor_seconds(id: u32) -> Result<f64> {
    let mut ticks =
        ticks(&fs::read_to_string(format!("/proc/{id}/stat"))?).context("`/proc` has another form")?.1;
    for entry in fs::read_dir("/proc")?.flatten() {
        // Processes come and go while this reads.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some((parent, own)) = self::ticks(&stat)
            && parent == id
        {
            ticks += own;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "ticks are few")]
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Parent's id and processor ticks from a line of `/proc/<id>/stat` (proc(5)).
fn ticks(stat: &str) -> Option<(u32, u64)> {
    // The name in parentheses may contain anything.
    let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some((
        fields.get(1)?.parse().ok()?,
        fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_gives_parent_and_ticks_whatever_the_name() {
        let stat = "42 (a) b) S 7 42 42 0 -1 4194304 100 0 0 0 30 12 0 0 20 0 1 0 100 1000 10";
        assert_eq!(ticks(stat), Some((7, 42)));
    }
}
