//! The archive of class data of an image: trained here, or made of the classes that a lock names.

use std::collections::BTreeMap;

use super::{
    BuildError,
    inputs::Inputs,
    repair::blocking,
    training::{ORIGIN, assemble, foreign, known},
};
use crate::{
    digest::Digest,
    lock::{LockError, pins::Frozen},
    plan::{layers::LayerName, locked::fingerprint},
    sandbox::SandboxError,
    sources::{
        base::Base,
        detect::{Found, Java, Python},
    },
    spec::Wanted,
    trained::{class_list, classes},
    tree::Tree,
    version::Version,
};

/// How often an archive is made until it is the locked one. Threads of Java race while it archives, so one list comes to one of
/// two results (measured with Java 17).
const TRIES: usize = 5;

/// An image on the way: everything that an archive of class data depends on.
struct Unfinished<'a> {
    wanted: &'a Wanted,
    base: &'a Base,
    spark: &'a Version,
    java: &'a Java,
    python: Option<&'a Python>,
    parts: &'a BTreeMap<LayerName, Tree>,
    env: &'a BTreeMap<String, String>,
}

impl Unfinished<'_> {
    /// The files whose JARs are in the archive. The user's own come behind them on the class path: an application's JAR
    /// changes more often than Spark, and needs no other archive.
    fn jars(&self) -> Tree {
        let own = self.parts.get(&LayerName::Files);
        let parts = self.parts.iter().filter(|(name, _)| **name != LayerName::Files);
        let files = parts.flat_map(|(_, tree)| tree.iter());
        let files = files.filter(|(path, _)| !own.is_some_and(|own| own.contains_key(*path)));
        files.map(|(path, entry)| (path.clone(), entry.clone())).collect()
    }
}

impl Inputs<'_> {
    /// The archive of class data of an image, and what starts Java with it.
    pub(super) fn class_data(
        &mut self,
        wanted: &Wanted,
        base: &Base,
        found: &Found,
        parts: &BTreeMap<LayerName, Tree>,
        env: &BTreeMap<String, String>,
    ) -> Result<Tree, BuildError> {
        let (true, Some(spark), Some(java)) = (wanted.recipe.class_data, &wanted.cell.spark, &found.java)
        else {
            return Ok(Tree::new());
        };
        let python = found.python.as_ref();
        let image = &Unfinished { wanted, base, spark, java, python, parts, env };
        let jars = image.jars();
        let made = blocking(|| {
            let key = classes::key(image.java, self.java(image)?, &jars);
            let name = format!("classes spark {} {}", image.spark, key.short());
            let frozen = self.pins.frozen(&name);
            let made = match known(self.cache, key, frozen) {
                _ if frozen == Frozen::Without => Ok(Tree::new()),
                Some(known) => Ok(known),
                None => self.archive(image, &jars, (&name, frozen), key),
            };
            Ok::<_, BuildError>((name, frozen, made))
        })?;
        let (name, frozen, made) = made;
        match made {
            Ok(made) if made.is_empty() => Ok(made),
            Ok(made) => {
                let list = classes::list(self.cache, &made)?.unwrap_or_default();
                let list = class_list::pack(&list).map_err(crate::cache::CacheError::Input)?;
                self.pins.archived(&name, fingerprint(&made), ORIGIN, list)?;
                Ok(made)
            }
            Err(SandboxError::Cache(error)) => Err(error.into()),
            Err(SandboxError::Failed(why)) if matches!(frozen, Frozen::As(_)) => {
                Err(LockError::Unmade { name, why }.into())
            }
            Err(SandboxError::Failed(why)) => {
                let image = image.wanted.cell.name();
                self.warn(&format!("{image}: built without an archive of class data: {why}"));
                Ok(Tree::new())
            }
        }
    }

    /// Digest over the files of an image's Java: bases that have the same one share an archive.
    fn java(&self, image: &Unfinished<'_>) -> Result<Digest, BuildError> {
        if let Some(java) = image.parts.get(&LayerName::Java) {
            return Ok(fingerprint(java));
        }
        let home = &image.java.home;
        let home = image.base.view.real(home).unwrap_or_else(|| home.clone());
        let name = &image.base.name;
        let files = image.base.files(self.cache);
        let files = files.map_err(|source| BuildError::Archive { path: name.into(), source })?;
        let own = files.iter().filter(|(path, _)| path.below(home.as_str()).is_some());
        Ok(fingerprint(&own.map(|(path, entry)| (path.clone(), entry.clone())).collect()))
    }

    /// Makes the archive from the classes in the lock; without a lock, from the classes that the training job loads.
    fn archive(
        &self,
        image: &Unfinished<'_>,
        jars: &Tree,
        (name, frozen): (&str, Frozen),
        key: Digest,
    ) -> Result<Tree, SandboxError> {
        let Unfinished { wanted, base, java, python, parts, env, .. } = image;
        let locked = self.pins.classes(name).map(class_list::unpack).transpose();
        let locked = locked.map_err(|error| SandboxError::Failed(error.to_string()))?;
        let why = classes::unsuitable(java, python.is_some() || locked.is_some());
        if let Some(why) = why.or_else(|| foreign(wanted.cell.platform)) {
            return Err(SandboxError::Failed(why));
        }
        let _bar = self.progress.step(&format!("archiving class data for {}", wanted.cell.name()));
        let starter = classes::starter(self.cache, java, jars)?;
        let mut parts: BTreeMap<LayerName, Tree> = (*parts).clone();
        // They are large, and the job imports none of them.
        parts.remove(&LayerName::Wheels);
        parts.insert(LayerName::ClassData, starter.clone());
        let root = assemble(self.cache, base, parts)?;
        let list = match locked {
            Some(list) => list,
            None => classes::train(self.cache, &root, env)?,
        };
        let mut made = classes::archive(self.cache, &root, java, &starter, jars, &list)?;
        for _ in 1..TRIES {
            if !matches!(frozen, Frozen::As(locked) if locked != fingerprint(&made)) {
                break;
            }
            made = classes::archive(self.cache, &root, java, &starter, jars, &list)?;
        }
        self.cache.leave_note("trees-v2", &key, &made)?;
        Ok(made)
    }
}
