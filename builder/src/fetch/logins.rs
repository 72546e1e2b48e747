//! User names and passwords for downloads: from `netrc`, and from the package indexes that the user has configured.
//!
//! A `netrc` (`$NETRC`, else `~/.netrc`) is what pip, uv, curl and git read as well. The URLs of wheels come from an
//! index without the credentials that the index itself was asked with, and mostly lie on the same host: what uv and pip
//! know of the index goes to that host and to no other. Whoever is named here gets the password, so without TLS only a
//! host that is named exactly.

use std::{collections::BTreeMap, env, fmt, path::PathBuf};

use reqwest::Url;

/// A `netrc` has a few lines.
const LIMIT: u64 = 1 << 20;

/// User and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(..)")
    }
}

/// Everything that is known, by host.
#[derive(Debug, Clone, Default)]
pub struct Logins {
    machines: BTreeMap<String, Login>,
    default: Option<Login>,
    /// By host and port.
    indexes: BTreeMap<String, Login>,
}

impl Logins {
    /// Reads the user's `netrc` and the environment. What cannot be read is not there, as for every other program.
    pub fn of_user() -> Self {
        let own = env::var_os("HOME").map(|home| PathBuf::from(home).join(".netrc"));
        let path = env::var_os("NETRC").filter(|path| !path.is_empty()).map(PathBuf::from).or(own);
        let text = path.and_then(|path| {
            let file = std::fs::File::open(path).ok()?;
            std::io::read_to_string(std::io::Read::take(file, LIMIT)).ok()
        });
        let mut logins = Self::of_netrc(&text.unwrap_or_default());
        logins.add_environment(&env::vars().collect());
        logins
    }

    fn of_netrc(text: &str) -> Self {
        let mut found = Self::default();
        let words = words(text);
        let mut words = words.iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            let machine = match word {
                "machine" => words.next().map(str::to_lowercase),
                "default" => None,
                _ => continue,
            };
            let (mut user, mut password) = (String::new(), None);
            while let Some(key) = words.next_if(|word| !matches!(*word, "machine" | "default")) {
                match key {
                    "login" => words.next().unwrap_or_default().clone_into(&mut user),
                    "password" => password = words.next().map(str::to_owned),
                    "account" => drop(words.next()),
                    _ => {}
                }
            }
            let Some(password) = password else { continue };
            let login = Login { user, password };
            match machine {
                // The first of equal ones counts.
                Some(machine) => drop(found.machines.entry(machine).or_insert(login)),
                None => found.default = Some(login),
            }
        }
        found
    }

    /// Indexes of uv and pip: with the credentials in their URL, or in variables of their name.
    fn add_environment(&mut self, variables: &BTreeMap<String, String>) {
        for name in ["UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "PIP_INDEX_URL"] {
            for text in variables.get(name).into_iter().flat_map(|text| text.split_whitespace()) {
                let (label, url) = match text.split_once('=') {
                    Some((label, url)) if !label.contains(':') => (Some(label), url),
                    _ => (None, text),
                };
                self.add_index(url);
                let label = label.map(|label| label.to_uppercase().replace(['-', '.'], "_"));
                let variable = |what: &str| {
                    label
                        .as_ref()
                        .and_then(|label| variables.get(&format!("UV_INDEX_{label}_{what}")))
                        .cloned()
                };
                if let (Some(password), Some(host)) =
                    (variable("PASSWORD"), Url::parse(url).ok().as_ref().and_then(authority))
                {
                    let user = variable("USERNAME").unwrap_or_default();
                    self.indexes.insert(host, Login { user, password });
                }
            }
        }
    }

    /// Notes the credentials in the URL of an index, when it has some.
    pub fn add_index(&mut self, url: &str) {
        let Ok(url) = Url::parse(url) else { return };
        if let (Some(host), Some(password)) = (authority(&url), url.password()) {
            let login = Login { user: decoded(url.username()), password: decoded(password) };
            self.indexes.insert(host, login);
        }
    }

    /// What is known for a URL that has no credentials itself.
    pub fn find(&self, url: &str) -> Option<&Login> {
        let url = Url::parse(url).ok().filter(|url| url.username().is_empty() && url.password().is_none())?;
        let (host, safe) = (url.host_str()?.to_lowercase(), url.scheme() == "https");
        let named = self.indexes.get(&authority(&url)?).or_else(|| self.machines.get(&host));
        named.or_else(|| self.default.as_ref().filter(|_| safe))
    }
}

fn authority(url: &Url) -> Option<String> {
    Some(format!("{}:{}", url.host_str()?.to_lowercase(), url.port_or_known_default()?))
}

/// User and password in a URL are percent-encoded.
fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The words of a `netrc`, without comments and macros; quotes hold a word together.
fn words(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_macro = false;
    for line in text.lines() {
        // A macro ends with an empty line.
        if in_macro {
            in_macro = !line.trim().is_empty();
            continue;
        }
        let mut rest = line.trim_start();
        while !rest.is_empty() && !rest.starts_with('#') {
            let (word, after) = match rest.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
                None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
            };
            if word == "macdef" {
                in_macro = true;
                break;
            }
            found.push(word.to_owned());
            rest = after.trim_start();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str, password: &str) -> Login {
        Login { user: user.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn a_netrc_is_read_as_curl_reads_it() {
        let text = "# comment\nmachine Files.example.com login me\n  password s3#cret\n\
                    macdef init\nmachine evil login x password y\n\n\
                    machine b.example.com password \"with space\" account z\n\
                    machine c.example.com login nobody\ndefault login any password thing\n";
        let logins = Logins::of_netrc(text);
        for (url, expected) in [
            ("https://files.example.com/a", Some(login("me", "s3#cret"))),
            ("http://files.example.com:8080/a", Some(login("me", "s3#cret"))),
            ("https://b.example.com/a", Some(login("", "with space"))),
            ("https://c.example.com/a", Some(login("any", "thing"))),
            ("https://evil/a", Some(login("any", "thing"))),
            ("http://other.example.com/a", None),
            ("https://own:word@files.example.com/a", None),
            ("file:///a", None),
        ] {
            assert_eq!(logins.find(url), expected.as_ref(), "{url}");
        }
        assert!(!format!("{logins:?}").contains("s3#cret"));
    }

    #[test]
    fn the_credentials_of_an_index_go_to_its_host_and_port_only() {
        let variables = [
            ("UV_DEFAULT_INDEX", "https://me:p%40ss@index.example.com/simple"),
            ("UV_INDEX", "team-a=https://team.example.com/simple https://x:y@third.example.com:8443/simple"),
            ("UV_INDEX_TEAM_A_USERNAME", "ci"),
            ("UV_INDEX_TEAM_A_PASSWORD", "token"),
        ];
        let mut logins = Logins::default();
        let text = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        logins.add_environment(&variables.map(text).into());
        for (url, expected) in [
            ("https://index.example.com/packages/a.whl", Some(login("me", "p@ss"))),
            ("https://team.example.com/a.whl", Some(login("ci", "token"))),
            ("https://third.example.com:8443/a.whl", Some(login("x", "y"))),
            ("https://third.example.com/a.whl", None),
            ("http://index.example.com/a.whl", None),
        ] {
            assert_eq!(logins.find(url), expected.as_ref(), "{url}");
        }
    }
}
