//! Which package index the user has configured for pip.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, sync::OnceCell};

/// The index that the user configured for pip alone: uv does not read pip's configuration. `None` as soon as
/// uv has a configuration of its own. pip takes a second to start, and is run once.
pub async fn index() -> Option<String> {
    static INDEX: OnceCell<Option<String>> = OnceCell::const_new();
    INDEX.get_or_init(configured_index).await.clone()
}

async fn configured_index() -> Option<String> {
    const OWN: [&str; 4] = ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_CONFIG_FILE"];
    let home = |name: &str, rest: &str| std::env::var_os(name).map(|home| Path::new(&home).join(rest));
    let files = [
        Some(PathBuf::from("/etc/uv/uv.toml")),
        home("XDG_CONFIG_HOME", "uv/uv.toml"),
        home("HOME", ".config/uv/uv.toml"),
    ];
    let in_file = files.iter().flatten().any(|file| file.is_file());
    if in_file || OWN.iter().any(|name| std::env::var_os(name).is_some()) {
        return None;
    }
    if let Ok(index) = std::env::var("PIP_INDEX_URL") {
        return Some(index);
    }
    let mut pip = Command::new("pip");
    pip.args(["config", "get", "global.index-url"]).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(20), pip.output()).await.ok()?.ok()?;
    let index = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !index.is_empty()).then_some(index)
}
