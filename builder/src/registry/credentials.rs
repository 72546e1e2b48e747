//! Credentials for registries: where they are kept, and what an identity token is exchanged for.
//!
//! An identity token (`docker login` of some registries and their helpers) is an OAuth2 refresh token: the token
//! endpoint that the registry's challenge names gives an access token for it ("OAuth2 Token Authentication" of the
//! distribution project). It is sent to nobody but that endpoint, and in the clear only where the user allowed it.

use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use http_auth::parser::ChallengeParser;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, header};
use serde::Deserialize;

use super::{
    helper::{self, Helpers},
    login::Login,
};
use crate::{fetch::download, progress::waiting, retry};

/// Answers of token endpoints have a few kilobytes.
const LIMIT: usize = 1 << 20;

/// Looks for credentials: in `--docker-config`, else in the user's Docker configuration, else in that of podman and
/// buildah. No entry for the host means anonymous access; a file that cannot be read is an error when the user named
/// it. `Err` says what is wrong.
pub(super) async fn find(endpoint: &str, config: Option<&Path>) -> Result<Login, String> {
    let server = if endpoint == "index.docker.io" { "https://index.docker.io/v1/" } else { endpoint };
    if let Some(path) = config {
        let bytes =
            std::fs::read(path).map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
        return look_up(&bytes, server).await.map_err(|problem| format!("`{}`: {problem}", path.display()));
    }
    for path in configurations() {
        // Most users have one of them; one that belongs to somebody else is none.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let found =
            look_up(&bytes, server).await.map_err(|problem| format!("`{}`: {problem}", path.display()))?;
        if found != Login::None {
            return Ok(found);
        }
    }
    Ok(Login::None)
}

/// The files of the user, as Docker and podman look for them.
fn configurations() -> Vec<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let docker = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")));
    let podman = set("REGISTRY_AUTH_FILE").or_else(|| {
        let running = set("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json"));
        let stored = set("HOME").map(|home| home.join(".config/containers/auth.json"));
        running.filter(|path| path.is_file()).or(stored)
    });
    docker.map(|directory| directory.join("config.json")).into_iter().chain(podman).collect()
}

/// A helper for the registry, else what is written down for it, else a helper for every registry.
async fn look_up(config: &[u8], server: &str) -> Result<Login, String> {
    use CredentialRetrievalError::NoCredentialConfigured;
    let helpers: Helpers =
        serde_json::from_slice(config).map_err(|error| format!("it is no Docker configuration: {error}"))?;
    if let Some(name) = helpers.of(server) {
        return helper::ask(name, server, helper::TIMEOUT).await;
    }
    match docker_credential::get_credential_from_reader(written(config)?.as_slice(), server) {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(Login::Password(user, password)),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Login::IdentityToken(token)),
        Err(NoCredentialConfigured) => match helpers.store() {
            Some(name) => helper::ask(name, server, helper::TIMEOUT).await,
            None => Ok(Login::None),
        },
        Err(error) => Err(error.to_string()),
    }
}

/// The configuration without its helpers: the library would wait for them without a limit.
fn written(config: &[u8]) -> Result<Vec<u8>, String> {
    let mut keys: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(config).map_err(|error| error.to_string())?;
    keys.retain(|key, _| key == "auths");
    serde_json::to_vec(&keys).map_err(|error| error.to_string())
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
        let answer = waiting("the token endpoint", request().timeout(retry::STALL_TIMEOUT).send()).await;
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

    #[tokio::test]
    async fn credentials_are_found_by_host_and_a_named_file_must_be_readable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let text = r#"{"auths": {"registry.example.com": {"auth": "dXNlcjpzZWNyZXQ="}, "id.example.com": {"identitytoken": "i"}}}"#;
        std::fs::write(&path, text).unwrap();
        let find = async |server: &str, path: &Path| find(server, Some(path)).await;
        let found = find("registry.example.com", &path).await;
        assert_eq!(found, Ok(Login::Password("user".into(), "secret".into())));
        assert_eq!(find("id.example.com", &path).await, Ok(Login::IdentityToken("i".into())));
        assert_eq!(find("other.example.com", &path).await, Ok(Login::None));
        assert!(find("registry.example.com", &directory.path().join("missing")).await.is_err());
        std::fs::write(&path, "{").unwrap();
        assert!(find("other.example.com", &path).await.is_err(), "a damaged file is not an empty one");
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
