//! Who may do what: open, basic, or bearer with an own token endpoint that hands out expiring, scoped tokens.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Method, StatusCode, header};

use super::{delivery::Reply, log::Entry, path::Kind};

/// The registry's authentication.
#[derive(Clone, Debug, Default)]
pub enum Access {
    /// Everything for everyone.
    #[default]
    Open,
    /// A user name and password with every request.
    Basic(String, String),
    /// Tokens from the registry's own token endpoint.
    Bearer(Bearer),
    /// Repositories that only some users read; all others are anyone's.
    Tenants(Tenants),
}

/// Who reads what.
#[derive(Clone, Debug, Default)]
pub struct Tenants {
    /// A repository, and the user name and password of one who reads it.
    pub readers: Vec<(String, (String, String))>,
    /// By tokens from the registry's own token endpoint, not by a password with every request.
    pub bearer: bool,
}

impl Tenants {
    fn may_read(&self, repository: &str, user: Option<&(String, String)>) -> bool {
        let mut readers = self.readers.iter().filter(|(name, _)| name == repository).map(|(_, user)| user);
        let public = readers.clone().next().is_none();
        public || readers.any(|reader| Some(reader) == user)
    }

    fn knows(&self, user: &(String, String)) -> bool {
        self.readers.iter().any(|(_, reader)| reader == user)
    }
}

/// Settings of bearer authentication.
#[derive(Clone, Debug)]
pub struct Bearer {
    /// Who gets a token; `None` gives one to everybody.
    pub user: Option<(String, String)>,
    /// An identity token that is as good as the password (`grant_type=refresh_token`).
    pub identity_token: Option<String>,
    /// How long a token is good.
    pub lifetime: Duration,
    /// Whether `expires_in` is said; without it clients assume 60 seconds.
    pub say_lifetime: bool,
    /// Whether the realm lies on another host.
    pub realm_elsewhere: bool,
    /// Whether the endpoint takes `POST`; without it 404, and clients use `GET`.
    pub post: bool,
}

impl Default for Bearer {
    fn default() -> Self {
        Self {
            user: None,
            identity_token: None,
            lifetime: Duration::from_mins(5),
            say_lifetime: true,
            realm_elsewhere: false,
            post: true,
        }
    }
}

#[derive(Debug)]
struct Token {
    scopes: Vec<String>,
    until: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Gate {
    access: Mutex<Access>,
    tokens: Mutex<HashMap<String, Token>>,
    next: AtomicU64,
}

impl Gate {
    pub(super) fn set(&self, access: Access) {
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = access;
    }

    fn access(&self) -> Access {
        self.access.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tokens(&self) -> MutexGuard<'_, HashMap<String, Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn expire_tokens(&self) {
        self.tokens().clear();
    }

    /// `Err` is the 401 to send. `here` and `elsewhere` are base URLs for the realm.
    pub(super) fn check(&self, entry: &Entry, here: &str, elsewhere: &str) -> Result<(), Box<Reply>> {
        if matches!(entry.target.kind, Kind::Token | Kind::Cdn | Kind::Other) {
            return Ok(());
        }
        match self.access() {
            Access::Open => Ok(()),
            Access::Basic(user, password) => {
                let right = basic(entry.authorization()).is_some_and(|given| given == (user, password));
                if right { Ok(()) } else { Err(Box::new(refuse(r#"Basic realm="kit""#))) }
            }
            Access::Tenants(tenants) if !tenants.bearer => {
                let user = basic(entry.authorization());
                let allowed = tenants.may_read(&entry.target.repository, user.as_ref());
                if allowed { Ok(()) } else { Err(Box::new(refuse(r#"Basic realm="kit""#))) }
            }
            Access::Tenants(_) => self.check_token(entry, here),
            Access::Bearer(settings) => {
                let realm = if settings.realm_elsewhere { elsewhere } else { here };
                self.check_token(entry, realm)
            }
        }
    }

    fn check_token(&self, entry: &Entry, realm: &str) -> Result<(), Box<Reply>> {
        let needed = needed_scope(entry);
        let scope = needed.as_ref().map(|(name, action)| {
            let actions = if action == "pull" { "pull" } else { "pull,push" };
            format!(r#",scope="repository:{name}:{actions}""#)
        });
        let challenge = format!(r#"Bearer realm="{realm}/token",service="kit"{}"#, scope.unwrap_or_default());
        let given = entry.authorization().and_then(|value| value.strip_prefix("Bearer "));
        let tokens = self.tokens();
        let Some(token) =
            given.and_then(|given| tokens.get(given)).filter(|token| token.until > Instant::now())
        else {
            return Err(Box::new(refuse(&challenge)));
        };
        match needed {
            Some((name, action)) if !token.scopes.iter().any(|scope| grants(scope, &name, &action)) => {
                Err(Box::new(refuse(&format!(r#"{challenge},error="insufficient_scope""#))))
            }
            _ => Ok(()),
        }
    }

    /// The token endpoint. `form` is the body of a `POST`, empty for `GET`.
    pub(super) fn issue(&self, entry: &Entry, form: &str) -> Reply {
        let (settings, tenants) = match self.access() {
            Access::Bearer(settings) => (settings, None),
            Access::Tenants(tenants) if tenants.bearer => (Bearer::default(), Some(tenants)),
            Access::Open | Access::Basic(..) | Access::Tenants(_) => {
                return Reply::new(StatusCode::NOT_FOUND);
            }
        };
        let post = entry.method == Method::POST;
        if post && !settings.post {
            return Reply::new(StatusCode::NOT_FOUND);
        }
        let pairs = pairs(if post { form } else { entry.uri.query().unwrap_or_default() });
        let value = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        if !allowed(&settings, entry, &value, post) {
            return Reply::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "wrong credentials");
        }
        let scopes = pairs
            .iter()
            .filter(|(key, _)| key == "scope")
            .flat_map(|(_, scope)| scope.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let user = basic(entry.authorization());
        if let (Some(tenants), Some(user)) = (&tenants, &user)
            && !tenants.knows(user)
        {
            return Reply::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "wrong credentials");
        }
        // A token for less than was asked for is no error (token specification).
        let scopes = scopes.filter(|scope| {
            let name = scope.split(':').nth(1).unwrap_or_default();
            tenants.as_ref().is_none_or(|tenants| tenants.may_read(name, user.as_ref()))
        });
        let token = format!("kit-token-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let until = Instant::now() + settings.lifetime;
        self.tokens().insert(token.clone(), Token { scopes: scopes.collect(), until });
        let mut body = serde_json::json!({ "token": token, "access_token": token });
        if settings.say_lifetime {
            body["expires_in"] = settings.lifetime.as_secs().into();
        }
        Reply::new(StatusCode::OK).header(header::CONTENT_TYPE, "application/json").bytes(body.to_string())
    }
}

fn allowed(settings: &Bearer, entry: &Entry, value: &impl Fn(&str) -> Option<String>, post: bool) -> bool {
    let Some(user) = &settings.user else { return true };
    if post && value("grant_type").as_deref() == Some("refresh_token") {
        return settings.identity_token.is_some() && value("refresh_token") == settings.identity_token;
    }
    if post {
        return value("username").zip(value("password")).as_ref() == Some(user);
    }
    basic(entry.authorization()).as_ref() == Some(user)
}

/// Repository and action a request needs; pings need any valid token.
fn needed_scope(entry: &Entry) -> Option<(String, String)> {
    let name = &entry.target.repository;
    let action = if matches!(entry.method, Method::GET | Method::HEAD) { "pull" } else { "push" };
    (!name.is_empty()).then(|| (name.clone(), action.to_owned()))
}

/// Whether `repository:<name>:<actions>` covers an action on a name.
fn grants(scope: &str, name: &str, action: &str) -> bool {
    scope
        .strip_prefix("repository:")
        .and_then(|rest| rest.rsplit_once(':'))
        .is_some_and(|(granted, actions)| granted == name && actions.split(',').any(|one| one == action))
}

fn refuse(challenge: &str) -> Reply {
    Reply::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required")
        .header(header::WWW_AUTHENTICATE, challenge)
}

fn basic(authorization: Option<&str>) -> Option<(String, String)> {
    let decoded = STANDARD.decode(authorization?.strip_prefix("Basic ")?).ok()?;
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// Reads a query or form.
pub(super) fn pairs(text: &str) -> Vec<(String, String)> {
    let decode = |part: &str| percent_decode(&part.replace('+', " "));
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| tail.get(..2).and_then(|two| std::str::from_utf8(two).ok()))
            .flatten()
            .and_then(|two| u8::from_str_radix(two, 16).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_grants_its_name_and_actions_only() {
        for (scope, action, granted) in [
            ("repository:a/b:pull", "pull", true),
            ("repository:a/b:pull,push", "push", true),
            ("repository:a/b:pull", "push", false),
            ("repository:a:pull", "pull", false),
            ("registry:a/b:pull", "pull", false),
        ] {
            assert_eq!(grants(scope, "a/b", action), granted, "{scope} {action}");
        }
    }

    #[test]
    fn forms_are_decoded() {
        let read = pairs("scope=repository%3Aa%2Fb%3Apull&x=1+2&odd=%zz");
        let expected = [("scope", "repository:a/b:pull"), ("x", "1 2"), ("odd", "%zz")];
        assert_eq!(read, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
}
