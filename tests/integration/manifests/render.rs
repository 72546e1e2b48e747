//! `kubectl kustomize` on a folder, and its documents.

use std::{path::Path, process::Command};

use serde::de::DeserializeOwned;
use serde_json::Value;

/// The documents of an overlay.
pub(super) fn overlay(name: &str) -> Vec<Value> {
    kustomize(&super::folder().join("overlays").join(name))
}

/// The documents of a folder with a `kustomization.yaml`.
pub(super) fn kustomize(folder: &Path) -> Vec<Value> {
    let output = Command::new("kubectl").arg("kustomize").arg(folder).output().expect("kubectl is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    // Deprecated fields are named as warnings.
    assert!(output.status.success() && said.is_empty(), "{}: {said}", folder.display());
    documents(&String::from_utf8_lossy(&output.stdout))
}

/// The documents of a file; a line of dashes within a text is indented.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let parts = text.split("\n---\n").map(|part| part.trim_start_matches("---\n"));
    let read = |part: &str| {
        serde_saphyr::from_str::<Value>(part).unwrap_or_else(|error| panic!("not YAML: {error}\n{part}"))
    };
    parts
        .filter(|part| part.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#')))
        .map(read)
        .collect()
}

/// The one object of this kind and name.
pub(super) fn one<T: DeserializeOwned>(documents: &[Value], kind: &str, name: &str) -> T {
    let mut found = documents.iter().filter(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    let (Some(only), None) = (found.next(), found.next()) else { panic!("one {kind} `{name}` is expected") };
    serde_json::from_value(only.clone()).unwrap_or_else(|error| panic!("{kind} `{name}`: {error}"))
}
