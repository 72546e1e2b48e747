//! Package URLs: names of software that scanners of vulnerabilities understand (github.com/package-url/purl-spec).
//!
//! `pkg:TYPE/NAMESPACE/NAME@VERSION?KEY=VALUE&KEY=VALUE`

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stands for itself in every part; the colon does so everywhere (purl-spec, "Character encoding").
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');

/// A package URL under construction.
#[derive(Debug, Clone)]
pub struct Purl {
    text: String,
    qualifiers: Vec<(&'static str, String)>,
}

impl Purl {
    /// A name of a type. Types know which case their names have: the caller does.
    pub fn new(kind: &str, name: &str) -> Self {
        Self { text: format!("pkg:{kind}/{}", encoded(name)), qualifiers: Vec::new() }
    }

    /// A name in a namespace, whose parts are divided by slashes.
    pub fn within(kind: &str, namespace: &str, name: &str) -> Self {
        let namespace: Vec<String> =
            namespace.split('/').filter(|part| !part.is_empty()).map(encoded).collect();
        let name = encoded(name);
        let path = if namespace.is_empty() { name } else { format!("{}/{name}", namespace.join("/")) };
        Self { text: format!("pkg:{kind}/{path}"), qualifiers: Vec::new() }
    }

    /// A Python package: the index takes names of either case and sign for one.
    pub fn python(name: &str) -> Self {
        Self::new("pypi", &name.to_lowercase().replace('_', "-"))
    }

    /// With a version; an empty one is none.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        if !version.is_empty() {
            self.text = format!("{}@{}", self.text, encoded(version));
        }
        self
    }

    /// With a qualifier; an empty one is none.
    #[must_use]
    pub fn qualifier(mut self, key: &'static str, value: &str) -> Self {
        if !value.is_empty() {
            self.qualifiers.push((key, encoded(value)));
        }
        self
    }

    /// The text, with its qualifiers in the order of their keys.
    pub fn finish(mut self) -> String {
        self.qualifiers.sort_unstable();
        let pairs: Vec<String> =
            self.qualifiers.iter().map(|(key, value)| format!("{key}={value}")).collect();
        if pairs.is_empty() { self.text } else { format!("{}?{}", self.text, pairs.join("&")) }
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_urls_are_those_of_the_specification() {
        let cases = [
            (
                Purl::within("deb", "debian", "curl").version("7.50.3-1").qualifier("arch", "i386"),
                "pkg:deb/debian/curl@7.50.3-1?arch=i386",
            ),
            (
                Purl::within("deb", "debian", "g++")
                    .version("4:12.2")
                    .qualifier("distro", "debian-12")
                    .qualifier("arch", "all"),
                "pkg:deb/debian/g%2B%2B@4:12.2?arch=all&distro=debian-12",
            ),
            (
                Purl::new("oci", "debian")
                    .version("sha256:ab")
                    .qualifier("repository_url", "r.test:5000/a/debian"),
                "pkg:oci/debian@sha256:ab?repository_url=r.test:5000%2Fa%2Fdebian",
            ),
            (
                Purl::within("maven", "org.apache.spark", "spark-core_2.12").version("3.5.9"),
                "pkg:maven/org.apache.spark/spark-core_2.12@3.5.9",
            ),
            (Purl::python("Typing_Extensions").version("4.1"), "pkg:pypi/typing-extensions@4.1"),
            (Purl::within("generic", "", "x").version(""), "pkg:generic/x"),
        ];
        for (purl, expected) in cases {
            assert_eq!(purl.finish(), expected);
        }
    }
}
