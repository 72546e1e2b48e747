//! Credentials for registries: where they are kept, and what an identity token is exchanged for.
//!
//! An identity token (`docker login` of some registries and their helpers) is an OAuth2 refresh token: the token
//! endpoint that the registry's challenge names gives an access token for it ("OAuth2 Token Authentication" of the
//! distribution project). It is sent to nobody but that endpoint, and in the clear only where the user allowed it.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use oci::{
    DockerConfig, Login, Repository,
    challenge::{Challenge, challenge},
    docker::Source,
    helper,
    token::{TokenAnswer, is_as_safe, may_have_credentials, refresh_form},
};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, header};

use crate::{fetch::download, progress::waiting, retry};

/// Answers of token endpoints have a few kilobytes.
const LIMIT: usize = 1 << 20;

/// Helpers of clouds fetch a token, which takes seconds.
const HELPER_LIMIT: Duration = Duration::from_secs(30);

/// Looks for credentials: in `--docker-config`, else in the user's Docker configuration, else in that of podman and
/// buildah. No entry for the repository means anonymous access; a file that cannot be read is an error when the user named
/// it. `Err` says what is wrong.
pub(super) async fn find(repository: &Repository, config: Option<&Path>) -> Result<Option<Login>, String> {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    let named = config.map(Path::to_owned);
    for path in named.clone().map_or_else(configurations, |path| vec![path]) {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            // Most users have one of them; one that belongs to somebody else is none.
            Err(error)
                if named.is_none() && matches!(error.kind(), NotFound | NotADirectory | PermissionDenied) =>
            {
                continue;
            }
            Err(error) => return Err(format!("cannot read `{}`: {error}", path.display())),
        };
        let found = look_up(&bytes, repository).await;
        if let Some(login) = found.map_err(|problem| format!("`{}`: {problem}", path.display()))? {
            return Ok(Some(login));
        }
    }
    Ok(None)
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

async fn look_up(config: &[u8], Repository { registry, name }: &Repository) -> Result<Option<Login>, String> {
    let config = DockerConfig::parse_for(config, registry).map_err(|error| error.to_string())?;
    match config.source(registry, name) {
        None => Ok(None),
        Some(Source::Login(login)) => Ok(Some(login)),
        Some(Source::Helper(helper)) => {
            let what = format!("the credential helper `{}`", helper::program_of(&helper));
            let answer = waiting(&what, helper::ask(&helper, registry, HELPER_LIMIT)).await;
            answer.map_err(|error| match error.said.as_str() {
                "" => error.to_string(),
                said => format!("{error}: {said}"),
            })
        }
    }
}

/// Exchanges an identity token for an access token. `origin` is the registry's, such as `https://host:port`.
pub(super) async fn exchange(origin: &Url, token: &str, scope: &str) -> Result<String, String> {
    let client = download::client().map_err(|error| error.to_string())?;
    let ping = origin.join("v2/").map_err(|error| error.to_string())?;
    let ping = sent(|| client.get(ping.clone())).await?;
    let headers = ping.headers().get_all(header::WWW_AUTHENTICATE);
    let challenge = challenge(headers.iter().filter_map(|value| value.to_str().ok()));
    let Some(Challenge::Bearer { realm, service, .. }) = challenge else {
        return Err("they are an identity token, but the registry does not ask for tokens".to_owned());
    };
    let realm = token_endpoint(&realm, origin)?;
    let host = realm.host_str().unwrap_or_default().to_owned();
    let body = refresh_form("hearth", service.as_deref(), scope, token);
    let answer = sent(|| post(&client, realm.clone(), &body)).await?;
    if answer.status() != StatusCode::OK {
        return Err(format!("`{host}` gives no access token for the identity token: {}", answer.status()));
    }
    let bytes = bounded(answer).await?;
    let answer: TokenAnswer = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    answer.into_token().ok_or_else(|| "the token endpoint sends no token".to_owned())
}

/// Where an identity token may be exchanged: it is good for a whole account, and a registry names the endpoint.
fn token_endpoint(realm: &str, origin: &Url) -> Result<Url, String> {
    let realm =
        Url::parse(realm).map_err(|_| format!("the registry sends us to `{realm}`, which is no URL"))?;
    if !is_as_safe(realm.scheme(), origin.scheme()) {
        return Err(format!("the registry wants the identity token at `{realm}`, without TLS: refused"));
    }
    let host = realm.host_str().unwrap_or_default();
    if may_have_credentials(host, &[origin.host_str().unwrap_or_default()], &[]) {
        return Ok(realm);
    }
    Err(format!(
        "the registry wants the identity token at `{host}`, which is not of its domain: refused; log in with a user and a \
         password if that is right"
    ))
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
        let find = async |server: &str, path: &Path| {
            find(&format!("{server}/team/app").parse().unwrap(), Some(path)).await
        };
        let found = find("registry.example.com", &path).await;
        assert_eq!(found, Ok(Some(Login::Password { user: "user".into(), secret: "secret".into() })));
        assert_eq!(find("id.example.com", &path).await, Ok(Some(Login::IdentityToken("i".into()))));
        assert_eq!(find("other.example.com", &path).await, Ok(None));
        assert!(find("registry.example.com", &directory.path().join("missing")).await.is_err());
        std::fs::write(&path, "{").unwrap();
        assert!(find("other.example.com", &path).await.is_err(), "a damaged file is not an empty one");
    }

    #[test]
    fn an_identity_token_stays_within_the_registrys_domain() {
        for (realm, origin, expected) in [
            ("https://auth.example.com/token", "https://registry.example.com", true),
            ("https://registry.example.com:8443/token", "https://registry.example.com", true),
            ("http://127.0.0.1:1/token", "http://127.0.0.1:5000", true),
            ("http://registry.example.com/token", "https://registry.example.com", false),
            ("https://evil.example.net/token", "https://registry.example.com", false),
            ("/token", "https://registry.example.com", false),
        ] {
            let found = token_endpoint(realm, &Url::parse(origin).unwrap());
            assert_eq!(found.is_ok(), expected, "{realm} of {origin}: {found:?}");
        }
    }
}
