//! `builder`: one Spark 3.5 image with every input at hand, against buildah and umoci that put the same tree on the same
//! base; then the same again after one JAR has changed.
//!
//! What each gets: an OCI layout with the base, and Spark unpacked (hearth: in its cache; the others: as a directory).
//! What each gives: an OCI layout with the finished image. Equal codecs are compared: zstd with the zstd that buildah
//! writes (`buildah push --compression-format zstd`; zstd:chunked is measured beside it), gzip with gzip. umoci writes
//! gzip only. Once more after a change, buildah builds by a Containerfile with its layer cache on: JARs that stay are a layer of
//! their own, and the changed JAR is copied last.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Result;
use tokio::process::Command;

use super::{images, seconds};
use crate::{Arguments, machine::settle, report::Report};

const SPARK: &str = "3.5.9";
/// An application's JAR, which changes with every release of it.
const JAR: u64 = 5 << 20;

/// What is measured, in this order.
const NAMES: [&str; 6] = [
    "hearth zstd s",
    "hearth zstd:chunked s",
    "hearth gzip s",
    "buildah zstd s",
    "buildah gzip s",
    "umoci s",
];

pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let home = kit::fixtures::directory();
    fs::create_dir_all(&home)?;
    let work = tempfile::Builder::new().prefix("hearth-load-").tempdir_in(home)?;
    let world = World::prepare(work.path()).await?;
    for round in 0..arguments.rounds {
        world.write_jar(round * 2)?;
        let mut cold = [0.0; 6];
        for turn in 0..cold.len() {
            let index = (turn + round as usize) % cold.len();
            settle(2 << 30).await?;
            cold[index] = match index {
                0 => world.hearth("zstd", true, report).await?,
                1 => world.hearth("zstd:chunked", true, report).await?,
                2 => world.hearth("gzip", true, report).await?,
                3 => world.buildah("zstd").await?,
                4 => world.buildah("gzip").await?,
                _ => world.umoci().await?,
            };
            report.detail(NAMES[index], cold[index]);
        }
        let [zstd, chunked, gzip, buildah_zstd, buildah_gzip, umoci] = cold;
        report.figure("speedup_zstd_vs_buildah_zstd", buildah_zstd / zstd);
        report.figure("speedup_chunked_vs_buildah_zstd", buildah_zstd / chunked);
        report.figure("speedup_gzip_vs_buildah_gzip", buildah_gzip / gzip);
        report.figure("speedup_gzip_vs_umoci", umoci / gzip);
        // The last cold turn may have been the other codec's, and left none of this one's members.
        world.hearth("gzip", false, report).await?;
        world.buildah_cached().await?;
        // The other JAR; everything else is as it was.
        world.write_jar(round * 2 + 1)?;
        let again = world.hearth("gzip", false, report).await?;
        let other = world.buildah_cached().await?;
        report.detail("hearth rebuild s", again);
        report.detail("buildah rebuild with its layer cache s", other);
        report.figure("rebuild_speedup_vs_buildah_cached", other / again);
    }
    Ok(())
}

struct World {
    work: PathBuf,
    hearth: PathBuf,
}

impl World {
    async fn prepare(work: &Path) -> Result<Self> {
        let world = Self { work: work.to_owned(), hearth: kit::process::binary("hearth")? };
        let (base, spark) = (kit::fixtures::base_rootfs()?, kit::fixtures::pyspark(SPARK)?);
        world.write_jar(0)?;
        // The base as a layout, made by buildah for everyone.
        world.buildah_run(&["from", "--name", "base", "scratch"]).await?;
        world.buildah_run(&["add", "-q", "base", &text(&base), "/"]).await?;
        world.buildah_run(&["commit", "-q", "base", &format!("oci:{}:base", world.path("base"))]).await?;
        // And once more into its own storage: a name of a layout there would be made of the path, which may have capitals.
        world.buildah_run(&["commit", "-q", "base", "localhost/base:latest"]).await?;
        world.buildah_run(&["rm", "base"]).await?;
        // hearth's inputs: what `plan` leaves in the cache.
        let digest = images::store(&spark, &work.join("inputs"))?;
        for codec in ["zstd", "zstd:chunked", "gzip"] {
            fs::write(work.join(format!("{codec}.yaml")), specification(codec, &digest))?;
        }
        let mut plan = Command::new(&world.hearth);
        plan.args(["plan", "-f", "gzip.yaml", "--cache-dir", "inputs", "--offline"]);
        images::run(plan.current_dir(work)).await?;
        // The others' inputs: the tree that hearth lays out.
        world.hearth("gzip", true, &mut Report::new("", 0)).await?;
        images::unpack_above(&work.join("dist"), &work.join("tree")).await?;
        // For buildah's layer cache: the JAR that changes is no part of the first copy.
        fs::write(work.join(".containerignore"), "tree/opt/spark/jars/app.jar\n")?;
        fs::write(
            work.join("Containerfile"),
            "FROM localhost/base:latest\nCOPY tree /\nCOPY app.jar /opt/spark/jars/app.jar\n",
        )?;
        Ok(world)
    }

    fn path(&self, name: &str) -> String {
        text(&self.work.join(name))
    }

    fn write_jar(&self, number: u32) -> Result<()> {
        let jar = kit::registry::random_bytes(u64::from(number), usize::try_from(JAR)?);
        fs::write(self.work.join("app.jar"), &jar)?;
        let beside = self.work.join("tree/opt/spark/jars");
        if beside.is_dir() {
            fs::write(beside.join("app.jar"), &jar)?;
        }
        Ok(())
    }

    /// Seconds of a build; `cold`: with its inputs in the cache and nothing else.
    async fn hearth(&self, codec: &str, cold: bool, report: &mut Report) -> Result<f64> {
        if cold {
            for name in ["cache", "dist"] {
                images::remove(&self.work.join(name))?;
            }
            // Links: files of the cache are replaced, never changed.
            images::run(Command::new("cp").args(["-al", "inputs", "cache"]).current_dir(&self.work)).await?;
        }
        let mut build = Command::new(&self.hearth);
        build.args(["build", "--cache-dir", "cache", "--to", "dist", "--offline", "-f"]);
        build.arg(format!("{codec}.yaml")).current_dir(&self.work);
        let started = Instant::now();
        let peak = images::run_watched(&mut build).await?;
        let taken = seconds(started.elapsed());
        #[expect(clippy::cast_precision_loss, reason = "a few hundred thousand")]
        report.figure("peak_mib", peak as f64 / 1024.0);
        Ok(taken)
    }

    async fn buildah(&self, codec: &str) -> Result<f64> {
        images::remove(&self.work.join("buildah-out"))?;
        let started = Instant::now();
        self.buildah_run(&["from", "-q", "--pull-never", "--name", "work", "localhost/base:latest"]).await?;
        self.buildah_run(&["copy", "-q", "work", &self.path("tree"), "/"]).await?;
        let to = format!("oci:{}:image", self.path("buildah-out"));
        if codec == "gzip" {
            self.buildah_run(&["commit", "-q", "--rm", "work", &to]).await?;
        } else {
            // `commit` knows no other compression.
            self.buildah_run(&["commit", "-q", "--rm", "work", "localhost/image:latest"]).await?;
            let push = ["push", "-q", "--compression-format", codec, "localhost/image:latest", &to];
            self.buildah_run(&push).await?;
        }
        Ok(seconds(started.elapsed()))
    }

    /// A build with the layer cache on, into a layout that keeps the layers of the build before: both are reused.
    async fn buildah_cached(&self) -> Result<f64> {
        let (file, context) = (self.path("Containerfile"), text(&self.work));
        let to = format!("oci:{}:image", self.path("buildah-cached"));
        let started = Instant::now();
        let build = [
            "build",
            "-q",
            "--layers",
            "--pull-never",
            "-t",
            "localhost/cached:latest",
            "-f",
            &file,
            &context,
        ];
        self.buildah_run(&build).await?;
        self.buildah_run(&["push", "-q", "localhost/cached:latest", &to]).await?;
        Ok(seconds(started.elapsed()))
    }

    async fn buildah_run(&self, arguments: &[&str]) -> Result<()> {
        // Without a policy of its own buildah wants the machine's, and there may be none.
        let policy = self.work.join("policy.json");
        fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        let mut buildah = Command::new("buildah");
        buildah.args(["--root", &self.path("storage"), "--runroot", &self.path("run"), arguments[0]]);
        if matches!(arguments[0], "build" | "commit" | "from" | "push") {
            buildah.arg("--signature-policy").arg(&policy);
        }
        // Options come before names.
        buildah.args(&arguments[1..]);
        images::run(&mut buildah).await
    }

    async fn umoci(&self) -> Result<f64> {
        images::remove(&self.work.join("umoci"))?;
        images::run(Command::new("cp").args(["-a", "base", "umoci"]).current_dir(&self.work)).await?;
        let started = Instant::now();
        let mut insert = Command::new("umoci");
        insert.args(["insert", "--image", "umoci:base", "--tag", "image", "tree/opt", "/opt"]);
        images::run(insert.current_dir(&self.work)).await?;
        Ok(seconds(started.elapsed()))
    }
}

fn specification(codec: &str, digest: &str) -> String {
    format!(
        "apiVersion: hearth.dev/v1alpha1\nkind: ImageMatrix\nrepository: registry.example.com/bench/spark\n\
         tag: \"{{spark}}\"\nbase: {{ layout: base }}\ncompression: {codec}\n\
         axes: {{ spark: [\"{SPARK}\"], java: [\"17\"], python: [\"3.11\"] }}\n\
         sources: {{ spark: {{ url: \"https://files.example.com/pyspark.tar.gz\", sha256: \"{digest}\" }} }}\n\
         files: [{{ path: app.jar, to: /opt/spark/jars/app.jar }}]\n"
    )
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
