//! The fenced blocks of a page.

use std::path::Path;

use hearth_agent::{config, prepull::crd::ImageSetSpec};
use hearth_builder::spec;
use serde_json::Value;

const MARK: &str = "<!-- not run: ";

/// Programs whose names at the start of an indented line show a block that is not fenced.
const PROGRAMS: [&str; 8] =
    ["hearth ", "hearth-agent ", "kubectl ", "helm ", "docker ", "cargo ", "tests/", "bench/"];

/// A fenced block.
#[derive(Debug)]
pub(super) struct Block<'a> {
    /// Where it starts, from 1.
    pub line: usize,
    pub language: &'a str,
    pub text: String,
    /// Why it is not run.
    pub reason: Option<&'a str>,
}

/// All fenced blocks of a page.
pub(super) fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut found = Vec::new();
    let (mut open, mut before) = (None::<Block<'_>>, "");
    for (number, line) in (1..).zip(page.lines()) {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => block.text = [&block.text, line, "\n"].concat(),
            (None, Some(language)) => {
                let reason = before.strip_prefix(MARK).and_then(|rest| rest.strip_suffix(" -->"));
                open = Some(Block { line: number, language, text: String::new(), reason });
            }
            (None, None) => before = line,
        }
    }
    found
}

/// Lines outside of fenced blocks that look like commands of an indented one.
pub(super) fn stray(page: &str) -> impl Iterator<Item = usize> {
    let mut fenced = false;
    (1..).zip(page.lines()).filter_map(move |(number, line)| {
        fenced ^= line.starts_with("```");
        let indented = line.strip_prefix("    ")?;
        (!fenced && PROGRAMS.iter().any(|name| indented.starts_with(name))).then_some(number)
    })
}

/// What links may name on a page: its headings, as GitHub writes them.
pub(super) fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        text.chars().filter(|one| one.is_alphanumeric() || "-_".contains(*one)).collect()
    };
    headings.map(anchor).collect()
}

impl Block<'_> {
    /// Whether its commands are to be run.
    pub(super) fn runs(&self) -> bool {
        self.language == "console" && self.reason.is_none()
    }

    /// Its commands, without what they print.
    pub(super) fn commands(&self) -> Vec<String> {
        self.text.lines().filter_map(|line| line.strip_prefix("$ ")).map(str::to_owned).collect()
    }

    /// Reads it as the program reads it that it is for.
    pub(super) fn read(&self) -> Result<(), String> {
        match self.language {
            "text" => Ok(()),
            "json" => serde_json::from_str::<Value>(&self.text).map(drop).map_err(|error| error.to_string()),
            "toml" => toml::from_str::<toml::Value>(&self.text).map(drop).map_err(|error| error.to_string()),
            "yaml" => self.read_yaml(),
            other => {
                Err(format!("a block of `{other}`: commands belong into ```console, the rest into ```text"))
            }
        }
    }

    fn read_yaml(&self) -> Result<(), String> {
        match self.text.lines().next() {
            Some("# agent.yaml") => {
                let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
                std::fs::write(file.path(), &self.text).map_err(|error| error.to_string())?;
                let path = Some(file.path().to_path_buf());
                let loaded = config::load(path, |_| None, |_| None, config::Purpose::Maintain);
                loaded.map(drop).map_err(|error| error.to_string())
            }
            Some("# hearth.yaml") => {
                let read = spec::file::parse(Path::new("hearth.yaml"), &self.text, None);
                read.map(drop).map_err(|error| error.to_string())
            }
            // Rendered by `manifests::readme` of the integration tests.
            Some("# kustomization.yaml") => Ok(()),
            Some("# kubectl apply -f") => {
                let object: Value = serde_saphyr::from_str(&self.text).map_err(|error| error.to_string())?;
                if object["kind"] != "ImageSet" {
                    return Err(format!("nothing reads the kind {}", object["kind"]));
                }
                let read = serde_json::from_value::<ImageSetSpec>(object["spec"].clone());
                read.map(drop).map_err(|error| error.to_string())
            }
            other => Err(format!("its first line has to say which file it is, not {other:?}")),
        }
    }
}

#[test]
fn blocks_have_their_place_their_commands_and_their_mark() {
    let page = "text\n```console\n$ a\nout\n$ b\n```\n\n<!-- not run: no cluster -->\n```console\n$ c\n```\n    hearth x\n## A `b`, c\n";
    let found = blocks(page);
    assert_eq!(
        (found[0].line, found[0].runs(), found[0].commands()),
        (2, true, vec!["a".into(), "b".into()])
    );
    assert_eq!((found[1].runs(), found[1].reason), (false, Some("no cluster")));
    assert_eq!(stray(page).collect::<Vec<_>>(), [12]);
    assert_eq!(anchors(page), ["a-b-c"]);
}
