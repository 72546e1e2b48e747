//! Credentials for registries: where they are kept, and what an identity token is exchanged for.
//!
//! An identity token (`docker login` of some registries and their helpers) is an OAuth2 refresh token: the token
//! endpoint that the registry's challenge names gives an access token for it ("OAuth2 Token Authentication" of the
//! distribution project). It is sent to nobody but that endpoint, and in the clear only where the user allowed it.

use std::{path::Path, time::Duration};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use http_auth::parser::ChallengeParser;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, header};
use serde::Deserialize;

use crate::{retry, sources::download};

/// A credential helper that asks a person something would wait for ever.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers of token endpoints have a few kilobytes.
const LIMIT: usize = 1 << 20;

/// What the user has for a registry.
#[derive(PartialEq, Eq)]
pub(super) enum Login {
    /// Nothing.
    None,
    /// User and password.
    Password(String, String),
    /// A refresh token.
    IdentityToken(String),
}

/// Looks for credentials; `Err` says what is wrong with them.
pub(super) async fn find(endpoint: &str, config: Option<&Path>) -> Result<Login, String> {
    let server = if endpoint == "index.docker.io" { "https://index.docker.io/v1/" } else { endpoint };
    let (server, config) = (server.to_owned(), config.map(Path::to_owned));
    let lookup = tokio::task::spawn_blocking(move || look_up(&server, config.as_deref()));
    let found = tokio::time::timeout(HELPER_TIMEOUT, lookup)
        .await
        .map_err(|_| format!("its helper did not answer in {} s", HELPER_TIMEOUT.as_secs()))?
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    Ok(match found {
        None => Login::None,
        Some(DockerCredential::UsernamePassword(user, password)) => Login::Password(user, password),
        Some(DockerCredential::IdentityToken(token)) => Login::IdentityToken(token),
    })
}

/// `--docker-config`, else the user's Docker configuration, else that of podman and buildah
/// (`REGISTRY_AUTH_FILE`). No entry for the host means anonymous access; an unreadable file that the user
/// named is an error.
fn look_up(
    server: &str,
    config: Option<&Path>,
) -> Result<Option<DockerCredential>, CredentialRetrievalError> {
    use CredentialRetrievalError::{ConfigNotFound, ConfigReadError, NoCredentialConfigured};
    if let Some(path) = config {
        let file = std::fs::File::open(path).map_err(|_| ConfigReadError)?;
        return match docker_credential::get_credential_from_reader(std::io::BufReader::new(file), server) {
            Err(NoCredentialConfigured) => Ok(None),
            other => other.map(Some),
        };
    }
    for found in [docker_credential::get_credential(server), docker_credential::get_podman_credential(server)]
    {
        match found {
            Ok(credential) => return Ok(Some(credential)),
            Err(NoCredentialConfigured | ConfigNotFound | ConfigReadError) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Exchanges an identity token for an access token. `origin` is the registry's, such as `https://host:port`.
pub(super) async fn exchange(origin: &str, token: &str, scope: &str) -> Result<String, String> {
    let client = download::client().map_err(|error| error.to_string())?;
    let ping = sent(|| client.get(format!("{origin}/v2/"))).await?;
    let headers = ping.headers().get_all(header::WWW_AUTHENTICATE);
    let challenge = headers.iter().filter_map(|value| value.to_str().ok()).find_map(bearer);
    let (realm, service) =
        challenge.ok_or("they are an identity token, but the registry does not ask for tokens")?;
    let realm =
        Url::parse(&realm).map_err(|_| format!("the registry sends us to `{realm}`, which is no URL"))?;
    if realm.scheme() != "https" && !origin.starts_with("http:") {
        return Err(format!("the registry wants the identity token at `{realm}`, without TLS: refused"));
    }
    let mut form = vec![
        ("grant_type", "refresh_token"),
        ("client_id", "hearth"),
        ("scope", scope),
        ("refresh_token", token),
    ];
    form.extend(service.as_deref().map(|service| ("service", service)));
    let body = encoded(&realm, &form);
    let answer = sent(|| post(&client, realm.clone(), &body)).await?;
    if answer.status() != StatusCode::OK {
        let host = realm.host_str().unwrap_or_default();
        return Err(format!("`{host}` gives no access token for the identity token: {}", answer.status()));
    }
    let bytes = bounded(answer).await?;
    let answer: Answer = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    answer.access_token.or(answer.token).ok_or_else(|| "the token endpoint sends no token".to_owned())
}

#[derive(Deserialize)]
struct Answer {
    access_token: Option<String>,
    token: Option<String>,
}

/// Realm and service of a bearer challenge.
fn bearer(header: &str) -> Option<(String, Option<String>)> {
    let challenge = ChallengeParser::new(header)
        .map_while(Result::ok)
        .find(|challenge| challenge.scheme.eq_ignore_ascii_case("bearer"))?;
    let value = |wanted: &str| {
        let mut all = challenge.params.iter();
        all.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.to_unescaped())
    };
    Some((value("realm")?, value("service")))
}

/// A form's fields, escaped as in the query of a URL.
fn encoded(url: &Url, form: &[(&str, &str)]) -> String {
    let mut url = url.clone();
    url.query_pairs_mut().clear().extend_pairs(form);
    url.query().unwrap_or_default().to_owned()
}

fn post(client: &Client, url: Url, body: &str) -> RequestBuilder {
    client.post(url).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(body.to_owned())
}

/// Sends a small request; what may pass is tried again.
async fn sent(request: impl Fn() -> RequestBuilder) -> Result<Response, String> {
    let mut attempt = 1;
    loop {
        let answer = request().timeout(retry::STALL_TIMEOUT).send().await;
        let again = match &answer {
            Ok(answer) => retry::worth_retrying(answer.status().as_u16()),
            Err(error) => !error.is_connect() || error.is_timeout(),
        };
        if again && retry::pause(attempt, None).await {
            attempt += 1;
            continue;
        }
        return answer.map_err(|error| error.without_url().to_string());
    }
}

async fn bounded(mut answer: Response) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| error.without_url().to_string())? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > LIMIT {
            return Err("the answer of the token endpoint is too long".to_owned());
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_by_host_and_a_named_file_must_be_readable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let text = r#"{"auths": {"registry.example.com": {"auth": "dXNlcjpzZWNyZXQ="}, "id.example.com": {"identitytoken": "i"}}}"#;
        std::fs::write(&path, text).unwrap();
        let found = look_up("registry.example.com", Some(&path)).unwrap();
        assert_eq!(found, Some(DockerCredential::UsernamePassword("user".into(), "secret".into())));
        let found = look_up("id.example.com", Some(&path)).unwrap();
        assert_eq!(found, Some(DockerCredential::IdentityToken("i".into())));
        assert_eq!(look_up("other.example.com", Some(&path)).unwrap(), None);
        assert!(look_up("registry.example.com", Some(&directory.path().join("missing"))).is_err());
    }

    #[test]
    fn the_token_endpoint_is_named_by_a_bearer_challenge() {
        let realm = "https://auth.example.com/token".to_owned();
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.example.com/token",service="r""#,
                Some((realm.clone(), Some("r".to_owned()))),
            ),
            (r#"Basic realm="x", bearer Realm="https://auth.example.com/token""#, Some((realm, None))),
            (r#"Basic realm="x""#, None),
            ("Bearer", None),
        ] {
            assert_eq!(bearer(header), expected, "{header}");
        }
    }

    #[test]
    fn forms_are_escaped() {
        let url = Url::parse("https://auth.example.com/token?a=b").unwrap();
        assert_eq!(
            encoded(&url, &[("scope", "a/b:pull,push"), ("x", "1&2")]),
            "scope=a%2Fb%3Apull%2Cpush&x=1%262"
        );
    }
}
