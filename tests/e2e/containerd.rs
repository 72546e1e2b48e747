//! Pulls through the agent with containerd, and containers of what was pulled under runc.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kit::runtime::{Containerd, Finished};

use crate::support::{Agent, Image, REGISTRY, Upstream, assert_same_bytes};

/// Spark starts in ten seconds; computing pi takes a few more.
const RUN_LIMIT: Duration = Duration::from_mins(3);

#[tokio::test]
async fn ctr_pulls_the_image_and_has_upstreams_bytes() -> Result<()> {
    let (image, upstream, agent) = image_behind_an_agent().await?;
    let containerd = containerd_behind(&agent).await?;

    containerd.pull_by_ctr(&image.name()).await?;

    assert_eq!(containerd.digest_of(&image.name()).await?, image.manifest.digest);
    assert_has_upstreams_bytes(&containerd, &image)?;
    upstream.assert_was_read_once(&image);
    Ok(())
}

#[tokio::test]
async fn a_kubelets_pull_through_cri_has_upstreams_bytes() -> Result<()> {
    let (image, upstream, agent) = image_behind_an_agent().await?;
    let containerd = containerd_behind(&agent).await?;

    let id = containerd.pull_by_cri(&image.name()).await?;

    assert_eq!(id, image.config_and_layers()[0].digest, "CRI names an image by its configuration");
    assert_has_upstreams_bytes(&containerd, &image)?;
    upstream.assert_was_read_once(&image);
    Ok(())
}

#[tokio::test]
async fn an_image_pulled_before_is_pulled_by_its_tag_by_another_containerd_while_upstream_is_down()
-> Result<()> {
    let (image, upstream, agent) = image_behind_an_agent().await?;
    containerd_behind(&agent).await?.pull_by_cri(&image.name()).await?;
    upstream.stop();

    let second = containerd_behind(&agent).await?;
    second.pull_by_cri(&image.name()).await?;

    assert_eq!(second.digest_of(&image.name()).await?, image.manifest.digest);
    assert_has_upstreams_bytes(&second, &image)
}

#[tokio::test]
async fn spark_computes_pi_through_the_entry_point() -> Result<()> {
    let (image, _upstream, agent) = image_behind_an_agent().await?;
    let containerd = containerd_behind(&agent).await?;
    containerd.pull_by_cri(&image.name()).await?;

    let submit =
        ["/opt/spark/bin/spark-submit", "--master", "local[2]", "/opt/spark/examples/src/main/python/pi.py"];
    let printed = start(&containerd, &image, &[], &submit).await?.output()?;

    let pi = printed.lines().find_map(|line| line.strip_prefix("Pi is roughly ")).context(printed.clone())?;
    let pi: f64 = pi.trim().parse()?;
    // 200,000 random points: a tenth is more than twenty times the expected error.
    assert!((pi - std::f64::consts::PI).abs() < 0.1, "{pi}");
    Ok(())
}

#[tokio::test]
async fn driver_and_executor_start_java_with_the_arguments_that_spark_on_kubernetes_expects() -> Result<()> {
    let (image, _upstream, agent) = image_behind_an_agent().await?;
    let containerd = containerd_behind(&agent).await?;
    containerd.pull_by_cri(&image.name()).await?;
    let java = StubJava::new()?;

    let driver = java
        .arguments(
            &containerd,
            &image,
            &["SPARK_DRIVER_BIND_ADDRESS=10.0.0.7"],
            &[
                "driver",
                "--properties-file",
                "/opt/spark/conf/spark.properties",
                "--class",
                "org.example.Main",
                "local:///a b.jar",
            ],
        )
        .await?;
    let submit = driver
        .iter()
        .position(|word| word == "org.apache.spark.deploy.SparkSubmit")
        .context(driver.join("\n"))?;
    assert_eq!(driver[submit + 1..submit + 3], ["--conf", "spark.driver.bindAddress=10.0.0.7"]);
    let rest = [
        "--deploy-mode",
        "client",
        "--properties-file",
        "/opt/spark/conf/spark.properties",
        "--class",
        "org.example.Main",
        "local:///a b.jar",
    ];
    assert_eq!(driver[driver.len() - rest.len()..], rest);

    let executor = java
        .arguments(
            &containerd,
            &image,
            &[
                "SPARK_JAVA_OPT_10=-Dlast=10",
                "SPARK_JAVA_OPT_2=-Dsecond=with space",
                "SPARK_JAVA_OPT_0=--add-opens=java.base/java.lang=ALL-UNNAMED",
                "SPARK_EXECUTOR_MEMORY=1g",
                "SPARK_DRIVER_URL=spark://CoarseGrainedScheduler@10.0.0.7:7078",
                "SPARK_EXECUTOR_ID=1",
                "SPARK_EXECUTOR_CORES=2",
                "SPARK_APPLICATION_ID=spark-app",
                "SPARK_EXECUTOR_POD_IP=10.0.0.8",
                "SPARK_RESOURCE_PROFILE_ID=0",
                "SPARK_EXECUTOR_POD_NAME=exec-1",
            ],
            &["executor"],
        )
        .await?;
    let class_path = executor.iter().position(|word| word == "-cp").context(executor.join("\n"))? + 1;
    assert!(
        executor[class_path].split(':').any(|entry| entry == "/opt/spark/jars/*"),
        "{}",
        executor[class_path]
    );
    assert_eq!(
        executor[..class_path],
        [
            "--add-opens=java.base/java.lang=ALL-UNNAMED",
            "-Dsecond=with space",
            "-Dlast=10",
            "-Xms1g",
            "-Xmx1g",
            "-cp"
        ]
    );
    assert_eq!(
        executor[class_path + 1..],
        [
            "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend",
            "--driver-url",
            "spark://CoarseGrainedScheduler@10.0.0.7:7078",
            "--executor-id",
            "1",
            "--cores",
            "2",
            "--app-id",
            "spark-app",
            "--hostname",
            "10.0.0.8",
            "--resourceProfileId",
            "0",
            "--podName",
            "exec-1",
        ]
    );
    Ok(())
}

/// A directory that stands in for a Java: its `java` says what it was called with.
struct StubJava {
    home: tempfile::TempDir,
}

/// Before each argument, on standard error: `spark-class` reads the standard output of the first Java it starts.
const MARK: &str = "stub java was given: ";

impl StubJava {
    fn new() -> Result<Self> {
        let home = tempfile::Builder::new().prefix("hearth-java-").tempdir()?;
        // Spark runs as a user of its own.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755))?;
        let bin = home.path().join("bin");
        fs::create_dir(&bin)?;
        let java = bin.join("java");
        fs::write(&java, format!("#!/bin/bash\nprintf '{MARK}%s\\n' \"$@\" >&2\nexit 3\n"))?;
        fs::set_permissions(&java, fs::Permissions::from_mode(0o755))?;
        Ok(Self { home })
    }

    /// What java is called with when a container of `image` is started with `environment` and `arguments`.
    async fn arguments(
        &self,
        containerd: &Containerd,
        image: &Image,
        environment: &[&str],
        arguments: &[&str],
    ) -> Result<Vec<String>> {
        let mount = format!("type=bind,src={},dst=/stub,options=rbind:ro", self.home.path().display());
        let mut options = vec!["--mount", &mount, "--env", "JAVA_HOME=/stub"];
        options.extend(environment.iter().flat_map(|variable| ["--env", *variable]));
        let finished = start(containerd, image, &options, arguments).await?;
        let words: Vec<_> =
            finished.stderr.lines().filter_map(|line| line.strip_prefix(MARK)).map(str::to_owned).collect();
        anyhow::ensure!(!words.is_empty(), "java was not started:\n{}\n{}", finished.stdout, finished.stderr);
        Ok(words)
    }
}

/// Runs a container of `image` as a kubelet does for a pod that gives `args` only.
async fn start(
    containerd: &Containerd,
    image: &Image,
    options: &[&str],
    arguments: &[&str],
) -> Result<Finished> {
    let entry_point = image.entry_point()?;
    let command: Vec<&str> =
        entry_point.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
    containerd.run_container(&image.name(), options, &command, RUN_LIMIT).await
}

#[tokio::test]
async fn containerd_pulls_with_what_setup_wrote() -> Result<()> {
    let (image, upstream, agent) = image_behind_an_agent().await?;
    let node = tempfile::tempdir()?;
    let file = |path: &str| node.path().join(path);
    fs::create_dir_all(file("etc/containerd"))?;
    let configuration = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
    fs::write(file("etc/containerd/config.toml"), configuration)?;
    fs::write(file("agent.yaml"), format!("registries: [{{ host: \"{REGISTRY}\" }}]\n"))?;
    let setup = |more: &[&str]| {
        let mut command = std::process::Command::new(kit::process::binary("hearth-agent")?);
        command.arg("setup").arg("--root").arg(node.path()).arg("--config").arg(file("agent.yaml"));
        command.args(["--mirror-listen", agent.url().trim_start_matches("http://")]).args(more);
        anyhow::Ok(command)
    };
    kit::runtime::run(setup(&[])?, Duration::from_secs(30)).await?.output()?;
    let hosts = file(&format!("etc/containerd/certs.d/{REGISTRY}/hosts.toml"));

    let containerd = Containerd::start().await?;
    containerd.configure(REGISTRY, &fs::read_to_string(&hosts)?)?;
    containerd.pull_by_cri(&image.name()).await?;

    assert_has_upstreams_bytes(&containerd, &image)?;
    upstream.assert_was_read_once(&image);
    kit::runtime::run(setup(&["--uninstall"])?, Duration::from_secs(30)).await?.output()?;
    assert!(!hosts.exists(), "it is gone again");
    Ok(())
}

async fn image_behind_an_agent() -> Result<(Image, Upstream, Agent)> {
    let image = Image::built().await?;
    let upstream = Upstream::start(&image.storage, None).await?;
    let agent = Agent::start(upstream.proxy.address()).await?;
    Ok((image, upstream, agent))
}

/// One that has nothing yet and no way round the agent.
async fn containerd_behind(agent: &Agent) -> Result<Containerd> {
    let containerd = Containerd::start().await?;
    containerd.mirror(REGISTRY, &agent.url(), &agent.url())?;
    Ok(containerd)
}

fn assert_has_upstreams_bytes(containerd: &Containerd, image: &Image) -> Result<()> {
    for blob in image.blobs() {
        assert_same_bytes(&image.upstream_file(blob), &containerd.blob(&blob.digest))?;
    }
    Ok(())
}
