//! Manifests: complete and verified, from the store, from memory when the store cannot hold them, or from the
//! registry.

use bytes::Bytes;

use super::{
    blocking::blocking,
    error::FetchError,
    fetcher::Fetcher,
    tag_slot::{ManifestInfo, Sources, info},
};
use crate::{
    journal::Source,
    metrics::{Found, Kind},
    store::{ManifestRecord, StoreError},
    types::{Digest, ManifestError, ManifestLinks, MediaType, Reference, Repository, chain, media_type_of},
    upstream::{Manifest, UpstreamError},
};

use crate::limits::download::manifests::SMALL_WRITE;

impl Fetcher {
    /// The answer to a HEAD request for a manifest.
    pub async fn manifest_head(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<ManifestInfo, FetchError> {
        match reference {
            Reference::Tag(tag) => self.resolve(repository, tag).await,
            Reference::Digest(digest) => {
                self.manifest_by_digest(repository, digest).await.map(|manifest| info(&manifest, false))
            }
        }
    }

    /// A manifest, complete and verified.
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<(ManifestInfo, Bytes), FetchError> {
        let (digest, stale) = match reference {
            Reference::Tag(tag) => {
                let resolved = self.resolve(repository, tag).await?;
                (resolved.digest, resolved.stale)
            }
            Reference::Digest(digest) => (*digest, false),
        };
        let manifest = self.manifest_by_digest(repository, &digest).await?;
        Ok((info(&manifest, stale), manifest.bytes))
    }

    pub(super) async fn manifest_by_digest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Manifest, FetchError> {
        self.manifest_by(repository, digest, Sources::All).await
    }

    pub(super) async fn manifest_by(
        &self,
        repository: &Repository,
        digest: &Digest,
        sources: Sources,
    ) -> Result<Manifest, FetchError> {
        if let Some(manifest) = self.stored_manifest(repository, digest).await {
            self.0.metrics.count_content(Kind::manifest, Found::hit);
            return Ok(manifest);
        }
        let key = (repository.clone(), *digest);
        let _only = self.0.manifests.lock(&key).await;
        if let Some(manifest) = self.stored_manifest(repository, digest).await {
            self.0.metrics.count_content(Kind::manifest, Found::joined);
            return Ok(manifest);
        }
        self.0.negative.check(&key)?;
        self.0.metrics.count_content(Kind::manifest, Found::miss);
        let fetched = self.fetch_manifest(repository, digest, sources).await;
        fetched.inspect_err(|error| self.0.negative.note(&key, error))
    }

    async fn fetch_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        sources: Sources,
    ) -> Result<Manifest, FetchError> {
        if let Some(manifest) = self.confirm_shared_manifest(repository, digest).await? {
            return Ok(manifest);
        }
        let peers = sources == Sources::All;
        let received = if peers { self.manifest_of_peers(repository, digest).await } else { None };
        let (manifest, source) = match received {
            Some(manifest) => (manifest, Source::Peers),
            None => match self.0.upstream.manifest(repository, &Reference::Digest(*digest)).await {
                Err(error @ (UpstreamError::Throttled { .. } | UpstreamError::Unavailable { .. }))
                    if peers =>
                {
                    (self.manifest_of_any_peer(repository, digest).await.ok_or(error)?, Source::Peers)
                }
                asked => (asked?, Source::Registry),
            },
        };
        self.keep_manifest(repository, &manifest).await?;
        self.0.journal.note_fetched(digest, source);
        Ok(manifest)
    }

    /// A manifest from this node's disk only. The requester knows the digest, which proves that it may read the
    /// content.
    pub(super) async fn known_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Manifest, FetchError> {
        if let Some(manifest) = self.stored_manifest(repository, digest).await {
            return Ok(manifest);
        }
        let bytes = self.stored_bytes(digest).await;
        let known = bytes.and_then(|bytes| Some((media_type_of(&bytes)?, bytes)));
        let (media_type, bytes) = known.ok_or_else(|| FetchError::NotNow {
            reason: "the manifest is not on this node".into(),
            retry_after: None,
        })?;
        Ok(Manifest { digest: *digest, media_type, bytes })
    }

    /// A manifest of the store that this repository is known to have.
    pub(super) async fn stored_manifest(&self, repository: &Repository, digest: &Digest) -> Option<Manifest> {
        let record = self.0.store.manifest(repository, digest).await.unwrap_or_else(|error| {
            tracing::warn!(digest = %digest.short(), error = %chain(&error), "cannot read the record of a manifest");
            None
        });
        let stored = match record.and_then(|record| MediaType::parse(&record.media_type)) {
            Some(media_type) => {
                let bytes = self.stored_bytes(digest).await;
                if let Some(Ok(links)) = bytes.as_deref().map(ManifestLinks::parse) {
                    self.0.descriptors.remember(repository, digest, &links);
                }
                bytes.map(|bytes| Manifest { digest: *digest, media_type, bytes })
            }
            None => None,
        };
        if stored.is_some() {
            return stored;
        }
        let remembered = self.0.memory.get(repository, digest)?;
        if self.0.store.trouble().is_none() {
            self.store_manifest(repository, &remembered).await;
        }
        Some(remembered)
    }

    /// The bytes of a stored manifest, verified again: they are few, and a damaged manifest would fail the whole
    /// pull.
    async fn stored_bytes(&self, digest: &Digest) -> Option<Bytes> {
        let blob = self.0.stored_blob(digest).await?;
        let read = blob.read_all().await;
        let Some(bytes) = read.ok().filter(|bytes| digest.verify(bytes).is_ok()) else {
            tracing::error!(digest = %digest.short(), "stored manifest is damaged: fetching it again");
            return None;
        };
        Some(bytes)
    }

    /// The manifest was stored for another repository: a HEAD request, which registries do not count, checks that
    /// this repository has it too. When the registry cannot answer, knowing the digest is proof enough.
    async fn confirm_shared_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Manifest>, FetchError> {
        let Some(bytes) = self.stored_bytes(digest).await else { return Ok(None) };
        let Some(media_type) = media_type_of(&bytes) else { return Ok(None) };
        match self.0.upstream.manifest_head(repository, &Reference::Digest(*digest)).await {
            Ok(head) => {
                let manifest =
                    Manifest { digest: *digest, media_type: head.media_type.unwrap_or(media_type), bytes };
                self.keep_manifest(repository, &manifest).await?;
                Ok(Some(manifest))
            }
            Err(UpstreamError::Throttled { .. } | UpstreamError::Unavailable { .. }) => {
                Ok(Some(Manifest { digest: *digest, media_type, bytes }))
            }
            Err(settled) => Err(settled.into()),
        }
    }

    /// Stores a verified manifest and remembers the descriptors in it.
    pub(super) async fn keep_manifest(
        &self,
        repository: &Repository,
        manifest: &Manifest,
    ) -> Result<(), FetchError> {
        match ManifestLinks::parse(&manifest.bytes) {
            Ok(links) => self.0.descriptors.remember(repository, &manifest.digest, &links),
            Err(ManifestError::SchemaOne) => {
                return Err(FetchError::Unsupported { reason: ManifestError::SchemaOne.to_string() });
            }
            Err(ManifestError::Json(_)) => {}
        }
        self.store_manifest(repository, manifest).await;
        Ok(())
    }

    /// A manifest that the store cannot take is kept in memory, so that the client gets it.
    async fn store_manifest(&self, repository: &Repository, manifest: &Manifest) {
        let (store, place, kept) = (self.0.store.clone(), repository.clone(), manifest.clone());
        let given_to = self.given_to(repository);
        let stored = self.write(move || {
            if let Some(to) = given_to {
                store.note_origin(&kept.digest, &place.registry, to)?;
            }
            store.put(&kept.digest, &kept.bytes)?;
            let record = ManifestRecord::new(kept.media_type.as_str());
            store.set_manifest(&place, &kept.digest, &record)
        });
        match stored.await {
            Ok(()) => self.0.memory.forget(repository, &manifest.digest),
            Err(error) => {
                tracing::warn!(digest = %manifest.digest.short(), error = %chain(&error), "cannot store a manifest: kept in memory only");
                self.0.memory.keep(repository, manifest);
            }
        }
    }

    /// Writes a small file; on a full disk makes room and retries once. Errors are noted.
    pub(super) async fn write(
        &self,
        work: impl Fn() -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), FetchError> {
        if self.0.store.is_paused() {
            return Err(FetchError::NotNow {
                reason: "the store accepts no writes".into(),
                retry_after: None,
            });
        }
        let fetcher = self.clone();
        blocking(move || match work() {
            Err(error) if error.is_full() && fetcher.0.room.free(SMALL_WRITE).unwrap_or(false) => work(),
            outcome => outcome,
        })
        .await
        .inspect_err(|error| self.0.note_trouble(error))
    }
}
