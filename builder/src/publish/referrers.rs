//! Links between images and documents about them, in registries that do not keep them by themselves.
//!
//! A registry that knows the referrers API answers a manifest with a `subject` with `OCI-Subject`. For the others the
//! distribution specification has the "referrers tag schema": an index under the tag `sha256-<hex of the subject>`.

use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use super::{
    error::PushError,
    session::{Failed, Session},
};
use crate::{
    image::{Document, INDEX},
    sbom::Referrer,
};

/// An index of a handful of documents.
const LIMIT: usize = 4 << 20;

impl Session<'_> {
    /// Adds a document to the index of its subject.
    pub(super) async fn link(&self, referrer: &Referrer) -> Result<(), PushError> {
        let tag = referrer.subject.to_string().replacen(':', "-", 1);
        let known = self.known(&tag).await.map_err(Failed::into_error)?;
        let index = Document::new(INDEX, &merged(known.as_ref(), referrer));
        self.manifest(&index, &tag).await.map(drop)
    }

    /// The index that is there.
    async fn known(&self, tag: &str) -> Result<Option<Value>, Failed> {
        let url = self.url(&format!("manifests/{tag}"));
        let mut answer =
            self.send(Method::GET, &url, |request| request.header(header::ACCEPT, INDEX)).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => {
                let mut bytes = Vec::new();
                // What cannot be read is replaced: it is no index of referrers.
                while let Ok(Some(chunk)) = answer.chunk().await {
                    bytes.extend_from_slice(&chunk);
                    if bytes.len() > LIMIT {
                        break;
                    }
                }
                Ok(serde_json::from_slice(&bytes).ok())
            }
            _ => Err(self.refused("a question for referrers", answer).await),
        }
    }
}

/// Documents of one kind and digest are there once.
fn merged(known: Option<&Value>, referrer: &Referrer) -> Value {
    let entry = referrer.manifest.descriptor.to_json();
    let known = known.and_then(|index| index["manifests"].as_array()).cloned().unwrap_or_default();
    let mut manifests: Vec<Value> =
        known.into_iter().filter(|other| other["digest"] != entry["digest"]).collect();
    manifests.push(entry);
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests })
}
