//! Credential files named by `credentials`.

use serde_saphyr::{Location, Spanned};

use super::raw::RawCredentials;
use crate::{
    types::chain,
    upstream::{Credentials, DockerFile, KubeletProviders},
};

/// Reads the files; an error comes with its key and place.
pub(super) fn read(raw: &RawCredentials) -> Result<Credentials, (&'static str, Location, String)> {
    let docker = match &raw.docker_config {
        None => None,
        Some(path) => Some(
            DockerFile::open(&path.value)
                .map_err(|error| ("credentials.dockerConfig", path.referenced, described(path, &error)))?,
        ),
    };
    let kubelet = match (&raw.kubelet_config, &raw.kubelet_bin_dir) {
        (None, None) => None,
        (Some(config), Some(programs)) => {
            Some(KubeletProviders::read(&config.value, &programs.value).map_err(|error| {
                ("credentials.kubeletConfig", config.referenced, described(config, &error))
            })?)
        }
        (Some(one), None) => {
            return Err((
                "credentials.kubeletConfig",
                one.referenced,
                "needs `credentials.kubeletBinDir`".into(),
            ));
        }
        (None, Some(one)) => {
            return Err((
                "credentials.kubeletBinDir",
                one.referenced,
                "needs `credentials.kubeletConfig`".into(),
            ));
        }
    };
    Ok(Credentials::new(docker, kubelet))
}

fn described(path: &Spanned<std::path::PathBuf>, error: &dyn std::error::Error) -> String {
    format!("`{}`: {}", path.value.display(), chain(error))
}
