//! Finds the signatures of an image in its repository. They come like other content: from the store, from peers or from the
//! registry, once for all nodes.

use std::time::Duration;

use bytes::Bytes;
use oci::signature::{PublicKey, Signature, candidates, referrers_tag, signature_tag, signatures};

use super::Urgency;
use crate::{
    access::{Access, Client, Content},
    download::{FetchError, Fetcher},
    metrics::Kind,
    types::{Digest, RangeHeader, Reference, Repository, Tag},
};

/// Manifests with signatures that are read at one place, and signatures that are checked in one of them.
const MOST: usize = 16;

/// Largest payload or bundle, in bytes.
const LARGEST: u64 = 4 * 1024 * 1024;

/// Where a repository keeps signatures of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The referrers API.
    Referrers,
    /// An index under the tag `sha256-<hex>`, in registries without that API.
    ReferrersTag,
    /// The tag `sha256-<hex>.sig`.
    SignatureTag,
}

const PLACES: [Place; 3] = [Place::Referrers, Place::ReferrersTag, Place::SignatureTag];

/// What a look-up found.
#[derive(Debug)]
pub(super) enum Found {
    /// A signature by the listed key at this position.
    Signed { key: usize, place: Place },
    /// Not known: only the reserve of the registry's rate limit is left.
    Reserved(FetchError),
    /// None, and the registry could not be asked everywhere.
    Unreachable { reason: String, retry_after: Option<Duration> },
    /// None that counts.
    Nothing { seen: String },
}

/// Why a place has no signature by a listed key.
#[derive(Debug, Default)]
struct Seen {
    refused: Vec<String>,
    reserved: Option<FetchError>,
    unreachable: Option<(String, Option<Duration>)>,
}

impl Seen {
    /// Whether the registry does not have the content, or gives the agent none; everything else may be different later.
    fn note(&mut self, error: FetchError) {
        match error {
            FetchError::NotFound(_) => {}
            error @ FetchError::Reserved { .. } => self.reserved = Some(error),
            FetchError::Denied(reason) | FetchError::Unsupported { reason } => self.refused.push(reason),
            FetchError::NotNow { reason, retry_after } => self.unreachable = Some((reason, retry_after)),
            other => self.unreachable = Some((crate::types::chain(&other), None)),
        }
    }
}

#[derive(Debug)]
pub(super) struct Lookup {
    fetcher: Fetcher,
    access: Access,
}

/// What is looked for.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) repository: &'a Repository,
    pub(super) digest: &'a Digest,
    pub(super) manifest: &'a [u8],
    pub(super) keys: &'a [PublicKey],
    /// It may read the image, and with it the signatures in its repository.
    pub(super) client: &'a Client,
    pub(super) urgency: Urgency,
}

impl Lookup {
    pub(super) fn new(fetcher: Fetcher, access: Access) -> Self {
        Self { fetcher, access }
    }

    /// The key that signed an image, from the first place that has a signature by a listed key.
    pub(super) async fn signer(&self, image: Wanted<'_>, first: Option<Place>) -> Found {
        let mut seen = Seen::default();
        for place in order(first) {
            if let Some(key) = self.look(image, place, &mut seen).await {
                return Found::Signed { key, place };
            }
            if seen.reserved.is_some() {
                break;
            }
        }
        summary(image.digest, seen)
    }

    async fn look(&self, image: Wanted<'_>, place: Place, seen: &mut Seen) -> Option<usize> {
        let manifests = match self.manifests(image, place).await {
            Ok(manifests) => manifests,
            Err(error) => {
                seen.note(error);
                return None;
            }
        };
        for manifest in manifests.into_iter().take(MOST) {
            match self.check(image, manifest, seen).await {
                Ok(Some(key)) => return Some(key),
                Ok(None) => {}
                Err(error) => seen.note(error),
            }
            if seen.reserved.is_some() {
                return None;
            }
        }
        None
    }

    /// The manifests of a place that may refer to signatures.
    async fn manifests(&self, image: Wanted<'_>, place: Place) -> Result<Vec<Digest>, FetchError> {
        let index = match place {
            Place::SignatureTag => {
                return Ok(vec![self.resolve(image, signature_tag(image.digest)).await?]);
            }
            Place::Referrers => {
                // No filter: registries that copied the configuration's media type would leave out bundles.
                let path = format!("referrers/{}", image.digest);
                let caller = self.access.caller(image.repository, image.client);
                self.fetcher.listing(image.repository, &path, None, Kind::referrers, caller).await?.bytes
            }
            Place::ReferrersTag => {
                let found = self.resolve(image, referrers_tag(image.digest)).await?;
                self.manifest(image, &found).await?
            }
        };
        candidates(&index).map_err(|error| FetchError::Unsupported {
            reason: format!("the referrers of `{}`: {error}", image.digest),
        })
    }

    async fn resolve(&self, image: Wanted<'_>, tag: Tag) -> Result<Digest, FetchError> {
        match image.urgency {
            Urgency::InTurn => self.fetcher.digest_in_turn(image.repository, &tag).await,
            Urgency::Now => {
                Ok(self.fetcher.manifest_head(image.repository, &Reference::Tag(tag)).await?.digest)
            }
        }
    }

    async fn manifest(&self, image: Wanted<'_>, digest: &Digest) -> Result<Bytes, FetchError> {
        self.access.check(image.repository, digest, Content::Manifest, image.client).await?;
        let reference = Reference::Digest(*digest);
        if image.urgency == Urgency::InTurn && !self.fetcher.has(digest).await {
            self.fetcher.turn(image.repository, &reference).await?;
        }
        Ok(self.fetcher.manifest(image.repository, &reference).await?.1)
    }

    /// Checks the signatures that a manifest refers to.
    async fn check(
        &self,
        image: Wanted<'_>,
        manifest: Digest,
        seen: &mut Seen,
    ) -> Result<Option<usize>, FetchError> {
        let bytes = self.manifest(image, &manifest).await?;
        let found = match signatures(&bytes) {
            Ok(found) => found,
            Err(error) => {
                seen.refused.push(format!("`{manifest}`: {error}"));
                return Ok(None);
            }
        };
        for signature in found.iter().take(MOST) {
            let (digest, size) = signature.blob();
            if size > LARGEST {
                seen.refused.push(format!("`{digest}`: larger than {LARGEST} bytes"));
                continue;
            }
            let blob = self.blob(image, &digest).await?;
            match signature.check(&blob, image.digest, image.manifest, image.keys) {
                Ok(key) => return Ok(Some(key)),
                Err(error) => seen.refused.push(format!("{} `{digest}`: {error}", kind(signature))),
            }
        }
        Ok(None)
    }

    async fn blob(&self, image: Wanted<'_>, digest: &Digest) -> Result<Bytes, FetchError> {
        self.access.check(image.repository, digest, Content::Blob, image.client).await?;
        let content = self.fetcher.blob(image.repository, digest, RangeHeader::Whole).await?;
        let size = content.size();
        if size > LARGEST {
            return Err(FetchError::Unsupported {
                reason: format!("`{digest}`: larger than {LARGEST} bytes"),
            });
        }
        let (mut reader, mut bytes) = (content.read(0..size), Vec::new());
        while let Some(chunk) = reader.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }
}

fn kind(signature: &Signature) -> &'static str {
    match signature {
        Signature::Simple { .. } => "cosign signature",
        Signature::Bundle { .. } => "Sigstore bundle",
    }
}

/// All places, the one where signatures were found last first. Pure.
fn order(first: Option<Place>) -> impl Iterator<Item = Place> {
    first.into_iter().chain(PLACES.into_iter().filter(move |place| Some(*place) != first))
}

fn summary(image: &Digest, seen: Seen) -> Found {
    if let Some(error) = seen.reserved {
        return Found::Reserved(error);
    }
    if let Some((reason, retry_after)) = seen.unreachable {
        return Found::Unreachable { reason, retry_after };
    }
    let seen = if seen.refused.is_empty() {
        format!("no referrers that are signatures, and no tag `{}`", signature_tag(image).as_str())
    } else {
        seen.refused.join("; ")
    };
    Found::Nothing { seen }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_that_had_signatures_last_is_asked_first() {
        use Place::{Referrers, ReferrersTag, SignatureTag};
        for (first, expected) in [
            (None, [Referrers, ReferrersTag, SignatureTag]),
            (Some(SignatureTag), [SignatureTag, Referrers, ReferrersTag]),
            (Some(Referrers), [Referrers, ReferrersTag, SignatureTag]),
        ] {
            assert_eq!(order(first).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_registry_that_does_not_answer_is_not_a_missing_signature() {
        let not_now = |reason: &str| FetchError::NotNow { reason: reason.into(), retry_after: None };
        let image = Digest::of(b"image");
        let found = |errors: Vec<FetchError>| {
            let mut seen = Seen::default();
            for error in errors {
                seen.note(error);
            }
            summary(&image, seen)
        };
        let nothing = found(vec![FetchError::NotFound("a".into())]);
        assert!(matches!(nothing, Found::Nothing { seen } if seen.starts_with("no referrers")));
        let denied = found(vec![FetchError::NotFound("a".into()), FetchError::Denied("denied".into())]);
        assert!(matches!(denied, Found::Nothing { seen } if seen == "denied"));
        let reserve = FetchError::Reserved { registry: "r.test".parse().unwrap(), wait: Duration::ZERO };
        assert!(matches!(found(vec![not_now("silent"), reserve]), Found::Reserved(_)));
        let silent = found(vec![not_now("silent"), FetchError::NotFound("a".into())]);
        assert!(matches!(silent, Found::Unreachable { reason, .. } if reason == "silent"));
    }
}
