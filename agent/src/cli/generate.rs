//! What the program writes about itself: a first configuration, completions for shells, man pages.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

const CONFIGURATION: &str = include_str!("agent.yaml");

/// `config init`.
pub fn init_command() -> Command {
    Command::new("init")
        .about("Write a commented configuration file to begin with")
        .arg(
            Arg::new("to")
                .long("to")
                .value_name("FILE")
                .default_value("agent.yaml")
                .value_parser(value_parser!(PathBuf))
                .help("The file; one that exists is not changed"),
        )
        .after_long_help(
            "Examples:\n  hearth-agent config init\n  hearth-agent config init --to /etc/hearth/agent.yaml",
        )
}

/// `completions` and `man`.
pub fn commands() -> [Command; 2] {
    let shell = Arg::new("shell").required(true).value_parser(value_parser!(Shell)).help("The shell");
    let directory = Arg::new("directory")
        .value_name("DIR")
        .required(true)
        .value_parser(value_parser!(PathBuf))
        .help("The directory; it is made when it is missing");
    [
        Command::new("completions").about("Print completions for a shell").arg(shell).after_long_help(
            "Example:\n  hearth-agent completions bash > ~/.local/share/bash-completion/completions/hearth-agent",
        ),
        Command::new("man")
            .about("Write a man page for each command into a directory")
            .arg(directory)
            .after_long_help("Example:\n  hearth-agent man ~/.local/share/man/man1"),
    ]
}

/// Writes the first configuration; returns what to do next.
pub fn init(arguments: &ArgMatches) -> anyhow::Result<String> {
    let path = arguments.get_one::<PathBuf>("to").context("it has a default")?;
    let shown = path.display();
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = std::path::absolute(directory).with_context(|| format!("cannot write `{shown}`"))?;
    let data = directory.components().collect::<PathBuf>().join("hearth-data");
    let data = serde_json::to_string(&data).context("the directory's name is not text")?;
    let mut file = match OpenOptions::new().write(true).create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!("`{shown}` exists: it is not changed; name another file with --to")
        }
        other => other.with_context(|| format!("cannot write `{shown}`"))?,
    };
    file.write_all(CONFIGURATION.replace("\"{data}\"", &data).as_bytes())
        .with_context(|| format!("cannot write `{shown}`"))?;
    Ok(format!("written to {shown}\nnext: hearth-agent run --config {shown}\n"))
}

/// Completions of `program` for the shell that the arguments name.
pub fn completions(mut program: Command, arguments: &ArgMatches) -> anyhow::Result<String> {
    let shell = *arguments.get_one::<Shell>("shell").context("clap requires a shell")?;
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut program, "hearth-agent", &mut out);
    String::from_utf8(out).context("completions are text")
}

/// Writes a man page for each command of `program`.
pub fn man(program: Command, arguments: &ArgMatches) -> anyhow::Result<String> {
    let directory = arguments.get_one::<PathBuf>("directory").context("clap requires a directory")?;
    fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(program, directory))
        .with_context(|| format!("cannot write man pages into `{}`", directory.display()))?;
    Ok(String::new())
}
