//! `hearth-agent prepare`: gives the data directory to the user that the agent runs as.
//!
//! On a cluster node root creates the directory first, and the agent does not run as root. Files in the directory may
//! belong to the user of an earlier agent.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, lchown},
    path::Path,
    str::FromStr,
};

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command, value_parser};

use super::{print, with_config};
use crate::config::Config;

pub(super) const NAME: &str = "prepare";

const OWNER: &str = "owner";

pub(super) fn command() -> Command {
    let owner = Arg::new(OWNER)
        .long(OWNER)
        .value_name("UID:GID")
        .required(true)
        .value_parser(value_parser!(Owner))
        .help("User and group of the agent, as numbers");
    let command = Command::new(NAME)
        .about("Create the data directory and give it to the user that the agent runs as; needs root")
        .arg(owner)
        .after_help("Example:\n  hearth-agent prepare --config /etc/hearth/agent.yaml --owner 65532:65532");
    with_config(command)
}

pub(super) fn run(arguments: &ArgMatches, config: &Config) -> anyhow::Result<()> {
    let owner = *arguments.get_one::<Owner>(OWNER).expect("clap requires it");
    let directory = &config.store.data_dir;
    let given = give(directory, owner).with_context(|| {
        format!("cannot give `{}` to {}:{}", directory.display(), owner.user, owner.group)
    })?;
    let what = if given { "given to" } else { "belongs to" };
    print(&format!("{} {what} {}:{}\n", directory.display(), owner.user, owner.group))
}

/// A user and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    user: u32,
    group: u32,
}

impl Owner {
    fn has(self, metadata: &fs::Metadata) -> bool {
        metadata.uid() == self.user && metadata.gid() == self.group
    }
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once(':')
            .and_then(|(user, group)| Some(Self { user: user.parse().ok()?, group: group.parse().ok()? }));
        parsed.ok_or_else(|| {
            format!("`{text}` is not of the form UID:GID with numbers, for example `65532:65532`")
        })
    }
}

/// Returns whether anything was changed. The directory itself is changed last: once it has the new owner, everything
/// in it has, and root never enters a directory that another user could change meanwhile.
fn give(directory: &Path, owner: Owner) -> io::Result<bool> {
    fs::create_dir_all(directory)?;
    if owner.has(&fs::metadata(directory)?) {
        return Ok(false);
    }
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            // A blob with several links also belongs to the container runtime (`store.runtimeLink`) and keeps its
            // owner.
            let shared = metadata.is_file() && metadata.nlink() > 1;
            if !shared && !owner.has(&metadata) {
                lchown(&path, Some(owner.user), Some(owner.group))?;
            }
            if metadata.is_dir() {
                open.push(path);
            }
        }
    }
    lchown(directory, Some(owner.user), Some(owner.group))?;
    Ok(true)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the tests make what lies there")]
mod tests {
    use super::*;

    #[test]
    fn owners_are_numbers() {
        assert_eq!("65532:7".parse(), Ok(Owner { user: 65532, group: 7 }));
        for wrong in ["", "1", "a:b", "1:2:3", "-1:1"] {
            assert!(wrong.parse::<Owner>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn everything_gets_the_owner_except_links_and_their_targets() {
        let home = tempfile::tempdir().unwrap();
        let (data, outside) = (home.path().join("data"), home.path().join("outside"));
        let own = fs::metadata(home.path()).unwrap();
        let own = Owner { user: own.uid(), group: own.gid() };
        assert!(!give(&data, own).unwrap(), "it is made, and has its owner");
        if own.user != 0 {
            return;
        }
        fs::create_dir_all(data.join("blobs-v1/sha256")).unwrap();
        fs::write(data.join("blobs-v1/sha256/own"), "").unwrap();
        fs::write(&outside, "").unwrap();
        fs::hard_link(&outside, data.join("blobs-v1/shared")).unwrap();
        std::os::unix::fs::symlink(&outside, data.join("link")).unwrap();
        let agent = Owner { user: 65532, group: 65533 };
        assert!(give(&data, agent).unwrap());
        for (path, expected) in [
            (data.join("blobs-v1/sha256/own"), agent),
            (data.join("blobs-v1/sha256"), agent),
            (data.clone(), agent),
            (data.join("blobs-v1/shared"), own),
            (outside, own),
        ] {
            assert!(expected.has(&fs::metadata(&path).unwrap()), "{}", path.display());
        }
        assert!(!give(&data, agent).unwrap(), "a second run changes nothing");
    }
}
