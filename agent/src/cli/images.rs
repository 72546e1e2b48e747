//! `ls`, `pin`, `unpin`, `rm`.

use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{ArgMatches, Command};
use reqwest::Method;

use super::{
    Place, as_json, names, print_result,
    table::{ago, table},
};
use crate::{
    config::Config,
    images::{self, Listed, Removed},
    types::{ImageName, format_size},
};

pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::new("ls")
            .about("List the images in the store")
            .after_help(
                "Examples:\n  hearth-agent ls\n  hearth-agent ls -o json | jq -r '.[] | select(.pinned) | .names[].name'\n  \
                 hearth-agent ls --offline --data-dir /var/lib/hearth",
            ),
        Command::new("pin")
            .about("Pin images: they are never evicted, and their tags stay even when the registry deletes them")
            .arg(names())
            .after_help("Example:\n  hearth-agent pin registry.example.com/team/spark:3.5.9"),
        Command::new("unpin")
            .about("Unpin images, so that they can be evicted")
            .arg(names())
            .after_help("Example:\n  hearth-agent unpin registry.example.com/team/spark:3.5.9"),
        Command::new("rm")
            .about("Remove images from the store; blobs that other images need stay, pinned images are not removed")
            .arg(names())
            .after_help(
                "Examples:\n  hearth-agent rm registry.example.com/team/spark:3.5.8\n  \
                 hearth-agent unpin IMAGE && hearth-agent rm IMAGE",
            ),
    ]
}

pub(super) fn run(name: &str, arguments: &ArgMatches, config: &Config) -> anyhow::Result<()> {
    let place = Place::of(arguments, config)?;
    let named: Vec<&ImageName> =
        arguments.try_get_many("name").ok().flatten().map(Iterator::collect).unwrap_or_default();
    let answer = match name {
        "ls" => show(&place.list()?, as_json(arguments))?,
        "rm" => removed(&each(&named, |name| place.remove(name))?, as_json(arguments))?,
        _ => {
            let pin = name == "pin";
            let changed = each(&named, |name| place.pin(name, pin))?.concat();
            pinned(&changed, pin, as_json(arguments))?
        }
    };
    place.close();
    print_result(arguments, &answer)
}

/// One after the other until one fails; earlier changes stay.
fn each<T>(
    names: &[&ImageName],
    mut act: impl FnMut(&ImageName) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<T>> {
    names.iter().map(|name| act(name)).collect()
}

impl Place {
    fn list(&self) -> anyhow::Result<Vec<Listed>> {
        match self {
            Self::Agent(client) => client.call(Method::GET, "/api/v1/images", &[]),
            Self::Directory(store) => Ok(images::list(store)?),
        }
    }

    fn remove(&self, name: &ImageName) -> anyhow::Result<Removed> {
        match self {
            Self::Agent(client) => client.call(Method::DELETE, "/api/v1/images", &[name]),
            Self::Directory(store) => Ok(images::remove(store, name)?),
        }
    }

    fn pin(&self, name: &ImageName, pinned: bool) -> anyhow::Result<Vec<String>> {
        match self {
            Self::Agent(client) => {
                let method = if pinned { Method::PUT } else { Method::DELETE };
                client.call(method, "/api/v1/pins", &[name])
            }
            Self::Directory(store) => Ok(images::pin(store, name, pinned)?),
        }
    }

    /// Writes the index to disk, so that the agent does not have to rebuild it.
    pub(super) fn close(&self) {
        if let Self::Directory(store) = self {
            store.close();
        }
    }
}

fn show(images: &[Listed], json: bool) -> anyhow::Result<String> {
    if json {
        return Ok(serde_json::to_string_pretty(images)? + "\n");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let rows: Vec<_> = images.iter().flat_map(|image| rows(image, now)).collect();
    Ok(table(&["IMAGE", "DIGEST", "SIZE", "UNIQUE", "USED", "STATE"], &rows))
}

/// A line for each tag; for an image without tags, a line with its digest.
fn rows(image: &Listed, now: u64) -> Vec<Vec<String>> {
    let tags: Vec<_> = image.names.iter().filter(|name| !name.name.contains('@')).collect();
    let names = if tags.is_empty() { image.names.iter().take(1).collect() } else { tags };
    let row = |name: &images::Name| {
        vec![
            name.name.split('@').next().unwrap_or_default().to_owned(),
            image.digest.split_once(':').map_or("", |(_, hex)| &hex[..hex.len().min(12)]).to_owned(),
            format_size(image.bytes),
            format_size(image.own_bytes),
            ago(now.saturating_sub(image.last_used)),
            state(image),
        ]
    };
    names.into_iter().map(row).collect()
}

fn state(image: &Listed) -> String {
    let mut out = if image.complete { "complete".to_owned() } else { "incomplete".to_owned() };
    if image.pinned {
        out.push_str(", pinned");
    }
    if image.missing_images > 0 {
        let platforms = if image.missing_images == 1 { "platform" } else { "platforms" };
        let _ = write!(out, ", {} other {platforms} not stored", image.missing_images);
    }
    out
}

fn pinned(names: &[String], pin: bool, json: bool) -> anyhow::Result<String> {
    if json {
        return Ok(serde_json::to_string_pretty(names)? + "\n");
    }
    let word = if pin { "pinned" } else { "unpinned" };
    let lines = names.iter().map(|name| [word, " ", name, "\n"].concat());
    Ok(lines.collect())
}

fn removed(all: &[Removed], json: bool) -> anyhow::Result<String> {
    if json {
        return Ok(serde_json::to_string_pretty(all)? + "\n");
    }
    let mut out = String::new();
    for one in all {
        for name in &one.names {
            let _ = writeln!(out, "removed {name}");
        }
        let _ = writeln!(out, "{} blobs removed, {} freed", one.blobs, format_size(one.bytes));
        if one.in_use > 0 {
            let _ = writeln!(out, "{} blobs are being read and will be evicted later", one.in_use);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_a_line_for_each_of_its_tags() {
        let name = |name: &str| images::Name { name: name.to_owned(), pinned: false };
        let image = Listed {
            digest: format!("sha256:{}", "ab".repeat(32)),
            names: vec![name("r.test/a:v1"), name("r.test/a:v2"), name("r.test/a@sha256:ab")],
            pinned: true,
            complete: true,
            bytes: 3 << 20,
            own_bytes: 10,
            missing_blobs: 0,
            missing_images: 1,
            last_used: 0,
        };
        let untagged = Listed {
            names: vec![name("r.test/a@sha256:ab")],
            pinned: false,
            complete: false,
            missing_images: 0,
            ..image.clone()
        };
        let text =
            table(&["1", "2", "3", "4", "5", "6"], &[rows(&image, 59), rows(&untagged, 7_200)].concat());
        assert_eq!(
            text.lines().skip(1).collect::<Vec<_>>(),
            [
                "r.test/a:v1  abababababab  3.0 MiB  10 B  now      complete, pinned, 1 other platform not stored",
                "r.test/a:v2  abababababab  3.0 MiB  10 B  now      complete, pinned, 1 other platform not stored",
                "r.test/a     abababababab  3.0 MiB  10 B  2 h ago  incomplete",
            ]
        );
    }
}
