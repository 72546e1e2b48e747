//! The inner half of a sandbox: this process has namespaces of its own and becomes the program.

use std::{
    convert::Infallible,
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
    net::{AddressFamily, SendFlags, SocketType},
    process::{Resource, Rlimit},
};

/// Devices that every program may use; they are this machine's.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// The largest file that a program may write: training leaves a few hundred megabytes.
const LARGEST_FILE: u64 = 2 << 30;

/// Makes `root` the root directory of this process and runs the program in it. Comes back only with an error, which says
/// what this machine does not allow.
pub fn enter(root: &Path, program: &str, arguments: &[String]) -> Result<Infallible, String> {
    let step = |what: &str, result: io::Result<()>| result.map_err(|error| format!("cannot {what}: {error}"));
    step("set the host name", rustix::system::sethostname(b"localhost").map_err(io::Error::from))?;
    step("limit the size of files", limits())?;
    step("keep mounts private", private())?;
    step("mount devices", devices(root))?;
    step("mount /proc", processes(root))?;
    step("set up the loopback network", loopback())?;
    step("change the root directory", change_root(root))?;
    let error = Command::new(program).args(arguments).exec();
    Err(format!("cannot run `{program}`: {error}"))
}

/// What is mounted here must not show outside.
fn private() -> io::Result<()> {
    let flags = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    Ok(rustix::mount::mount_change("/", flags)?)
}

fn limits() -> io::Result<()> {
    let limit = Rlimit { current: Some(LARGEST_FILE), maximum: Some(LARGEST_FILE) };
    Ok(rustix::process::setrlimit(Resource::Fsize, limit)?)
}

fn devices(root: &Path) -> io::Result<()> {
    for name in DEVICES {
        let place = root.join("dev").join(name);
        if !place.exists() {
            File::create(&place)?;
        }
        rustix::mount::mount_bind(Path::new("/dev").join(name), &place)?;
    }
    Ok(())
}

/// A fresh `/proc` shows the processes of the sandbox only. In a container that hides parts of its own `/proc` the kernel
/// refuses that, and this one's is shown instead.
fn processes(root: &Path) -> io::Result<()> {
    let place = root.join("proc");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match rustix::mount::mount("proc", &place, "proc", flags, None) {
        Ok(()) => Ok(()),
        Err(_) => Ok(rustix::mount::mount_bind_recursive("/proc", &place)?),
    }
}

/// `ip link set lo up`, as rtnetlink(7) has it: the first interface of a network namespace is the loopback.
fn loopback() -> io::Result<()> {
    const NEW_LINK: u16 = 16;
    const REQUEST_AND_ACKNOWLEDGE: u16 = 1 | 4;
    const UP: u32 = 1;
    const LENGTH: u32 = 32;
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let mut message = Vec::new();
    // nlmsghdr: length, type, flags, sequence, port.
    message.extend(LENGTH.to_ne_bytes());
    message.extend(NEW_LINK.to_ne_bytes());
    message.extend(REQUEST_AND_ACKNOWLEDGE.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    // ifinfomsg: family, padding, type, index, flags, and which of the flags change.
    message.extend([0; 4]);
    message.extend(1_i32.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0_u8; 256];
    let (_, length) = rustix::net::recv(&socket, &mut answer[..], rustix::net::RecvFlags::empty())?;
    // nlmsgerr: a negative error number behind the header; zero acknowledges.
    match answer[..length].get(16..20).map(|code| i32::from_ne_bytes([code[0], code[1], code[2], code[3]])) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// pivot_root(2), "pivot_root(\".\", \".\")": the old root is mounted over the new one and then detached, so no path
/// leads back to it.
fn change_root(root: &Path) -> io::Result<()> {
    rustix::mount::mount_bind_recursive(root, root)?;
    std::env::set_current_dir(root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    fs::metadata("/proc/self").map(drop)
}
