//! Two cells of one matrix at work under containerd: a plain one, and one with Python packages from wheels and a JAR by
//! its Maven coordinates.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use kit::{
    process::binary,
    runtime::{Containerd, DockerRegistry, run},
};

use crate::support::REGISTRY;

const REPOSITORY: &str = "data/cells";
const BUILD_LIMIT: Duration = Duration::from_mins(10);
const RUN_LIMIT: Duration = Duration::from_mins(4);

/// A pandas UDF, which goes through pyarrow, and a resource of the JAR, which only a class path with it has.
const SCRIPT: &str = r#"
import pandas, pyarrow
from pyspark.sql import SparkSession
from pyspark.sql.functions import pandas_udf, sum as total
spark = SparkSession.builder.getOrCreate()
@pandas_udf("long")
def doubled(values: pandas.Series) -> pandas.Series:
    return values * 2
print("doubled", spark.range(1000).select(total(doubled("id"))).first()[0])
loader = spark.sparkContext._jvm.Thread.currentThread().getContextClassLoader()
stream = loader.getResourceAsStream("hearth-e2e.txt")
print("resource", "".join(chr(stream.read()) for _ in range(5)))
print("versions", pandas.__version__, pyarrow.__version__)
"#;

/// Imports as the user of the image, with every file that Python loads named. Spark's own package is in an archive.
const IMPORTS: &str = "exec python3.11 -v -c 'import os, pandas, pyspark.sql.session as session; \
    print(\"user\", os.getuid()); print(\"session\", session.__file__)' 2>&1";

/// Writes a Maven repository with one JAR that has one resource.
const MAKE: &str = r#"
import hashlib, os, zipfile
path = "repository/org/example/e2e/1.0"
os.makedirs(path)
open(f"{path}/e2e-1.0.pom", "w").write("<project><groupId>org.example</groupId><artifactId>e2e</artifactId><version>1.0</version></project>")
with zipfile.ZipFile(f"{path}/e2e-1.0.jar", "w") as jar:
    jar.writestr("hearth-e2e.txt", "hello")
"#;

#[tokio::test]
async fn a_plain_cell_and_one_with_wheels_and_a_jar_run() -> Result<()> {
    let work = tempfile::tempdir()?;
    let registry = DockerRegistry::start(&work.path().join("storage")).await?;
    build_and_push(work.path(), &registry.address().to_string()).await?;
    let containerd = Containerd::start().await?;
    let address = format!("http://{}", registry.address());
    containerd.mirror(REGISTRY, &address, &address)?;
    let submit = ["/opt/spark/bin/spark-submit", "--master", "local[2]"];

    let plain = format!("{REGISTRY}/{REPOSITORY}:plain");
    containerd.pull_by_cri(&plain).await?;
    let pi = "/opt/spark/examples/src/main/python/pi.py";
    let printed =
        containerd.run_container(&plain, &[], &[&submit[..], &[pi]].concat(), RUN_LIMIT).await?.output()?;
    assert!(printed.contains("Pi is roughly 3."), "{printed}");

    let full = format!("{REGISTRY}/{REPOSITORY}:full");
    containerd.pull_by_cri(&full).await?;
    let script = "/opt/spark/work-dir/e2e.py";
    let printed = containerd
        .run_container(&full, &[], &[&submit[..], &[script]].concat(), RUN_LIMIT)
        .await?
        .output()?;
    for line in ["doubled 999000", "resource hello", "versions 2.2.3 16.1.0"] {
        assert!(printed.contains(line), "{line}: {printed}");
    }

    let printed =
        containerd.run_container(&full, &[], &["/bin/bash", "-c", IMPORTS], RUN_LIMIT).await?.output()?;
    for line in [
        "user 185",
        "session /opt/spark/python/lib/pyspark.zip/pyspark/sql/session.pyc",
        "code object from '/opt/python-packages/pandas/__pycache__/__init__.cpython-311.pyc'",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    let compiled_again = printed.lines().find(|line| line.contains("code object from /opt/"));
    assert_eq!(compiled_again, None, "sources that are compiled at import have no bytecode");
    registry.stop();
    Ok(())
}

async fn build_and_push(work: &Path, host: &str) -> Result<()> {
    let (base, spark) = (kit::fixtures::base_rootfs()?, kit::fixtures::pyspark("3.5.9")?);
    let mut python = Command::new("python3");
    python.args(["-c", MAKE]).current_dir(work);
    run(python, BUILD_LIMIT).await?.output().context("cannot make a Maven repository")?;
    fs::write(work.join("e2e.py"), SCRIPT)?;
    let text = format!(
        "apiVersion: hearth.dev/v1alpha1\nkind: ImageMatrix\nrepository: {host}/{REPOSITORY}\ntag: \"{{variant}}\"\n\
         axes: {{ spark: [\"3.5.9\"], java: [\"17\"], python: [\"3.11\"] }}\n\
         base: {{ rootfs: {} }}\nsources: {{ spark: {{ path: {} }} }}\n\
         variants:\n  plain: {{}}\n  full:\n    files: [{{ path: e2e.py, to: /opt/spark/work-dir/e2e.py }}]\n\
         \x20   jars: {{ repositories: [{{ url: \"file:repository\" }}], packages: [\"org.example:e2e:1.0\"] }}\n\
         \x20   wheels: {{ packages: [pandas==2.2.3, numpy==1.26.4, pyarrow==16.1.0] }}\n",
        base.display(),
        spark.display(),
    );
    let spec = work.join("hearth.yaml");
    fs::write(&spec, text)?;
    let mut command = Command::new(binary("hearth")?);
    command.args(["build", "--push", "--plain-http", host, "--file"]).arg(&spec);
    command.arg("--to").arg(work.join("layout")).arg("--cache-dir").arg(work.join("cache"));
    run(command, BUILD_LIMIT).await?.output().context("`hearth build --push` failed")?;
    Ok(())
}
