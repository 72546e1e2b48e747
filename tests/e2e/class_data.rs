//! A real driver and its executor under containerd, in an image with an archive of class data: both use it, as Java's own log
//! says; with a damaged archive both start without it.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use kit::{
    process::binary,
    runtime::{Containerd, DockerRegistry, run},
};

use crate::support::REGISTRY;

const REPOSITORY: &str = "data/classes";
/// Training and archiving take a minute on two cores.
const BUILD_LIMIT: Duration = Duration::from_mins(15);
const RUN_LIMIT: Duration = Duration::from_mins(4);

/// Counts Spark's classes in the logs of driver and executor by where Java had them from.
const SCRIPT: &str = r#"
import cluster
from pyspark.sql import SparkSession
spark = SparkSession.builder.master(cluster.serve()).getOrCreate()
print("sum", spark.range(1000).selectExpr("sum(id)").first()[0])
spark.stop()
for process in cluster.processes:
    print("executor ended with", process.wait(60))
for name in ("driver", "executor"):
    lines = [line for line in open("/tmp/%s.log" % name) if " org.apache.spark." in line and "$$Lambda" not in line]
    shared = sum("source: shared objects file" in line for line in lines)
    print(name, "shared most" if shared > 0.9 * len(lines) > 0 else "shared none" if shared == 0 else "shared some", shared, len(lines))
"#;

#[tokio::test]
async fn driver_and_executor_use_the_archive_of_class_data() -> Result<()> {
    let work = tempfile::tempdir()?;
    let registry = DockerRegistry::start(&work.path().join("storage")).await?;
    build_and_push(work.path(), &registry.address().to_string()).await?;
    let containerd = Containerd::start().await?;
    let address = format!("http://{}", registry.address());
    containerd.mirror(REGISTRY, &address, &address)?;
    for (variant, expected) in [("whole", "most"), ("damaged", "none")] {
        let image = format!("{REGISTRY}/{REPOSITORY}:{variant}");
        containerd.pull_by_cri(&image).await?;
        let mut command = vec!["/opt/entrypoint.sh", "driver"];
        for setting in [
            "spark.driver.host=127.0.0.1",
            "spark.executor.instances=1",
            "spark.executor.memory=1g",
            // Kubernetes would mount a directory for it.
            "spark.local.dir=/tmp",
            "spark.kubernetes.container.image=any",
            "spark.kubernetes.executor.podNamePrefix=e2e",
            "spark.scheduler.minRegisteredResourcesRatio=1",
            "spark.driver.extraJavaOptions=-Xlog:class+load=info:file=/tmp/driver.log",
            "spark.executor.extraJavaOptions=-Xlog:class+load=info:file=/tmp/executor.log",
        ] {
            command.extend(["--conf", setting]);
        }
        command.push("/opt/e2e/job.py");
        let options = ["--env", "SPARK_DRIVER_BIND_ADDRESS=127.0.0.1"];
        let printed = containerd.run_container(&image, &options, &command, RUN_LIMIT).await?.output()?;
        let said = [format!("driver shared {expected} "), format!("executor shared {expected} ")];
        for line in ["sum 499500", "executor ended with 0", &said[0], &said[1]] {
            assert!(printed.contains(line), "{variant}: {line}: {printed}");
        }
    }
    registry.stop();
    Ok(())
}

async fn build_and_push(work: &Path, host: &str) -> Result<()> {
    let (base, spark) = (kit::fixtures::base_rootfs()?, kit::fixtures::pyspark("3.5.9")?);
    fs::write(work.join("job.py"), SCRIPT)?;
    fs::write(work.join("cluster.py"), include_str!("../../builder/src/trained/cluster.py"))?;
    let text = format!(
        "apiVersion: hearth.dev/v1alpha1\nkind: ImageMatrix\nrepository: {host}/{REPOSITORY}\ntag: \"{{variant}}\"\n\
         axes: {{ spark: [\"3.5.9\"], java: [\"17\"], python: [\"3.11\"] }}\n\
         base: {{ rootfs: {} }}\nsources: {{ spark: {{ path: {} }} }}\n\
         jvm: {{ classDataSharing: true }}\n\
         files: [{{ path: job.py, to: /opt/e2e/ }}, {{ path: cluster.py, to: /opt/e2e/ }}]\n\
         variants:\n  whole: {{}}\n  damaged:\n    files: [{{ text: damaged, to: /opt/spark/hearth/classes.jsa }}]\n",
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
