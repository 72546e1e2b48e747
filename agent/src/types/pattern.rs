//! Patterns of registry hosts, as the configuration has them.

use std::{fmt, str::FromStr};

use oci::RegistryHost;

/// Why a text is not a pattern of registry hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a registry pattern: expected a host, `*.example.com` or `*`")]
pub struct PatternError(String);

/// The registries that an entry of the configuration applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryPattern {
    /// One registry.
    Exact(RegistryHost),
    /// Every host under a domain: the stored text starts with the dot.
    Under(String),
    /// Every registry.
    Any,
}

impl RegistryPattern {
    /// How closely the pattern matches `host`: `None` when it does not, otherwise larger is closer.
    pub fn closeness(&self, host: &RegistryHost) -> Option<usize> {
        match self {
            Self::Exact(exact) => (exact == host).then_some(usize::MAX),
            Self::Under(suffix) => (host.as_str().len() > suffix.len()
                && host.as_str().ends_with(suffix.as_str()))
            .then_some(suffix.len()),
            Self::Any => Some(0),
        }
    }
}

impl FromStr for RegistryPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some(domain) = text.strip_prefix("*.") {
            return match domain.parse::<RegistryHost>() {
                Ok(host) => Ok(Self::Under(format!(".{}", host.as_str()))),
                Err(_) => Err(PatternError(text.chars().take(160).collect())),
            };
        }
        text.parse().map(Self::Exact).map_err(|_| PatternError(text.chars().take(160).collect()))
    }
}

impl fmt::Display for RegistryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => host.fmt(f),
            Self::Under(suffix) => write!(f, "*{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_pattern_is_the_exact_one() {
        let host: RegistryHost = "eu.mirror.example.com".parse().unwrap();
        let closeness = |pattern: &str| pattern.parse::<RegistryPattern>().unwrap().closeness(&host);
        assert!(closeness("eu.mirror.example.com") > closeness("*.mirror.example.com"));
        assert!(closeness("*.mirror.example.com") > closeness("*.example.com"));
        assert!(closeness("*.example.com") > closeness("*"));
        assert_eq!(closeness("*.other.com"), None);
        assert_eq!(closeness("mirror.example.com"), None);
        assert_eq!("*.a.b".parse::<RegistryPattern>().unwrap().closeness(&"a.b".parse().unwrap()), None);
        assert!("a*".parse::<RegistryPattern>().is_err());
    }
}
