//! The inputs of one run, compared with the lock.

use std::collections::{BTreeMap, BTreeSet};

use super::{Lock, LockError, PART, Pin, is_part};
use crate::digest::{Digest, Mismatch};

/// The inputs of one run, compared with the lock.
#[derive(Debug, Default)]
pub struct Pins {
    known: BTreeMap<String, Pin>,
    /// Whether an input that was not locked is an error.
    strict: bool,
    /// Everything that was used.
    pub seen: BTreeMap<String, Pin>,
    /// The names that were used since this was emptied: the inputs of one image.
    pub touched: BTreeSet<String>,
}

/// What a lock says about files that the build itself makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frozen {
    /// They are these.
    As(Digest),
    /// The image was locked without them, and stays so.
    Without,
    /// Nothing: they are made where that is possible.
    Open,
}

impl Pins {
    /// The pins of a lock.
    pub fn new(lock: Option<&Lock>, strict: bool) -> Self {
        let known = lock.map(|lock| lock.inputs.clone()).unwrap_or_default();
        Self { known, strict: strict && lock.is_some(), ..Self::default() }
    }

    /// What was locked under this name.
    pub fn get(&self, name: &str) -> Result<Option<Pin>, LockError> {
        match self.known.get(name) {
            None if self.strict => Err(LockError::Stale { what: format!("`{name}`") }),
            found => Ok(found.cloned()),
        }
    }

    /// What a lock says about files that the build itself makes.
    pub fn frozen(&self, name: &str) -> Frozen {
        match self.known.get(name) {
            Some(pin) => Frozen::As(pin.digest),
            None if self.strict => Frozen::Without,
            None => Frozen::Open,
        }
    }

    /// The parts of all requests with fitting names, whether these are still what was locked or not.
    pub fn parts(&self, fits: impl Fn(&str) -> bool) -> impl Iterator<Item = &str> {
        let parts = self.known.keys().filter_map(|name| name.split_once(PART));
        parts.filter(move |(request, _)| fits(request)).map(|(_, part)| part)
    }

    /// Whether everything has to be locked.
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// Everything that was locked.
    pub fn known(&self) -> impl Iterator<Item = (&String, &Pin)> {
        self.known.iter()
    }

    /// What a request came to, as part and pin; `None` when it is new or another one.
    pub fn resolved(&self, request: &str, digest: Digest) -> Result<Option<Vec<(String, Pin)>>, LockError> {
        if self.known.get(request).is_some_and(|pin| pin.digest == digest) {
            let parts = self.known.iter().filter(|(name, _)| is_part(name, request));
            let part = |name: &String| name[request.len() + PART.len()..].to_owned();
            return Ok(Some(parts.map(|(name, pin)| (part(name), pin.clone())).collect()));
        }
        if self.strict {
            return Err(LockError::Stale { what: format!("`{request}` as it is now") });
        }
        Ok(None)
    }

    /// Notes a request; another one than before is a change of the specification and no surprise.
    pub fn request(&mut self, request: &str, digest: Digest, origin: &str) {
        self.touched.insert(request.to_owned());
        self.seen.insert(request.to_owned(), Pin { digest, origin: origin.to_owned(), classes: None });
    }

    /// Notes what was used, and refuses what is not what was locked.
    pub fn used(&mut self, name: &str, digest: Digest, origin: &str) -> Result<(), LockError> {
        if let Some(locked) = self.get(name)?
            && locked.digest != digest
        {
            let mismatch = Box::new(Mismatch { expected: locked.digest, found: digest });
            return Err(LockError::Changed { name: name.to_owned(), mismatch });
        }
        if let Some(other) = self.seen.get(name).filter(|pin| pin.digest != digest) {
            let mismatch = Box::new(Mismatch { expected: other.digest, found: digest });
            return Err(LockError::Twice { name: name.to_owned(), mismatch });
        }
        self.touched.insert(name.to_owned());
        self.seen.insert(name.to_owned(), Pin { digest, origin: origin.to_owned(), classes: None });
        Ok(())
    }

    /// The classes that an archive was made of when it was locked.
    pub fn classes(&self, name: &str) -> Option<&str> {
        self.known.get(name)?.classes.as_deref()
    }

    /// The same as [`used`](Self::used) for an archive of class data, with the classes that it is made of.
    pub fn archived(
        &mut self,
        name: &str,
        digest: Digest,
        origin: &str,
        classes: String,
    ) -> Result<(), LockError> {
        self.used(name, digest, origin)?;
        if let Some(pin) = self.seen.get_mut(name) {
            pin.classes = Some(classes);
        }
        Ok(())
    }
}
