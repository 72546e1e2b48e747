//! Image configurations and manifests, as the OCI image specification 1.1 describes them.
//!
//! JSON is written in one form only: keys sorted, no white space, every array in the order given. The form
//! is made here and not left to the JSON library, whose order of keys depends on a feature that any other
//! crate of the program could switch on.

use std::collections::{BTreeMap, BTreeSet};

pub use oci::media_type::{CONFIG, INDEX, MANIFEST};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Map, Value, json};

use crate::{cache::Content, digest::Digest, layer::Layer, platform::Platform};

/// A reference to content, as manifests and indexes hold it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Which bytes.
    #[serde(deserialize_with = "sha256")]
    pub digest: Digest,
    /// How many.
    pub size: u64,
    /// What kind of artifact a manifest is that is no image.
    #[serde(default)]
    pub artifact_type: Option<String>,
    /// For which platform, in an index.
    #[serde(default)]
    pub platform: Option<PlatformKeys>,
    /// Notes; a layout's index keeps names here.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// The builder names what it keeps by its SHA-256; a registry may use other digests.
fn sha256<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    Digest::parse_sha256(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// The platform of an entry of an index.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PlatformKeys {
    /// The processor.
    pub architecture: String,
    /// The operating system.
    pub os: String,
}

impl Descriptor {
    /// Describes content.
    pub fn new(media_type: &str, content: Content) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: content.digest,
            size: content.size,
            artifact_type: None,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        let mut object =
            json!({ "mediaType": self.media_type, "digest": self.digest.to_string(), "size": self.size });
        if let Some(kind) = &self.artifact_type {
            object["artifactType"] = json!(kind);
        }
        if !self.annotations.is_empty() {
            object["annotations"] = json!(self.annotations);
        }
        object
    }
}

/// Small JSON content with its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The bytes as they are stored and pushed.
    pub bytes: Vec<u8>,
    /// How manifests refer to it.
    pub descriptor: Descriptor,
}

impl Document {
    /// Writes JSON in the one form.
    pub fn new(media_type: &str, value: &Value) -> Self {
        let bytes = canonical(value);
        let content = Content { digest: Digest::of(&bytes), size: bytes.len() as u64 };
        Self { bytes, descriptor: Descriptor::new(media_type, content) }
    }
}

/// A finished image: everything that has to be stored or pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its configuration.
    pub config: Document,
    /// Its layers, lowest first.
    pub layers: Vec<Layer>,
    /// Its manifest.
    pub manifest: Document,
}

/// What a tag points to: the manifest of the only platform, or the index over those of several.
pub fn tagged(images: &[(Platform, &Image)]) -> Document {
    if let [(_, image)] = images {
        return image.manifest.clone();
    }
    let entry = |(platform, image): &(Platform, &Image)| {
        let mut object = image.manifest.descriptor.to_json();
        object["platform"] = json!({ "architecture": platform.architecture(), "os": "linux" });
        object
    };
    // In whatever order the specification lists the platforms.
    let mut images = images.to_vec();
    images.sort_by_key(|(platform, _)| *platform);
    let manifests: Vec<Value> = images.iter().map(entry).collect();
    Document::new(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }))
}

/// What the builder sets in an image.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Environment variables, added to or replacing the base's.
    pub env: BTreeMap<String, String>,
    /// Labels, likewise.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// The user that containers run as; `None` keeps the base's.
    pub user: Option<String>,
    /// The program that containers start with; `None` keeps the base's.
    pub entrypoint: Option<Vec<String>>,
    /// Its arguments when a container is started with none.
    pub command: Option<Vec<String>>,
    /// Where they start; `None` keeps the base's.
    pub working_directory: Option<String>,
    /// Ports that they listen on, with their protocol, added to the base's.
    pub ports: BTreeSet<String>,
    /// When the image was made, as RFC 3339.
    pub created: String,
}

/// A layer on top of the base, with the words for the image's history.
#[derive(Debug, Clone)]
pub struct Added {
    /// What is in it.
    pub label: String,
    /// The layer.
    pub layer: Layer,
}

/// Puts an image together on top of a base's configuration and layers.
pub fn assemble(base: &Value, base_layers: &[Layer], added: &[Added], settings: &Settings) -> Image {
    let layers: Vec<Layer> =
        base_layers.iter().cloned().chain(added.iter().map(|added| added.layer.clone())).collect();
    let config = Document::new(CONFIG, &configuration(base, base_layers, added, settings));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor.to_json(),
        "layers": layers
            .iter()
            .map(|layer| {
                let descriptor = Descriptor::new(&layer.media_type, layer.blob);
                Descriptor { annotations: layer.annotations.clone(), ..descriptor }.to_json()
            })
            .collect::<Vec<_>>(),
        "annotations": settings.annotations,
    });
    Image { config, layers, manifest: Document::new(MANIFEST, &manifest) }
}

fn configuration(base: &Value, base_layers: &[Layer], added: &[Added], settings: &Settings) -> Value {
    let mut config = base.clone();
    let mut runtime = base.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
    runtime.insert("Env".to_owned(), json!(merge_env(&runtime, &settings.env)));
    let mut labels = runtime.get("Labels").and_then(Value::as_object).cloned().unwrap_or_default();
    labels.extend(settings.labels.iter().map(|(name, value)| (name.clone(), json!(value))));
    runtime.insert("Labels".to_owned(), Value::Object(labels));
    if settings.entrypoint.is_some() {
        // The base's command would become an argument of another entry point.
        runtime.remove("Cmd");
    }
    let set = [
        ("User", settings.user.as_ref().map(|user| json!(user))),
        ("Entrypoint", settings.entrypoint.as_ref().map(|words| json!(words))),
        ("Cmd", settings.command.as_ref().map(|words| json!(words))),
        ("WorkingDir", settings.working_directory.as_ref().map(|directory| json!(directory))),
    ];
    runtime.extend(set.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    if !settings.ports.is_empty() {
        let mut ports = runtime.get("ExposedPorts").and_then(Value::as_object).cloned().unwrap_or_default();
        ports.extend(settings.ports.iter().map(|port| (port.clone(), json!({}))));
        runtime.insert("ExposedPorts".to_owned(), Value::Object(ports));
    }
    config["config"] = Value::Object(runtime);
    config["created"] = json!(settings.created);
    let diff_ids = base_layers.iter().chain(added.iter().map(|added| &added.layer));
    let diff_ids: Vec<String> = diff_ids.map(|layer| layer.diff_id.to_string()).collect();
    config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
    config["history"] = json!(history(base, base_layers.len(), added, &settings.created));
    // Left-overs of Docker's own builder that describe how the base was made, not this image.
    for key in ["container", "container_config", "docker_version", "id", "parent"] {
        if let Some(object) = config.as_object_mut() {
            object.remove(key);
        }
    }
    config
}

/// Keeps the order of the base's variables; replaced ones stay where they were.
fn merge_env(runtime: &Map<String, Value>, set: &BTreeMap<String, String>) -> Vec<String> {
    let base = runtime.get("Env").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut env: Vec<(String, String)> = base
        .iter()
        .filter_map(Value::as_str)
        .filter_map(|text| text.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    for (name, value) in set {
        match env.iter_mut().find(|(known, _)| known == name) {
            Some(known) => known.1.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// The history must name every layer exactly once; a base whose history does not gets a plain one.
fn history(base: &Value, base_layers: usize, added: &[Added], created: &str) -> Vec<Value> {
    let written = base.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
    let filled = |entry: &&Value| entry.get("empty_layer").and_then(Value::as_bool) != Some(true);
    let mut history = if written.iter().filter(filled).count() == base_layers {
        written
    } else {
        vec![json!({ "created": created, "created_by": "base" }); base_layers]
    };
    history.extend(
        added.iter().map(
            |added| json!({ "created": created, "created_by": format!("hearth build: {}", added.label) }),
        ),
    );
    history
}

/// The value of an environment variable in an image configuration.
pub fn env<'a>(config: &'a Value, name: &str) -> Option<&'a str> {
    let env = config.get("config")?.get("Env")?.as_array()?;
    env.iter()
        .filter_map(Value::as_str)
        .filter_map(|text| text.split_once('='))
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value)
}

/// JSON with sorted keys and no white space.
pub fn canonical(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<(&String, &Value)> = object.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            let entries = entries.into_iter().map(|(key, value)| (Some(key), value));
            sequence(b'{', entries, b'}', out);
        }
        Value::Array(array) => sequence(b'[', array.iter().map(|value| (None, value)), b']', out),
        scalar => serde_json::to_writer(out, scalar).expect("scalars are written to memory"),
    }
}

fn sequence<'a>(
    open: u8,
    items: impl Iterator<Item = (Option<&'a String>, &'a Value)>,
    close: u8,
    out: &mut Vec<u8>,
) {
    out.push(open);
    for (at, (key, value)) in items.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        if let Some(key) = key {
            serde_json::to_writer(&mut *out, key).expect("strings are written to memory");
            out.push(b':');
        }
        write(value, out);
    }
    out.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str) -> Layer {
        Layer {
            blob: Content { digest: Digest::of(name.as_bytes()), size: 1 },
            diff_id: Digest::of(format!("raw {name}").as_bytes()),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            annotations: [("place".to_owned(), name.to_owned())].into(),
        }
    }

    #[test]
    fn json_has_one_form() {
        let value: Value =
            serde_json::from_str(r#"{ "b": [1, {"z": null, "a": "\u00e9\n"}], "a": true, "A": -1.5 }"#)
                .unwrap();
        let expected = "{\"A\":-1.5,\"a\":true,\"b\":[1,{\"a\":\"\u{e9}\\n\",\"z\":null}]}";
        assert_eq!(String::from_utf8(canonical(&value)).unwrap(), expected);
    }

    #[test]
    fn an_image_adds_to_its_base() {
        let base = json!({
            "architecture": "amd64", "os": "linux", "docker_version": "24",
            "config": { "Env": ["PATH=/usr/bin", "LANG=C"], "Cmd": ["bash"], "Labels": { "a": "1" }, "StopSignal": "SIGTERM" },
            "rootfs": { "type": "layers", "diff_ids": ["sha256:old"] },
            "history": [{ "created_by": "ADD" }, { "created_by": "ENV", "empty_layer": true }],
        });
        let settings = Settings {
            env: BTreeMap::from([
                ("LANG".to_owned(), "C.UTF-8".to_owned()),
                ("SPARK_HOME".to_owned(), "/opt/spark".to_owned()),
            ]),
            labels: BTreeMap::from([("b".to_owned(), "2".to_owned())]),
            user: Some("185".to_owned()),
            entrypoint: Some(vec!["/opt/entrypoint.sh".to_owned()]),
            working_directory: Some("/opt/spark/work-dir".to_owned()),
            ports: BTreeSet::from(["4040/tcp".to_owned()]),
            created: "1980-01-01T00:00:00Z".to_owned(),
            ..Settings::default()
        };
        let added = [Added { label: "Spark JARs".to_owned(), layer: layer("jars") }];
        let image = assemble(&base, &[layer("base")], &added, &settings);
        let config: Value = serde_json::from_slice(&image.config.bytes).unwrap();
        assert_eq!(
            config["config"]["Env"],
            json!(["PATH=/usr/bin", "LANG=C.UTF-8", "SPARK_HOME=/opt/spark"])
        );
        assert_eq!(config["config"]["Labels"], json!({ "a": "1", "b": "2" }));
        assert_eq!(config["config"]["StopSignal"], "SIGTERM");
        assert_eq!(config["config"]["ExposedPorts"], json!({ "4040/tcp": {} }));
        assert!(config["config"].get("Cmd").is_none() && config.get("docker_version").is_none());
        let kept = configuration(&base, &[], &[], &Settings::default());
        assert_eq!(kept["config"]["Cmd"], json!(["bash"]), "without an entry point it is the base's");
        assert!(kept["config"].get("User").is_none(), "{kept}");
        assert_eq!(
            config["rootfs"]["diff_ids"],
            json!([layer("base").diff_id.to_string(), layer("jars").diff_id.to_string()])
        );
        assert_eq!(config["history"].as_array().unwrap().len(), 3);
        assert_eq!(env(&config, "SPARK_HOME"), Some("/opt/spark"));
        let manifest: Value = serde_json::from_slice(&image.manifest.bytes).unwrap();
        assert_eq!(manifest["layers"][1]["digest"], layer("jars").blob.digest.to_string());
        assert_eq!(manifest["layers"][1]["annotations"], json!({ "place": "jars" }));
        assert_eq!(manifest["config"]["digest"], image.config.descriptor.digest.to_string());
    }

    #[test]
    fn a_history_that_does_not_fit_is_replaced() {
        let base = json!({ "history": [{ "created_by": "squashed" }] });
        assert_eq!(history(&base, 2, &[], "now").len(), 2);
        assert_eq!(history(&json!({}), 0, &[], "now").len(), 0);
    }

    #[test]
    fn a_tag_points_to_a_manifest_or_to_the_index_of_its_platforms() {
        let image = |name: &str| {
            let added = [Added { label: name.to_owned(), layer: layer(name) }];
            assemble(&json!({}), &[], &added, &Settings::default())
        };
        let (amd64, arm64) = (image("a"), image("b"));
        assert_eq!(tagged(&[(Platform::Arm64, &arm64)]), arm64.manifest);
        let index = tagged(&[(Platform::Amd64, &amd64), (Platform::Arm64, &arm64)]);
        let value: Value = serde_json::from_slice(&index.bytes).unwrap();
        assert_eq!(index.descriptor.media_type, INDEX);
        assert_eq!(value["manifests"][1]["platform"]["architecture"], "arm64");
        assert_eq!(value["manifests"][0]["digest"], amd64.manifest.descriptor.digest.to_string());
    }
}
