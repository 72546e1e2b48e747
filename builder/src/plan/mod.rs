//! Decides what is built: the cells of a matrix, and ([`layers`]) the layers of its images. Pure functions only.

pub mod condition;
mod cut;
pub mod layers;
pub mod locked;

use self::condition::Condition;
use crate::{
    compat::{self, Verdict},
    platform::Platform,
    version::Version,
};

/// One combination of the axes: one image for one platform. The order is that in which images are planned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// Spark.
    pub spark: Version,
    /// Java, by its major version.
    pub java: Version,
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
            "spark" => Ok(self.spark.to_string()),
            "sparkLine" => Ok(format!("{}.{}", self.spark.number(0), self.spark.number(1))),
            "java" => Ok(self.java.to_string()),
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
        let mut name = format!("Spark {}, Java {}", self.spark, self.java);
        for (label, value) in [("Scala", &self.scala), ("Python", &self.python)] {
            if let Some(value) = value {
                name = format!("{name}, {label} {value}");
            }
        }
        match &self.variant {
            Some(variant) => format!("{name}, variant `{variant}`"),
            None => name,
        }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphabetic())
}

/// What a template may name.
const PLACEHOLDERS: [&str; 7] = ["spark", "sparkLine", "scala", "java", "python", "variant", "arch"];

/// The values of each axis as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Axes {
    /// Spark versions.
    pub spark: Vec<Version>,
    /// Java versions.
    pub java: Vec<Version>,
    /// Scala versions; may be empty.
    pub scala: Vec<Version>,
    /// Python versions; may be empty.
    pub python: Vec<Version>,
    /// Variants with the cells that have them; may be empty.
    pub variants: Vec<(String, Condition)>,
    /// Platforms.
    pub platforms: Vec<Platform>,
    /// Cells that are left out.
    pub exclude: Vec<Condition>,
    /// Cells beside the product of the axes, for every platform.
    pub include: Vec<Cell>,
}

impl Axes {
    /// Whether nothing leaves the cell out: neither `exclude` nor the condition of its variant.
    fn want(&self, cell: &Cell) -> bool {
        let excluded = self.exclude.iter().any(|condition| condition.holds(cell));
        let variant = self.variants.iter().find(|(name, _)| cell.variant.as_ref() == Some(name));
        !excluded && variant.is_none_or(|(_, when)| when.holds(cell))
    }
}

/// A cell that is not built, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The cell.
    pub cell: Cell,
    /// What the compatibility table says.
    pub verdict: Verdict,
}

/// What a matrix comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cells {
    /// Cells to build, in the order of the axes.
    pub built: Vec<Cell>,
    /// Cells that are refused.
    pub refused: Vec<Refused>,
}

/// Multiplies the axes, leaves out and adds what the specification says, and applies the compatibility table.
pub fn cells(axes: &Axes, allow_untested: bool) -> Cells {
    let mut cells = Cells::default();
    for cell in product(axes) {
        let wanted: Vec<Cell> = axes
            .platforms
            .iter()
            .map(|platform| Cell { platform: *platform, ..cell.clone() })
            .filter(|cell| axes.want(cell))
            .collect();
        if wanted.is_empty() || wanted.iter().any(|cell| cells.built.contains(cell)) {
            continue;
        }
        // What runs with what does not depend on the platform: a refusal is said once.
        let verdict = compat::check(&cell);
        if verdict.impossible.is_empty() && (allow_untested || verdict.untested.is_empty()) {
            cells.built.extend(wanted);
        } else {
            cells.refused.push(Refused { cell, verdict });
        }
    }
    cells
}

/// Every combination with every platform, before any is left out.
pub fn combinations(axes: &Axes) -> impl Iterator<Item = Cell> + '_ {
    let with =
        |cell: Cell| axes.platforms.iter().map(move |platform| Cell { platform: *platform, ..cell.clone() });
    product(axes).into_iter().flat_map(with)
}

/// Every combination, for one platform.
fn product(axes: &Axes) -> Vec<Cell> {
    fn optional<T: Clone>(values: &[T]) -> Vec<Option<T>> {
        if values.is_empty() { vec![None] } else { values.iter().cloned().map(Some).collect() }
    }
    let platform = axes.platforms.first().copied().unwrap_or_else(Platform::host);
    let mut found = Vec::new();
    for spark in &axes.spark {
        for scala in optional(&axes.scala) {
            for java in &axes.java {
                for python in optional(&axes.python) {
                    for variant in optional(&axes.variants) {
                        let (scala, python) = (scala.clone(), python.clone());
                        let (spark, java) = (spark.clone(), java.clone());
                        let variant = variant.map(|(name, _)| name);
                        found.push(Cell { spark, java, scala, python, variant, platform });
                    }
                }
            }
        }
    }
    found.extend(axes.include.iter().cloned());
    found
}

/// A cell for tests, for this machine's platform; an empty `python` is none.
#[cfg(test)]
pub fn cell(spark: &str, java: &str, python: &str) -> Cell {
    Cell {
        spark: spark.parse().unwrap(),
        java: java.parse().unwrap(),
        scala: None,
        python: python.parse().ok(),
        variant: None,
        platform: Platform::host(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(texts: &[&str]) -> Vec<Version> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_axes_are_multiplied_and_judged() {
        let axes = Axes {
            spark: versions(&["3.5.9", "4.1.4"]),
            java: versions(&["11", "17"]),
            python: versions(&["3.11", "3.12"]),
            platforms: vec![Platform::Amd64],
            ..Axes::default()
        };
        let names = |cells: &Cells| cells.built.iter().map(Cell::name).collect::<Vec<_>>();
        let strict = cells(&axes, false);
        let expected = [
            "Spark 3.5.9, Java 11, Python 3.11",
            "Spark 3.5.9, Java 17, Python 3.11",
            "Spark 4.1.4, Java 17, Python 3.11",
            "Spark 4.1.4, Java 17, Python 3.12",
        ];
        assert_eq!(names(&strict), expected);
        assert_eq!(strict.refused.len(), 4);
        let loose = cells(&axes, true);
        assert_eq!((loose.built.len(), loose.refused.len()), (6, 2));
    }

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

    #[test]
    fn cells_are_left_out_and_added() {
        let condition = |axis, text| {
            let mut condition = Condition::default();
            condition.add(axis, text).unwrap();
            condition
        };
        let axes = Axes {
            spark: versions(&["3.4.4", "3.5.9"]),
            java: versions(&["17"]),
            variants: vec![
                ("plain".to_owned(), Condition::default()),
                ("geo".to_owned(), condition("spark", "3.5")),
            ],
            platforms: vec![Platform::Amd64, Platform::Arm64],
            exclude: vec![condition("spark", "3.4.4")],
            include: vec![cell("4.1.4", "21", ""), cell("4.1.4", "8", "")],
            ..Axes::default()
        };
        let cells = cells(&axes, false);
        let names: Vec<String> =
            cells.built.iter().map(|cell| format!("{} {}", cell.name(), cell.platform)).collect();
        let expected = [
            "Spark 3.5.9, Java 17, variant `plain` linux/amd64",
            "Spark 3.5.9, Java 17, variant `plain` linux/arm64",
            "Spark 3.5.9, Java 17, variant `geo` linux/amd64",
            "Spark 3.5.9, Java 17, variant `geo` linux/arm64",
            "Spark 4.1.4, Java 21 linux/amd64",
            "Spark 4.1.4, Java 21 linux/arm64",
        ];
        assert_eq!(names, expected);
        assert_eq!(cells.refused.len(), 1, "a refusal is said once, not per platform");
    }
}
