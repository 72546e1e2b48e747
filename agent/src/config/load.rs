//! From file, environment and flags to a checked [`Config`].

use std::path::PathBuf;

use serde_saphyr::{Error as YamlError, Location};

use super::{
    Config, ConfigError, KEYS, Key, Log,
    error::nearest,
    raw::{Merge as _, Raw},
    registries,
};
use crate::{download, http::Limits, runtime::Runtime, store, trace, upstream};

/// Name of the Unix socket in `dataDir`.
const SOCKET: &str = "agent.sock";

/// Longest path of the socket: `sun_path` has 108 bytes (unix(7)), and it is bound under a longer name first.
const LONGEST_SOCKET: usize = 90;

/// One value of an environment variable or a flag.
#[derive(Clone, Debug)]
pub(super) struct Overlay {
    key: &'static Key,
    origin: String,
    value: String,
}

/// What a configuration is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To run the agent: registries must be named.
    Serve,
    /// To look at what it has.
    Maintain,
    /// To run the controller.
    Control,
}

/// Reads the file, lays the environment and the flags over it, and checks the whole.
///
/// `variable` looks an environment variable up, `flag` a flag by its key's path.
pub fn load(
    file: Option<PathBuf>,
    variable: impl Fn(&str) -> Option<String>,
    flag: impl Fn(&str) -> Option<String>,
    purpose: Purpose,
) -> Result<Config, ConfigError> {
    let file = match file {
        Some(path) => {
            #[expect(clippy::disallowed_methods, reason = "read once, before the runtime serves anyone")]
            let text = std::fs::read_to_string(&path).map_err(|error| {
                ConfigError::new(&path.display().to_string(), None, format!("cannot be read: {error}"))
            })?;
            Some((path, text))
        }
        None => None,
    };
    let from_environment = KEYS.iter().filter_map(|key| {
        Some(Overlay {
            key,
            origin: format!("environment variable {}", key.variable()),
            value: variable(&key.variable())?,
        })
    });
    let from_flags = KEYS.iter().filter_map(|key| {
        Some(Overlay { key, origin: format!("flag --{}", key.flag()), value: flag(key.path)? })
    });
    from_parts(file, from_environment.chain(from_flags).collect(), purpose)
}

pub(super) fn from_parts(
    file: Option<(PathBuf, String)>,
    overlays: Vec<Overlay>,
    purpose: Purpose,
) -> Result<Config, ConfigError> {
    let mut origins = Origins::default();
    let mut raw = Raw::default();
    if let Some((path, text)) = file {
        origins.file = path.display().to_string();
        raw = parse(&origins.file, &text, None)?;
    }
    for overlay in overlays {
        let over = parse(&overlay.origin, &overlay.key.document(&overlay.value), Some(overlay.key))?;
        raw.merge(over);
        origins.overlaid.push((overlay.key.path, overlay.origin));
    }
    check(raw, &origins, purpose)
}

/// Where keys were set, for errors that show only when keys are held against each other.
#[derive(Default)]
pub(super) struct Origins {
    file: String,
    overlaid: Vec<(&'static str, String)>,
}

impl Origins {
    pub(super) fn error(&self, path: &str, location: Option<Location>, problem: String) -> ConfigError {
        let overlaid = self.overlaid.iter().rev().find(|(key, _)| *key == path);
        match overlaid {
            Some((_, origin)) => ConfigError::new(origin, None, problem),
            None if self.file.is_empty() => ConfigError::new("configuration", None, problem),
            None => ConfigError::new(&self.file, location, problem),
        }
    }
}

/// Reads one document. Errors name the key by its path.
fn parse(origin: &str, text: &str, key: Option<&Key>) -> Result<Raw, ConfigError> {
    if text.trim().is_empty() {
        return Ok(Raw::default());
    }
    let mut path = serde_path_to_error::Track::new();
    let parsed = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        <Raw as serde::Deserialize>::deserialize(serde_path_to_error::Deserializer::new(
            deserializer,
            &mut path,
        ))
    });
    parsed.map_err(|error| {
        let location = if key.is_some() { None } else { error.location() };
        // `Spanned` keeps what it wraps in a field of this name; no key of ours has it.
        let path = path.path().to_string().replace(".value", "");
        ConfigError::new(origin, location, problem(&path, error.without_snippet()))
    })
}

/// The problem in our words, with the key in front.
fn problem(path: &str, error: &YamlError) -> String {
    let place = if path == "." || path.is_empty() { String::new() } else { format!("`{path}`: ") };
    match error {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            // The path ends with the unknown key itself.
            let parent = path.strip_suffix(field.as_str()).map_or("", |parent| parent.trim_end_matches('.'));
            let place =
                if parent.is_empty() || parent == "." { String::new() } else { format!(" in `{parent}`") };
            let hint = match nearest(field, expected.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("expected one of: {}", expected.join(", ")),
            };
            format!("unknown key `{field}`{place}: {hint}")
        }
        YamlError::SerdeMissingField { field, .. } => format!("{place}key `{field}` is missing"),
        other => {
            let text = other.to_string();
            // The location stands in front already.
            let text = text.split(" at line ").next().unwrap_or(&text).trim().trim_start_matches("error: ");
            format!("{place}{text}{}", example(text))
        }
    }
}

/// What YAML's words for shapes mean.
fn example(problem: &str) -> &'static str {
    if problem.contains("mapping") || problem.contains("expected a map") {
        " (a mapping is `key: value` on lines of its own, or `{ key: value }`)"
    } else if problem.contains("sequence") {
        " (a list is `- a` on lines of its own, or `[a, b]`)"
    } else {
        ""
    }
}

fn check(raw: Raw, origins: &Origins, purpose: Purpose) -> Result<Config, ConfigError> {
    let defaults = defaults();
    let raw = if purpose == Purpose::Control { raw.of_controller() } else { raw };
    let registries = raw.registries.unwrap_or_default();
    if registries.is_empty() && purpose == Purpose::Serve {
        let problem = "`registries`: at least one registry must be listed, for example `registries: [{host: docker.io}]`";
        return Err(origins.error("registries", None, problem.into()));
    }
    let credentials = super::credentials::read(&raw.credentials)
        .map_err(|(key, at, problem)| origins.error(key, Some(at), format!("`{key}`: {problem}")))?;
    let checked = registries::check(&registries, &credentials, origins)?;
    let default_registry = match raw.default_registry {
        None => None,
        Some(named)
            if checked.iter().any(|registry| registry.pattern.closeness(&named.value.0).is_some()) =>
        {
            Some(named.value.0)
        }
        Some(named) => {
            let problem = format!("`defaultRegistry`: `{}` is not among `registries`", named.value.0);
            return Err(origins.error("defaultRegistry", Some(named.referenced), problem));
        }
    };
    macro_rules! value {
        ($section:ident.$field:ident) => {
            raw.$section
                .$field
                .or(defaults.$section.$field)
                .expect("every key but `registries` has a default")
                .0
        };
    }
    let high = value!(store.high_watermark).0;
    let low =
        raw.store.low_watermark.or(defaults.store.low_watermark).expect("`store.lowWatermark` has a default");
    if low.value.0.0 > high {
        let problem = format!("`store.lowWatermark`: must not be above `store.highWatermark` ({high}%)");
        return Err(origins.error("store.lowWatermark", Some(low.referenced), problem));
    }
    let data_dir = raw.data_dir.or(defaults.data_dir).expect("`dataDir` has a default");
    let namespace = raw.kubernetes.namespace.as_ref().or(defaults.kubernetes.namespace.as_ref());
    let cluster = super::peers::Cluster {
        namespace: namespace.expect("`kubernetes.namespace` has a default").0.text().to_owned(),
        node: raw.kubernetes.node.as_ref().map(|node| node.0.text().to_owned()),
        api: raw.kubernetes.api.as_ref().or(raw.peer.api.as_ref()).map(|api| api.0.0.to_string()),
        data: data_dir.clone(),
    };
    let peers = super::peers::check(&raw.peer, &defaults.peer, cluster)
        .map_err(|(key, at, problem)| origins.error(key, at, format!("`{key}`: {problem}")))?;
    if purpose == Purpose::Serve {
        registries::check_peers(&registries, &checked, &peers, origins)?;
    }
    let mirror_listen = value!(mirror.listen).0;
    registries::check_clients(&registries, &checked, mirror_listen, origins)?;
    let admin_socket = match raw.admin.socket {
        Some(socket) if socket.value.as_os_str().len() > LONGEST_SOCKET => {
            let problem =
                format!("`admin.socket`: a Unix socket's path has at most {LONGEST_SOCKET} bytes here");
            return Err(origins.error("admin.socket", Some(socket.referenced), problem));
        }
        Some(socket) => socket.value,
        None => data_dir.join(SOCKET),
    };
    let signing = raw.peer.tls.signer.is_some().then(|| super::peers::signed_name(&raw.peer.tls));
    let (kubernetes, controller) =
        super::kubernetes::check(raw.kubernetes, defaults.kubernetes, &peers.name, signing).unzip();
    let in_cluster = kubernetes.is_some();
    let ratio = value!(traces.ratio).0;
    let traces = raw.traces.endpoint.map(|endpoint| trace::Config {
        endpoint: endpoint.0.0,
        ratio,
        node: peers.name.clone(),
    });
    let prepull = super::prepull::check(raw.prepull, defaults.prepull, &checked, &peers.name, in_cluster)
        .map_err(|(key, at, problem)| origins.error(key, at, format!("`{key}`: {problem}")))?;
    Ok(Config {
        store: store::Config {
            limits: store::Limits {
                limit: value!(store.limit).0,
                min_free: value!(store.min_free).0,
                high,
                low: low.value.0.0,
            },
            runtime: raw
                .store
                .runtime_content
                .map(|directory| store::RuntimeContent { directory, link: value!(store.runtime_link) }),
            data_dir,
        },
        lock_wait: value!(store.lock_wait).0,
        scrub_rate: value!(store.scrub_rate).0,
        upstream: upstream::Config {
            registries: checked,
            connect: value!(limits.connect).0,
            header: value!(limits.header).0,
            blob_header: value!(limits.blob_header).0,
            idle: value!(limits.idle).0,
            credentials,
        },
        fetch: download::Config {
            freshness: value!(tags.freshness).0,
            max_stale: value!(tags.max_stale).0,
            negative: value!(tags.negative).0,
            blob_connections: value!(fetch.blob_connections).0,
            parallel_from: value!(fetch.parallel_from).0,
            whole_on_range: value!(fetch.whole_on_range),
            first_header: raw
                .limits
                .first_header
                .as_ref()
                .or(defaults.limits.first_header.as_ref())
                .expect("`limits.firstHeader` has a default")
                .0
                .0,
        },
        mirror_listen,
        admin_listen: value!(admin.listen).0,
        admin_socket,
        admin_token: raw.admin.token_file,
        peer_listen: value!(peer.listen).0,
        peers,
        prepull,
        kubernetes,
        controller,
        limits: Limits {
            connections: value!(limits.connections).0,
            client_write: value!(limits.client_write).0,
            grace: value!(limits.shutdown_grace).0,
        },
        runtime: raw.runtime.socket.map(Runtime::new),
        setup_report: raw.runtime.setup_report,
        default_registry,
        traces,
        log: Log { json: value!(log.format).0, filter: value!(log.filter).0 },
    })
}

/// The defaults of the table, through the same parser as everything else.
fn defaults() -> Raw {
    let mut raw = Raw::default();
    for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
        raw.merge(
            parse("default", &key.document(key.default), Some(key)).expect("a test reads every default"),
        );
    }
    raw
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test writes its own files")]
mod tests {
    use super::*;

    const SMALLEST: &str = "registries: [{host: docker.io}]";

    fn error(text: &str) -> String {
        Config::from_yaml(text).unwrap_err().to_string()
    }

    #[test]
    fn every_key_has_a_default_that_reads_and_every_key_is_in_the_table() {
        let raw = format!("{:?}", defaults());
        let without = raw.match_indices(": None").map(|(at, _)| raw[..at].rsplit([' ', '{']).next().unwrap());
        let without: Vec<_> = without.collect();
        assert_eq!(
            without,
            [
                "runtime_content",
                "name",
                "zone",
                "members",
                "dns",
                "service",
                "api",
                "signer",
                "certificate",
                "key",
                "ca",
                "name",
                "socket",
                "setup_report",
                "socket",
                "token_file",
                "registries",
                "default_registry",
                "docker_config",
                "kubelet_config",
                "kubelet_bin_dir",
                "endpoint",
                "sets",
                "api",
                "node"
            ],
            "{raw}"
        );
    }

    #[test]
    fn the_sketch_of_the_readme_reads() {
        let config = Config::from_yaml(
            "dataDir: /var/lib/hearth\nmirror: { listen: 127.0.0.1:5050 }\npeer:   { listen: 0.0.0.0:5051 }\nadmin:  { listen: 0.0.0.0:5052 }\nregistries:\n  - host: docker.io\n    endpoints: [https://registry-1.docker.io]\n  - host: registry.test\n    endpoints: [http://127.0.0.1:5001]\n",
        )
        .unwrap();
        assert_eq!(config.upstream.registries.len(), 2);
        assert_eq!(config.mirror_listen.to_string(), "127.0.0.1:5050");
    }

    #[test]
    fn errors_name_file_line_and_key_and_what_was_meant() {
        for (text, expected) in [
            (
                "registries: [{host: docker.io}]\nmiror: {}",
                "hearth-agent.yaml:2:1: unknown key `miror`: did you mean `mirror`?",
            ),
            (
                "mirror:\n  lisen: 1.2.3.4:5",
                "hearth-agent.yaml:2:3: unknown key `lisen` in `mirror`: did you mean `listen`?",
            ),
            (
                "mirror:\n  listen: nowhere",
                "hearth-agent.yaml:2:11: `mirror.listen`: `nowhere` is not an address with a port, for example `127.0.0.1:5050` or `[::1]:5050`",
            ),
            (
                "limits: { idle: 5 }",
                "hearth-agent.yaml:1:17: `limits.idle`: `5` is not a duration: write a whole number and one of ms, s, m, h, d, for example `5s`",
            ),
            ("limits: { idle: 0s }", "hearth-agent.yaml:1:17: `limits.idle`: must be more than zero"),
            (
                "registries:\n  - endpoints: []",
                "hearth-agent.yaml:2:5: `registries[0]`: key `host` is missing",
            ),
            (
                "registries:\n  - host: a b",
                "hearth-agent.yaml:2:11: `registries[0].host`: `a b` is not a registry pattern: expected a host, `*.example.com` or `*`",
            ),
            (
                "registries:\n  - host: a\n    endpoints: [ftp://x]",
                "hearth-agent.yaml:3:17: `registries[0].endpoints[0]`: `ftp://x` must start with http:// or https:// and name a host",
            ),
            (
                "registries:\n  - host: a\n  - host: a",
                "hearth-agent.yaml:3:5: `registries`: `a` is listed twice",
            ),
            (
                "dataDir: /x",
                "hearth-agent.yaml: `registries`: at least one registry must be listed, for example `registries: [{host: docker.io}]`",
            ),
            (
                "registries: [{host: docker.io}]\ndefaultRegistry: ghcr.io",
                "hearth-agent.yaml:2:18: `defaultRegistry`: `ghcr.io` is not among `registries`",
            ),
        ] {
            assert_eq!(error(text), expected);
        }
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let overlay = |path: &str, origin: &str, value: &str| Overlay {
            key: KEYS.iter().find(|key| key.path == path).unwrap(),
            origin: origin.into(),
            value: value.into(),
        };
        let file = Some((
            PathBuf::from("f"),
            format!(
                "{SMALLEST}\nmirror: {{listen: 1.1.1.1:1}}\nadmin: {{listen: 1.1.1.1:1}}\npeer: {{listen: 1.1.1.1:1}}"
            ),
        ));
        let overlays = vec![
            overlay("mirror.listen", "env", "2.2.2.2:2"),
            overlay("admin.listen", "env", "2.2.2.2:2"),
            overlay("mirror.listen", "flag", "3.3.3.3:3"),
            overlay("registries", "flag", "[{\"host\": \"*\", \"endpoints\": [\"http://127.0.0.1:1\"]}]"),
        ];
        let config = from_parts(file, overlays, Purpose::Serve).unwrap();
        let addresses = [config.mirror_listen, config.admin_listen, config.peer_listen]
            .map(|address| address.to_string());
        assert_eq!(addresses, ["3.3.3.3:3", "2.2.2.2:2", "1.1.1.1:1"]);
        assert_eq!(config.upstream.registries[0].pattern.to_string(), "*");
        let wrong = from_parts(
            None,
            vec![overlay("mirror.listen", "environment variable HEARTH_MIRROR_LISTEN", "x")],
            Purpose::Maintain,
        );
        assert_eq!(
            wrong.unwrap_err().to_string(),
            "environment variable HEARTH_MIRROR_LISTEN: `mirror.listen`: `x` is not an address with a port, for example `127.0.0.1:5050` or `[::1]:5050`"
        );
    }

    #[test]
    fn credentials_for_a_registry_need_a_word_on_private_images() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, r#"{"auths":{"r.test":{"username":"u","password":"p"}}}"#).unwrap();
        let text = |registry: &str| {
            format!("credentials: {{dockerConfig: {}}}\nregistries:\n  - {registry}", path.display())
        };
        let message = error(&text("{host: r.test}"));
        assert!(
            message.starts_with("hearth-agent.yaml:3:5: `registries`: `private` must be set for `r.test`"),
            "{message}"
        );
        for private in ["agent", "challenge", "decline"] {
            assert!(message.contains(&format!("`private: {private}`")), "{message}");
            assert!(Config::from_yaml(&text(&format!("{{host: r.test, private: {private}}}"))).is_ok());
        }
        assert!(Config::from_yaml(&text("{host: other.test}")).is_ok());
        assert!(error(&text("{host: \"*\"}")).contains("has credentials for `r.test`"));
        std::fs::write(&path, "{").unwrap();
        assert!(error(&text("{host: other.test}")).contains("`credentials.dockerConfig`"));
    }
}
