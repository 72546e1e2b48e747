//! Requests to token endpoints: their form, their answers, and which hosts may see credentials (distribution project, "Token
//! Authentication Specification" and "OAuth2 Token Authentication").

use std::net::IpAddr;

use serde::Deserialize;
use url::form_urlencoded::Serializer;

/// What a token endpoint answers.
#[derive(Deserialize)]
#[expect(missing_debug_implementations, reason = "it is a secret")]
pub struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    /// Seconds for which the token may be used.
    pub expires_in: Option<u64>,
}

impl TokenAnswer {
    /// The token; `None` when there is none.
    pub fn into_token(self) -> Option<String> {
        self.token.or(self.access_token).filter(|token| !token.is_empty())
    }
}

/// The body of the request that exchanges an identity token for an access token, in the form
/// `application/x-www-form-urlencoded`. `client` names the program.
pub fn refresh_form(client: &str, service: Option<&str>, scope: &str, token: &str) -> String {
    let mut form = Serializer::new(String::new());
    form.extend_pairs(service.map(|service| ("service", service)));
    form.append_pair("scope", scope).append_pair("client_id", client);
    form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", token);
    form.finish()
}

/// Whether a token endpoint's scheme is as safe as that of its registry.
pub fn is_as_safe(realm: &str, registry: &str) -> bool {
    realm == "https" || (realm == "http" && registry == "http")
}

/// Whether credentials for a registry with these hosts may be sent to `host`: one of them, one of the same registrable
/// domain, or one that is configured. Neither a registry that was taken over nor an attacker on the path to one without TLS
/// chooses where they go.
pub fn may_have_credentials(host: &str, own: &[&str], configured: &[String]) -> bool {
    let host = host.to_ascii_lowercase();
    let related = |own: &&str| {
        let own = own.to_ascii_lowercase();
        host == own || registrable(&host).is_some_and(|domain| Some(domain) == registrable(&own))
    };
    configured.contains(&host) || own.iter().any(related)
}

/// The part of a name that one owner registers: two labels, or three below a country's second level such as `co.uk`. The
/// public suffix list knows more; without it a name below a shared suffix counts as its owner's neighbour's, as far as
/// two labels go. `None` for addresses and names of one label.
fn registrable(host: &str) -> Option<&str> {
    if host.parse::<IpAddr>().is_ok() {
        return None;
    }
    let host = host.trim_end_matches('.');
    let labels: Vec<_> = host.rsplit('.').collect();
    let [top, second, ..] = labels[..] else { return None };
    let shared = top.len() == 2
        && (second.len() <= 2 || matches!(second, "com" | "net" | "org" | "gov" | "edu" | "gob"));
    let count = if shared { 3 } else { 2 };
    if labels.len() < count {
        return None;
    }
    let length = labels[..count].iter().map(|label| label.len()).sum::<usize>() + count - 1;
    Some(&host[host.len() - length..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_escaped() {
        assert_eq!(
            refresh_form("hearth", Some("1&2"), "repository:a/b:pull,push", "t=/"),
            "service=1%262&scope=repository%3Aa%2Fb%3Apull%2Cpush&client_id=hearth&grant_type=refresh_token&\
             refresh_token=t%3D%2F"
        );
        assert!(refresh_form("hearth", None, "s", "t").starts_with("scope=s&"));
    }

    #[test]
    fn a_token_has_either_name() {
        let token = |text: &str| serde_json::from_str::<TokenAnswer>(text).unwrap().into_token();
        assert_eq!(token(r#"{"token":"t"}"#).as_deref(), Some("t"));
        assert_eq!(token(r#"{"access_token":"t","expires_in":4}"#).as_deref(), Some("t"));
        assert_eq!(token(r#"{"token":"","expires_in":60}"#), None);
        assert_eq!(token("{}"), None);
    }

    #[test]
    fn only_a_registry_without_tls_may_have_a_token_endpoint_without() {
        for (realm, registry, expected) in [
            ("https", "https", true),
            ("https", "http", true),
            ("http", "http", true),
            ("http", "https", false),
            ("ftp", "http", false),
        ] {
            assert_eq!(is_as_safe(realm, registry), expected, "{realm} {registry}");
        }
    }

    #[test]
    fn credentials_stay_within_the_registrys_own_domain() {
        for (host, own, expected) in [
            ("registry.example.com", "registry.example.com", true),
            ("AUTH.example.com", "registry.example.com", true),
            ("example.com", "registry.example.com", true),
            ("registry.example.com.", "registry.example.com", true),
            ("evil.com", "registry.example.com", false),
            ("example.com.evil.net", "registry.example.com", false),
            ("notexample.com", "registry.example.com", false),
            ("auth.other.co.uk", "registry.example.co.uk", false),
            ("auth.example.co.uk", "registry.example.co.uk", true),
            ("auth.other.com.au", "registry.example.com.au", false),
            ("co.uk", "registry.example.co.uk", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.2", "127.0.0.1", false),
            ("10.0.0.1", "10.0.0.2", false),
            ("auth", "registry", false),
            ("auth.test", "registry.test", false),
        ] {
            assert_eq!(may_have_credentials(host, &[own], &[]), expected, "{host} of {own}");
        }
        let configured = ["login.example.net".to_owned()];
        assert!(may_have_credentials("Login.example.net", &["r.example.com"], &configured));
        assert!(!may_have_credentials("other.example.net", &["r.example.com"], &configured));
        assert!(may_have_credentials("a.example.org", &["r.example.com", "r.example.org"], &[]));
    }
}
