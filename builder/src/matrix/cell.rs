//! One combination of the axes, and the templates that its values are put into.

use crate::{platform::Platform, version::Version};

/// One combination of the axes: one image for one platform. The order is that in which images are planned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// Spark; an image without it is a plain one. With it comes a Java.
    pub spark: Option<Version>,
    /// Java, by its major version; without it the image is not checked for one.
    pub java: Option<Version>,
    /// Scala; without it, that of the Spark source.
    pub scala: Option<Version>,
    /// Python; without it the image is not checked for one.
    pub python: Option<Version>,
    /// The variant of the specification.
    pub variant: Option<String>,
    /// The platform. Cells that differ in nothing else are one image with several manifests.
    pub platform: Platform,
}

impl Cell {
    /// Puts the cell's values into a template with `{axis}` placeholders. `Err` names an unknown one.
    pub fn fill(&self, template: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, tail) =
                after.split_once('}').ok_or_else(|| format!("`{{{after}` has no closing brace"))?;
            out.push_str(before);
            out.push_str(&self.value(name)?);
            rest = tail;
        }
        out.push_str(rest);
        Ok(out)
    }

    /// Puts the cell's values into a text that may have braces of its own, such as an environment variable: only
    /// `{letters}` is a placeholder, unless a `$` stands before it; `{{letters}}` stands for the text `{letters}`.
    pub fn fill_text(&self, text: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            out.push_str(before);
            let escaped = after.strip_prefix('{').and_then(|inner| inner.split_once("}}"));
            let plain = after.split_once('}').filter(|_| !out.ends_with('$'));
            rest = match (escaped, plain) {
                (Some((name, tail)), _) if is_word(name) => {
                    out.extend(["{", name, "}"]);
                    tail
                }
                (_, Some((name, tail))) if is_word(name) => {
                    let hint = |why| format!("{why}, or `{{{{{name}}}}}` for the text itself");
                    out.push_str(&self.value(name).map_err(hint)?);
                    tail
                }
                _ => {
                    out.push('{');
                    after
                }
            };
        }
        out.push_str(rest);
        Ok(out)
    }

    fn value(&self, axis: &str) -> Result<String, String> {
        let missing = || format!("`{{{axis}}}` needs the axis `{axis}`");
        let set = |value: &Option<Version>| value.as_ref().map(Version::to_string).ok_or_else(missing);
        match axis {
            "spark" => set(&self.spark),
            "sparkLine" => {
                let spark =
                    self.spark.as_ref().ok_or_else(|| "`{sparkLine}` needs the axis `spark`".to_owned())?;
                Ok(format!("{}.{}", spark.number(0), spark.number(1)))
            }
            "java" => set(&self.java),
            "scala" => set(&self.scala),
            "python" => set(&self.python),
            "arch" => Ok(self.platform.architecture().to_owned()),
            "variant" => {
                self.variant.clone().ok_or_else(|| "`{variant}` needs the key `variants`".to_owned())
            }
            _ => {
                let near = crate::nearest(axis, &PLACEHOLDERS);
                let hint = near.map(|near| format!("did you mean `{{{near}}}`?"));
                let all = || format!("use {{{}}}", PLACEHOLDERS.join("}, {"));
                Err(format!("`{{{axis}}}` is no axis: {}", hint.unwrap_or_else(all)))
            }
        }
    }

    /// How the cell is called in messages.
    pub fn name(&self) -> String {
        let axes =
            [("Spark", &self.spark), ("Java", &self.java), ("Scala", &self.scala), ("Python", &self.python)];
        let values =
            axes.into_iter().filter_map(|(label, value)| Some(format!("{label} {}", value.as_ref()?)));
        let variant = self.variant.as_ref().map(|variant| format!("variant `{variant}`"));
        let name: Vec<String> = values.chain(variant).collect();
        if name.is_empty() { "the plain image".to_owned() } else { name.join(", ") }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphabetic())
}

/// What a template may name.
const PLACEHOLDERS: [&str; 7] = ["spark", "sparkLine", "scala", "java", "python", "variant", "arch"];

/// A cell for tests, for this machine's platform; an empty `python` is none.
#[cfg(test)]
pub fn cell(spark: &str, java: &str, python: &str) -> Cell {
    Cell {
        spark: Some(spark.parse().unwrap()),
        java: Some(java.parse().unwrap()),
        scala: None,
        python: python.parse().ok(),
        variant: None,
        platform: Platform::host(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_take_axes_and_nothing_else() {
        let cell = cell("3.5.9", "17", "");
        assert_eq!(cell.fill("{spark}-java{java}").unwrap(), "3.5.9-java17");
        for (template, expected) in [
            ("{python}", "needs the axis `python`"),
            ("{sparc}", "is no axis"),
            ("{spark", "no closing brace"),
        ] {
            let error = cell.fill(template).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn free_texts_keep_their_own_braces() {
        let cell = cell("3.5.9", "17", "");
        for (text, expected) in [
            ("-Dspark={spark}", "-Dspark=3.5.9"),
            ("${spark} ${HOME:-x} {}", "${spark} ${HOME:-x} {}"),
            ("{\"a\": {\"b\": 1}}", "{\"a\": {\"b\": 1}}"),
            ("%d{{yyyy}} {{java}} {java}", "%d{yyyy} {java} 17"),
            ("{open", "{open"),
        ] {
            assert_eq!(cell.fill_text(text).unwrap(), expected, "{text}");
        }
        let error = cell.fill_text("{sparc}").unwrap_err();
        assert!(error.contains("did you mean `{spark}`?") && error.contains("`{{sparc}}`"), "{error}");
    }
}
