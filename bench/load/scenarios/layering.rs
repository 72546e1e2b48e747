//! `layering`: what real Sparks come to when their layers are planned together: against an image per Dockerfile, and
//! against the ceiling (every distinct file once). Nothing is timed; the figures are bytes.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::process::Command;

use super::images;
use crate::{Arguments, report::Report};

/// Patch releases of one line, and the newest releases of four lines.
const PATCHES: [&str; 4] = ["3.5.0", "3.5.1", "3.5.8", "3.5.9"];
const LINES: [&str; 4] = ["3.4.4", "3.5.9", "4.0.5", "4.1.4"];

pub(crate) async fn run(_: &Arguments, report: &mut Report) -> Result<()> {
    let home = kit::fixtures::directory();
    fs::create_dir_all(&home)?;
    let work = tempfile::Builder::new().prefix("hearth-load-").tempdir_in(home)?;
    for version in PATCHES.iter().chain(&LINES) {
        let link = work.path().join(format!("pyspark-{version}.tar.gz"));
        if !link.exists() {
            std::os::unix::fs::symlink(kit::fixtures::pyspark(version)?, link)?;
        }
    }
    write_base(&work.path().join("base.tar"))?;
    let (mut unique, mut total, mut distinct) = (0.0, 0.0, 0.0);
    let mut most = 0.0_f64;
    for (name, versions) in [("patches", PATCHES), ("lines", LINES)] {
        let plan = plan(work.path(), name, &versions).await?;
        let bytes = |key: &str| plan[key].as_f64().with_context(|| format!("a plan has `{key}`"));
        let (one, all, ceiling) = (bytes("uniqueBytes")?, bytes("totalBytes")?, bytes("distinctBytes")?);
        report.detail(&format!("{name}: planned over the ceiling"), one / ceiling);
        report.detail(&format!("{name}: saved against Dockerfiles"), 1.0 - one / all);
        report.detail(&format!("{name}: planned MB"), one / 1e6);
        (unique, total, distinct) = (unique + one, total + all, distinct + ceiling);
        let images = plan["images"].as_array().context("a plan has images")?;
        most = images.iter().filter_map(|image| image["layers"].as_f64()).fold(most, f64::max);
        if name == "patches" {
            report.figure("patch_upgrade_mb", upgrade(&plan, "3.5.8-", "3.5.9-") / 1e6);
        }
    }
    report.figure("patch_added_later_mb", added_later(work.path()).await? / 1e6);
    report.figure("unique_over_ceiling", unique / distinct);
    report.figure("saved_vs_dockerfiles", 1.0 - unique / total);
    report.figure("layers_max", most);
    Ok(())
}

async fn plan(work: &Path, name: &str, versions: &[&str]) -> Result<Value> {
    let file = format!("{name}.yaml");
    fs::write(work.join(&file), specification(versions))?;
    let output = hearth(work, &["plan", "-f", &file]).await?;
    serde_json::from_slice(&output).context("a plan is JSON")
}

async fn hearth(work: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let mut command = Command::new(kit::process::binary("hearth")?);
    // Nobody is asked: there is no such registry.
    command.args(arguments).args(["--cache-dir", "cache", "--output", "json", "--offline"]);
    images::output(command.current_dir(work)).await
}

fn specification(versions: &[&str]) -> String {
    format!(
        "apiVersion: hearth.dev/v1alpha1\nkind: ImageMatrix\nrepository: registry.example.com/bench/spark\n\
         tag: \"{{spark}}-python{{python}}\"\nbase: {{ rootfs: base.tar }}\n\
         axes: {{ spark: [\"{}\"], java: [\"17\"], python: [\"3.10\", \"3.11\"] }}\n\
         sources: {{ spark: {{ path: \"pyspark-{{spark}}.tar.gz\" }} }}\n",
        versions.join("\", \"")
    )
}

/// What a node needs for a release that joined the lock after its predecessor was built.
async fn added_later(work: &Path) -> Result<f64> {
    fs::write(work.join("later.yaml"), specification(&["3.5.8"]))?;
    hearth(work, &["lock", "-f", "later.yaml"]).await?;
    fs::copy(work.join("later.lock"), work.join("old.lock"))?;
    fs::write(work.join("later.yaml"), specification(&["3.5.8", "3.5.9"]))?;
    hearth(work, &["lock", "-f", "later.yaml"]).await?;
    let output = hearth(work, &["plan", "-f", "later.yaml", "--against", "old.lock"]).await?;
    let plan: Value = serde_json::from_slice(&output).context("a plan is JSON")?;
    plan["against"]["uniqueBytes"].as_f64().context("a plan has what is new")
}

/// Bytes of the layers that the new image has and the old one has not.
fn upgrade(plan: &Value, from: &str, to: &str) -> f64 {
    let layers = plan["layers"].as_array().cloned().unwrap_or_default();
    let has = |layer: &Value, prefix: &str| {
        let images = layer["images"].as_array().cloned().unwrap_or_default();
        images.iter().filter_map(Value::as_str).any(|name| name.starts_with(prefix) && name.ends_with("3.11"))
    };
    let new = layers.iter().filter(|layer| has(layer, to) && !has(layer, from));
    new.filter_map(|layer| layer["bytes"].as_f64()).sum()
}

/// The least that a base needs to have; what is in it does not matter here.
fn write_base(path: &Path) -> Result<()> {
    let mut archive = tar::Builder::new(File::create(path)?);
    let release = b"JAVA_VERSION=\"17.0.21\"\nMODULES=\"java.base jdk.incubator.vector\"\n";
    let mut files: Vec<(&str, &[u8])> = vec![("usr/lib/jvm/java-17/release", release)];
    for program in ["bash", "tini", "ps", "python3.10", "python3.11"] {
        files.push((program, b"#!"));
    }
    files.push(("java", b"#!"));
    for (name, content) in files {
        let path = match name {
            "java" => "usr/lib/jvm/java-17/bin/java".to_owned(),
            program if program.contains('/') => program.to_owned(),
            program => format!("usr/bin/{program}"),
        };
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, content)?;
    }
    archive.into_inner()?;
    Ok(())
}
