//! What a registry's 401 asks for (distribution project, "Token Authentication Specification"; RFC 9110, 11.6.1).

use std::collections::HashMap;

/// What a `WWW-Authenticate` header asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token.
    Bearer {
        /// URL of the token endpoint.
        realm: String,
        /// The registry's name there.
        service: Option<String>,
        /// What the token has to allow.
        scope: Option<String>,
    },
}

/// The first usable challenge of all `WWW-Authenticate` headers: Bearer before Basic.
pub fn challenge<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for (scheme, mut parameters) in headers.flat_map(challenges) {
        if scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = parameters.remove("realm") {
                let (service, scope) = (parameters.remove("service"), parameters.remove("scope"));
                return Some(Challenge::Bearer { realm, service, scope });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
    }
    basic
}

/// The challenges of one header: `Basic realm="x", Bearer realm="value", service=value`. More lenient than the grammar:
/// some registries send URLs without quotes.
fn challenges(mut text: &str) -> Vec<(&str, HashMap<String, String>)> {
    let mut all: Vec<(&str, HashMap<String, String>)> = Vec::new();
    loop {
        text = text.trim_start_matches([' ', ',', '\t']);
        if text.is_empty() {
            return all;
        }
        let (word, rest) = text.split_at(text.find([' ', ',', '\t', '=']).unwrap_or(text.len()));
        let Some(value) = rest.trim_start().strip_prefix('=') else {
            all.push((word, HashMap::new()));
            text = rest;
            continue;
        };
        let value = value.trim_start();
        let (value, rest) = if let Some(quoted) = value.strip_prefix('"') {
            unquote(quoted)
        } else {
            let (value, rest) = value.split_at(value.find([',', ' ']).unwrap_or(value.len()));
            (value.to_owned(), rest)
        };
        if let Some((_, parameters)) = all.last_mut() {
            parameters.insert(word.to_ascii_lowercase(), value);
        }
        text = rest;
    }
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &text[at + 1..]),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_in_every_form_that_registries_send() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.map(Into::into),
                scope: scope.map(Into::into),
            })
        };
        let read = |headers: &[&str]| challenge(headers.iter().copied());
        assert_eq!(
            read(&[r#"Bearer realm="https://a/token",service="r",scope="repository:x:pull,push""#]),
            bearer("https://a/token", Some("r"), Some("repository:x:pull,push"))
        );
        assert_eq!(
            read(&[r#"bearer service=r, realm="https://a/t""#]),
            bearer("https://a/t", Some("r"), None)
        );
        assert_eq!(read(&[r#"Bearer realm="a\"b""#]), bearer("a\"b", None, None));
        assert_eq!(read(&["Basic realm=x", r#"Bearer realm="t""#]), bearer("t", None, None));
        assert_eq!(
            read(&[r#"Basic realm="x", bearer Realm = "t", service=s"#]),
            bearer("t", Some("s"), None)
        );
        assert_eq!(read(&["Bearer realm=https://a/t,service=r"]), bearer("https://a/t", Some("r"), None));
        assert_eq!(read(&["Basic realm=x"]), Some(Challenge::Basic));
        assert_eq!(read(&["Negotiate abc==, Basic"]), Some(Challenge::Basic));
        assert_eq!(read(&["Bearer", "Negotiate", "=", "", "\"", "a=b"]), None);
        assert_eq!(read(&[r#"Bearer realm="unclosed"#]), bearer("unclosed", None, None));
    }
}
