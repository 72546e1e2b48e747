//! `import` and `export`.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::{Place, as_json, names, print_result, progress::Progress};
use crate::{
    config::Config,
    images::archive::{self, Export, ImportOptions, Imported, Source},
    types::{ImageName, format_size},
};

const NAME: &str = "as";

pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::new("import")
            .about("Take images from an archive: an OCI layout (directory or tar) or what `docker save` writes")
            .long_about(
                "Take images from an archive: an OCI layout (a directory, or a tar, also gzip or zstd) or what `docker save` \
                 writes. Everything is checked before anything of it can be pulled; the images resolve by their tags even \
                 when no registry can be reached.",
            )
            .arg(
                Arg::new("archive")
                    .value_name("PATH")
                    .required(true)
                    .value_parser(value_parser!(PathBuf))
                    .help("A directory or a file; `-` is standard input"),
            )
            .arg(
                Arg::new(NAME)
                    .long("name")
                    .value_name("NAME")
                    .value_parser(value_parser!(ImageName))
                    .help("The name of the image; without a tag: the repository for the tags in the archive"),
            )
            .arg(
                Arg::new("pin")
                    .long("pin")
                    .action(ArgAction::SetTrue)
                    .help("Protect the images from eviction; recommended when no registry has them"),
            )
            .after_help(
                "Examples:\n  hearth-agent import --pin spark.tar.gz\n  \
                 docker save spark:3.5 | hearth-agent import --name registry.example.com/team/spark:3.5 -\n  \
                 hearth-agent import dist --name registry.example.com/team/spark\n  \
                 hearth-agent import --offline --data-dir /var/lib/hearth spark.tar",
            ),
        Command::new("export")
            .about("Write images as an OCI layout: a tar or a directory")
            .arg(names())
            .arg(
                Arg::new("to")
                    .long("to")
                    .value_name("PATH")
                    .required(true)
                    .value_parser(value_parser!(PathBuf))
                    .help("`-` or a name that ends in `.tar`: a tar; anything else: a new directory"),
            )
            .after_help(
                "Examples:\n  hearth-agent export --to spark.tar registry.example.com/team/spark:3.5.9\n  \
                 hearth-agent export --to layout IMAGE IMAGE && skopeo copy oci:layout:3.5.9 docker://...",
            ),
    ]
}

pub(super) fn import(arguments: &ArgMatches, config: &Config) -> anyhow::Result<()> {
    let path = arguments.get_one::<PathBuf>("archive").expect("clap requires it");
    let options = ImportOptions {
        name: arguments.get_one::<ImageName>(NAME).cloned(),
        pin: arguments.get_flag("pin"),
        ..ImportOptions::default()
    };
    let place = Place::of(arguments, config)?;
    let what = || format!("cannot import `{}`", path.display());
    let mut imported = match &place {
        Place::Agent(client) => {
            let (reader, size) = stream(path).with_context(what)?;
            let progress = Progress::start("sending to the agent", size);
            client.import(progress.reader(reader), &options).with_context(what)?
        }
        Place::Directory(store) => {
            let source = if path.is_dir() {
                Source::Directory(path.clone())
            } else {
                let (reader, size) = stream(path).with_context(what)?;
                let progress = Progress::start("importing", size);
                Source::Tar(Box::new(progress.reader(reader)))
            };
            archive::import(store, source, &options).with_context(what)?
        }
    };
    let registries = &config.upstream.registries;
    if matches!(place, Place::Directory(_)) && !registries.is_empty() {
        imported.note_served(|host| registries.iter().any(|one| one.pattern.closeness(host).is_some()));
    }
    for image in imported.images.iter().filter(|image| !image.served) {
        tracing::warn!(
            "`{}` is not served: its registry is not in `registries` of the configuration",
            image.name
        );
    }
    place.close();
    print_result(arguments, &tell(&imported, as_json(arguments))?)
}

/// The archive as a stream, and its size if it is known.
fn stream(path: &Path) -> anyhow::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    if path.is_dir() {
        let export = Export::of_directory(path)?;
        let size = export.tar_size();
        return Ok((Box::new(piped(export)?), Some(size)));
    }
    let file = File::open(path).context("cannot open the file")?;
    let size = file.metadata().ok().map(|metadata| metadata.len());
    Ok((Box::new(file), size))
}

/// A directory as a tar stream, written by a thread while it is read.
fn piped(export: Export) -> anyhow::Result<io::PipeReader> {
    let (reader, mut writer) = io::pipe()?;
    std::thread::Builder::new().name("layout".to_owned()).spawn(move || {
        // The reader finds that the tar ends early, and reports that.
        if let Err(error) = export.write_tar(&mut writer) {
            tracing::warn!(error = %format!("{:#}", anyhow::Error::from(error)), "cannot read the directory");
        }
    })?;
    Ok(reader)
}

fn tell(imported: &Imported, json: bool) -> anyhow::Result<String> {
    if json {
        return Ok(serde_json::to_string_pretty(imported)? + "\n");
    }
    let line = |image: &archive::ImportedImage| {
        let pinned = if image.pinned { ", pinned" } else { "" };
        let absent = match image.missing_images {
            0 => String::new(),
            count => format!(", {count} other platforms not in the archive"),
        };
        let size = format_size(image.bytes);
        format!("imported {} ({}, {} blobs, {size}{pinned}{absent})\n", image.name, image.digest, image.blobs)
    };
    Ok(imported.images.iter().map(line).collect::<Vec<_>>().concat())
}

pub(super) fn export(arguments: &ArgMatches, config: &Config) -> anyhow::Result<()> {
    let to = arguments.get_one::<PathBuf>("to").expect("clap requires it");
    let named: Vec<ImageName> =
        arguments.get_many("name").map(|names| names.cloned().collect()).unwrap_or_default();
    let place = Place::of(arguments, config)?;
    let what = || format!("cannot write `{}`", to.display());
    let target = Target::of(to)?;
    match &place {
        Place::Agent(client) => {
            let (reader, size) = client.export(&named)?;
            let progress = Progress::start("receiving from the agent", size);
            target.take_tar(progress.reader(reader)).with_context(what)?;
        }
        Place::Directory(store) => {
            let export = archive::export(store, &named)?;
            match &target {
                Target::Directory(directory) => export.write_directory(directory).with_context(what)?,
                Target::Tar(_) | Target::Standard => {
                    target.write(|out| Ok(export.write_tar(out)?)).with_context(what)?;
                }
            }
        }
    }
    place.close();
    Ok(())
}

/// The target of an export.
enum Target {
    Standard,
    Tar(PathBuf),
    Directory(PathBuf),
}

impl Target {
    fn of(path: &Path) -> anyhow::Result<Self> {
        let name = path.to_string_lossy();
        let compressed = [".tgz", ".gz", ".zst", ".zstd", ".xz", ".bz2"];
        if compressed.iter().any(|suffix| name.ends_with(suffix)) {
            bail!(
                "`{name}`: exports are not compressed, because the layers are: name a file that ends in `.tar`, or write to `-` and pipe it into a compressor"
            );
        }
        Ok(match name.as_ref() {
            "-" => Self::Standard,
            _ if path.extension().is_some_and(|extension| extension == "tar") => Self::Tar(path.to_owned()),
            _ => Self::Directory(path.to_owned()),
        })
    }

    fn take_tar(&self, mut reader: impl Read) -> anyhow::Result<()> {
        match self {
            Self::Directory(directory) => Ok(archive::unpack(reader, directory)?),
            Self::Standard | Self::Tar(_) => self.write(|out| {
                io::copy(&mut reader, out)
                    .map(drop)
                    .context("the agent closed the connection during the response")
            }),
        }
    }

    /// The file gets its name when it is complete.
    fn write(&self, fill: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let Self::Tar(path) = self else { return fill(&mut io::stdout().lock()) };
        let aside = path.with_extension("tar.partial");
        let mut file = File::create(&aside)?;
        let written = fill(&mut file).and_then(|()| Ok(file.sync_all()?));
        if written.is_err() {
            // The error is returned to the user.
            let _ = std::fs::remove_file(&aside);
        }
        written.and_then(|()| Ok(std::fs::rename(&aside, path)?))
    }
}
