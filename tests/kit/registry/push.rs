//! The write side: uploads in one piece, in chunks or by mount, manifests, deletion.

use std::sync::atomic::Ordering;

use http::{Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::{
    Origin, Server,
    auth::pairs,
    delivery::Reply,
    log::Entry,
    path::Kind,
    storage::{Manifest, sha256},
};

/// A manifest larger than this is refused, as the specification asks of registries.
const MANIFEST_LIMIT: usize = 4 << 20;

/// Answers a write request.
pub(super) async fn answer(server: &Server, entry: &Entry, body: Incoming) -> Reply {
    let length = entry.header(header::CONTENT_LENGTH.as_str()).and_then(|text| text.parse::<u64>().ok());
    if length.is_some_and(|length| length > server.body_limit.load(Ordering::Relaxed)) {
        // The answer can be read only when the body was.
        drop(body.collect().await);
        return Reply::error(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", "the body is too large");
    }
    match (entry.target.kind, &entry.method) {
        (Kind::Upload, &Method::POST) => begin(server, entry, body).await,
        (Kind::Upload, &Method::PATCH) => patch(server, entry, body).await,
        (Kind::Upload, &Method::PUT) => put(server, entry, body).await,
        (Kind::Upload, &Method::DELETE) => {
            drop(server.storage.take_upload(&entry.target.reference));
            Reply::new(StatusCode::NO_CONTENT)
        }
        (Kind::Manifest, &Method::PUT) => manifest(server, entry, body).await,
        (Kind::Manifest, &Method::DELETE) => {
            deleted(server.storage.remove_manifest(&entry.target.repository, &entry.target.reference))
        }
        (Kind::Blob, &Method::DELETE) => {
            deleted(server.storage.unlink_blob(&entry.target.repository, &entry.target.reference))
        }
        _ => Reply::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the operation is unsupported"),
    }
}

fn deleted(found: bool) -> Reply {
    if found {
        Reply::new(StatusCode::ACCEPTED)
    } else {
        Reply::error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "nothing to delete")
    }
}

fn query(entry: &Entry, key: &str) -> Option<String> {
    pairs(entry.uri.query()?).into_iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

async fn begin(server: &Server, entry: &Entry, body: Incoming) -> Reply {
    let name = &entry.target.repository;
    if let Some(digest) = query(entry, "mount") {
        let from = query(entry, "from").unwrap_or_default();
        if server.profile.get().mounts() && server.storage.blob(&from, &digest).is_some() {
            server.storage.link_blob(name, &digest);
            return created(name, "blobs", &digest);
        }
    }
    let id = server.storage.begin_upload();
    if query(entry, "digest").is_some() {
        return finish(server, entry, &id, body).await;
    }
    accepted(server, StatusCode::ACCEPTED, name, &id, 0)
}

async fn patch(server: &Server, entry: &Entry, body: Incoming) -> Reply {
    let (name, id) = (&entry.target.repository, &entry.target.reference);
    let profile = server.profile.get();
    if !profile.takes_chunks() {
        return Reply::error(StatusCode::BAD_REQUEST, "UNSUPPORTED", "chunked uploads are not supported");
    }
    if profile.drops_chunks()
        && let Some(length) = server.storage.upload_length(id).filter(|length| *length > 0)
    {
        drop(body.collect().await);
        return accepted(server, StatusCode::CREATED, name, id, length);
    }
    let status = if profile.drops_chunks() { StatusCode::CREATED } else { StatusCode::ACCEPTED };
    match receive(server, entry, id, body).await {
        Ok(length) => accepted(server, status, name, id, length),
        Err(reply) => *reply,
    }
}

async fn put(server: &Server, entry: &Entry, body: Incoming) -> Reply {
    finish(server, entry, &entry.target.reference, body).await
}

async fn finish(server: &Server, entry: &Entry, id: &str, body: Incoming) -> Reply {
    let Some(digest) = query(entry, "digest") else {
        return Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "the digest parameter is missing");
    };
    if let Err(reply) = receive(server, entry, id, body).await {
        return *reply;
    }
    let name = &entry.target.repository;
    let Some(upload) = server.storage.take_upload(id) else { return unknown_upload() };
    match server.storage.finish_upload(name, upload, &digest) {
        Ok(true) => created(name, "blobs", &digest),
        Ok(false) => {
            Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "the content does not have this digest")
        }
        Err(error) => broken(&error),
    }
}

/// Appends a request body to a session and gives the session's length; the error is the answer to send.
async fn receive(server: &Server, entry: &Entry, id: &str, mut body: Incoming) -> Result<u64, Box<Reply>> {
    let mut upload = server.storage.take_upload(id).ok_or_else(|| Box::new(unknown_upload()))?;
    let start = entry.header(header::CONTENT_RANGE.as_str()).and_then(|text| text.split_once('-'));
    if start.is_some_and(|(first, _)| first.parse() != Ok(upload.length)) {
        let length = upload.length;
        server.storage.keep_upload(id, upload);
        return Err(Box::new(accepted(
            server,
            StatusCode::RANGE_NOT_SATISFIABLE,
            &entry.target.repository,
            id,
            length,
        )));
    }
    while let Some(frame) = body.frame().await {
        let piece = frame.ok().and_then(|frame| frame.into_data().ok());
        // A body that breaks off leaves the session for the client to resume.
        let Some(piece) = piece else { break };
        upload.append(&piece).map_err(|error| Box::new(broken(&error)))?;
    }
    let length = upload.length;
    server.storage.keep_upload(id, upload);
    Ok(length)
}

async fn manifest(server: &Server, entry: &Entry, body: Incoming) -> Reply {
    let (name, reference) = (&entry.target.repository, &entry.target.reference);
    let invalid = |text: &str| Reply::error(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", text);
    let limited = http_body_util::Limited::new(body, MANIFEST_LIMIT);
    let Ok(collected) = limited.collect().await else {
        return Reply::error(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", "the manifest is too large");
    };
    let bytes = collected.to_bytes();
    let Ok(parsed) = serde_json::from_slice::<Value>(&bytes) else { return invalid("not JSON") };
    if reference.contains(':') && *reference != sha256(&bytes) {
        return Reply::error(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            "the manifest does not have this digest",
        );
    }
    let blobs = parsed["layers"].as_array().into_iter().flatten().chain(parsed.get("config"));
    let missing = blobs
        .filter_map(|descriptor| descriptor["digest"].as_str())
        .find(|digest| server.storage.blob(name, digest).is_none());
    if let Some(digest) = missing {
        return Reply::error(
            StatusCode::NOT_FOUND,
            "MANIFEST_BLOB_UNKNOWN",
            &format!("`{digest}` was not pushed"),
        );
    }
    let said = entry.header(header::CONTENT_TYPE.as_str()).or(parsed["mediaType"].as_str());
    let Some(media_type) = said else { return invalid("no media type") };
    let media_type = media_type.to_owned();
    let digest = server.storage.put_manifest(name, reference, Manifest { media_type, bytes });
    let reply = created(name, "manifests", &digest);
    match parsed["subject"]["digest"].as_str() {
        Some(subject) if server.profile.get().knows_referrers() => reply.header("oci-subject", subject),
        _ => reply,
    }
}

fn created(name: &str, what: &str, digest: &str) -> Reply {
    Reply::new(StatusCode::CREATED)
        .header(header::LOCATION, &format!("/v2/{name}/{what}/{digest}"))
        .header("docker-content-digest", digest)
}

fn accepted(server: &Server, status: StatusCode, name: &str, id: &str, length: u64) -> Reply {
    let path = format!("/v2/{name}/blobs/uploads/{id}");
    Reply::new(status)
        .header(header::LOCATION, &server.profile.get().location(&server.base(Origin::Main), &path))
        .header(header::RANGE, &format!("0-{}", length.saturating_sub(1)))
        .header("docker-upload-uuid", id)
}

fn unknown_upload() -> Reply {
    Reply::error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "no such upload session")
}

fn broken(error: &std::io::Error) -> Reply {
    Reply::error(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", &error.to_string())
}
