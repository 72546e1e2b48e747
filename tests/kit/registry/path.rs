//! What a request path means to a registry. Pure; names may contain slashes, so paths are read from the right.

use std::fmt;

/// The resource a request is about. Also the vocabulary of [`super::On`] and [`super::Log`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `/v2/`
    Ping,
    /// `/v2/<name>/manifests/<reference>`
    Manifest,
    /// `/v2/<name>/blobs/<digest>`
    Blob,
    /// `/v2/<name>/blobs/uploads/[<session>]`
    Upload,
    /// `/v2/<name>/tags/list`
    Tags,
    /// `/v2/<name>/referrers/<digest>`
    Referrers,
    /// `/token`: the token endpoint of bearer authentication.
    Token,
    /// `/cdn/<method>/<expiry>/<digest>`: where redirects lead, shaped like a presigned object-store URL.
    Cdn,
    /// Anything else.
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ping => "ping",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Upload => "upload",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Token => "token",
            Self::Cdn => "cdn",
            Self::Other => "other",
        })
    }
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The resource.
    pub kind: Kind,
    /// Repository name; empty where the resource has none.
    pub repository: String,
    /// Tag, digest, upload session, or for [`Kind::Cdn`] the part after `/cdn/`.
    pub reference: String,
}

impl Target {
    fn new(kind: Kind, repository: &str, reference: &str) -> Self {
        Self { kind, repository: repository.to_owned(), reference: reference.to_owned() }
    }
}

/// Reads a request path.
pub fn parse(path: &str) -> Target {
    let other = || Target::new(Kind::Other, "", path);
    if path == "/token" {
        return Target::new(Kind::Token, "", "");
    }
    if let Some(rest) = path.strip_prefix("/cdn/") {
        return Target::new(Kind::Cdn, "", rest);
    }
    let Some(rest) = path.strip_prefix("/v2/") else {
        return if path == "/v2" { Target::new(Kind::Ping, "", "") } else { other() };
    };
    if rest.is_empty() {
        return Target::new(Kind::Ping, "", "");
    }
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Target::new(Kind::Tags, name, "");
    }
    if let Some((name, session)) =
        rest.rsplit_once("/blobs/uploads/").or_else(|| rest.rsplit_once("/blobs/uploads"))
    {
        return Target::new(Kind::Upload, name, session);
    }
    for (infix, kind) in
        [("/manifests/", Kind::Manifest), ("/blobs/", Kind::Blob), ("/referrers/", Kind::Referrers)]
    {
        if let Some((name, reference)) = rest.rsplit_once(infix)
            && !reference.contains('/')
        {
            return Target::new(kind, name, reference);
        }
    }
    other()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_the_right() {
        let cases = [
            ("/v2/", Kind::Ping, "", ""),
            ("/v2", Kind::Ping, "", ""),
            ("/v2/a/manifests/v1", Kind::Manifest, "a", "v1"),
            ("/v2/a/b/c/blobs/sha256:00", Kind::Blob, "a/b/c", "sha256:00"),
            ("/v2/manifests/blobs/manifests/x", Kind::Manifest, "manifests/blobs", "x"),
            ("/v2/a/blobs/uploads/", Kind::Upload, "a", ""),
            ("/v2/a/b/blobs/uploads/7", Kind::Upload, "a/b", "7"),
            ("/v2/a/tags/list", Kind::Tags, "a", ""),
            ("/v2/a/referrers/sha256:00", Kind::Referrers, "a", "sha256:00"),
            ("/token", Kind::Token, "", ""),
            ("/cdn/GET/12/sha256:00", Kind::Cdn, "", "GET/12/sha256:00"),
            ("/favicon.ico", Kind::Other, "", "/favicon.ico"),
        ];
        for (path, kind, repository, reference) in cases {
            assert_eq!(parse(path), Target::new(kind, repository, reference), "{path}");
        }
    }
}
