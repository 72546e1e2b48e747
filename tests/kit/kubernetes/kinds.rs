//! Which kinds there are.

use serde_json::Value;

/// A kind of object.
#[derive(Clone, Debug)]
#[expect(clippy::struct_field_names, reason = "`kind` is what the API calls it")]
pub(super) struct Kind {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
    pub(super) kind: String,
    pub(super) namespaced: bool,
    /// Has a status subresource.
    pub(super) status: bool,
    /// Of a custom kind.
    pub(super) schema: Option<Value>,
}

impl Kind {
    fn built_in(
        group: &str,
        version: &str,
        plural: &str,
        kind: &str,
        namespaced: bool,
        status: bool,
    ) -> Self {
        let text = str::to_owned;
        Self {
            group: text(group),
            version: text(version),
            plural: text(plural),
            kind: text(kind),
            namespaced,
            status,
            schema: None,
        }
    }

    /// Those that agents and tests touch.
    pub(super) fn all_built_in() -> Vec<Self> {
        vec![
            Self::built_in("", "v1", "nodes", "Node", false, true),
            Self::built_in("", "v1", "namespaces", "Namespace", false, true),
            Self::built_in("", "v1", "pods", "Pod", true, true),
            Self::built_in("", "v1", "secrets", "Secret", true, false),
            Self::built_in("", "v1", "configmaps", "ConfigMap", true, false),
            Self::built_in("", "v1", "serviceaccounts", "ServiceAccount", true, false),
            Self::built_in("events.k8s.io", "v1", "events", "Event", true, false),
            Self::built_in("coordination.k8s.io", "v1", "leases", "Lease", true, false),
            Self::built_in(
                "certificates.k8s.io",
                "v1",
                "certificatesigningrequests",
                "CertificateSigningRequest",
                false,
                true,
            ),
            Self::built_in("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true, false),
            Self::built_in(
                "apiextensions.k8s.io",
                "v1",
                "customresourcedefinitions",
                "CustomResourceDefinition",
                false,
                true,
            ),
        ]
    }

    /// The served version of a `CustomResourceDefinition`.
    pub(super) fn of_definition(definition: &Value) -> Option<Self> {
        let spec = &definition["spec"];
        let version = spec["versions"].as_array()?.iter().find(|version| version["served"] == true)?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some(Self {
            group: text(&spec["group"])?,
            version: text(&version["name"])?,
            plural: text(&spec["names"]["plural"])?,
            kind: text(&spec["names"]["kind"])?,
            namespaced: spec["scope"] == "Namespaced",
            status: version["subresources"]["status"].is_object(),
            schema: Some(version["schema"]["openAPIV3Schema"].clone()),
        })
    }

    /// `group/version`, or the version alone in the oldest group.
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
}
