//! Files that programs of the image itself make: bytecode.
//!
//! They are an improvement, not a need: where this machine cannot run the image's programs, the image is built without
//! them, and a warning says why. What a lock names has to be made, or found in the cache, exactly as it was locked.

use std::collections::BTreeMap;

use super::{BuildError, inputs::Inputs, repair::blocking};
use crate::{
    cache::{Cache, Shelf},
    digest::Digest,
    lock::{LockError, pins::Frozen},
    plan::{layers::LayerName, locked::fingerprint},
    platform::Platform,
    runtime,
    sandbox::{Root, SandboxError},
    sources::{
        base::Base,
        detect::{Found, Python},
    },
    spec::Wanted,
    trained::bytecode::{self, Group},
    tree::{self, Entry, Tree},
};

/// What the lock has as the origin of such files.
pub(super) const ORIGIN: &str = "made by the build";

impl Inputs<'_> {
    /// The bytecode of an image's Python files.
    pub(super) fn bytecode(
        &mut self,
        wanted: &Wanted,
        base: &Base,
        found: &Found,
        parts: &BTreeMap<LayerName, Tree>,
    ) -> Result<Tree, BuildError> {
        let mut tree = Tree::new();
        let Some(python) = found.python.as_ref().filter(|_| wanted.recipe.bytecode) else { return Ok(tree) };
        let mut root = None;
        for group in bytecode::groups(parts) {
            let key = group.key(python, interpreter(base, parts));
            let name = format!("bytecode {} {}", group.name, key.short());
            let frozen = self.pins.frozen(&name);
            if frozen == Frozen::Without {
                continue;
            }
            let made = match known(self.cache, key, frozen) {
                Some(known) => Ok(known),
                None => self.compile(wanted, base, python, &group, parts, &mut root),
            };
            match made {
                Ok(made) => {
                    self.pins.used(&name, fingerprint(&made), ORIGIN)?;
                    tree.extend(made);
                }
                Err(SandboxError::Cache(error)) => return Err(error.into()),
                Err(SandboxError::Failed(why)) => match frozen {
                    Frozen::As(_) => return Err(LockError::Unmade { name, why }.into()),
                    _ => self.warn(&format!(
                        "the image on `{}` is built without bytecode for its {} files: {why}",
                        base.name, group.name
                    )),
                },
            }
        }
        Ok(tree)
    }

    /// Compiles the files of a group. `root` is the tree that they are compiled in, once it is there.
    fn compile(
        &mut self,
        wanted: &Wanted,
        base: &Base,
        python: &Python,
        group: &Group,
        parts: &BTreeMap<LayerName, Tree>,
        root: &mut Option<Root>,
    ) -> Result<Tree, SandboxError> {
        if let Some(why) = bytecode::unsuitable(python).or_else(|| foreign(wanted.cell.platform)) {
            return Err(SandboxError::Failed(why));
        }
        let _bar = self.progress.step(&format!("compiling the Python files of {}", group.name));
        blocking(|| {
            if root.is_none() {
                let python = [LayerName::Python, LayerName::Spark, LayerName::Wheels];
                let parts = parts.iter().filter(|(name, _)| python.contains(name));
                let parts = parts.map(|(name, tree)| (*name, tree.clone())).collect();
                *root = Some(assemble(self.cache, base, parts)?);
            }
            let root = root.as_ref().expect("it was made above");
            let made = bytecode::compile(self.cache, root, python, group, self.options.jobs)?;
            self.cache.leave_note("trees-v2", &group.key(python, interpreter(base, parts)), &made)?;
            Ok(made)
        })
    }
}

/// Where the Python comes from: one that the specification brings along is itself among the parts.
fn interpreter(base: &Base, parts: &BTreeMap<LayerName, Tree>) -> Digest {
    parts.get(&LayerName::Python).map_or(base.digest, fingerprint)
}

/// Why programs for this platform cannot run here.
pub(super) fn foreign(platform: Platform) -> Option<String> {
    let here = Platform::host();
    (platform != here).then(|| format!("a machine with {here} cannot run programs for {platform}"))
}

/// What an earlier run has made of the same inputs; it has to be what is locked.
pub(super) fn known(cache: &Cache, key: Digest, frozen: Frozen) -> Option<Tree> {
    let known = cache.note::<Tree>("trees-v2", &key)?;
    let here = |content| cache.find(Shelf::Files, &content).is_some();
    let fits = match frozen {
        Frozen::As(digest) => fingerprint(&known) == digest,
        Frozen::Open | Frozen::Without => true,
    };
    (fits && known.values().filter_map(Entry::content).all(here)).then_some(known)
}

/// The base with parts of an image on top, on this disk.
pub(super) fn assemble(
    cache: &Cache,
    base: &Base,
    parts: BTreeMap<LayerName, Tree>,
) -> Result<Root, SandboxError> {
    let unusable =
        |what: &dyn std::fmt::Display| SandboxError::Failed(format!("its files cannot be laid out: {what}"));
    let mut tree = (*base.files(cache).map_err(|error| unusable(&error))?).clone();
    for part in runtime::arrange(parts).map_err(|error| unusable(&error))?.into_values() {
        tree.extend(runtime::fit(part, &base.view).map_err(|error| unusable(&error))?);
    }
    tree::complete(&mut tree);
    Root::assemble(cache, &tree)
}
