//! `hearth lock`: makes, checks and changes the lock.

use super::{BuildError, Options, options::lock_path, prepare::prepare, repair::repaired};
use crate::{
    cache::Cache,
    lock::{Lock, LockError},
    progress::Progress,
    registry::Registry,
    report::LockReport,
};

/// What is to be done with a lock.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Only say whether it is current; nothing is written.
    pub check: bool,
    /// Inputs that are looked up anew; all others stay what they are.
    pub upgrade: Vec<String>,
    /// Group all files anew: existing images get other layers, and share more.
    pub regroup: bool,
}

/// Locks a specification: inputs that are locked already stay what they are, and so do layers.
pub async fn lock(options: &Options, change: &Change, progress: &Progress) -> Result<LockReport, BuildError> {
    let cache = Cache::open(&options.cache)?;
    repaired(&cache, async || relock(options, &cache, change, progress).await).await
}

async fn relock(
    options: &Options,
    cache: &Cache,
    change: &Change,
    progress: &Progress,
) -> Result<LockReport, BuildError> {
    let path = lock_path(options);
    let old = Lock::read(&path)?;
    if old.is_none() && change.check {
        return Err(LockError::Absent { path }.into());
    }
    let mut kept = old.clone();
    if let Some(lock) = &mut kept {
        lock.forget(&change.upgrade)?;
        if change.regroup {
            lock.forget_layers();
        }
    } else if let Some(name) = change.upgrade.first() {
        return Err(LockError::Unknown { name: name.clone(), known: String::new() }.into());
    }
    let registry = Registry::new(options.registries.clone());
    let planning = prepare(options, cache, &registry, progress, kept.as_ref(), false).await?;
    let new = planning.lock;
    let changes = match &old {
        None => vec!["it is new".to_owned()],
        Some(old) => old.differences(&new),
    };
    if !change.check && !changes.is_empty() {
        new.write(&path)?;
    }
    Ok(LockReport {
        lock: path.display().to_string(),
        inputs: new.inputs.len(),
        layers: new.layers.len(),
        changes,
        checked: change.check,
        warnings: planning.warnings,
    })
}
