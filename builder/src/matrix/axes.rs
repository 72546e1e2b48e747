//! Which cells of a matrix are built: the axes multiplied, without what is left out or cannot run.

use super::{
    cell::Cell,
    compat::{self, Verdict},
    condition::Condition,
};
use crate::{platform::Platform, version::Version};

/// The values of each axis as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Axes {
    /// Spark versions; empty for plain images.
    pub spark: Vec<Version>,
    /// Java versions; may be empty without Spark.
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
    for spark in optional(&axes.spark) {
        for scala in optional(&axes.scala) {
            for java in optional(&axes.java) {
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

#[cfg(test)]
mod tests {
    use super::{super::cell::cell, *};

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
    fn without_axes_there_is_one_plain_image_for_each_platform() {
        let platforms = vec![Platform::Amd64, Platform::Arm64];
        let cells = cells(&Axes { platforms, ..Axes::default() }, false);
        assert_eq!(cells.built.iter().map(Cell::name).collect::<Vec<_>>(), ["the plain image"; 2]);
        assert!(cells.refused.is_empty());
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
