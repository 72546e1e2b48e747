//! Which wheel of a package suits a Python and a platform best, from their file names alone.
//!
//! The order is that of pip: built for exactly this Python, then for the stable interface, then pure ones; of several
//! platforms the newest that the image's C library supports (PEP 600 for glibc, PEP 656 for musl).

use super::{super::elf::Libc, marker::Environment};

/// Taken for bases that do not show their C library: the glibc of the oldest distributions still in use, as uv
/// takes it.
pub const ASSUMED: Libc = Libc::Glibc(2, 28);

/// How well a wheel suits; less is better. `None`: not at all.
pub fn rank(file: &str, environment: &Environment) -> Option<(u32, u32)> {
    let stem = file.strip_suffix(".whl")?;
    let mut parts = stem.rsplit('-');
    let (platforms, abis, pythons) = (parts.next()?, parts.next()?, parts.next()?);
    // Name and version are before the tags.
    parts.next().and(parts.next())?;
    let mut best = None;
    for python in pythons.split('.') {
        for abi in abis.split('.') {
            for platform in platforms.split('.') {
                let rank = interface(python, abi, environment).zip(machine(platform, environment));
                best = [best, rank].into_iter().flatten().min();
            }
        }
    }
    best
}

fn interface(python: &str, abi: &str, environment: &Environment) -> Option<u32> {
    let (major, minor) = environment.python.line();
    let own = format!("cp{major}{minor}");
    let exact = match (major, minor) {
        (2, _) => format!("{own}mu"),
        (3, ..=7) => format!("{own}m"),
        _ => own.clone(),
    };
    // `cp39` and `py39` as how much older than this Python they are.
    let age = |prefix: &str| -> Option<u32> {
        let digits = python.strip_prefix(prefix)?.strip_prefix(&major.to_string())?;
        if digits.is_empty() { Some(200) } else { minor.checked_sub(digits.parse().ok()?) }
    };
    match abi {
        _ if python == own && abi == exact => Some(0),
        "abi3" if major == 3 => age("cp").filter(|age| *age < 200).map(|age| 1 + age),
        "none" if python == own => Some(300),
        "none" => age("py").map(|age| 400 + age),
        _ => None,
    }
}

fn machine(platform: &str, environment: &Environment) -> Option<u32> {
    let machine = environment.platform.machine();
    if platform == "any" {
        return Some(1000);
    }
    let kind = platform.strip_suffix(machine)?.strip_suffix('_')?;
    if kind == "linux" {
        return Some(500);
    }
    let (major, minor, asked) = match environment.libc {
        Libc::Glibc(major, minor) => {
            let asked = match kind {
                "manylinux1" => (2, 5),
                "manylinux2010" => (2, 12),
                "manylinux2014" => (2, 17),
                other => numbers(other.strip_prefix("manylinux_")?)?,
            };
            (major, minor, asked)
        }
        Libc::Musl(major, minor) => (major, minor, numbers(kind.strip_prefix("musllinux_")?)?),
    };
    if asked.0 == major { minor.checked_sub(asked.1) } else { None }
}

fn numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('_')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Platform;

    #[test]
    fn the_best_wheel_is_chosen_as_pip_does() {
        let files = [
            "n-1-py3-none-any.whl",
            "n-1-py2.py3-none-any.whl",
            "n-1-cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            "n-1-cp38-abi3-manylinux2014_x86_64.whl",
            "n-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            "n-1-cp311-cp311-manylinux_2_28_x86_64.whl",
            "n-1-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
            "n-1-cp311-cp311-musllinux_1_2_x86_64.whl",
            "n-1-cp311-cp311-win_amd64.whl",
            "n-1-cp312-cp312-manylinux_2_28_x86_64.whl",
            "n-1-cp27-cp27mu-manylinux1_x86_64.whl",
            "n-1-cp311-cp311-manylinux_2_34_x86_64.whl",
            "n-1-cp314-cp314t-manylinux_2_28_x86_64.whl",
        ];
        let choose = |python: &str, platform: Platform, from: &[&str]| {
            let environment = Environment { python: python.parse().unwrap(), platform, libc: ASSUMED };
            from.iter()
                .filter_map(|file| rank(file, &environment).map(|rank| (rank, (*file).to_owned())))
                .min()
                .map(|(_, file)| file)
        };
        let amd64 = |python| choose(python, Platform::Amd64, &files);
        assert_eq!(amd64("3.11").as_deref(), Some(files[5]));
        assert_eq!(amd64("3.12").as_deref(), Some(files[9]));
        assert_eq!(amd64("3.10").as_deref(), Some(files[2]));
        assert_eq!(amd64("3.8").as_deref(), Some(files[3]));
        assert_eq!(amd64("2.7").as_deref(), Some(files[10]));
        assert_eq!(choose("3.11", Platform::Arm64, &files).as_deref(), Some(files[6]));
        assert_eq!(choose("3.14", Platform::Arm64, &files[..2]).as_deref(), Some(files[1]));
        assert_eq!(choose("3.11", Platform::Amd64, &files[9..]).as_deref(), None);
        assert_eq!(choose("3.11", Platform::Amd64, &["broken.whl", "a-b.whl", "x.tar.gz"]), None);
    }

    #[test]
    fn the_c_library_of_the_image_decides() {
        let files = [
            "n-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            "n-1-cp311-cp311-manylinux_2_34_x86_64.whl",
            "n-1-cp311-cp311-musllinux_1_1_x86_64.whl",
            "n-1-cp311-cp311-musllinux_1_2_x86_64.whl",
        ];
        let choose = |libc| {
            let environment =
                Environment { python: "3.11".parse().unwrap(), platform: Platform::Amd64, libc };
            let ranked = files.iter().filter_map(|file| Some((rank(file, &environment)?, *file)));
            ranked.min().map(|(_, file)| file)
        };
        assert_eq!(choose(Libc::Glibc(2, 36)), Some(files[1]));
        assert_eq!(choose(Libc::Glibc(2, 31)), Some(files[0]));
        assert_eq!(choose(Libc::Glibc(2, 12)), None);
        assert_eq!(choose(Libc::Musl(1, 2)), Some(files[3]));
        assert_eq!(choose(Libc::Musl(1, 1)), Some(files[2]));
    }
}
