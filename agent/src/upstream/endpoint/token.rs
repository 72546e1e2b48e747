//! Getting a token from where a challenge says.

use std::time::{Instant, SystemTime};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::Url;

use super::{
    super::{
        UpstreamError,
        auth::{Token, TokenAnswer, TokenKey},
        credentials::Login,
        retry,
    },
    Endpoint, Failure, basic, bounded_body,
};
use crate::metrics::Kind;

impl Endpoint {
    pub(super) async fn fetch_token(&self, key: &TokenKey) -> Result<Token, Failure> {
        let mut url = Url::parse(&key.realm)
            .map_err(|error| self.unavailable(format!("its token realm is not a URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https")
            || (url.scheme() == "http" && self.base.scheme() == "https")
        {
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
                let retry_after = retry::retry_after(response.headers(), "", SystemTime::now());
                return Err(UpstreamError::Throttled { registry: self.registry.clone(), retry_after }.into());
            }
            status => return Err(self.unavailable(format!("token endpoint `{host}` answered {status}"))),
        }
        let bytes = bounded_body(response, 64 * 1024, self.shared.idle_limit).await;
        let answer: Option<TokenAnswer> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        answer
            .and_then(|answer| answer.into_token(Instant::now()))
            .ok_or_else(|| self.unavailable(format!("token endpoint `{host}` sent no token")))
    }

    /// GET with Basic or nothing; POST with an identity token, which has no other form (token specification, "Requesting a
    /// Token"; OAuth2 token specification). A password is never posted: an endpoint that does not know GET would get it in
    /// another form than the registry's challenge asked for.
    async fn token_request(&self, url: &mut Url, key: &TokenKey) -> Result<reqwest::Response, Failure> {
        let service = key.service.as_deref().unwrap_or_default();
        if let Some(Login::IdentityToken(token)) = &key.login {
            let form = [
                ("service", service),
                ("scope", key.scope.as_str()),
                ("client_id", "hearth-agent"),
                ("grant_type", "refresh_token"),
                ("refresh_token", token.as_str()),
            ];
            return self.token_post(url, &form).await;
        }
        if !service.is_empty() {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", &key.scope);
        let headers = key.login.as_ref().and_then(basic).map(|value| (header::AUTHORIZATION, value));
        let headers = HeaderMap::from_iter(headers);
        self.request(&Method::GET, url, headers, Kind::token, None, self.shared.header_limit).await
    }

    async fn token_post(&self, url: &Url, form: &[(&str, &str)]) -> Result<reqwest::Response, Failure> {
        let mut encoded = url.clone();
        encoded.query_pairs_mut().clear().extend_pairs(form);
        let body = encoded.query().unwrap_or_default().to_owned();
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, form)]);
        self.request(&Method::POST, url, headers, Kind::token, Some(body), self.shared.header_limit).await
    }
}
