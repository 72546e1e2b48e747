//! Platforms in the configuration and in sets: `linux/amd64`, `linux/arm64/v8`.

use std::{fmt, str::FromStr};

/// Longest accepted part; the longest known one has nine characters.
const LONGEST: usize = 32;

/// The machines that an image is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a platform: write `os/architecture` or `os/architecture/variant`, for example `linux/amd64`"
)]
pub struct PlatformError(String);

impl Platform {
    /// The platform of this machine.
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// From the fields of an index; `None` for `unknown/unknown` (attestations) and other invalid values.
    pub fn of(os: &str, architecture: &str, variant: Option<&str>) -> Option<Self> {
        let known = |part: &str| is_part(part) && part != "unknown";
        (known(os) && known(architecture)).then(|| Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.filter(|variant| is_part(variant)).map(str::to_owned),
        })
    }

    /// How well an image for `offered` matches this platform: 2 exactly, 1 when one of them has no variant,
    /// else `None`. An `arm64` without a variant is `v8`, as in container runtimes.
    pub fn closeness(&self, offered: &Self) -> Option<u8> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        match (self.variant(), offered.variant()) {
            (mine, theirs) if mine == theirs => Some(2),
            (None, _) | (_, None) => Some(1),
            _ => None,
        }
    }

    fn variant(&self) -> Option<&str> {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm64", None) => Some("v8"),
            (_, variant) => variant,
        }
    }
}

fn is_part(part: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !part.is_empty() && part.len() <= LONGEST && part.chars().all(fits)
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError(text.chars().take(60).collect());
        let mut parts = text.split('/');
        let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
        if parts.next().is_some() || variant.is_some_and(|variant| !is_part(variant)) {
            return Err(wrong());
        }
        os.zip(architecture)
            .and_then(|(os, architecture)| Self::of(os, architecture, variant))
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_have_two_or_three_parts_and_variants_are_compared_leniently() {
        for bad in
            ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b", "unknown/unknown", "linux/arm/"]
        {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
        for (wanted, offered, expected) in [
            ("linux/amd64", "linux/amd64", Some(2)),
            ("linux/amd64", "linux/arm64", None),
            ("linux/arm64", "linux/arm64/v8", Some(2)),
            ("linux/arm64/v8", "linux/arm64", Some(2)),
            ("linux/arm", "linux/arm/v7", Some(1)),
            ("linux/arm/v6", "linux/arm/v7", None),
            ("windows/amd64", "linux/amd64", None),
        ] {
            let (wanted, offered): (Platform, Platform) = (wanted.parse().unwrap(), offered.parse().unwrap());
            assert_eq!(wanted.closeness(&offered), expected, "{wanted} {offered}");
            assert_eq!(wanted.to_string().parse::<Platform>().unwrap(), wanted);
        }
    }
}
