//! Values of `Authorization`, which no debug output shows.

use http::HeaderValue;

use super::super::credentials::Login;

pub(super) fn basic(login: &Login) -> Option<HeaderValue> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let Login::Password { user, secret } = login else { return None };
    let encoded = BASE64_STANDARD.encode(format!("{user}:{secret}"));
    secret_header(format!("Basic {encoded}"))
}

pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    secret_header(format!("Bearer {token}"))
}

fn secret_header(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
