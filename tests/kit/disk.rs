//! A small disk of its own for a store: a tmpfs, filled up and made read-only at will. Needs root.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

/// A mounted tmpfs; unmounted when dropped, and whatever is in it is gone.
#[derive(Debug)]
pub struct SmallDisk {
    point: PathBuf,
}

impl SmallDisk {
    /// Mounts `bytes` of disk at a directory, which is made.
    pub fn mount(point: &Path, bytes: u64) -> Result<Self> {
        fs::create_dir_all(point).context("cannot make the mount point")?;
        let options = std::ffi::CString::new(format!("size={bytes}")).context("a number has no zero byte")?;
        mount("none", point, "tmpfs", MountFlags::empty(), options.as_c_str())
            .context("cannot mount a tmpfs: that needs root")?;
        Ok(Self { point: point.to_owned() })
    }

    fn filler(&self) -> PathBuf {
        self.point.join("filler")
    }

    /// Someone else fills the disk up to `leave` bytes.
    pub fn fill_up(&self, leave: u64) -> Result<()> {
        let mut filler = fs::File::create(self.filler()).context("cannot fill the disk")?;
        loop {
            let stat = rustix::fs::statvfs(&self.point).context("cannot measure the disk")?;
            let bytes = (stat.f_bavail * stat.f_frsize).saturating_sub(leave).min(1 << 20);
            if bytes == 0 {
                return Ok(());
            }
            // A store that writes meanwhile may be faster.
            match filler.write_all(&vec![1; usize::try_from(bytes).context("a small disk")?]) {
                Err(error) if error.kind() != io::ErrorKind::StorageFull => {
                    return Err(error).context("cannot fill the disk");
                }
                _ => {}
            }
        }
    }

    /// And takes that away again.
    pub fn empty(&self) -> Result<()> {
        fs::remove_file(self.filler()).context("cannot empty the disk")
    }

    /// From here on nothing can be written; refused by the kernel while a file is open for writing.
    pub fn make_read_only(&self) -> Result<()> {
        for _ in 0..100 {
            // Whoever has just ended may be closing files still.
            match mount_remount(&self.point, MountFlags::RDONLY, "") {
                Err(rustix::io::Errno::BUSY) => std::thread::sleep(Duration::from_millis(50)),
                done => return done.context("cannot mount the disk read-only"),
            }
        }
        bail!("someone has a file open for writing")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is about to end may still be in it.
        unmount(&self.point, UnmountFlags::DETACH).ok();
    }
}
