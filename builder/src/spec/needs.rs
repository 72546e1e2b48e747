//! Keys that need an axis: what belongs to Spark is refused for images without it, and so are runtimes without a version.

use serde_saphyr::Location;

use super::{SpecError, check::Check, keys::Overlay};
use crate::matrix::Cell;

impl Check<'_> {
    /// Refuses keys that would have no effect, because the image has no Spark or no Java.
    pub(super) fn needs(&self, overlay: &Overlay, cell: &Cell) -> Result<(), SpecError> {
        let (spark, java) = (cell.spark.is_some(), cell.java.is_some());
        let sources = overlay.sources.as_ref();
        let of_spark =
            sources.and_then(|sources| sources.spark.as_ref()).map(|keys| ("sources.spark", keys.at()));
        let of_jars = overlay.jars.as_ref().map(|keys| ("jars", keys.at()));
        let of_jvm = overlay.jvm.as_ref().map(|keys| ("jvm", keys.at()));
        let of_java =
            sources.and_then(|sources| sources.java.as_ref()).map(|keys| ("sources.java", keys.at()));
        let unmet = [(of_spark, "spark", spark), (of_jars, "spark", spark), (of_jvm, "spark", spark)];
        let unmet = unmet.into_iter().chain([(of_java, "java", java)]);
        let mut unmet = unmet.filter_map(|(key, axis, met)| Some((key?, axis)).filter(|_| !met));
        match unmet.next() {
            None => Ok(()),
            Some(((key, at), axis)) => Err(self.unmet(key, at, axis, cell)),
        }
    }

    fn unmet(&self, key: &str, at: Location, axis: &str, cell: &Cell) -> SpecError {
        let example = if axis == "spark" { "spark: [\"3.5.9\"], java: [\"17\"]" } else { "java: [\"17\"]" };
        let problem = format!(
            "`{key}` needs the axis `{axis}`, which {} does not have: add `axes: {{ {example} }}`, or remove the key",
            cell.name()
        );
        self.wrong(at, &problem)
    }
}
