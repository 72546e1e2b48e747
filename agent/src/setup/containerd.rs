//! containerd: a `hosts.toml` per registry below `config_path`, read at every pull; and the settings in its
//! configuration with which requests never reach the agent (containerd documentation, "hosts.md"; measured behaviour
//! of 1.6 to 2.3).

use toml::{Table, Value};

use super::{Finding, block};
use crate::types::RegistryPattern;

/// containerd's default directory, also used for new files.
pub(super) const CERTS: &str = "/etc/containerd/certs.d";
pub(super) const CONFIG: &str = "/etc/containerd/config.toml";

/// Why a `hosts.toml` cannot be edited.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostsError {
    #[error("it is not valid TOML, and containerd ignores it silently: {0}")]
    Toml(Box<toml::de::Error>),
    #[error(transparent)]
    Torn(#[from] block::Torn),
    #[error("its hosts have a form that setup cannot extend: write them as `[host.\"URL\"]` tables")]
    Form,
}

/// The directories in which containerd looks for a registry's file, in its order.
pub(super) fn directories(pattern: &RegistryPattern) -> Vec<String> {
    match pattern {
        RegistryPattern::Any => vec!["_default".to_owned()],
        RegistryPattern::Under(_) => Vec::new(),
        RegistryPattern::Exact(host) => match host.as_str().rsplit_once(':') {
            Some((name, port)) => vec![format!("{name}_{port}_"), format!("{name}:{port}")],
            None => vec![host.as_str().to_owned()],
        },
    }
}

/// The file with the agent as the first host; unchanged when the agent is in it already.
pub(super) fn with_agent(existing: &str, url: &str) -> Result<String, HostsError> {
    let original = block::remove(existing)?;
    let clean = original.as_deref().unwrap_or(existing);
    let before = parse(clean)?;
    if hosts(&before).is_some_and(|hosts| hosts.contains_key(url)) {
        return Ok(existing.to_owned());
    }
    let body =
        format!("[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"200ms\"\n\n");
    let edited = block::insert(clean, first_table(clean), &body);
    // The other content must have kept its meaning.
    let mut after = parse(&edited).map_err(|_| HostsError::Form)?;
    let added = after.get_mut("host").and_then(Value::as_table_mut).and_then(|hosts| hosts.remove(url));
    if hosts(&after).is_some_and(Table::is_empty) && hosts(&before).is_none() {
        after.remove("host");
    }
    if added.is_none() || after != before { Err(HostsError::Form) } else { Ok(edited) }
}

/// The file as it was before [`with_agent`]; `None` when nothing is left of it or it did not exist.
pub(super) fn without_agent(existing: &str) -> Result<Option<String>, HostsError> {
    let clean = block::remove(existing)?;
    Ok(match clean {
        Some(clean) if clean.is_empty() => None,
        Some(clean) => Some(clean),
        None => Some(existing.to_owned()),
    })
}

/// Whether containerd can read it.
pub(super) fn check_hosts(text: &str) -> Result<(), HostsError> {
    parse(text).map(drop)
}

fn parse(text: &str) -> Result<Table, HostsError> {
    text.parse::<Table>().map_err(|error| HostsError::Toml(Box::new(error)))
}

fn hosts(file: &Table) -> Option<&Table> {
    file.get("host").and_then(Value::as_table)
}

/// Offset of the first table: hosts are tried in the order of the file, and keys before it belong to the file itself.
fn first_table(text: &str) -> usize {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with('[') {
            return at;
        }
        at += line.len();
    }
    text.len()
}

/// containerd's registry settings, merged from its files; later files win.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Registries {
    /// Whether any configuration was found.
    pub(super) found: bool,
    pub(super) config_path: Option<String>,
    /// Old keys (`mirrors`, `configs`, `auths`) in use.
    pub(super) legacy: Vec<String>,
    /// Pulls use the old implementation, which supports lists.
    pub(super) local_pull: bool,
}

impl Registries {
    /// Merges another file.
    pub(super) fn add(&mut self, config: &Table) {
        self.found = true;
        let plugins = config.get("plugins").and_then(Value::as_table);
        let images = ["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri", "cri"];
        for plugin in images.iter().filter_map(|name| plugins?.get(*name)?.as_table()) {
            for key in ["discard_unpacked_layers", "use_local_image_pull"] {
                self.local_pull |= plugin.get(key).and_then(Value::as_bool).unwrap_or(false);
            }
            let nested = plugin.get("containerd").and_then(Value::as_table);
            let discards = nested.and_then(|nested| nested.get("discard_unpacked_layers"));
            self.local_pull |= discards.and_then(Value::as_bool).unwrap_or(false);
            let Some(registry) = plugin.get("registry").and_then(Value::as_table) else { continue };
            if let Some(path) = registry.get("config_path").and_then(Value::as_str) {
                self.config_path = Some(path.to_owned());
            }
            for key in ["mirrors", "configs", "auths"] {
                let set = registry.get(key).and_then(Value::as_table).is_some_and(|table| !table.is_empty());
                if set && !self.legacy.iter().any(|known| known == key) {
                    self.legacy.push(key.to_owned());
                }
            }
        }
    }

    /// The directory for `hosts.toml` files.
    pub(super) fn directory(&self) -> &str {
        let first =
            self.config_path.as_deref().and_then(|path| path.split(':').find(|part| !part.is_empty()));
        first.unwrap_or(CERTS)
    }

    /// All settings with which requests would not reach the agent, and remedies.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let table = "[plugins.'io.containerd.cri.v1.images'.registry] (containerd 1: [plugins.'io.containerd.grpc.v1.cri'.registry])";
        match self.config_path.as_deref() {
            None | Some("") => findings.push(Finding::trap(
                CONFIG,
                "`config_path` is not set: containerd before 2.2 does not read hosts.toml files, later ones look in a list of two directories that their transfer service ignores",
                format!("set `config_path = \"{CERTS}\"` in {table} and restart containerd"),
            )),
            Some(list) if list.contains(':') && !self.local_pull => findings.push(Finding::trap(
                CONFIG,
                format!("`config_path` is a list (`{list}`): containerd 2.1 to 2.3 ignores it silently when its transfer service pulls"),
                format!("set `config_path = \"{}\"` in {table} and restart containerd", self.directory()),
            )),
            Some(_) => {}
        }
        if !self.legacy.is_empty() {
            findings.push(Finding::trap(
                CONFIG,
                format!(
                    "old registry settings ({}) beside `config_path`: the CRI plugin refuses to load",
                    self.legacy.join(", ")
                ),
                "move them to hosts.toml files, remove them and restart containerd".to_owned(),
            ));
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://127.0.0.1:5050";

    #[test]
    fn the_agent_comes_first_and_everything_else_stays() {
        for existing in [
            "",
            "server = \"https://r.test\"",
            "server = \"https://r.test\"\n",
            "# mine\nserver = \"https://r.test\"\n\n[host.\"https://other.test\"]\n  capabilities = [\"pull\"]\n",
            "[host.\"https://other.test\"] # first\n[host.\"https://third.test\".header]\n  x = \"y\"\n",
        ] {
            let with = with_agent(existing, URL).unwrap();
            let at = with.find("[host.\"http://127.0.0.1:5050\"]").unwrap();
            assert!(with.find("other.test").is_none_or(|other| at < other), "{with}");
            assert_eq!(with_agent(&with, URL).unwrap(), with, "again changes nothing");
            let expected = Some(existing.to_owned()).filter(|text| !text.is_empty());
            assert_eq!(without_agent(&with).unwrap(), expected);
            let moved = with_agent(&with, "http://127.0.0.1:6060").unwrap();
            assert!(!moved.contains("5050") && moved.contains("6060"), "{moved}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_edited_safely_is_not_changed() {
        let by_hand = format!("[host.\"{URL}\"]\n");
        assert_eq!(with_agent(&by_hand, URL).unwrap(), by_hand);
        assert_eq!(without_agent(&by_hand).unwrap(), Some(by_hand));
        assert!(matches!(with_agent("[host", URL), Err(HostsError::Toml(_))));
        assert!(matches!(with_agent("host = { \"https://a.test\" = {} }\n", URL), Err(HostsError::Form)));
        assert!(matches!(with_agent("# hearth: end\n", URL), Err(HostsError::Torn(_))));
    }

    #[test]
    fn every_trap_is_found() {
        let images = "[plugins.'io.containerd.cri.v1.images'.registry]\n";
        let cri = "[plugins.'io.containerd.grpc.v1.cri'.registry]\n";
        // files, traps, directory
        for (files, traps, directory) in [
            (vec![], 1, CERTS),
            (vec!["version = 2\n".to_owned()], 1, CERTS),
            (vec![format!("{images}config_path = \"/x\"\n")], 0, "/x"),
            (vec![format!("{cri}config_path = \"\"\n"), format!("{cri}config_path = \"/y\"\n")], 0, "/y"),
            (vec![format!("{images}config_path = \"/a:/b\"\n")], 1, "/a"),
            (
                vec![format!(
                    "{images}config_path = \"/a:/b\"\n[plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers = true\n"
                )],
                0,
                "/a",
            ),
            (
                vec![format!(
                    "{cri}config_path = \"/x\"\n[plugins.'io.containerd.grpc.v1.cri'.registry.mirrors.'r.test']\nendpoint = []\n"
                )],
                1,
                "/x",
            ),
        ] {
            let mut registries = Registries::default();
            for file in &files {
                registries.add(&file.parse().unwrap());
            }
            assert_eq!(registries.findings().len(), traps, "{files:?}: {registries:?}");
            assert_eq!(registries.directory(), directory);
        }
    }

    #[test]
    fn directories_are_those_that_containerd_looks_for() {
        let of = |text: &str| directories(&text.parse().unwrap());
        assert_eq!(of("r.test"), ["r.test"]);
        assert_eq!(of("r.test:5000"), ["r.test_5000_", "r.test:5000"]);
        assert_eq!(of("*"), ["_default"]);
        assert!(of("*.r.test").is_empty());
    }
}
