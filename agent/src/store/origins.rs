//! How content was authorised that came from a registry to which the agent shows credentials.
//!
//! ```text
//! <data>/origins-v1/<two digits>/<hex>    registries that gave it, each with or without credentials
//! ```
//!
//! Content without a record came without credentials: anyone may have it. A record is written before the first byte of
//! the content is stored, and goes when the content has gone.

use std::fs;

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, facts, paths::Paths, refs};
use crate::types::{Digest, RegistryHost};

/// Most registries of one record; the oldest gives way.
const MOST: usize = 16;

/// The record of one content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origins {
    registries: Vec<Given>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Given {
    registry: String,
    /// The agent showed credentials.
    credentials: bool,
}

impl Origins {
    /// Whether this registry gave the content in this way.
    pub fn has(&self, registry: &RegistryHost, credentials: bool) -> bool {
        let same = |given: &Given| given.registry == registry.as_str() && given.credentials == credentials;
        self.registries.iter().any(same)
    }

    /// The same record, with one more.
    #[must_use]
    fn with(mut self, registry: &RegistryHost, credentials: bool) -> Self {
        if !self.has(registry, credentials) {
            self.registries.push(Given { registry: registry.to_string(), credentials });
            let surplus = self.registries.len().saturating_sub(MOST);
            self.registries.drain(..surplus);
        }
        self
    }
}

impl Store {
    /// The record of a content; nothing when anyone may have it.
    pub async fn origins(&self, digest: &Digest) -> Result<Option<Origins>, StoreError> {
        let path = self.0.paths.origins_of(digest);
        tokio::task::spawn_blocking(move || refs::read(&path)).await?
    }

    /// Remembers that a registry gave a content. Blocking.
    pub fn note_origin(
        &self,
        digest: &Digest,
        registry: &RegistryHost,
        credentials: bool,
    ) -> Result<(), StoreError> {
        self.owner()?;
        let _only = self.0.references.lock();
        let path = self.0.paths.origins_of(digest);
        let before = refs::read::<Origins>(&path)?.unwrap_or_default();
        let now = before.clone().with(registry, credentials);
        if now == before { Ok(()) } else { refs::write(&self.0.paths, &path, &now) }
    }
}

/// Removes records whose content is neither complete nor being downloaded.
pub(super) fn sweep(paths: &Paths) -> Result<(), StoreError> {
    if !paths.origins().is_dir() {
        return Ok(());
    }
    for directory in facts::list(&paths.origins())? {
        for path in facts::list(&directory)? {
            let digest =
                facts::name_of(&path).and_then(|name| name.replacen('-', ":", 1).parse::<Digest>().ok());
            let kept = digest
                .is_some_and(|digest| paths.blob(&digest).exists() || paths.partial_data(&digest).exists());
            if !kept {
                refs::remove(&path)?;
            }
        }
        // One that is not empty stays.
        let _ = fs::remove_dir(&directory);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::Config, *};

    #[tokio::test]
    async fn a_record_stays_as_long_as_its_content() {
        let home = tempfile::tempdir().unwrap();
        let open = || Store::open(&Config::of(home.path())).unwrap();
        let registry = |name: &str| name.parse::<RegistryHost>().unwrap();
        let (kept, gone) = (Digest::of(b"kept"), Digest::of(b"gone"));
        {
            let store = open();
            let path = store.0.paths.blob(&kept);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"kept").unwrap();
            for digest in [&kept, &gone] {
                store.note_origin(digest, &registry("r.test"), true).unwrap();
                store.note_origin(digest, &registry("r.test"), true).unwrap();
                let origins = store.origins(digest).await.unwrap().unwrap();
                assert!(origins.has(&registry("r.test"), true) && !origins.has(&registry("r.test"), false));
                assert_eq!(origins.registries.len(), 1);
            }
            store.close();
        }
        let store = open();
        assert!(store.origins(&kept).await.unwrap().is_some());
        assert!(store.origins(&gone).await.unwrap().is_none());
    }
}
