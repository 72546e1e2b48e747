//! The names of Python packages.

/// The one spelling of a package's name (PEP 503).
pub fn normal(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if matches!(c, '-' | '_' | '.') {
            if !out.ends_with('-') {
                out.push('-');
            }
        } else {
            out.push(c.to_ascii_lowercase());
        }
    }
    out
}

/// Package and version of a wheel, from its file name; `None` for a name that is not one of a wheel.
pub fn of_wheel(file: &str) -> Option<(String, String)> {
    let mut parts = file.strip_suffix(".whl")?.split('-');
    let (name, version) = (parts.next()?, parts.next()?);
    let sound = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._+!".contains(c))
    };
    (sound(name) && sound(version)).then(|| (normal(name), version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheel_is_named_after_its_package() {
        let expected = ("python-dateutil".to_owned(), "2.9.0.post0".to_owned());
        assert_eq!(of_wheel("python_dateutil-2.9.0.post0-py2.py3-none-any.whl"), Some(expected));
        for file in ["six.tar.gz", "six.whl", "a\"b-1-py3-none-any.whl"] {
            assert_eq!(of_wheel(file), None, "{file}");
        }
    }
}
