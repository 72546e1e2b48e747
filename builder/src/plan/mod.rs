//! Decides what is built: the cells of a matrix, and ([`layers`]) the layers of its images. Pure functions only.

pub mod frozen;
pub mod layers;

use crate::{
    compat::{self, Verdict},
    version::Version,
};

/// One combination of the axes: one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Spark.
    pub spark: Version,
    /// Java, by its major version.
    pub java: Version,
    /// Scala; without it, that of the Spark source.
    pub scala: Option<Version>,
    /// Python; without it the image is not checked for one.
    pub python: Option<Version>,
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

    fn value(&self, axis: &str) -> Result<String, String> {
        let set = |value: &Option<Version>| {
            value
                .as_ref()
                .map(Version::to_string)
                .ok_or_else(|| format!("`{{{axis}}}` needs the axis `{axis}`"))
        };
        match axis {
            "spark" => Ok(self.spark.to_string()),
            "java" => Ok(self.java.to_string()),
            "scala" => set(&self.scala),
            "python" => set(&self.python),
            _ => Err(format!("`{{{axis}}}` is no axis: use {{spark}}, {{scala}}, {{java}} or {{python}}")),
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
        name
    }
}

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

/// Multiplies the axes and applies the compatibility table.
pub fn cells(axes: &Axes, allow_untested: bool) -> Cells {
    let optional = |values: &[Version]| -> Vec<Option<Version>> {
        if values.is_empty() { vec![None] } else { values.iter().cloned().map(Some).collect() }
    };
    let mut cells = Cells::default();
    for spark in &axes.spark {
        for scala in optional(&axes.scala) {
            for java in &axes.java {
                for python in optional(&axes.python) {
                    let scala = scala.clone();
                    let cell = Cell { spark: spark.clone(), java: java.clone(), scala, python };
                    let verdict = compat::check(&cell);
                    let fine =
                        verdict.impossible.is_empty() && (allow_untested || verdict.untested.is_empty());
                    if fine {
                        cells.built.push(cell);
                    } else {
                        cells.refused.push(Refused { cell, verdict });
                    }
                }
            }
        }
    }
    cells
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
            scala: vec![],
            python: versions(&["3.11", "3.12"]),
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
        let cell =
            cells(&Axes { spark: versions(&["3.5.9"]), java: versions(&["17"]), ..Axes::default() }, false)
                .built
                .remove(0);
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
}
