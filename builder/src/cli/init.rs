//! `hearth init`: a first `hearth.yaml`.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use clap::Args;

const SPECIFICATION: &str = include_str!("hearth.yaml");

const HELP: &str = "\
Examples:
  hearth init           write ./hearth.yaml
  hearth init spark     write spark/hearth.yaml

The comments of the file say how to make the base that it names. A file that exists is not changed.";

/// Writes a commented `hearth.yaml` to begin with.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub struct InitArgs {
    /// The directory; it is made when it is missing.
    #[arg(default_value = ".")]
    directory: PathBuf,
}

impl InitArgs {
    /// Writes the file; gives what to do next.
    pub fn run(&self) -> anyhow::Result<String> {
        let path = self.directory.join("hearth.yaml");
        fs::create_dir_all(&self.directory)
            .with_context(|| format!("cannot make the directory `{}`", self.directory.display()))?;
        let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!("`{}` exists: it is not changed; name another directory", path.display())
            }
            other => other.with_context(|| format!("cannot write `{}`", path.display()))?,
        };
        file.write_all(SPECIFICATION.as_bytes())
            .with_context(|| format!("cannot write `{}`", path.display()))?;
        let base = self.directory.join("base.tar");
        Ok(format!(
            "written to {0}\nnext: make the base, `{1}` (the command is in the file), then `hearth build -f {0}`\n",
            path.display(),
            base.display()
        ))
    }
}
