//! The read side: manifests, blobs with ranges, tag lists in pages, referrers, and the presigned URLs of redirects.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};

use super::{
    Origin, Server,
    auth::pairs,
    delivery::{Content, Reply},
    log::Entry,
    path::Kind,
};

/// What is done about `Range`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ranging {
    #[default]
    Honour,
    Ignore,
    /// Answer from so many bytes off.
    Shift(i64),
    /// Answer 206 even when nobody asked.
    Always,
}

/// Answers a read request.
pub(super) fn answer(server: &Server, entry: &Entry, origin: Origin, ranging: Ranging) -> Reply {
    let (name, reference) = (entry.target.repository.as_str(), entry.target.reference.as_str());
    match entry.target.kind {
        Kind::Ping => Reply::new(StatusCode::OK).header(header::CONTENT_TYPE, "application/json").bytes("{}"),
        Kind::Manifest => manifest(server, name, reference, &entry.headers),
        Kind::Blob => match server.storage.blob(name, reference) {
            Some(blob) => ranged(blob, reference, &entry.headers, ranging),
            None => Reply::error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry"),
        },
        Kind::Tags => tags(server, name, entry.uri.query().unwrap_or_default()),
        Kind::Referrers => referrers(server, name, reference, entry.uri.query().unwrap_or_default()),
        Kind::Cdn => presigned(server, entry, origin, ranging),
        Kind::Upload | Kind::Token | Kind::Other => {
            Reply::error(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such route")
        }
    }
}

fn manifest(server: &Server, name: &str, reference: &str, headers: &HeaderMap) -> Reply {
    let Some((digest, manifest)) = server.storage.manifest(name, reference) else {
        return Reply::error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown");
    };
    let etag = format!("\"{digest}\"");
    let unchanged =
        headers.get(header::IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == etag.as_bytes());
    let reply = Reply::new(if unchanged { StatusCode::NOT_MODIFIED } else { StatusCode::OK })
        .header(header::CONTENT_TYPE, &manifest.media_type)
        .header("docker-content-digest", &digest)
        .header(header::ETAG, &etag);
    if unchanged { reply } else { reply.bytes(manifest.bytes) }
}

/// A file, or the part of it that was asked for.
fn ranged((path, size): (PathBuf, u64), digest: &str, headers: &HeaderMap, ranging: Ranging) -> Reply {
    let etag = format!("\"{digest}\"");
    let current = headers.get(header::IF_RANGE).is_none_or(|value| value.as_bytes() == etag.as_bytes());
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).filter(|_| current);
    let span = match ranging {
        Ranging::Ignore => Span::Whole,
        Ranging::Always if asked.is_none() => Span::Part(0, size.saturating_sub(1)),
        _ => asked.map_or(Span::Whole, |text| span(text, size)),
    };
    let reply = |status| {
        Reply::new(status)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header("docker-content-digest", digest)
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::ETAG, &etag)
    };
    match span {
        Span::Whole => {
            Reply { content: Content::File { path, start: 0, length: size }, ..reply(StatusCode::OK) }
        }
        Span::Unsatisfiable => {
            Reply::error(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", "range past the end")
                .header(header::CONTENT_RANGE, &format!("bytes */{size}"))
        }
        Span::Part(first, last) => {
            let shift = if let Ranging::Shift(by) = ranging { by } else { 0 };
            let first = first.saturating_add_signed(shift).min(size.saturating_sub(1));
            let last = last.max(first);
            let content = Content::File { path, start: first, length: (last + 1 - first).min(size - first) };
            Reply { content, ..reply(StatusCode::PARTIAL_CONTENT) }
                .header(header::CONTENT_RANGE, &format!("bytes {first}-{last}/{size}"))
        }
    }
}

/// What a `Range` header selects (RFC 9110, section 14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    Whole,
    /// First and last byte.
    Part(u64, u64),
    Unsatisfiable,
}

/// Malformed and multiple ranges select everything, as the RFC allows.
fn span(text: &str, size: u64) -> Span {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|spec| spec.trim().split_once('-')) else {
        return Span::Whole;
    };
    let end = size.saturating_sub(1);
    match (first.parse::<u64>().ok(), last.parse::<u64>().ok()) {
        (Some(first), None) if last.is_empty() && first < size => Span::Part(first, end),
        (Some(first), Some(last)) if first <= last && first < size => Span::Part(first, last.min(end)),
        (Some(first), last_byte) if first >= size && (last.is_empty() || last_byte.is_some()) => {
            Span::Unsatisfiable
        }
        (None, Some(0)) if first.is_empty() => Span::Unsatisfiable,
        (None, Some(count)) if first.is_empty() && size > 0 => Span::Part(size.saturating_sub(count), end),
        _ => Span::Whole,
    }
}

fn tags(server: &Server, name: &str, query: &str) -> Reply {
    let Some(all) = server.storage.tags(name) else {
        return Reply::error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "repository name not known to registry");
    };
    let pairs = pairs(query);
    let value = |key: &str| pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let after = value("last").unwrap_or_default();
    let left: Vec<_> = all.into_iter().filter(|tag| after.is_empty() || tag.as_str() > after).collect();
    let count = value("n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let page: Vec<_> = left.iter().take(count).collect();
    let body = json!({ "name": name, "tags": page }).to_string();
    let reply = Reply::new(StatusCode::OK).header(header::CONTENT_TYPE, "application/json").bytes(body);
    match page.last() {
        Some(last) if page.len() < left.len() => {
            reply.header(header::LINK, &format!("</v2/{name}/tags/list?n={count}&last={last}>; rel=\"next\""))
        }
        _ => reply,
    }
}

fn referrers(server: &Server, name: &str, subject: &str, query: &str) -> Reply {
    let wanted = pairs(query).into_iter().find(|(key, _)| key == "artifactType").map(|(_, value)| value);
    let manifests: Vec<Value> = server
        .storage
        .manifests(name)
        .into_iter()
        .filter_map(|(digest, manifest)| {
            let parsed: Value = serde_json::from_slice(&manifest.bytes).ok()?;
            (parsed["subject"]["digest"] == subject).then(|| {
                let kind = parsed.get("artifactType").unwrap_or(&parsed["config"]["mediaType"]).clone();
                json!({
                    "mediaType": manifest.media_type, "digest": digest, "size": manifest.bytes.len(),
                    "artifactType": kind, "annotations": parsed["annotations"],
                })
            })
        })
        .filter(|descriptor| {
            wanted.as_ref().is_none_or(|wanted| descriptor["artifactType"] == wanted.as_str())
        })
        .collect();
    let index = "application/vnd.oci.image.index.v1+json";
    let body = json!({ "schemaVersion": 2, "mediaType": index, "manifests": manifests }).to_string();
    let reply = Reply::new(StatusCode::OK).header(header::CONTENT_TYPE, index).bytes(body);
    if wanted.is_some() { reply.header("oci-filters-applied", "artifactType") } else { reply }
}

/// `/cdn/<method>/<hops>/<expiry in ms after server start>/<digest>`.
pub(super) fn presign(
    method: &Method,
    hops: u8,
    valid: Option<Duration>,
    server: &Server,
    digest: &str,
) -> String {
    let expiry = valid.map_or(0, |valid| (server.started.elapsed() + valid).as_millis());
    format!("/cdn/{method}/{hops}/{expiry}/{digest}")
}

fn presigned(server: &Server, entry: &Entry, origin: Origin, ranging: Ranging) -> Reply {
    let parts: Vec<_> = entry.target.reference.splitn(4, '/').collect();
    let [method, hops, expiry, digest] = parts[..] else { return Reply::new(StatusCode::NOT_FOUND) };
    let denied = |status, text: &'static str| {
        Reply::new(status)
            .header(header::CONTENT_TYPE, "application/xml")
            .bytes(Bytes::from_static(text.as_bytes()))
    };
    if origin != Origin::Main && entry.authorization().is_some() {
        let text =
            "<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>";
        return denied(StatusCode::BAD_REQUEST, text);
    }
    let late = expiry.parse::<u128>().map_or(true, |expiry| server.started.elapsed().as_millis() > expiry);
    if late {
        return denied(
            StatusCode::FORBIDDEN,
            "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
        );
    }
    if method != entry.method.as_str() {
        return denied(StatusCode::FORBIDDEN, "<Error><Code>SignatureDoesNotMatch</Code></Error>");
    }
    if let Some(left) = hops.parse::<u8>().ok().filter(|&hops| hops > 0) {
        let next = if origin == Origin::OtherHost { Origin::OtherPort } else { Origin::OtherHost };
        let path = presign(&entry.method, left - 1, Some(Duration::from_mins(1)), server, digest);
        return Reply::new(StatusCode::FOUND)
            .header(header::LOCATION, &format!("{}{path}", server.base(next)));
    }
    if let Some(blob) = server.storage.blob("", digest) {
        return ranged(blob, digest, &entry.headers, ranging);
    }
    server.storage.any_manifest(digest).map_or_else(
        || Reply::new(StatusCode::NOT_FOUND),
        |manifest| {
            Reply::new(StatusCode::OK)
                .header(header::CONTENT_TYPE, &manifest.media_type)
                .bytes(manifest.bytes)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_header_selects_what_rfc_9110_says() {
        for (text, expected) in [
            ("bytes=0-", Span::Part(0, 9)),
            ("bytes=4-", Span::Part(4, 9)),
            ("bytes=2-5", Span::Part(2, 5)),
            ("bytes=2-99", Span::Part(2, 9)),
            ("bytes=-3", Span::Part(7, 9)),
            ("bytes=-99", Span::Part(0, 9)),
            ("bytes=10-", Span::Unsatisfiable),
            ("bytes=10-12", Span::Unsatisfiable),
            ("bytes=-0", Span::Unsatisfiable),
            ("bytes=5-2", Span::Whole),
            ("bytes=0-1,3-4", Span::Whole),
            ("bytes=x-", Span::Whole),
            ("bytes=-", Span::Whole),
            ("lines=0-1", Span::Whole),
        ] {
            assert_eq!(span(text, 10), expected, "{text}");
        }
    }
}
