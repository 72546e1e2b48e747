//! Where a redirect leads and what may go with it. Pure.

use http::{HeaderMap, StatusCode, header};
use reqwest::Url;

/// Redirects followed for one request before giving up.
pub(super) const MAX_HOPS: usize = 5;

/// Whether a status is a redirect that keeps the method or that a GET or HEAD may follow.
pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The next URL, or why it is not followed.
pub(super) fn next(from: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let location = headers.get(header::LOCATION).ok_or("a redirect without Location")?;
    let location = location.to_str().map_err(|_| "a redirect with an unreadable Location")?;
    let to = from.join(location).map_err(|error| format!("a redirect to a bad URL: {error}"))?;
    if !to.username().is_empty() || to.password().is_some() {
        return Err(format!(
            "a redirect with credentials in its URL to `{}`",
            to.host_str().unwrap_or_default()
        ));
    }
    match to.scheme() {
        "https" => Ok(to),
        "http" if from.scheme() == "http" => Ok(to),
        "http" => {
            Err(format!("a redirect from https to plain http at `{}`", to.host_str().unwrap_or_default()))
        }
        other => Err(format!("a redirect to scheme `{other}`")),
    }
}

/// Whether credentials for `a` may be sent to `b`: the same scheme, host and port. Stricter than what container
/// runtimes do (they keep them for another port of the same host).
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn redirects_never_go_from_https_to_http() {
        let follow = |from: &str, location: &str| {
            let headers =
                HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_str(location).unwrap())]);
            next(&Url::parse(from).unwrap(), &headers).map(|url| url.to_string()).ok()
        };
        assert_eq!(follow("https://a/v2/x", "https://b/y?z=1").as_deref(), Some("https://b/y?z=1"));
        assert_eq!(follow("https://a/v2/x", "/y").as_deref(), Some("https://a/y"));
        assert_eq!(follow("https://a/v2/x", "y").as_deref(), Some("https://a/v2/y"));
        assert_eq!(follow("http://a/x", "http://b/y").as_deref(), Some("http://b/y"));
        assert_eq!(follow("http://a/x", "https://b/y").as_deref(), Some("https://b/y"));
        assert_eq!(follow("https://a/x", "http://a/y"), None);
        assert_eq!(follow("https://a/x", "ftp://a/y"), None);
        assert_eq!(follow("https://a/x", "https://user:word@b/y"), None);
        assert_eq!(next(&Url::parse("https://a").unwrap(), &HeaderMap::new()).ok(), None);
    }

    #[test]
    fn another_port_is_another_origin() {
        let same = |a: &str, b: &str| same_origin(&Url::parse(a).unwrap(), &Url::parse(b).unwrap());
        assert!(same("https://a/x", "https://a:443/y"));
        assert!(!same("https://a/x", "https://a:444/x"));
        assert!(!same("https://a/x", "http://a/x"));
        assert!(!same("https://a/x", "https://b.a/x"));
    }
}
