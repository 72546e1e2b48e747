//! The push at the end of a build, and the check at its beginning.

use std::collections::BTreeMap;

use oci::ImageName;

use super::{
    BuildError,
    prepared::{Planning, Prepared},
};
use crate::{
    cache::Cache,
    digest::Digest,
    fetch::download,
    progress::Progress,
    publish::{Publication, Pusher},
    registry::{Registry, Repository},
    report::PushReport,
    spec,
};

/// The layers of bases that lie in other repositories of the registry that is pushed to.
pub(super) fn mounts(planning: &Planning) -> BTreeMap<Digest, Repository> {
    let target = &planning.matrix.repository;
    let mut found = BTreeMap::new();
    for Prepared { wanted, base, .. } in &planning.prepared {
        let spec::Base::Image(name) = &wanted.recipe.base else { continue };
        let Ok(ImageName { repository: source, .. }) = name.parse() else { continue };
        if source.registry == target.registry && source != *target {
            found.extend(base.layers.iter().map(|layer| (layer.blob.digest, source.clone())));
        }
    }
    found
}

/// Fails before anything is built when the user may not push.
pub(super) async fn check(
    repository: &Repository,
    registry: &Registry,
    cache: &Cache,
    progress: &Progress,
) -> Result<(), BuildError> {
    let _bar = progress.step(&format!("checking that {repository} can be pushed to"));
    let client =
        download::client().map_err(|source| BuildError::Input { name: repository.to_string(), source })?;
    let mounts = BTreeMap::new();
    let pusher = Pusher { registry, client: &client, cache, repository, mounts: &mounts, progress };
    Ok(pusher.check().await?)
}

pub(super) async fn push(
    planning: &Planning,
    registry: &Registry,
    cache: &Cache,
    publication: &Publication<'_>,
    progress: &Progress,
) -> Result<PushReport, BuildError> {
    let (matrix, mounts) = (&planning.matrix, mounts(planning));
    let client = download::client()
        .map_err(|source| BuildError::Input { name: matrix.repository.to_string(), source })?;
    let repository = &matrix.repository;
    let pusher = Pusher { registry, client: &client, cache, repository, mounts: &mounts, progress };
    Ok(PushReport::new(repository, &pusher.push(publication).await?))
}
