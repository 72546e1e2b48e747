//! Commands other than `run`: management of the images on a node.
//!
//! They send requests to the running agent over its Unix socket; with `--offline` they work on the data directory of a
//! stopped agent. Results go to standard output as a table or as JSON, everything else to standard error. Exit
//! codes: 0 ok, 1 failed, 2 bad usage or configuration.

mod archives;
mod check;
mod client;
mod doctor;
mod explain;
pub mod generate;
mod images;
mod prepare;
mod progress;
mod rights;
mod setup;
mod status;
mod table;

use std::{io::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::{PossibleValue, PossibleValuesParser},
    value_parser,
};

use crate::{
    config::{self, Config},
    store::Store,
};
use client::Client;

const AGENT: &str = "agent";
const OFFLINE: &str = "offline";
const OUTPUT: &str = "output";

/// The commands, with the argument that names the configuration file.
pub fn commands() -> Vec<Command> {
    let all = images::commands().into_iter().chain(archives::commands());
    all.map(with_common)
        .chain([
            doctor::command(),
            explain::command(),
            prepare::command(),
            setup::command(),
            status::command(),
        ])
        .collect()
}

/// Runs one of [`commands`] and prints the result on standard output.
pub fn run(name: &str, arguments: &ArgMatches, config: &Config) -> anyhow::Result<()> {
    match name {
        "import" => archives::import(arguments, config),
        "export" => archives::export(arguments, config),
        doctor::NAME => doctor::run(arguments, config),
        explain::NAME => explain::run(arguments, config),
        prepare::NAME => prepare::run(arguments, config),
        setup::NAME => setup::run(arguments, config),
        status::NAME => status::run(arguments, config),
        _ => images::run(name, arguments, config),
    }
}

fn with_common(command: Command) -> Command {
    let agent = agent().conflicts_with(OFFLINE);
    let offline = Arg::new(OFFLINE)
        .long(OFFLINE)
        .action(ArgAction::SetTrue)
        .help("Work on the data directory of a stopped agent");
    with_config(command.args([agent, offline, output()]))
}

fn agent() -> Arg {
    Arg::new(AGENT)
        .long(AGENT)
        .value_name("SOCKET")
        .value_parser(value_parser!(PathBuf))
        .help("The running agent's Unix socket [default: `admin.socket` of the configuration]")
}

/// A client of the agent that the arguments or the configuration name.
fn client(arguments: &ArgMatches, config: &Config) -> anyhow::Result<Client> {
    Client::new(arguments.get_one::<PathBuf>(AGENT).unwrap_or(&config.admin_socket))
}

/// `-o`, `--output`.
pub fn output() -> Arg {
    Arg::new(OUTPUT)
        .short('o')
        .long(OUTPUT)
        .value_name("FORMAT")
        // `text` is what `verify` called the table before.
        .value_parser(PossibleValuesParser::new([
            PossibleValue::new("table").alias("text"),
            "json".into(),
            "yaml".into(),
        ]))
        .default_value("table")
        .help("Format of the result on standard output")
}

/// With the configuration file, and its keys as flags, which `--help` lists and `-h` does not.
fn with_config(command: Command) -> Command {
    command.defer(|command| {
        command.arg(config::file_flag()).args(config::flags().map(|flag| flag.hide_short_help(true)))
    })
}

/// The same, for commands that are about the configuration: `-h` lists the keys too.
///
/// The flags are made for the command that runs: those of all commands take a megabyte, which a running agent would keep.
pub fn with_all_keys(command: Command) -> Command {
    command.defer(|command| command.arg(config::file_flag()).args(config::flags()))
}

/// Where the images are: behind a running agent, or in a directory that this process has locked.
enum Place {
    Agent(Client),
    Directory(Store),
}

impl Place {
    fn of(arguments: &ArgMatches, config: &Config) -> anyhow::Result<Self> {
        if !arguments.get_flag(OFFLINE) {
            return Ok(Self::Agent(client(arguments, config)?));
        }
        let directory = config.store.data_dir.display();
        let store = Store::open(&config.store).with_context(|| {
            format!("cannot work offline on `{directory}` (leave out `--offline` to use the running agent)")
        })?;
        Ok(Self::Directory(store))
    }
}

/// Writes to standard output; a closed pipe (`| head`) is not an error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write the output")
        }
        _ => Ok(()),
    }
}

/// Whether the result is to be an object: JSON, which [`print_result`] writes as YAML when that was asked for.
pub fn as_json(arguments: &ArgMatches) -> bool {
    arguments.get_one::<String>(OUTPUT).is_some_and(|format| format == "json" || format == "yaml")
}

/// Prints a result in the format that the arguments name: a table, or JSON when [`as_json`] says so.
pub fn print_result(arguments: &ArgMatches, text: &str) -> anyhow::Result<()> {
    if arguments.get_one::<String>(OUTPUT).is_none_or(|format| format != "yaml") {
        return print(text);
    }
    let value: serde_json::Value = serde_json::from_str(text).context("the result is not JSON")?;
    print(&serde_saphyr::to_string(&value).context("cannot write YAML")?)
}

fn names() -> Arg {
    Arg::new("name")
        .value_name("IMAGE")
        .required(true)
        .num_args(1..)
        .value_parser(value_parser!(crate::types::ImageName))
        .help("`registry/repository:tag` or `registry/repository@digest`, as in pods")
}
