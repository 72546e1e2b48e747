//! Merges what defaults, lines and a variant say about one image.
//!
//! One rule for all keys: single values of later overlays replace earlier ones, maps are merged by name, and lists
//! grow. Entries of a list that contradict each other (two versions of one JAR or Python package, two files at one
//! place) are refused where the recipe is checked, with both places.

use super::keys::{JarsKeys, JvmKeys, Overlay, WheelsKeys};

/// The merged overlays of one cell.
pub(super) struct Merged(Overlay);

impl Merged {
    /// Later overlays win over earlier ones.
    pub(super) fn of<'a>(overlays: impl Iterator<Item = &'a Overlay>) -> Self {
        let mut merged = Overlay::default();
        for overlay in overlays.cloned() {
            merged.tags.extend(overlay.tags);
            merged.base = overlay.base.or(merged.base);
            merged.env.extend(overlay.env);
            merged.labels.extend(overlay.labels);
            merged.files.extend(overlay.files);
            merged.ports.extend(overlay.ports);
            merged.bytecode = overlay.bytecode.or(merged.bytecode);
            merged.user = overlay.user.or(merged.user);
            merged.entrypoint = overlay.entrypoint.or(merged.entrypoint);
            merged.command = overlay.command.or(merged.command);
            merged.working_directory = overlay.working_directory.or(merged.working_directory);
            if let Some(jvm) = overlay.jvm {
                let known = merged.jvm.as_ref().and_then(|known| known.value().class_data_sharing);
                let class_data_sharing = jvm.value().class_data_sharing.or(known);
                merged.jvm = Some(jvm.with(JvmKeys { class_data_sharing }));
            }
            if let Some(sources) = overlay.sources {
                let known = merged.sources.get_or_insert_default();
                known.spark = sources.spark.or(known.spark.take());
                known.java = sources.java.or(known.java.take());
                known.python = sources.python.or(known.python.take());
            }
            if let Some(jars) = overlay.jars {
                let mut known = merged.jars.as_ref().map(|known| known.value().clone()).unwrap_or_default();
                let JarsKeys { repositories, packages, exclude, keep_spark } = jars.value().clone();
                known.repositories.extend(repositories);
                known.packages.extend(packages);
                known.exclude.extend(exclude);
                known.keep_spark.extend(keep_spark);
                merged.jars = Some(jars.with(known));
            }
            if let Some(wheels) = overlay.wheels {
                let known = merged.wheels.as_ref().map(|known| known.value().clone()).unwrap_or_default();
                let WheelsKeys { lock, extras, groups, requirements, packages } = wheels.value().clone();
                merged.wheels = Some(wheels.with(WheelsKeys {
                    lock: lock.or(known.lock),
                    requirements: requirements.or(known.requirements),
                    extras: known.extras.into_iter().chain(extras).collect(),
                    groups: known.groups.into_iter().chain(groups).collect(),
                    packages: known.packages.into_iter().chain(packages).collect(),
                }));
            }
        }
        Self(merged)
    }

    /// What the overlays come to.
    pub(super) fn overlay(&self) -> &Overlay {
        &self.0
    }
}
