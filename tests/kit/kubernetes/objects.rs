//! Objects, their versions, what happened to them, and who owns which field.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    kinds::Kind,
    patch::{self, Owners},
    schema,
    selector::Selector,
};

/// Names an object: kind, namespace, name.
type Key = (String, String, String);

/// Why a request is refused, as a `Status` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// HTTP status.
    pub code: u16,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Fields: reason, path, message.
    pub causes: Vec<(String, String, String)>,
}

impl Failure {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), causes: Vec::new() }
    }

    pub(super) fn body(&self) -> Value {
        let causes: Vec<_> = self
            .causes
            .iter()
            .map(|(reason, field, message)| json!({"reason": reason, "field": field, "message": message}))
            .collect();
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": self.code,
            "reason": self.reason, "message": self.message, "details": {"causes": causes},
        })
    }
}

/// Something that happened.
#[derive(Debug)]
struct Event {
    version: u64,
    kind: String,
    before: Option<Value>,
    after: Option<Value>,
}

/// How an object is written.
#[derive(Clone, Debug)]
pub(super) enum Write<'a> {
    Put(&'a Value),
    Merge(&'a Value),
    Strategic(&'a Value),
    Json(&'a Value),
    Apply { patch: &'a Value, force: bool },
}

/// All of them.
#[derive(Debug)]
pub(super) struct Objects {
    kinds: Vec<Kind>,
    stored: BTreeMap<Key, Value>,
    owners: BTreeMap<(Key, bool), Owners>,
    version: u64,
    oldest: u64,
    history: Vec<Event>,
    uids: u64,
}

impl Default for Objects {
    fn default() -> Self {
        Self {
            kinds: Kind::all_built_in(),
            stored: BTreeMap::new(),
            owners: BTreeMap::new(),
            version: 1,
            oldest: 0,
            history: Vec::new(),
            uids: 0,
        }
    }
}

impl Objects {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn install(&mut self, kind: Kind) {
        self.kinds.retain(|known| known.kind != kind.kind);
        self.kinds.push(kind);
    }

    pub(super) fn uninstall(&mut self, kind: &str) {
        self.kinds.retain(|known| known.kind != kind);
        self.stored.retain(|key, _| key.0 != kind);
    }

    pub(super) fn kind_at(&self, group: &str, version: &str, plural: &str) -> Option<Kind> {
        self.kinds
            .iter()
            .find(|kind| kind.group == group && kind.version == version && kind.plural == plural)
            .cloned()
    }

    fn kind(&self, kind: &str) -> Kind {
        self.kinds
            .iter()
            .find(|known| known.kind == kind)
            .cloned()
            .unwrap_or_else(|| panic!("no kind `{kind}`"))
    }

    fn key(kind: &Kind, namespace: &str, name: &str) -> Key {
        let namespace = if kind.namespaced { namespace } else { "" };
        (kind.kind.clone(), namespace.to_owned(), name.to_owned())
    }

    pub(super) fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let namespace = if self.kind(kind).namespaced { namespace } else { "" };
        self.stored.get(&(kind.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(super) fn all(&self, kind: &str) -> Vec<Value> {
        self.stored.iter().filter(|(key, _)| key.0 == kind).map(|(_, object)| object.clone()).collect()
    }

    /// The objects of a kind as they were at a version; `None` when that is too long ago.
    pub(super) fn matching(&self, kind: &Kind, selector: &Selector, version: u64) -> Option<Vec<Value>> {
        if version < self.oldest {
            return None;
        }
        let of_kind = self.stored.iter().filter(|(key, _)| key.0 == kind.kind);
        let mut then: BTreeMap<_, _> = of_kind.map(|(_, object)| (names(object), object)).collect();
        let since = self.history.iter().rev().take_while(|event| event.version > version);
        for event in since.filter(|event| event.kind == kind.kind) {
            match (&event.before, &event.after) {
                (Some(before), _) => then.insert(names(before), before),
                (None, Some(after)) => then.remove(&names(after)),
                (None, None) => None,
            };
        }
        Some(then.into_values().filter(|object| selector.matches(object)).cloned().collect())
    }

    /// Events after a version for those who watch with a selector; nothing when that is too long ago.
    pub(super) fn since(&self, kind: &Kind, version: u64, selector: &Selector) -> Option<Vec<Value>> {
        if version < self.oldest {
            return None;
        }
        let events = self.history.iter().filter(|event| event.version > version && event.kind == kind.kind);
        let told = events.filter_map(|event| {
            let seen =
                |object: &Option<Value>| object.as_ref().filter(|object| selector.matches(object)).cloned();
            let (before, after) = (seen(&event.before), seen(&event.after));
            let (name, mut object) = match (before, after) {
                (None, Some(after)) => ("ADDED", after),
                (Some(_), Some(after)) => ("MODIFIED", after),
                // An object that no longer matches is told of as it was, at the version of the change.
                (Some(before), None) => ("DELETED", before),
                (None, None) => return None,
            };
            object["metadata"]["resourceVersion"] = event.version.to_string().into();
            Some(json!({"type": name, "object": object}))
        });
        Some(told.collect())
    }

    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.oldest = self.version;
        self.history.clear();
    }

    /// Writes an object as it is, status and all.
    pub(super) fn seed(&mut self, kind: &str, object: Value) -> Value {
        let kind = self.kind(kind);
        let (namespace, name) = names(&object);
        let key = Self::key(&kind, &namespace, &name);
        let before = self.stored.get(&key).cloned();
        let object = self.dressed(&kind, object, before.as_ref());
        self.commit(&key, Some(object))
    }

    pub(super) fn remove(&mut self, kind: &str, namespace: &str, name: &str) {
        let key = Self::key(&self.kind(kind), namespace, name);
        if self.stored.contains_key(&key) {
            self.commit(&key, None);
        }
    }

    /// What the server puts into every object.
    fn dressed(&mut self, kind: &Kind, mut object: Value, before: Option<&Value>) -> Value {
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.kind.clone().into();
        let kept = |field: &str| before.map(|before| before["metadata"][field].clone());
        let metadata = &mut object["metadata"];
        self.uids += 1;
        let uid = format!("00000000-0000-4000-8000-{:012x}", self.uids);
        metadata["uid"] = kept("uid").unwrap_or_else(|| uid.into());
        let now = httpdate_of_now();
        metadata["creationTimestamp"] = kept("creationTimestamp").unwrap_or_else(|| now.into());
        let spec_changed = before.is_none_or(|before| before.get("spec") != object.get("spec"));
        let generation = before.and_then(|before| before["metadata"]["generation"].as_u64()).unwrap_or(0);
        object["metadata"]["generation"] = (generation + u64::from(spec_changed)).into();
        object
    }

    fn commit(&mut self, key: &Key, after: Option<Value>) -> Value {
        let before = self.stored.get(key).cloned();
        let same = |a: &Value, b: &Value| {
            let strip = |value: &Value| {
                let mut value = value.clone();
                value["metadata"]["resourceVersion"] = Value::Null;
                value
            };
            strip(a) == strip(b)
        };
        // A write that changes nothing is no event and no new version.
        if let (Some(before), Some(after)) = (&before, &after)
            && same(before, after)
        {
            return before.clone();
        }
        self.version += 1;
        let after = after.map(|mut object| {
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            object
        });
        match &after {
            Some(object) => self.stored.insert(key.clone(), object.clone()),
            None => self.stored.remove(key),
        };
        if after.is_none() {
            self.owners.retain(|(of, _), _| of != key);
        }
        let answer = after.clone().or(before.clone()).unwrap_or_default();
        if key.0 == "CustomResourceDefinition"
            && let Some(kind) = after.as_ref().and_then(Kind::of_definition)
        {
            self.install(kind);
        }
        self.history.push(Event { version: self.version, kind: key.0.clone(), before, after });
        answer
    }

    pub(super) fn create(
        &mut self,
        kind: &Kind,
        namespace: &str,
        mut object: Value,
        manager: &str,
    ) -> Result<Value, Failure> {
        if object["metadata"]["name"].is_null() {
            let Some(prefix) = object["metadata"]["generateName"].as_str().map(str::to_owned) else {
                return Err(Failure::new(422, "Invalid", "metadata.name: Required value"));
            };
            object["metadata"]["name"] = format!("{prefix}{:05x}", self.version).into();
        }
        if kind.namespaced {
            object["metadata"]["namespace"] = namespace.into();
        }
        let (_, name) = names(&object);
        let key = Self::key(kind, namespace, &name);
        if self.stored.contains_key(&key) {
            return Err(Failure::new(
                409,
                "AlreadyExists",
                format!("{} \"{name}\" already exists", kind.plural),
            ));
        }
        if kind.status
            && let Some(object) = object.as_object_mut()
        {
            object.remove("status");
        }
        let object = admitted(kind, secret_data(kind, object))?;
        patch::own_changes(
            &json!({}),
            &object,
            manager,
            self.owners.entry((key.clone(), false)).or_default(),
        );
        let object = self.dressed(kind, object, None);
        Ok(self.commit(&key, Some(object)))
    }

    /// Writes an object or its status.
    pub(super) fn write(
        &mut self,
        kind: &Kind,
        (namespace, name): (&str, &str),
        status: bool,
        write: &Write<'_>,
        manager: &str,
    ) -> Result<Value, Failure> {
        let key = Self::key(kind, namespace, name);
        let before = self.stored.get(&key).cloned();
        let Some(before) = before else {
            return match write {
                Write::Apply { patch, .. } if !status => {
                    self.apply_new(kind, namespace, name, patch, manager)
                }
                _ => Err(not_found(kind, name)),
            };
        };
        let mut after = before.clone();
        let mut owners = self.owners.get(&(key.clone(), status)).cloned().unwrap_or_default();
        let sent = match write {
            Write::Put(object) => {
                after = (*object).clone();
                object
            }
            Write::Merge(patch) => {
                patch::merge(&mut after, patch);
                patch
            }
            Write::Strategic(patch) => {
                patch::strategic(&mut after, patch, "");
                patch
            }
            Write::Json(patch) => {
                patch::json_patch(&mut after, patch)
                    .map_err(|message| Failure::new(422, "Invalid", message))?;
                patch
            }
            Write::Apply { patch, force } => {
                patch::apply(&mut after, patch, manager, *force, &mut owners)
                    .map_err(|fields| conflict(&fields))?;
                patch
            }
        };
        let named = sent["metadata"]["resourceVersion"].as_str();
        let stale = named
            .is_some_and(|version| !version.is_empty() && before["metadata"]["resourceVersion"] != version);
        if stale {
            let message = format!(
                "Operation cannot be fulfilled on {} \"{name}\": the object has been modified; please apply your changes to the latest version and try again",
                kind.plural
            );
            return Err(Failure::new(409, "Conflict", message));
        }
        if kind.status {
            // Each of the two is written alone.
            let (kept, of) = if status { (&before, "status") } else { (&after, "spec") };
            let mut mixed = kept.clone();
            if status {
                mixed["status"] = after["status"].clone();
            } else {
                match before.get("status") {
                    Some(status) => mixed["status"] = status.clone(),
                    None => {
                        mixed.as_object_mut().map(|object| object.remove("status"));
                    }
                }
            }
            let _ = of;
            after = mixed;
        }
        let immutable =
            kind.kind == "Secret" && before["immutable"] == true && before["data"] != after["data"];
        if immutable {
            return Err(Failure::new(
                422,
                "Invalid",
                "data: Forbidden: field is immutable when `immutable` is set",
            ));
        }
        let after = admitted(kind, secret_data(kind, after))?;
        if !matches!(write, Write::Apply { .. }) {
            patch::own_changes(&before, &after, manager, &mut owners);
        }
        self.owners.insert((key.clone(), status), owners);
        let after = self.dressed(kind, after, Some(&before));
        let gone = !after["metadata"]["deletionTimestamp"].is_null() && has_no_finalizers(&after);
        Ok(self.commit(&key, (!gone).then_some(after)))
    }

    fn apply_new(
        &mut self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        patch: &Value,
        manager: &str,
    ) -> Result<Value, Failure> {
        let key = Self::key(kind, namespace, name);
        let mut object = patch.clone();
        object["metadata"]["name"] = name.into();
        let created = self.create(kind, namespace, object, manager)?;
        let mut owners = Owners::new();
        let mut scratch = json!({});
        // Nobody else owns anything of a new object.
        let _ = patch::apply(&mut scratch, patch, manager, true, &mut owners);
        self.owners.insert((key, false), owners);
        Ok(created)
    }

    pub(super) fn delete(&mut self, kind: &Kind, namespace: &str, name: &str) -> Result<Value, Failure> {
        let key = Self::key(kind, namespace, name);
        let Some(mut object) = self.stored.get(&key).cloned() else { return Err(not_found(kind, name)) };
        if has_no_finalizers(&object) {
            return Ok(self.commit(&key, None));
        }
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = httpdate_of_now().into();
        }
        Ok(self.commit(&key, Some(object)))
    }

    pub(super) fn read(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Value, Failure> {
        self.stored.get(&Self::key(kind, namespace, name)).cloned().ok_or_else(|| not_found(kind, name))
    }
}

fn has_no_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
}

fn names(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn not_found(kind: &Kind, name: &str) -> Failure {
    Failure::new(404, "NotFound", format!("{} \"{name}\" not found", kind.plural))
}

fn conflict(fields: &[(String, String)]) -> Failure {
    let causes = fields
        .iter()
        .map(|(manager, path)| {
            ("FieldManagerConflict".to_owned(), path.clone(), format!("conflict with \"{manager}\""))
        })
        .collect();
    let message = format!("Apply failed with {} conflict(s)", fields.len());
    Failure { causes, ..Failure::new(409, "Conflict", message) }
}

fn admitted(kind: &Kind, mut object: Value) -> Result<Value, Failure> {
    let Some(schema) = &kind.schema else { return Ok(object) };
    let problems = schema::admit(schema, &mut object);
    if problems.is_empty() {
        return Ok(object);
    }
    let message =
        problems.iter().map(|(path, problem)| format!("{path}: {problem}")).collect::<Vec<_>>().join(", ");
    let causes =
        problems.into_iter().map(|(path, problem)| ("FieldValueInvalid".to_owned(), path, problem)).collect();
    Err(Failure { causes, ..Failure::new(422, "Invalid", message) })
}

/// `stringData` becomes `data`.
fn secret_data(kind: &Kind, mut object: Value) -> Value {
    if kind.kind == "Secret"
        && let Some(texts) = object.as_object_mut().and_then(|object| object.remove("stringData"))
    {
        use base64::Engine as _;
        for (key, text) in texts.as_object().into_iter().flatten() {
            let encoded = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default());
            object["data"][key] = encoded.into();
        }
    }
    object
}

/// RFC 3339, seconds.
fn httpdate_of_now() -> String {
    let now = k8s_openapi::jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
