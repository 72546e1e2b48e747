//! Certificates named by a registry's `tls`.

use std::path::PathBuf;

use serde_saphyr::{Location, Spanned};

use super::raw::RawTls;

type Trust = (Vec<reqwest::Certificate>, Option<reqwest::Identity>);

/// Reads the files; an error comes with the place of the key that names the file.
pub(super) fn read(tls: &RawTls) -> Result<Trust, (Location, String)> {
    let authorities = match &tls.ca {
        None => Vec::new(),
        Some(path) => {
            let found = reqwest::Certificate::from_pem_bundle(&bytes(path, "ca")?)
                .map_err(|error| wrong(path, "ca", &error))?;
            if found.is_empty() {
                return Err((
                    path.referenced,
                    format!("`tls.ca`: `{}` contains no certificate", path.value.display()),
                ));
            }
            found
        }
    };
    let identity = match (&tls.certificate, &tls.key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => {
            let mut pem = bytes(certificate, "certificate")?;
            pem.push(b'\n');
            pem.extend(bytes(key, "key")?);
            Some(
                reqwest::Identity::from_pem(&pem)
                    .map_err(|error| wrong(certificate, "certificate", &error))?,
            )
        }
        (Some(one), None) => return Err((one.referenced, "`tls.certificate` needs `tls.key`".into())),
        (None, Some(one)) => return Err((one.referenced, "`tls.key` needs `tls.certificate`".into())),
    };
    Ok((authorities, identity))
}

fn bytes(path: &Spanned<PathBuf>, key: &str) -> Result<Vec<u8>, (Location, String)> {
    #[expect(clippy::disallowed_methods, reason = "read once, before the runtime serves anyone")]
    let bytes = std::fs::read(&path.value);
    bytes.map_err(|error| {
        (path.referenced, format!("`tls.{key}`: `{}` cannot be read: {error}", path.value.display()))
    })
}

fn wrong(path: &Spanned<PathBuf>, key: &str, error: &reqwest::Error) -> (Location, String) {
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    (path.referenced, format!("`tls.{key}`: `{}` is not usable PEM: {reason}", path.value.display()))
}
