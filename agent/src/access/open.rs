//! Contents without a record of who may have them, so that the disk is looked at once for them.
//!
//! A record may be written between that look and the note of it. Such a note does not count: the content would stay open
//! to anyone although a record says otherwise.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::types::Digest;

/// Contents that are remembered.
const REMEMBERED: usize = 65_536;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct OpenContents(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    contents: HashSet<Digest>,
    /// Records written so far.
    records: u64,
}

/// The moment before a look at the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct BeforeLook(u64);

impl OpenContents {
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.0.lock().contents.contains(digest)
    }

    /// To be called before the look whose result is noted.
    pub(super) fn before_look(&self) -> BeforeLook {
        BeforeLook(self.0.lock().records)
    }

    /// The look found no record.
    pub(super) fn note(&self, before: BeforeLook, digest: &Digest) {
        let mut state = self.0.lock();
        if state.records != before.0 {
            return;
        }
        if state.contents.len() >= REMEMBERED {
            state.contents.clear();
        }
        state.contents.insert(*digest);
    }

    /// To be called after a record may have been written, and before its content is.
    pub(super) fn note_record(&self, digest: &Digest) {
        let mut state = self.0.lock();
        state.contents.remove(digest);
        state.records += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_closes_a_content_whenever_it_is_written() {
        let digest = Digest::of(b"content");
        let open = OpenContents::default();
        let before = open.before_look();
        open.note(before, &digest);
        assert!(open.has(&digest));
        open.note_record(&digest);
        assert!(!open.has(&digest));
        // The look had found nothing, then the record was written, and the result of the look comes last.
        open.note(before, &digest);
        assert!(!open.has(&digest));
        open.note(open.before_look(), &digest);
        assert!(open.has(&digest), "a later look counts");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let open = OpenContents::default();
        for n in 0..=REMEMBERED {
            open.note(open.before_look(), &Digest::of(&n.to_le_bytes()));
        }
        assert_eq!(open.0.lock().contents.len(), 1);
    }
}
