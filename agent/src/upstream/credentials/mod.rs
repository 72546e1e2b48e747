//! Credentials of the agent: a Docker `config.json` with its helper programs, and the kubelet's
//! credential-provider plugins. Secrets never appear in debug output, logs or errors.

#![expect(
    clippy::disallowed_methods,
    reason = "credential files are read where they are understood, seldom and small"
)]

mod docker;
mod helper;
mod kubelet;
mod runs;

use std::{collections::BTreeSet, sync::Arc};

use oci::{DockerConfig, docker::Source};
use parking_lot::RwLock;

pub use docker::DockerFile;
pub use kubelet::{KubeletError, KubeletProviders};
pub use oci::{CredentialsError, Login};

use crate::types::{RegistryHost, RegistryPattern, RepoName, Repository};

/// All credentials for registries. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    docker: Option<Arc<DockerFile>>,
    kubelet: Option<Arc<KubeletProviders>>,
    helpers: Arc<helper::Helpers>,
    /// Secrets of the cluster's sets, with the repositories that each is for; shared by all clones.
    secrets: Arc<RwLock<Vec<OfSets>>>,
}

/// A pull secret that was read, and the repositories that it is for.
type OfSets = (DockerConfig, BTreeSet<Repository>);

/// A pull secret of the cluster.
pub struct PullSecret {
    /// Its `.dockerconfigjson`.
    pub document: Vec<u8>,
    /// The repositories that it is used for: those of the sets that name it.
    pub repositories: BTreeSet<Repository>,
}

impl std::fmt::Debug for PullSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullSecret").field("repositories", &self.repositories).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Combines the sources.
    pub fn new(docker: Option<DockerFile>, kubelet: Option<KubeletProviders>) -> Self {
        Self { docker: docker.map(Arc::new), kubelet: kubelet.map(Arc::new), ..Self::default() }
    }

    /// Replaces the cluster's secrets, which are used beside the other credentials. Invalid ones are left out, and
    /// their errors returned.
    pub(super) fn use_secrets(&self, secrets: Vec<PullSecret>) -> Vec<CredentialsError> {
        let (mut read, mut wrong) = (Vec::new(), Vec::new());
        for PullSecret { document, repositories } in secrets {
            match DockerConfig::parse(&document) {
                Ok(config) => read.push((config, repositories)),
                Err(error) => wrong.push(error),
            }
        }
        *self.secrets.write() = read;
        wrong
    }

    fn of_secrets(&self, registry: &RegistryHost, name: &RepoName) -> Option<Login> {
        let secrets = self.secrets.read();
        let wanted = Repository { registry: registry.clone(), name: name.clone() };
        let mut of_set = secrets.iter().filter(|(_, repositories)| repositories.contains(&wanted));
        of_set.find_map(|(config, _)| match config.source(registry, name)? {
            Source::Login(login) => Some(login),
            // A secret must not select programs of this node.
            Source::Helper(_) => None,
        })
    }

    /// A registry matched by `pattern` for which there are, or may be, credentials; as text for people.
    pub fn covers(&self, pattern: &RegistryPattern) -> Option<String> {
        if let Some(config) = self.docker.as_ref().map(|file| file.config()) {
            if let Some(known) = config.registries().find(|known| pattern.closeness(known).is_some()) {
                return Some(format!("credentials for `{known}`"));
            }
            if config.has_store() {
                return Some("a credential store for any registry (`credsStore`)".into());
            }
        }
        let provider = self.kubelet.as_ref()?.provider_for(pattern)?;
        Some(format!("the credential provider `{provider}`"))
    }

    /// The login for a repository; the Docker file before secrets and plugins. `fresh` ignores cached answers,
    /// because the registry rejected one. Fails when a program failed that may have a login, and no other
    /// source has one: that is not "no credentials".
    pub(super) async fn login(
        &self,
        registry: &RegistryHost,
        name: &RepoName,
        fresh: bool,
    ) -> Result<Option<Login>, String> {
        let of_file = match &self.docker {
            Some(file) => self.of_file(file.clone(), registry, name, fresh).await,
            None => Ok(None),
        };
        if let Ok(Some(login)) = of_file {
            return Ok(Some(login));
        }
        if let Some(login) = self.of_secrets(registry, name) {
            return Ok(Some(login));
        }
        match &self.kubelet {
            Some(providers) => match providers.login(registry, name, fresh).await {
                Ok(None) => of_file,
                found => found,
            },
            None => of_file,
        }
    }

    async fn of_file(
        &self,
        file: Arc<DockerFile>,
        registry: &RegistryHost,
        name: &RepoName,
        fresh: bool,
    ) -> Result<Option<Login>, String> {
        let config = tokio::task::spawn_blocking(move || file.config()).await;
        let config = config.map_err(|error| format!("cannot read the Docker configuration: {error}"))?;
        match config.source(registry, name) {
            Some(Source::Login(login)) => Ok(Some(login)),
            Some(Source::Helper(name)) => self.helpers.login(&name, registry, fresh).await,
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_the_cluster_are_used_for_their_sets_repositories_until_they_are_replaced() {
        let credentials = Credentials::default();
        let clone = credentials.clone();
        let secret = |document: &str, repository: &str| PullSecret {
            document: document.as_bytes().to_vec(),
            repositories: BTreeSet::from([repository.parse().unwrap()]),
        };
        let good = r#"{"auths":{"r.test":{"username":"u","password":"p"}}}"#;
        let wrong = credentials.use_secrets(vec![secret(good, "r.test/a"), secret("{", "r.test/b")]);
        assert_eq!(wrong.len(), 1);
        let has = |host: &str, name: &str| {
            clone.of_secrets(&host.parse().unwrap(), &name.parse().unwrap()).is_some()
        };
        assert!(has("r.test", "a") && !has("s.test", "a"));
        assert!(!has("r.test", "b"), "no set that names the secret has this image");
        credentials.use_secrets(Vec::new());
        assert!(!has("r.test", "a"));
    }
}
