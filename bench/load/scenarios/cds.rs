//! `cds`: what an archive of class data saves: processor seconds of an executor and of a driver until the executor is
//! registered, and until the first query has returned.
//!
//! Each cell is built twice by one specification, with `classDataSharing` and without, pushed to a registry and pulled by
//! containerd: the images differ in one layer. A round starts a driver in a container of each, which starts its executor
//! as Kubernetes would (`cds.py`). The build's training job does not run this query. Both images have run once before
//! the first round, so the node is warm.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use kit::runtime::{Containerd, DockerRegistry};
use tokio::process::Command;

use super::images;
use crate::{Arguments, machine::settle, report::Report};

/// Spark and Java; what is not Java 17 is measured where the machine has it.
const CELLS: [(&str, &str); 5] =
    [("3.4.4", "17"), ("3.5.9", "17"), ("4.0.5", "17"), ("4.1.4", "17"), ("4.1.4", "25")];
const VARIANTS: [&str; 2] = ["without", "with"];

const REGISTRY: &str = "registry.test";
const REPOSITORY: &str = "bench/cds";
const LIMIT: Duration = Duration::from_mins(4);
/// Where the job lies in the images.
const HOME: &str = "/opt/cds";

const JOB: &str = include_str!("cds.py");
const CLUSTER: &str = include_str!("../../../builder/src/trained/cluster.py");

type Measured = BTreeMap<String, f64>;

pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let home = kit::fixtures::directory();
    fs::create_dir_all(&home)?;
    let work = tempfile::Builder::new().prefix("hearth-load-").tempdir_in(home)?;
    let work = work.path();
    let registry = DockerRegistry::start(&work.join("storage")).await?;
    let cells = build(work, &registry.address().to_string(), &arguments.cells).await?;
    let containerd = Containerd::start().await?;
    let address = format!("http://{}", registry.address());
    containerd.mirror(REGISTRY, &address, &address)?;
    for (spark, java) in &cells {
        let names = VARIANTS.map(|variant| format!("{REGISTRY}/{REPOSITORY}:{spark}-{java}-{variant}"));
        for name in &names {
            containerd.pull_by_cri(name).await?;
            measure(&containerd, name).await?;
        }
        for round in 0..arguments.rounds {
            let mut measured = [Measured::new(), Measured::new()];
            for turn in 0..2 {
                let index = (turn + round as usize) % 2;
                settle(1 << 30).await?;
                measured[index] = measure(&containerd, &names[index]).await?;
            }
            note(report, &format!("{spark} java {java}"), &measured)?;
        }
    }
    registry.stop();
    Ok(())
}

fn note(report: &mut Report, cell: &str, measured: &[Measured; 2]) -> Result<()> {
    let ratio = |key: &str| {
        let [without, with] = [0, 1].map(|at| measured[at].get(key).copied().filter(|value| *value > 0.0));
        Ok::<_, anyhow::Error>(
            with.context("nothing was measured")? / without.context("nothing was measured")?,
        )
    };
    for (figure, key) in [
        ("cpu_ratio_registered", "executor_registered"),
        ("cpu_ratio_first_query", "executor_first_query"),
        ("driver_cpu_ratio_registered", "driver_registered"),
        ("driver_cpu_ratio_first_query", "driver_first_query"),
        ("wall_ratio_registered", "wall_registered"),
        ("wall_ratio_first_query", "wall_first_query"),
    ] {
        report.figure(figure, ratio(key)?);
        report.detail(&format!("{cell}: {key} ratio"), ratio(key)?);
        for (values, variant) in measured.iter().zip(VARIANTS) {
            report.detail(&format!("{cell}: {key} {variant} the archive"), values[key]);
        }
    }
    Ok(())
}

/// Runs a driver with one executor, and gives what the job measured.
async fn measure(containerd: &Containerd, image: &str) -> Result<Measured> {
    let job = format!("{HOME}/cds.py");
    let mut command = vec!["/opt/entrypoint.sh", "driver"];
    for setting in [
        "spark.driver.host=127.0.0.1",
        "spark.executor.instances=1",
        "spark.executor.cores=2",
        "spark.executor.memory=1g",
        // Kubernetes would mount a directory for it.
        "spark.local.dir=/tmp",
        "spark.kubernetes.container.image=any",
        "spark.kubernetes.executor.podNamePrefix=cds",
        "spark.scheduler.minRegisteredResourcesRatio=1",
        "spark.ui.enabled=false",
    ] {
        command.extend(["--conf", setting]);
    }
    command.push(&job);
    let options = ["--env", "SPARK_DRIVER_BIND_ADDRESS=127.0.0.1"];
    let printed = containerd.run_container(image, &options, &command, LIMIT).await?.output()?;
    let line = printed.lines().find_map(|line| line.strip_prefix("measured "));
    let line = line.with_context(|| format!("the job of `{image}` measured nothing:\n{printed}"))?;
    Ok(serde_json::from_str(line)?)
}

/// Builds and pushes the wanted cells, as far as they can be had here, and gives those.
async fn build(work: &Path, host: &str, wanted: &[String]) -> Result<Vec<(&'static str, &'static str)>> {
    fs::write(work.join("cds.py"), JOB)?;
    fs::write(work.join("cluster.py"), CLUSTER)?;
    let mut built = Vec::new();
    let is_wanted = |(spark, java): &(&str, &str)| {
        wanted.is_empty() || wanted.iter().any(|cell| *cell == format!("{spark}-{java}"))
    };
    for (spark, java) in CELLS.into_iter().filter(is_wanted) {
        let runtime = match java {
            "17" => None,
            _ => match archive_java(work, java).await? {
                Some(archive) => Some(archive),
                None => continue,
            },
        };
        let link = work.join(format!("pyspark-{spark}.tar.gz"));
        if !link.exists() {
            std::os::unix::fs::symlink(kit::fixtures::pyspark(spark)?, link)?;
        }
        let base = kit::fixtures::base_rootfs()?;
        fs::write(work.join("hearth.yaml"), specification(host, (spark, java), &base, runtime.as_deref()))?;
        let mut build = Command::new(kit::process::binary("hearth")?);
        build.args(["build", "--push", "--plain-http", host, "--cache-dir", "cache", "--to", "dist"]);
        images::run(build.current_dir(work)).await.with_context(|| format!("cannot build {spark}-{java}"))?;
        built.push((spark, java));
    }
    Ok(built)
}

/// A Java that is installed on this machine, as an archive.
async fn archive_java(work: &Path, major: &str) -> Result<Option<PathBuf>> {
    let Ok(found) = fs::read_dir("/usr/lib/jvm") else { return Ok(None) };
    let version = format!("JAVA_VERSION=\"{major}.");
    let home = found.flatten().map(|entry| entry.path()).find(|home| {
        !home.is_symlink()
            && fs::read_to_string(home.join("release")).is_ok_and(|release| release.contains(&version))
    });
    let Some(home) = home else { return Ok(None) };
    let archive = work.join(format!("java-{major}.tar"));
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--file").arg(&archive).args([
        "--dereference",
        "--hard-dereference",
        "--directory",
    ]);
    let (parent, name) = (home.parent().context("it lies in a directory")?, home.file_name());
    images::run(tar.arg(parent).arg(name.context("it has a name")?)).await?;
    Ok(Some(archive))
}

fn specification(host: &str, (spark, java): (&str, &str), base: &Path, runtime: Option<&Path>) -> String {
    let runtime = runtime.map(|path| format!(", java: {{ path: {} }}", path.display())).unwrap_or_default();
    format!(
        "apiVersion: hearth.dev/v1alpha1\nkind: ImageMatrix\nrepository: {host}/{REPOSITORY}\n\
         tag: \"{{spark}}-{{java}}-{{variant}}\"\nbase: {{ rootfs: {} }}\nallowUntested: true\n\
         axes: {{ spark: [\"{spark}\"], java: [\"{java}\"], python: [\"3.11\"] }}\n\
         sources: {{ spark: {{ path: \"pyspark-{{spark}}.tar.gz\" }}{runtime} }}\n\
         files: [{{ path: cds.py, to: {HOME}/ }}, {{ path: cluster.py, to: {HOME}/ }}]\n\
         variants:\n  without: {{}}\n  with: {{ jvm: {{ classDataSharing: true }} }}\n",
        base.display()
    )
}
