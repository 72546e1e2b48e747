//! Getting a token from where a challenge says.

use std::time::{Instant, SystemTime};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use oci::{
    retry::retry_after,
    token::{TokenAnswer, is_as_safe, refresh_form},
};
use reqwest::Url;

use super::{
    super::{
        UpstreamError,
        auth::{Token, TokenKey},
        credentials::Login,
        headers::text,
    },
    Endpoint, Failure,
    authorization::basic,
    bounded_body,
};
use crate::metrics::Kind;

impl Endpoint {
    pub(super) async fn fetch_token(&self, key: &TokenKey) -> Result<Token, Failure> {
        let mut url = Url::parse(&key.realm)
            .map_err(|error| self.unavailable(format!("its token realm is not a URL: {error}")))?;
        if !is_as_safe(url.scheme(), self.base.scheme()) {
            return Err(self
                .unavailable("its token realm is neither https nor as safe as the registry itself".into()));
        }
        let response = self.token_request(&mut url, key).await?;
        let host = url.host_str().unwrap_or_default().to_owned();
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(self.denied(&format!("`{host}` gives no token ({})", response.status())));
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let header = text(response.headers(), header::RETRY_AFTER.as_str());
                let retry_after = retry_after(header, "", SystemTime::now());
                return Err(UpstreamError::Throttled { registry: self.registry.clone(), retry_after }.into());
            }
            status => return Err(self.unavailable(format!("token endpoint `{host}` answered {status}"))),
        }
        let bytes = bounded_body(response, 64 * 1024, self.shared.idle_limit).await;
        let answer: Option<TokenAnswer> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        answer
            .and_then(|answer| Token::of(answer, Instant::now()))
            .ok_or_else(|| self.unavailable(format!("token endpoint `{host}` sent no token")))
    }

    /// GET with Basic or nothing; POST with an identity token, which has no other form (token specification, "Requesting a
    /// Token"; OAuth2 token specification). A password is never posted: an endpoint that does not know GET would get it in
    /// another form than the registry's challenge asked for.
    async fn token_request(&self, url: &mut Url, key: &TokenKey) -> Result<reqwest::Response, Failure> {
        let service = key.service.as_deref().unwrap_or_default();
        if let Some(Login::IdentityToken(token)) = &key.login {
            let body = refresh_form("hearth-agent", Some(service), &key.scope, token);
            return self.token_post(url, body).await;
        }
        if !service.is_empty() {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", &key.scope);
        let headers = key.login.as_ref().and_then(basic).map(|value| (header::AUTHORIZATION, value));
        let headers = HeaderMap::from_iter(headers);
        self.request(&Method::GET, url, headers, Kind::token, None, self.shared.header_limit).await
    }

    async fn token_post(&self, url: &Url, body: String) -> Result<reqwest::Response, Failure> {
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, form)]);
        self.request(&Method::POST, url, headers, Kind::token, Some(body), self.shared.header_limit).await
    }
}
