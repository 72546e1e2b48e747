//! `registries`: which there are, and what the agent may do with its credentials there.

use std::net::SocketAddr;

use serde_saphyr::Spanned;

use super::{ConfigError, load::Origins, raw::RawRegistry};
use crate::{
    peers,
    upstream::{self, Credentials, Private, RegistryConfig, Shows},
};

/// Checks each entry by itself.
pub(super) fn check(
    registries: &[Spanned<RawRegistry>],
    credentials: &Credentials,
    origins: &Origins,
) -> Result<Vec<RegistryConfig>, ConfigError> {
    let mut checked: Vec<RegistryConfig> = Vec::new();
    for registry in registries {
        let (entry, location) = (&registry.value, Some(registry.referenced));
        let pattern = entry.host.0.clone();
        if checked.iter().any(|other| other.pattern == pattern) {
            return Err(origins.error(
                "registries",
                location,
                format!("`registries`: `{pattern}` is listed twice"),
            ));
        }
        let endpoints = entry.endpoints.iter().map(|endpoint| endpoint.0.0.clone()).collect();
        let private = entry.private.as_ref().map(|private| private.0.0);
        if private.is_none()
            && let Some(known) = credentials.covers(&pattern)
        {
            let problem = format!(
                "`registries`: `private` must be set for `{pattern}`, because the agent has {known}: with \
                 `private: agent` these credentials decide for every pod on the node; with `private: challenge` they are \
                 not used, and each pod's own secret decides; with `private: decline` they are not used, and private images \
                 are left to the container runtime and the pod's own secret"
            );
            return Err(origins.error("registries", location, problem));
        }
        let (authorities, identity) = match &entry.tls {
            Some(tls) => super::tls::read(tls)
                .map_err(|(at, problem)| origins.error("registries", Some(at), problem))?,
            None => (Vec::new(), None),
        };
        let verify = match &entry.verify {
            Some(verify) => super::verify::read(verify)
                .map_err(|(at, problem)| origins.error("registries", Some(at), problem))?,
            None => Vec::new(),
        };
        checked.push(RegistryConfig {
            endpoints,
            connections: entry.connections.as_ref().map_or(upstream::DEFAULT_CONNECTIONS, |count| count.0.0),
            authorities,
            identity,
            realms: entry.realms.iter().map(|host| host.to_ascii_lowercase()).collect(),
            verify,
            redirects: entry.redirects.iter().map(|host| host.to_ascii_lowercase()).collect(),
            ..RegistryConfig::of(pattern, private.unwrap_or(Private::Decline))
        });
    }
    super::verify::check_count(&checked).map_err(|problem| origins.error("registries", None, problem))?;
    Ok(checked)
}

/// Where clients' credentials decide: they must not travel over a network without TLS, and the agent must not open with a
/// certificate of its own what they do not open.
pub(super) fn check_clients(
    registries: &[Spanned<RawRegistry>],
    checked: &[RegistryConfig],
    mirror: SocketAddr,
    origins: &Origins,
) -> Result<(), ConfigError> {
    for (registry, config) in registries.iter().zip(checked) {
        if config.private != Private::Challenge {
            continue;
        }
        let pattern = &config.pattern;
        let problem = if config.identity.is_some() {
            format!(
                "`registries`: `{pattern}` has `private: challenge` and `tls.certificate`: what the registry gives to the \
                 agent's certificate could not be told from what anyone may read. Leave one of them out"
            )
        } else if !mirror.ip().is_loopback() {
            format!(
                "`registries`: `{pattern}` has `private: challenge`, and `mirror.listen` is not a loopback address: pull \
                 secrets would cross the network without TLS. Listen on 127.0.0.1 or [::1]"
            )
        } else {
            continue;
        };
        return Err(origins.error("registries", Some(registry.referenced), problem));
    }
    Ok(())
}

/// What only credentials can read, peers must not get without saying who they are: the port for peers is open to every pod.
pub(super) fn check_peers(
    registries: &[Spanned<RawRegistry>],
    checked: &[RegistryConfig],
    peers: &peers::Config,
    origins: &Origins,
) -> Result<(), ConfigError> {
    if peers.source == peers::Source::Off || peers.tls.is_some() {
        return Ok(());
    }
    for (registry, config) in registries.iter().zip(checked) {
        if config.shows() == Shows::Nothing {
            continue;
        }
        let why = match config.private {
            Private::Agent => "`private: agent`",
            Private::Challenge => "`private: challenge`",
            Private::Decline => "`tls.certificate`",
        };
        let problem = format!(
            "`registries`: `{}` has {why}, and peers are not authenticated: every pod that reaches `peer.listen` could \
             read this registry's private images. Set `peer.tls.signer`, or `peer.tls.certificate`, `peer.tls.key`, \
             `peer.tls.ca` and `peer.tls.name`; or use `private: decline` without a certificate; or set none of \
             `peer.members`, `peer.dns` and `peer.service`",
            config.pattern
        );
        return Err(origins.error("registries", Some(registry.referenced), problem));
    }
    Ok(())
}
