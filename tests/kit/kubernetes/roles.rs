//! What a token may do: rules of roles.

use serde_json::Value;

/// One rule of a role.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
    names: Vec<String>,
}

impl Rule {
    /// The rules of a `Role` or `ClusterRole`.
    pub fn of_role(role: &Value) -> Vec<Self> {
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
        };
        let rule = |rule: &Value| Self {
            groups: texts(&rule["apiGroups"]),
            resources: texts(&rule["resources"]),
            verbs: texts(&rule["verbs"]),
            names: texts(&rule["resourceNames"]),
        };
        role["rules"].as_array().into_iter().flatten().map(rule).collect()
    }

    /// Whether it lets a verb through on a resource (`nodes/status` for a subresource).
    pub(super) fn allows(&self, verb: &str, group: &str, resource: &str, name: &str) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|one| one == wanted || one == "*");
        has(&self.groups, group)
            && has(&self.resources, resource)
            && has(&self.verbs, verb)
            && (self.names.is_empty() || self.names.iter().any(|one| one == name))
    }
}
