//! How content was authorised that came from a registry to which the agent shows credentials.
//!
//! ```text
//! <data>/origins-v1/<two digits>/<hex>    registries that gave it, and to whom: anyone, the agent or a client
//! ```
//!
//! Content without a record came without credentials: anyone may have it. A record is written before the first byte of
//! the content is stored, and goes when the content has gone. It says nothing of repositories: which of them have a
//! manifest, and which blobs that names, is in `refs-v1` and in the manifests themselves.

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

/// Who a registry gave content to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenTo {
    /// Anyone: it did not see credentials, or did not need them.
    Anyone,
    /// The agent, with credentials or a certificate of its own.
    Agent,
    /// A client, with credentials that it showed the agent.
    Client,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Given {
    registry: String,
    /// It saw credentials.
    credentials: bool,
    /// They were a client's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    client: bool,
}

impl Given {
    fn of(registry: &RegistryHost, to: GivenTo) -> Self {
        Self {
            registry: registry.to_string(),
            credentials: to != GivenTo::Anyone,
            client: to == GivenTo::Client,
        }
    }
}

impl Origins {
    /// Whether this registry gave the content to these.
    pub fn has(&self, registry: &RegistryHost, to: GivenTo) -> bool {
        self.registries.contains(&Given::of(registry, to))
    }

    /// The same record, with one more.
    #[must_use]
    fn with(mut self, registry: &RegistryHost, to: GivenTo) -> Self {
        if !self.has(registry, to) {
            self.registries.push(Given::of(registry, to));
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

    /// Remembers that a registry gave a content, or is about to. Content that is stored without a record is anyone's, and
    /// stays so. Blocking.
    pub fn note_origin(
        &self,
        digest: &Digest,
        registry: &RegistryHost,
        to: GivenTo,
    ) -> Result<(), StoreError> {
        self.owner()?;
        let _only = self.0.references.lock();
        let path = self.0.paths.origins_of(digest);
        let before = match refs::read::<Origins>(&path)? {
            Some(before) => before,
            None if self.0.paths.blob(digest).exists() => return Ok(()),
            None => Origins::default(),
        };
        let now = before.clone().with(registry, to);
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
            for digest in [&kept, &gone] {
                for to in [GivenTo::Client, GivenTo::Client, GivenTo::Agent] {
                    store.note_origin(digest, &registry("r.test"), to).unwrap();
                }
                let origins = store.origins(digest).await.unwrap().unwrap();
                let has = |to| origins.has(&registry("r.test"), to);
                assert!(has(GivenTo::Client) && has(GivenTo::Agent) && !has(GivenTo::Anyone));
                assert!(!origins.has(&registry("s.test"), GivenTo::Agent));
                assert_eq!(origins.registries.len(), 2);
            }
            fs::write(path, b"kept").unwrap();
            store.close();
        }
        let store = open();
        assert!(store.origins(&kept).await.unwrap().is_some());
        assert!(store.origins(&gone).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_stored_without_a_record_stays_anyones() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&Config::of(home.path())).unwrap();
        let digest = Digest::of(b"open");
        store.put(&digest, b"open").unwrap();
        store.note_origin(&digest, &"r.test".parse().unwrap(), GivenTo::Agent).unwrap();
        assert!(store.origins(&digest).await.unwrap().is_none());
    }

    #[test]
    fn records_of_earlier_versions_are_the_agents() {
        let text = r#"{"registries":[{"registry":"r.test","credentials":true},{"registry":"s.test","credentials":false}]}"#;
        let origins: Origins = serde_json::from_str(text).unwrap();
        assert!(origins.has(&"r.test".parse().unwrap(), GivenTo::Agent));
        assert!(origins.has(&"s.test".parse().unwrap(), GivenTo::Anyone));
        assert_eq!(serde_json::to_string(&origins).unwrap(), text);
    }
}
