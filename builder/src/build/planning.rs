//! `hearth plan`: what a build would do, and what of it is at the target already.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use super::{
    BuildError, Options,
    images::{refused_report, write_bases, write_layers},
    options::read_lock,
    prepare::prepare,
    prepared::{Planning, Prepared},
    pushing::mounts,
    repair::{blocking, repaired},
};
use crate::{
    cache::{Cache, Content},
    digest::Digest,
    layer::{self, codec::Codec, estimate::estimate},
    lock::{Lock, LockError},
    plan::{layers::Planned, locked::fingerprint},
    progress::Progress,
    registry::Registry,
    report::{
        Against, AgainstImage, PlanReport, PlannedBase, PlannedImage, PlannedLayer, Size, Target, Unbuilt,
    },
    sources::base::Base,
    spec,
    tree::{self, Entry},
};

/// A hundred layers are asked for in seconds; who plans does not wait for a registry that is not there.
const PATIENCE: Duration = Duration::from_mins(1);

/// Reads all inputs and says what a build would make of them. Nothing is written outside the cache or pushed, and
/// nothing compressed unless every size has to be exact.
pub async fn plan(options: &Options, progress: &Progress) -> Result<PlanReport, BuildError> {
    // A plan is where a user looks at refused combinations: they are a part of its answer.
    // Nothing is pushed, so nobody needs the right to.
    let options = Options { skip_refused: true, push: false, ..options.clone() };
    let cache = Cache::open(&options.cache)?;
    repaired(&cache, async || report(&options, &cache, progress).await).await
}

async fn report(options: &Options, cache: &Cache, progress: &Progress) -> Result<PlanReport, BuildError> {
    let registry = Registry::new(options.registries.clone());
    let against = match &options.against {
        None => None,
        Some(path) => {
            let lock = Lock::read(path)?.ok_or_else(|| LockError::Absent { path: path.clone() })?;
            Some((path, lock))
        }
    };
    // A plan is also where a user sees what a stale lock comes to: new inputs are looked up.
    let lock = read_lock(options)?;
    let mut planning = prepare(options, cache, &registry, progress, lock.as_ref(), false).await?;
    if options.exact {
        blocking(|| write_bases(options, cache, &mut planning, progress))?;
        blocking(|| write_layers(options, cache, &planning, progress))?;
    }
    let names = names(&planning);
    // Sizes that nothing is known of are estimated from samples.
    let describe = |planned| describe(planned, &planning, cache, &names);
    let (mut layers, bases): (Vec<PlannedLayer>, _) =
        blocking(|| (planning.layers.iter().map(describe).collect(), bases(&planning, cache, &names)));
    let target = target(options, &planning, &registry, &bases, &mut layers).await;
    let against = against.map(|(path, lock)| compare(path, &lock, &planning, &bases, &layers));
    let cells = planning.prepared.iter().map(|prepared| prepared.wanted.cell.name());
    let images: Vec<PlannedImage> =
        names.into_iter().zip(cells).map(|(tag, cell)| PlannedImage::new(tag, cell, &layers)).collect();
    Ok(PlanReport {
        repository: planning.matrix.repository.to_string(),
        refused: planning.matrix.refused.iter().map(refused_report).collect(),
        compression: planning.matrix.compression,
        unique_bytes: layers.iter().map(|layer| layer.bytes).sum(),
        unique_compressed_bytes: layers.iter().map(|layer| Some(layer.blob?.size)).sum(),
        distinct_bytes: distinct(&planning),
        total_bytes: images.iter().map(|image| image.bytes).sum(),
        images,
        bases,
        layers,
        target,
        warnings: planning.warnings,
        against,
    })
}

/// How images are called in plans: by their first tag, and their platform where a tag has several.
fn names(planning: &Planning) -> Vec<String> {
    let name = |prepared: &Prepared| {
        let tag = prepared.tag();
        let same = planning.prepared.iter().filter(|other| other.tag() == tag).count();
        if same > 1 { format!("{tag} {}", prepared.wanted.cell.platform) } else { tag.to_owned() }
    };
    planning.prepared.iter().map(name).collect()
}

fn describe(planned: &Planned, planning: &Planning, cache: &Cache, names: &[String]) -> PlannedLayer {
    let codec = planning.matrix.compression;
    let built = layer::known(cache, &planned.tree, codec);
    let compressed = match &built {
        Some(layer) => Size::exact(layer.blob.size),
        None => Size::estimate(estimate(cache, &planned.tree, codec)),
    };
    PlannedLayer {
        label: planned.label(),
        images: planned.images.iter().map(|at| names[*at].clone()).collect(),
        files: planned.tree.values().filter(|entry| entry.content().is_some()).count(),
        bytes: tree::bytes(&planned.tree),
        blob: built.map(|layer| layer.blob),
        compressed,
        at_target: None,
    }
}

/// The bases with the images on them, each once.
fn bases(planning: &Planning, cache: &Cache, names: &[String]) -> Vec<PlannedBase> {
    let mut found: BTreeMap<Digest, PlannedBase> = BTreeMap::new();
    let based = planning.prepared.iter().zip(names).filter(|(prepared, _)| !on_nothing(prepared));
    for (prepared, name) in based {
        let base = found.entry(prepared.base.digest).or_insert_with(|| PlannedBase {
            name: prepared.base.name.clone(),
            images: Vec::new(),
            layers: prepared.base.layers.iter().map(|layer| layer.blob).collect(),
            unbuilt_bytes: prepared.base.unwritten_bytes(),
            compressed: base_size(&prepared.base, cache, planning.matrix.compression),
        });
        base.images.push(name.clone());
    }
    found.into_values().collect()
}

/// Whether an image has no base.
fn on_nothing(prepared: &Prepared) -> bool {
    matches!(prepared.wanted.recipe.base, spec::Base::Scratch)
}

fn base_size(base: &Base, cache: &Cache, codec: Codec) -> Size {
    match &base.unwritten {
        Some(files) => Size::estimate(estimate(cache, files, codec)),
        None => Size::exact(base.layers.iter().map(|layer| layer.blob.size).sum()),
    }
}

/// Asks the target which of the layers it has, and notes it at each. A target that cannot say so is no reason to fail:
/// a plan is often made where nobody may push.
async fn target(
    options: &Options,
    planning: &Planning,
    registry: &Registry,
    bases: &[PlannedBase],
    layers: &mut [PlannedLayer],
) -> Target {
    let of_bases = bases.iter().flat_map(|base| &base.layers).copied();
    let blobs: BTreeSet<Content> = of_bases.chain(layers.iter().filter_map(|layer| layer.blob)).collect();
    let of_layers = layers.iter().map(|layer| (layer.bytes, layer.compressed));
    let of_bases = bases.iter().map(|base| (base.unbuilt_bytes, base.compressed));
    let unbuilt = of_layers.chain(of_bases).filter(|(_, compressed)| compressed.estimated);
    let unbuilt = unbuilt.fold(Unbuilt { bytes: 0, estimate: 0 }, |sum, (bytes, compressed)| Unbuilt {
        bytes: sum.bytes + bytes,
        estimate: sum.estimate + compressed.bytes,
    });
    let present = if options.offline {
        Err("--offline forbids to ask".to_owned())
    } else {
        let digests = blobs.iter().map(|blob| blob.digest).collect();
        let answer = registry.has(&planning.matrix.repository, &digests);
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer.map_err(|error| format!("{:#}", anyhow::Error::new(error))),
            Err(_) => Err(format!("it did not answer in {} seconds", PATIENCE.as_secs())),
        }
    };
    if let Ok(present) = &present {
        for layer in layers {
            layer.at_target = layer.blob.map(|blob| present.contains(&blob.digest));
        }
    }
    let mounts = mounts(planning);
    Target::new(&blobs, unbuilt, &present, |digest| mounts.contains_key(digest))
}

/// Bytes of every distinct file once: what no plan can get below.
fn distinct(planning: &Planning) -> u64 {
    let trees = planning.prepared.iter().flat_map(|prepared| prepared.files.parts.values());
    let contents: BTreeSet<Content> =
        trees.flat_map(|tree| tree.values()).filter_map(Entry::content).collect();
    contents.into_iter().map(|content| content.size).sum()
}

/// What a node that has the images of an old lock would download for each image.
fn compare(
    path: &Path,
    old: &Lock,
    planning: &Planning,
    planned_bases: &[PlannedBase],
    layers: &[PlannedLayer],
) -> Against {
    // Written in another way, the same files come to other bytes.
    let rewritten = !old.is_written_with(planning.matrix.compression);
    let had: BTreeSet<Digest> = old.layers.iter().map(|layer| layer.tree).collect();
    let bases: BTreeSet<Digest> = old.inputs.values().map(|pin| pin.digest).collect();
    let new: Vec<(&Planned, &PlannedLayer)> = planning
        .layers
        .iter()
        .zip(layers)
        .filter(|(planned, _)| rewritten || !had.contains(&fingerprint(&planned.tree)))
        .collect();
    let packed = |layers: &[&PlannedLayer]| layers.iter().map(|layer| layer.compressed).sum();
    let names = names(planning);
    let image = |(at, prepared): (usize, &Prepared)| {
        let own = new.iter().filter(|(planned, _)| planned.images.contains(&at));
        let own: Vec<&PlannedLayer> = own.map(|(_, layer)| *layer).collect();
        let base = &prepared.base;
        // Layers of finished images are taken as they are, those of archives are written here.
        let of_archive = matches!(prepared.wanted.recipe.base, spec::Base::RootFs(_));
        let base_is_new =
            !on_nothing(prepared) && (!bases.contains(&base.digest) || (rewritten && of_archive));
        let of_base = planned_bases.iter().find(|base| base.images.contains(&names[at]));
        AgainstImage {
            tag: names[at].clone(),
            layers: own.len(),
            bytes: own.iter().map(|layer| layer.bytes).sum(),
            compressed: packed(&own),
            base_is_new,
            base_compressed: of_base.filter(|_| base_is_new).map(|base| base.compressed).unwrap_or_default(),
        }
    };
    let all: Vec<&PlannedLayer> = new.iter().map(|(_, layer)| *layer).collect();
    Against {
        lock: path.display().to_string(),
        other_codec: rewritten,
        images: planning.prepared.iter().enumerate().map(image).collect(),
        unique_bytes: all.iter().map(|layer| layer.bytes).sum(),
        unique_compressed: packed(&all),
    }
}
