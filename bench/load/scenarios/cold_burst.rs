//! `cold-burst`: eight clients ask for one blob that nobody has, at the same moment.

use anyhow::{Context, Result};

use super::{milliseconds, seconds, world};
use crate::{
    Arguments,
    client::burst_aside,
    machine::settle,
    report::{Report, median_of},
    rivals::{self, REPOSITORY},
};

const SIZE_MIB: u64 = 256;
/// What one connection to upstream carries, in bytes per second: the same for all, and slow enough that upstream is
/// what they wait for.
const RATE: u64 = 100_000_000;

#[derive(Clone, Copy, Debug)]
struct Measured {
    first_byte_ms: f64,
    last: f64,
    gets: f64,
    bytes_ratio: f64,
}

pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let (work, upstream) = world().await?;
    upstream.rate_per_connection(RATE);
    let size = arguments.size.unwrap_or(SIZE_MIB) << 20;
    let room = size * u64::from(arguments.rounds + 1);
    let contestants = [
        rivals::agent(&upstream, work.path()).await?,
        rivals::varnish(upstream.address(), work.path(), room).await?,
        rivals::docker_registry(upstream.address(), work.path()).await?,
    ];
    for round in 0..arguments.rounds {
        // A new blob each round: cold for everybody.
        let digest = upstream.random_blob(REPOSITORY, u64::from(round), size).await;
        let mut measured = [None; 3];
        for turn in 0..contestants.len() {
            let index = (turn + round as usize) % contestants.len();
            let one = &contestants[index];
            settle(2 * size).await?;
            let mark = upstream.log().len();
            let transfers = burst_aside(one, &digest, size, arguments.clients, 1).await?;
            let gets = upstream.log().since(mark).blob_gets();
            let firsts: Vec<_> = transfers.iter().map(|transfer| milliseconds(transfer.first_byte)).collect();
            let last = transfers.iter().map(|transfer| transfer.total).max().context("there are clients")?;
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let one_measured = Measured {
                first_byte_ms: median_of(&firsts),
                last: seconds(last),
                gets: gets.len() as f64,
                bytes_ratio: gets.bytes() as f64 / size as f64,
            };
            report.detail(&format!("{} first byte ms", one.name), one_measured.first_byte_ms);
            report.detail(&format!("{} last client s", one.name), one_measured.last);
            report.detail(&format!("{} upstream GETs", one.name), one_measured.gets);
            report.detail(&format!("{} upstream bytes ratio", one.name), one_measured.bytes_ratio);
            measured[index] = Some(one_measured);
        }
        if let [Some(agent), Some(varnish), Some(registry)] = measured {
            report.figure("upstream_gets", agent.gets);
            report.figure("upstream_bytes_ratio", agent.bytes_ratio);
            report.figure("first_byte_ms_over_varnish", agent.first_byte_ms - varnish.first_byte_ms);
            report.figure("last_client_ratio_vs_varnish", agent.last / varnish.last);
            report.figure("docker_registry_upstream_gets", registry.gets);
        }
    }
    Ok(())
}
