//! Docker's `daemon.json` and the `registries.yaml` of k3s and RKE2: documents that are parsed, changed and
//! rewritten. The original is kept beside them, to be restored byte for byte.

use serde_json::{Map, Value, json};

use super::{SetupError, problem};
use crate::types::RegistryPattern;

pub(super) const DOCKER: &str = "/etc/docker/daemon.json";
pub(super) const K3S: &str = "/etc/rancher/k3s/registries.yaml";
pub(super) const RKE2: &str = "/etc/rancher/rke2/registries.yaml";

/// The format of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Document {
    /// `registry-mirrors` of Docker (dockerd(8)): for one registry only.
    Docker,
    /// `mirrors` of k3s and RKE2 (k3s documentation, "Private Registry Configuration").
    Rancher,
}

impl Document {
    fn read(self, path: &str, text: &str) -> Result<Map<String, Value>, SetupError> {
        if text.trim().is_empty() {
            return Ok(Map::new());
        }
        let remedy = "fix the file, then run setup again";
        match self {
            Self::Docker => serde_json::from_str(text).map_err(|error| problem(path, &error, remedy)),
            Self::Rancher => serde_saphyr::from_str::<Option<Map<String, Value>>>(text)
                .map(Option::unwrap_or_default)
                .map_err(|error| problem(path, &error, remedy)),
        }
    }

    fn write(self, path: &str, document: &Map<String, Value>) -> Result<String, SetupError> {
        match self {
            Self::Docker => serde_json::to_string_pretty(document)
                .map(|text| text + "\n")
                .map_err(|error| problem(path, &error, "this is a bug of hearth-agent")),
            Self::Rancher => serde_saphyr::to_string(document)
                .map_err(|error| problem(path, &error, "this is a bug of hearth-agent")),
        }
    }

    /// The document with the agent before all other mirrors.
    pub(super) fn with_agent(
        self,
        path: &str,
        text: &str,
        url: &str,
        registries: &[RegistryPattern],
    ) -> Result<String, SetupError> {
        let mut document = self.read(path, text)?;
        match self {
            Self::Docker => put_first(path, &mut document, "registry-mirrors", url)?,
            Self::Rancher => {
                let mirrors = document.entry("mirrors").or_insert_with(|| json!({}));
                let mirrors = object(path, "mirrors", mirrors)?;
                for pattern in
                    registries.iter().filter(|pattern| !matches!(pattern, RegistryPattern::Under(_)))
                {
                    let name = pattern.to_string();
                    let entry = mirrors.entry(&*name).or_insert_with(|| json!({}));
                    if entry.is_null() {
                        *entry = json!({});
                    }
                    put_first(path, object(path, &name, entry)?, "endpoint", url)?;
                }
            }
        }
        self.write(path, &document)
    }

    /// The first mirror: the agent, perhaps with an earlier address.
    pub(super) fn first(self, path: &str, text: &str) -> Result<Option<String>, SetupError> {
        let document = self.read(path, text)?;
        let lists: Vec<&Value> = match self {
            Self::Docker => document.get("registry-mirrors").into_iter().collect(),
            Self::Rancher => {
                let mirrors = document.get("mirrors").and_then(Value::as_object);
                mirrors.into_iter().flat_map(Map::values).filter_map(|entry| entry.get("endpoint")).collect()
            }
        };
        Ok(lists.into_iter().find_map(|list| list.get(0)?.as_str().map(str::to_owned)))
    }

    /// The document without the agent, for when it was edited after setup, so that the original is out of date.
    pub(super) fn without_agent(self, path: &str, text: &str, url: &str) -> Result<String, SetupError> {
        let mut document = self.read(path, text)?;
        match self {
            Self::Docker => take_out(&mut document, "registry-mirrors", url),
            Self::Rancher => {
                if let Some(Value::Object(mirrors)) = document.get_mut("mirrors") {
                    for entry in mirrors.values_mut().filter_map(Value::as_object_mut) {
                        take_out(entry, "endpoint", url);
                    }
                    mirrors.retain(|_, entry| entry.as_object().is_none_or(|entry| !entry.is_empty()));
                }
            }
        }
        self.write(path, &document)
    }
}

fn object<'a>(path: &str, key: &str, value: &'a mut Value) -> Result<&'a mut Map<String, Value>, SetupError> {
    value.as_object_mut().ok_or_else(|| {
        problem(
            path,
            &format!("`{key}` is not a mapping (`key: value`)"),
            "fix the file, then run setup again",
        )
    })
}

fn put_first(path: &str, object: &mut Map<String, Value>, key: &str, url: &str) -> Result<(), SetupError> {
    take_out(object, key, url);
    let list = object.entry(key).or_insert_with(|| json!([]));
    let list = list.as_array_mut().ok_or_else(|| {
        problem(path, &format!("`{key}` is not a list"), "fix the file, then run setup again")
    })?;
    list.insert(0, url.into());
    Ok(())
}

/// Removes a list that becomes empty.
fn take_out(object: &mut Map<String, Value>, key: &str, url: &str) {
    if let Some(Value::Array(list)) = object.get_mut(key) {
        let before = list.len();
        list.retain(|one| one.as_str() != Some(url));
        if list.is_empty() && before > 0 {
            object.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://127.0.0.1:5050";

    fn with(document: Document, text: &str, registries: &[&str]) -> Map<String, Value> {
        let patterns: Vec<_> = registries.iter().map(|name| name.parse().unwrap()).collect();
        let written = document.with_agent("p", text, URL, &patterns).unwrap();
        assert_eq!(
            document.with_agent("p", &written, URL, &patterns).unwrap(),
            written,
            "again changes nothing"
        );
        document.read("p", &written).unwrap()
    }

    #[test]
    fn the_agent_comes_first_and_everything_else_stays() {
        for (document, text, registries, expected, left) in [
            (Document::Docker, "", vec![], json!({"registry-mirrors": [URL]}), json!({})),
            (
                Document::Docker,
                r#"{"debug": true, "registry-mirrors": ["https://m.test"]}"#,
                vec![],
                json!({"debug": true, "registry-mirrors": [URL, "https://m.test"]}),
                json!({"debug": true, "registry-mirrors": ["https://m.test"]}),
            ),
            (
                Document::Rancher,
                "mirrors:\n  r.test:\n    endpoint: [\"https://m.test\"]\n  s.test:\nconfigs: {a: {auth: {username: u}}}\n",
                vec!["r.test", "s.test", "*", "*.x.test"],
                json!({"mirrors": {"r.test": {"endpoint": [URL, "https://m.test"]}, "s.test": {"endpoint": [URL]},
                    "*": {"endpoint": [URL]}}, "configs": {"a": {"auth": {"username": "u"}}}}),
                json!({"mirrors": {"r.test": {"endpoint": ["https://m.test"]}}, "configs": {"a": {"auth": {"username": "u"}}}}),
            ),
        ] {
            let written = with(document, text, &registries);
            assert_eq!(Value::Object(written.clone()), expected);
            let text = document.write("p", &written).unwrap();
            let without = document.without_agent("p", &text, URL).unwrap();
            assert_eq!(Value::Object(document.read("p", &without).unwrap()), left);
        }
    }

    #[test]
    fn an_invalid_document_is_an_error_with_its_path() {
        for (document, text) in [
            (Document::Docker, "{"),
            (Document::Docker, r#"{"registry-mirrors": 7}"#),
            (Document::Rancher, "mirrors: [a]"),
            (Document::Rancher, "mirrors: {r.test: 7}"),
            (Document::Rancher, "a: b: c"),
        ] {
            let error = document.with_agent("/etc/x", text, URL, &["r.test".parse().unwrap()]).unwrap_err();
            assert!(error.to_string().contains("/etc/x"), "{error}");
        }
    }
}
