//! What is in an image, as documents that other programs read: SPDX 2.3, CycloneDX 1.6, and where it came from as an
//! in-toto statement with SLSA provenance. All of them become referrers of the image's manifest.
//!
//! Pure: the same image gives the same bytes. Nothing in them depends on the time, the machine or the order in which
//! inputs were found; identifiers are made of digests.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::{
    cache::Content,
    digest::Digest,
    image::{Descriptor, Document, MANIFEST},
    lock::Pin,
};

/// The media type of a configuration that says nothing ("image-spec", "Guidance for an Empty Descriptor").
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// What the kinds of document are called.
pub const SPDX: &str = "application/spdx+json";
/// See [`SPDX`].
pub const CYCLONEDX: &str = "application/vnd.cyclonedx+json";
/// See [`SPDX`].
pub const IN_TOTO: &str = "application/vnd.in-toto+json";

/// What a component is, in the words of CycloneDX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A library or program.
    Library,
    /// A distribution.
    OperatingSystem,
    /// An image or root file system.
    Container,
}

impl Kind {
    fn cyclonedx(self) -> &'static str {
        match self {
            Self::Library => "library",
            Self::OperatingSystem => "operating-system",
            Self::Container => "container",
        }
    }

    fn spdx(self) -> &'static str {
        match self {
            Self::Library => "LIBRARY",
            Self::OperatingSystem => "OPERATING-SYSTEM",
            Self::Container => "CONTAINER",
        }
    }
}

/// A part of an image with a name of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Component {
    /// What it is.
    pub kind: Kind,
    /// Its package URL.
    pub purl: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its file, when it is one file.
    pub digest: Option<Digest>,
}

/// The image that documents are about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Repository and tag.
    pub name: &'a str,
    /// Its manifest.
    pub manifest: &'a Descriptor,
    /// When it was made, as RFC 3339.
    pub created: &'a str,
}

/// A document that refers to an image: its manifest, and the blobs that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrer {
    /// The digest of what it is about.
    pub subject: Digest,
    /// The manifest.
    pub manifest: Document,
    /// The document and the empty configuration.
    pub blobs: Vec<Document>,
}

/// Wraps a document as a referrer of an image.
pub fn referrer(subject: &Subject<'_>, kind: &str, document: &Value) -> Referrer {
    let document = Document::new(kind, document);
    let empty = Document::new(EMPTY, &json!({}));
    let about = Descriptor::new(
        &subject.manifest.media_type,
        Content { digest: subject.manifest.digest, size: subject.manifest.size },
    );
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": kind,
        "config": empty.descriptor.to_json(),
        "layers": [document.descriptor.to_json()],
        "subject": about.to_json(),
        "annotations": { "org.opencontainers.image.created": subject.created },
    });
    let mut manifest = Document::new(MANIFEST, &manifest);
    manifest.descriptor.artifact_type = Some(kind.to_owned());
    Referrer { subject: subject.manifest.digest, manifest, blobs: vec![empty, document] }
}

/// The SPDX document.
pub fn spdx(subject: &Subject<'_>, components: &BTreeSet<Component>) -> Value {
    let image = json!({
        "SPDXID": "SPDXRef-image",
        "name": subject.name,
        "versionInfo": subject.manifest.digest.to_string(),
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "primaryPackagePurpose": "CONTAINER",
        "checksums": [{ "algorithm": "SHA256", "checksumValue": subject.manifest.digest.hex() }],
    });
    let package = |component: &Component| {
        let mut package = json!({
            "SPDXID": format!("SPDXRef-{}", id(component)),
            "name": component.name,
            "versionInfo": component.version,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": false,
            "primaryPackagePurpose": component.kind.spdx(),
            "externalRefs": [{
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": component.purl,
            }],
        });
        if let Some(digest) = &component.digest {
            package["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": digest.hex() }]);
        }
        package
    };
    let contains = |component: &Component| {
        json!({
            "spdxElementId": "SPDXRef-image",
            "relationshipType": "CONTAINS",
            "relatedSpdxElement": format!("SPDXRef-{}", id(component)),
        })
    };
    let describes = json!({
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": "SPDXRef-image",
    });
    let packages: Vec<Value> = std::iter::once(image).chain(components.iter().map(package)).collect();
    let relationships: Vec<Value> =
        std::iter::once(describes).chain(components.iter().map(contains)).collect();
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": subject.name,
        "documentNamespace": format!("urn:hearth:spdx:{}", subject.manifest.digest),
        "creationInfo": { "created": subject.created, "creators": [concat!("Tool: hearth-", env!("CARGO_PKG_VERSION"))] },
        "packages": packages,
        "relationships": relationships,
    })
}

/// The CycloneDX document.
pub fn cyclonedx(subject: &Subject<'_>, components: &BTreeSet<Component>) -> Value {
    let component = |component: &Component| {
        let mut object = json!({
            "type": component.kind.cyclonedx(),
            "bom-ref": id(component),
            "name": component.name,
            "version": component.version,
            "purl": component.purl,
        });
        if let Some(digest) = &component.digest {
            object["hashes"] = json!([{ "alg": "SHA-256", "content": digest.hex() }]);
        }
        object
    };
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{}", uuid(&subject.manifest.digest)),
        "version": 1,
        "metadata": {
            "timestamp": subject.created,
            "tools": { "components": [{ "type": "application", "name": "hearth", "version": env!("CARGO_PKG_VERSION") }] },
            "component": {
                "type": "container",
                "bom-ref": "image",
                "name": subject.name,
                "version": subject.manifest.digest.to_string(),
            },
        },
        "components": components.iter().map(component).collect::<Vec<_>>(),
    })
}

/// The provenance: which inputs came to this image.
pub fn provenance(subject: &Subject<'_>, inputs: &BTreeMap<String, Pin>, specification: Digest) -> Value {
    let input = |(name, pin): (&String, &Pin)| json!({ "name": name, "uri": pin.origin, "digest": { "sha256": pin.digest.hex() } });
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": subject.name, "digest": { "sha256": subject.manifest.digest.hex() } }],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://hearth.dev/build/v1",
                "externalParameters": { "specification": { "sha256": specification.hex() } },
                "resolvedDependencies": inputs.iter().map(input).collect::<Vec<_>>(),
            },
            "runDetails": { "builder": { "id": concat!("https://hearth.dev/builder@", env!("CARGO_PKG_VERSION")) } },
        },
    })
}

/// An identifier within a document, made of what the component is.
fn id(component: &Component) -> String {
    let text = format!("{} {:?}", component.purl, component.digest);
    format!("component-{}", Digest::of(text.as_bytes()).short())
}

/// The first half of a digest in the form of a UUID (version 8: made by the application).
fn uuid(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(name: &str) -> Component {
        Component {
            kind: Kind::Library,
            purl: format!("pkg:maven/g/{name}@1"),
            name: name.to_owned(),
            version: "1".to_owned(),
            digest: Some(Digest::of(name.as_bytes())),
        }
    }

    #[test]
    fn documents_name_every_component_once_and_are_the_same_each_time() {
        let manifest = Document::new(MANIFEST, &json!({})).descriptor;
        let subject = Subject { name: "r/spark:1", manifest: &manifest, created: "1980-01-01T00:00:00Z" };
        let components = BTreeSet::from([component("b"), component("a"), component("b")]);
        let spdx = spdx(&subject, &components);
        assert_eq!(spdx["packages"].as_array().unwrap().len(), 3);
        assert_eq!(spdx["relationships"].as_array().unwrap().len(), 3);
        assert_eq!(spdx["packages"][1]["externalRefs"][0]["referenceLocator"], "pkg:maven/g/a@1");
        let bom = cyclonedx(&subject, &components);
        assert_eq!(bom["components"][0]["purl"], "pkg:maven/g/a@1");
        assert_eq!(bom["serialNumber"].as_str().unwrap().len(), "urn:uuid:".len() + 36);
        let pin = Pin { digest: Digest::of(b"x"), origin: "somewhere".to_owned(), classes: None };
        let inputs = BTreeMap::from([("spark 3.5.9".to_owned(), pin)]);
        let provenance = provenance(&subject, &inputs, Digest::of(b"y"));
        let dependencies = &provenance["predicate"]["buildDefinition"]["resolvedDependencies"];
        assert_eq!(dependencies[0]["digest"]["sha256"], Digest::of(b"x").hex());
        let wrapped = referrer(&subject, SPDX, &spdx);
        let value: Value = serde_json::from_slice(&wrapped.manifest.bytes).unwrap();
        assert_eq!(value["subject"]["digest"], manifest.digest.to_string());
        assert_eq!(value["layers"][0]["digest"], wrapped.blobs[1].descriptor.digest.to_string());
        assert_eq!(wrapped, referrer(&subject, SPDX, &spdx));
    }
}
