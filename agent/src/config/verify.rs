//! Keys named by a registry's `verify`.

use std::collections::BTreeSet;

use oci::signature::PublicKey;
use serde_saphyr::Location;

use super::raw::RawVerify;
use crate::upstream::RegistryConfig;

/// Most keys of all registries together.
const MOST: usize = 64;

/// Reads the files; an error comes with the place that names the file.
pub(super) fn read(verify: &RawVerify) -> Result<Vec<PublicKey>, (Location, String)> {
    if verify.keys.value.is_empty() {
        let problem = "`verify.keys`: at least one PEM file with a public key must be listed: with none, no image could be \
                       served. Leave out `verify` to serve images without checking signatures";
        return Err((verify.keys.referenced, problem.into()));
    }
    let mut keys: Vec<PublicKey> = Vec::new();
    for path in &verify.keys.value {
        let wrong = |problem: String| {
            (path.referenced, format!("`verify.keys`: `{}`: {problem}", path.value.display()))
        };
        #[expect(clippy::disallowed_methods, reason = "read once, before the runtime serves anyone")]
        let text = std::fs::read(&path.value).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let read = PublicKey::read_pem(&text, &path.value.display().to_string());
        for key in read.map_err(|error| wrong(error.to_string()))? {
            if !keys.iter().any(|known| known.id() == key.id()) {
                keys.push(key);
            }
        }
    }
    Ok(keys)
}

/// Refuses more keys than the agent can tell apart.
pub(super) fn check_count(registries: &[RegistryConfig]) -> Result<(), String> {
    let listed = registries.iter().flat_map(|registry| &registry.verify);
    let count = listed.map(PublicKey::id).collect::<BTreeSet<_>>().len();
    if count <= MOST {
        return Ok(());
    }
    Err(format!(
        "`registries`: `verify.keys` of all entries list {count} different keys: {MOST} is the maximum"
    ))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test writes its own files")]
mod tests {
    use crate::config::Config;

    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn keys_are_read_and_errors_name_the_file() {
        let home = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = home.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let text = |keys: &str| format!("registries:\n  - host: r.test\n    verify: {{ keys: [{keys}] }}");
        let (good, empty) = (file("good.pub", KEY), file("empty.pub", ""));
        let private = file("cosign.key", "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n");
        let config = Config::from_yaml(&text(&format!("{good}, {good}"))).unwrap();
        assert_eq!(config.upstream.registries[0].verify.len(), 1);
        for (keys, expected) in [
            ("", "`verify.keys`: at least one PEM file"),
            ("/nowhere.pub", "`verify.keys`: `/nowhere.pub`: cannot be read"),
            (empty.as_str(), "empty.pub`: no `PUBLIC KEY` section in it"),
            (private.as_str(), "cosign.key`: it contains a private key"),
        ] {
            let error = Config::from_yaml(&text(keys)).unwrap_err().to_string();
            assert!(error.starts_with("hearth-agent.yaml:3:") && error.contains(expected), "{error}");
        }
        let missing = Config::from_yaml("registries: [{host: r.test, verify: {}}]").unwrap_err().to_string();
        assert!(missing.contains("key `keys` is missing"), "{missing}");
    }
}
