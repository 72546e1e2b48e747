//! The progress of one image.

use parking_lot::{Mutex, MutexGuard};

use crate::types::Digest;

/// Written by the pull task, read by reports.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<Vec<Part>>);

#[derive(Debug)]
struct Part {
    digest: Digest,
    size: u64,
    /// Bytes that arrived in slices.
    come: u64,
}

impl Progress {
    fn parts(&self) -> MutexGuard<'_, Vec<Part>> {
        self.0.lock()
    }

    /// Adds a blob that the image needs.
    pub(super) fn needs(&self, digest: Digest, size: u64) {
        self.parts().push(Part { digest, size, come: 0 });
    }

    /// A blob is complete.
    pub(super) fn came(&self, digest: &Digest) {
        for part in self.parts().iter_mut().filter(|part| part.digest == *digest) {
            part.come = part.size;
        }
    }

    /// This many bytes of a blob have arrived.
    pub(super) fn reached(&self, digest: &Digest, bytes: u64) {
        for part in self.parts().iter_mut().filter(|part| part.digest == *digest) {
            part.come = bytes.min(part.size);
        }
    }

    /// Total size of the image in bytes, once its manifests were read.
    pub(super) fn total(&self) -> u64 {
        self.parts().iter().map(|part| part.size).sum()
    }

    /// Whether some part of the image is missing, as far as known.
    pub(super) fn lacks_any(&self) -> bool {
        self.parts().iter().any(|part| part.come < part.size)
    }

    /// From 0 to 99: only a complete image has 100.
    pub(super) fn percent(&self, have: &dyn Fn(&Digest) -> u64) -> u8 {
        let parts = self.parts();
        let total: u64 = parts.iter().map(|part| part.size).sum();
        let come = |part: &Part| match part.come {
            come if come == part.size => come,
            come => have(&part.digest).clamp(come, part.size),
        };
        let come: u64 = parts.iter().map(come).sum();
        let percent = u128::from(come) * 100 / u128::from(total.max(1));
        u8::try_from(percent.min(99)).unwrap_or(99)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_and_arriving_blobs_count_and_a_hundred_means_complete() {
        let progress = Progress::default();
        assert_eq!(progress.percent(&|_| 0), 0);
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        progress.needs(a, 100);
        progress.needs(b, 300);
        assert_eq!(progress.percent(&|digest| if *digest == b { 60 } else { 0 }), 15);
        progress.came(&a);
        assert_eq!(progress.percent(&|_| 1_000), 99);
        assert_eq!((progress.percent(&|_| 0), progress.total()), (25, 400));
    }
}
