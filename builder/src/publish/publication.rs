//! What is published.

use std::collections::BTreeSet;

use crate::{
    image::{Document, Image},
    sbom::Referrer,
};

/// Images and the tags that point to them.
#[derive(Debug, Clone)]
pub struct Publication<'a> {
    /// Every image, for whatever platform.
    pub images: Vec<&'a Image>,
    /// The tags.
    pub tags: Vec<Tag>,
    /// Documents about the images.
    pub referrers: Vec<Referrer>,
}

/// A name and what it points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// The tag.
    pub name: String,
    /// A manifest, or the index over those of several platforms.
    pub document: Document,
}

impl Publication<'_> {
    /// The referrer whose manifest a document is.
    pub(super) fn referrer(&self, document: &Document) -> Option<&Referrer> {
        self.referrers.iter().find(|referrer| referrer.manifest == *document)
    }

    /// Manifests and indexes, each once, such that nothing points to what comes later.
    pub fn documents(&self) -> Vec<&Document> {
        let manifests = self.images.iter().map(|image| &image.manifest);
        let mut seen = BTreeSet::new();
        manifests
            .chain(self.tags.iter().map(|tag| &tag.document))
            .chain(self.referrers.iter().map(|referrer| &referrer.manifest))
            .filter(|document| seen.insert(document.descriptor.digest))
            .collect()
    }
}
