//! Label and field selectors, as far as clients here use them.

use serde_json::Value;

/// What a list or watch is restricted to.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    pub(super) namespace: Option<String>,
    pub(super) labels: Vec<Requirement>,
    pub(super) fields: Vec<(String, String, bool)>,
}

#[derive(Clone, Debug)]
pub(super) enum Requirement {
    Equals(String, String),
    Differs(String, String),
    Exists(String),
    Lacks(String),
    In(String, Vec<String>),
}

impl Selector {
    pub(super) fn new(namespace: Option<String>, labels: &str, fields: &str) -> Self {
        let fields = fields.split(',').filter(|part| !part.is_empty()).filter_map(|part| {
            let (path, value, equal) = if let Some((path, value)) = part.split_once("!=") {
                (path, value, false)
            } else {
                let (path, value) = part.split_once('=')?;
                (path, value.trim_start_matches('='), true)
            };
            Some((path.to_owned(), value.to_owned(), equal))
        });
        Self { namespace, labels: parse_labels(labels), fields: fields.collect() }
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        let in_namespace =
            self.namespace.as_ref().is_none_or(|namespace| metadata["namespace"] == namespace.as_str());
        let label = |key: &str| metadata["labels"][key].as_str();
        let labels = self.labels.iter().all(|requirement| match requirement {
            Requirement::Equals(key, value) => label(key) == Some(value),
            Requirement::Differs(key, value) => label(key) != Some(value),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Lacks(key) => label(key).is_none(),
            Requirement::In(key, values) => {
                label(key).is_some_and(|value| values.iter().any(|one| one == value))
            }
        });
        let fields = self.fields.iter().all(|(path, value, equal)| {
            let found = object.pointer(&format!("/{}", path.replace('.', "/")));
            (found.and_then(Value::as_str).unwrap_or_default() == value) == *equal
        });
        in_namespace && labels && fields
    }
}

fn parse_labels(text: &str) -> Vec<Requirement> {
    let mut parts = Vec::new();
    let (mut depth, mut current) = (0, String::new());
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut current));
                continue;
            }
            _ => {}
        }
        current.push(c);
    }
    parts.push(current);
    parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()).map(requirement).collect()
}

fn requirement(part: &str) -> Requirement {
    let text = |part: &str| part.trim().to_owned();
    if let Some((key, values)) = part.split_once(" in ") {
        let values = values.trim().trim_start_matches('(').trim_end_matches(')').split(',').map(text);
        return Requirement::In(text(key), values.collect());
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Requirement::Differs(text(key), text(value));
    }
    if let Some((key, value)) = part.split_once('=') {
        return Requirement::Equals(text(key), text(value.trim_start_matches('=')));
    }
    match part.strip_prefix('!') {
        Some(key) => Requirement::Lacks(text(key)),
        None => Requirement::Exists(text(part)),
    }
}
