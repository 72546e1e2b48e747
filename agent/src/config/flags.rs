//! The keys as flags, and as the table that explains them.

use std::{fmt::Write as _, path::PathBuf};

use super::keys::KEYS;

/// `--config`.
pub fn file_flag() -> clap::Arg {
    clap::Arg::new("config")
        .long("config")
        .env("HEARTH_CONFIG")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help("Configuration file (YAML)")
}

/// One flag per key.
pub fn flags() -> impl Iterator<Item = clap::Arg> {
    KEYS.iter().map(|key| {
        let default =
            if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
        clap::Arg::new(key.path)
            .long(key.flag())
            .value_name("VALUE")
            .help(format!("{} [env: {}]{default}", key.meaning, key.variable()))
            .help_heading("Configuration keys (flag, then environment, then file)")
    })
}

/// The table of `config --explain` and of `agent/README.md`, in Markdown.
pub fn explain() -> String {
    let mut out = String::from("| key | default | meaning |\n| --- | --- | --- |\n");
    for key in KEYS {
        let default = if key.default.is_empty() { "none".to_owned() } else { format!("`{}`", key.default) };
        let _ = writeln!(out, "| `{}` | {default} | {} |", key.path, key.meaning);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_variables_follow_from_the_key() {
        let names: Vec<_> = KEYS.iter().map(|key| (key.path, key.flag(), key.variable())).collect();
        assert!(names.contains(&("dataDir", "data-dir".into(), "HEARTH_DATA_DIR".into())));
        assert!(names.contains(&(
            "credentials.dockerConfig",
            "credentials-docker-config".into(),
            "HEARTH_CREDENTIALS_DOCKER_CONFIG".into()
        )));
    }
}
