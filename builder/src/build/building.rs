//! `hearth build`: one build, in order.

use std::{collections::BTreeSet, time::Instant};

use super::{
    BuildError, Options,
    images::{images, publication, refused_report, verify, write_bases},
    inventory,
    options::{lock_path, output, read_lock},
    prepare::prepare,
    prepared::Planning,
    pushing,
    repair::{blocking, repaired},
};
use crate::{
    cache::Cache,
    digest::Digest,
    lock::{Lock, LockError},
    plan::locked::fingerprint,
    progress::Progress,
    publish::{docker_archive, layout},
    registry::Registry,
    report::Report,
};

/// Builds every cell of a specification. Needs a multi-threaded runtime.
pub async fn run(options: &Options, progress: &Progress) -> Result<Report, BuildError> {
    let cache = Cache::open(&options.cache)?;
    repaired(&cache, async || build(options, &cache, progress).await).await
}

async fn build(options: &Options, cache: &Cache, progress: &Progress) -> Result<Report, BuildError> {
    let started = Instant::now();
    let registry = Registry::new(options.registries.clone());
    let lock = read_lock(options)?;
    let mut planning = prepare(options, cache, &registry, progress, lock.as_ref(), true).await?;
    if let Some(lock) = &lock {
        lock.check_codec(&lock_path(options), planning.matrix.compression)?;
        complete(lock, &planning)?;
    }
    blocking(|| write_bases(options, cache, &mut planning, progress))?;
    let built = blocking(|| images(options, cache, &planning, progress))?;
    blocking(|| verify(options, cache, &built))?;
    let mut publication = publication(&planning.matrix, &built);
    if options.sbom {
        publication.referrers =
            blocking(|| inventory::referrers(options, cache, &planning, &built, progress))?;
    }
    let output = output(options);
    blocking(|| layout::write(cache, &output, &publication))?;
    if let Some(path) = &options.docker_archive {
        let repository = &planning.matrix.repository;
        blocking(|| docker_archive::write(cache, path, repository, &publication))?;
    }
    let push = if options.push {
        Some(pushing::push(&planning, &registry, cache, &publication, progress).await?)
    } else {
        None
    };
    let tags = publication.tags.iter();
    Ok(Report {
        referrers: publication.referrers.iter().map(|referrer| referrer.manifest.descriptor.digest).collect(),
        tags: tags.map(|tag| (tag.name.clone(), tag.document.descriptor.digest)).collect(),
        images: built.iter().map(|built| built.report(&planning.matrix)).collect(),
        refused: planning.matrix.refused.iter().map(refused_report).collect(),
        output: output.display().to_string(),
        warnings: planning.warnings,
        push,
        seconds: seconds(started),
    })
}

/// A build writes only layers of its lock: anything else would come to other images elsewhere.
fn complete(lock: &Lock, planning: &Planning) -> Result<(), LockError> {
    let known: BTreeSet<Digest> = lock.layers.iter().map(|layer| layer.tree).collect();
    match planning.layers.iter().find(|layer| !known.contains(&fingerprint(&layer.tree))) {
        None => Ok(()),
        Some(layer) => {
            Err(LockError::Stale { what: format!("the layer \"{}\" as it is now", layer.label()) })
        }
    }
}

fn seconds(started: Instant) -> f64 {
    (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
}
