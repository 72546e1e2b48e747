//! Entry points of the fuzz targets in `tests/fuzz`: each gives untrusted bytes to one reader, which may refuse them and
//! must neither panic nor run without bounds.

use std::str::from_utf8;

use crate::{
    config::Config,
    http, images,
    peers::wire::{self, PeerRequest},
    types::{
        Digest, ImageName, ManifestLinks, MediaType, RangeHeader, Reference, RegistryHost, RegistryPattern,
        RepoName, Tag, media_type_of, named_media_type,
    },
};

/// A target: its name, which is that of its corpus, and its function.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[FuzzTarget] = &[
    ("config", config),
    ("image_archive", image_archive),
    ("manifest", manifest),
    ("peer_wire", peer_wire),
    ("range", range),
    ("reference", reference),
    ("route", route),
    ("signature", signature),
];

/// Path and query of a request to the mirror.
pub fn route(data: &[u8]) {
    if let Ok(text) = from_utf8(data) {
        let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
        http::try_route(path, query);
    }
}

/// A `Range` header; what it selects lies within the content.
pub fn range(data: &[u8]) {
    let Ok(text) = from_utf8(data) else { return };
    let mut ranges = RangeHeader::parse_several(Some(text)).unwrap_or_default();
    if let RangeHeader::One(range) = RangeHeader::parse(Some(text)) {
        ranges.push(range);
    }
    for size in [0, 1, 1_000, u64::MAX] {
        for selected in ranges.iter().filter_map(|range| range.within(size)) {
            assert!(selected.start < selected.end && selected.end <= size, "{selected:?} of {size}");
        }
    }
}

/// Digests, tags, names of registries, repositories and images; what is read is written the same and read again.
pub fn reference(data: &[u8]) {
    let Ok(text) = from_utf8(data) else { return };
    let _ = (text.parse::<Tag>(), text.parse::<RepoName>(), text.parse::<RegistryPattern>());
    let _ = (text.parse::<Reference>(), text.parse::<RegistryHost>());
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(name) = text.parse::<ImageName>() {
        assert_eq!(name.to_string().parse(), Ok(name), "{text}");
    }
}

/// Path and query of a request of a peer; what is read is written the same way.
pub fn peer_wire(data: &[u8]) {
    let Ok(text) = from_utf8(data) else { return };
    let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
    if let Ok(request) = PeerRequest::parse(path, query) {
        let target = request.target();
        let (path, query) =
            target.split_once('?').map_or((target.as_str(), None), |(path, query)| (path, Some(query)));
        assert!(PeerRequest::parse(path, query).is_ok(), "{target}");
    }
    let _ = wire::movement(text);
}

/// A manifest or an index.
pub fn manifest(data: &[u8]) {
    let _ = (ManifestLinks::parse(data), media_type_of(data), named_media_type(data));
    let _ = from_utf8(data).ok().and_then(MediaType::parse);
}

/// Manifests, payloads and bundles of signatures.
pub fn signature(data: &[u8]) {
    let image = Digest::of(b"");
    let _ = (oci::signature::candidates(data), oci::signature::signatures(data));
    let _ = oci::signature::check_bundle(data, &image, b"", &[]);
    let _ = oci::signature::PublicKey::read_pem(data, "");
}

/// The configuration file.
pub fn config(data: &[u8]) {
    if let Ok(text) = from_utf8(data) {
        let _ = Config::from_yaml(text);
    }
}

/// An archive of images.
pub fn image_archive(data: &[u8]) {
    images::archive::try_read(data);
}
