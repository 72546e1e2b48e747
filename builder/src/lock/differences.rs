//! What has changed from one lock to the next, in words.

use std::collections::BTreeSet;

use super::{Lock, wheel};

impl Lock {
    /// What is different in `newer`, in words.
    pub fn differences(&self, newer: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if (&self.codec, self.headers) != (&newer.codec, newer.headers) {
            found.push(format!("layers are written with `{}` instead of `{}`", newer.codec, self.codec));
        }
        let (moved, covered) = self.moved_packages(newer);
        found.extend(moved);
        for (name, pin) in newer.inputs.iter().filter(|(name, _)| !covered.contains(*name)) {
            match self.inputs.get(name) {
                None => found.push(format!("`{name}` is new")),
                Some(old) if old.digest != pin.digest => found.push(format!("`{name}` has changed")),
                Some(old) if old.origin != pin.origin => found.push(format!("`{name}` has moved")),
                Some(_) => {}
            }
        }
        let gone = self.inputs.keys().filter(|name| !newer.inputs.contains_key(*name));
        let gone = gone.filter(|name| !covered.contains(*name));
        found.extend(gone.map(|name| format!("`{name}` is no longer needed")));
        let missing = |from: &Self, other: &Self| {
            from.layers.iter().filter(|layer| !other.layers.iter().any(|known| known == *layer)).count()
        };
        let (added, removed) = (missing(newer, self), missing(self, newer));
        if added + removed > 0 {
            found.push(format!("{added} layers are new and {removed} are gone"));
        } else if found.is_empty() && self != newer {
            found.push("images have the same layers in another order".to_owned());
        }
        found
    }

    /// Python packages that have another version in `newer`, in words, and the names of all inputs that these words
    /// cover. A request that is listed in the specification itself has its digest in its name: it is another request
    /// for the same Python and platform, and what stayed the same in it is no difference.
    fn moved_packages(&self, newer: &Self) -> (Vec<String>, BTreeSet<String>) {
        let (mut words, mut covered) = (Vec::new(), BTreeSet::new());
        let gone: Vec<&String> =
            self.inputs.keys().filter(|name| !newer.inputs.contains_key(*name)).collect();
        for name in newer.inputs.keys().filter(|name| !self.inputs.contains_key(*name)) {
            let Some((request, package, version)) = wheel(name) else { continue };
            let replaced = |old: &str| {
                let both = newer.inputs.contains_key(old) || self.inputs.contains_key(request);
                old == request || (!both && target(old) == target(request))
            };
            let old = gone.iter().find_map(|old| {
                let (of, same, before) = wheel(old)?;
                (replaced(of) && same == package && !covered.contains(*old)).then_some((*old, of, before))
            });
            let Some((old, of, before)) = old else { continue };
            if before != version {
                words.push(format!("`{request}`: `{package}` is {version} instead of {before}"));
            } else if of == request {
                continue;
            }
            covered.extend([old.clone(), name.clone()]);
        }
        (words, covered)
    }
}

/// What a request for Python packages is made for: all but the second word of its name.
fn target(request: &str) -> Option<&str> {
    request.strip_prefix("wheels ").and_then(|rest| rest.split_once(' ')).map(|(_, target)| target)
}
