//! `slow-upstream`: one client, one large blob, an upstream that carries only so much per connection, as object stores do.

use anyhow::{Context, Result};

use super::{seconds, world};
use crate::{
    Arguments,
    client::burst_aside,
    machine::settle,
    report::Report,
    rivals::{self, REPOSITORY},
};

const SIZE_MIB: u64 = 1024;
/// One connection to a large object store, in bytes per second, as users measured it.
const RATE: u64 = 75_000_000;

pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let (work, upstream) = world().await?;
    upstream.rate_per_connection(RATE);
    let size = arguments.size.unwrap_or(SIZE_MIB) << 20;
    let room = size * u64::from(arguments.rounds + 1);
    let contestants = [
        rivals::agent(&upstream, work.path()).await?,
        rivals::docker_registry(upstream.address(), work.path()).await?,
        rivals::varnish(upstream.address(), work.path(), room).await?,
    ];
    for round in 0..arguments.rounds {
        let digest = upstream.random_blob(REPOSITORY, u64::from(round), size).await;
        let mut times = [0.0; 3];
        for turn in 0..contestants.len() {
            let index = (turn + round as usize) % contestants.len();
            let one = &contestants[index];
            settle(2 * size).await?;
            let mark = upstream.log().len();
            let transfers = burst_aside(one, &digest, size, 1, 1).await?;
            times[index] = seconds(transfers.first().context("there is a client")?.total);
            report.detail(&format!("{} s", one.name), times[index]);
            #[expect(clippy::cast_precision_loss, reason = "a handful")]
            report.detail(
                &format!("{} upstream GETs", one.name),
                upstream.log().since(mark).blob_gets().len() as f64,
            );
        }
        let [agent, registry, varnish] = times;
        report.figure("speedup_vs_docker_registry", registry / agent);
        report.figure("speedup_vs_varnish", varnish / agent);
    }
    Ok(())
}
