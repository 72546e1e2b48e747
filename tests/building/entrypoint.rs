//! The entry point and the decommission script of our images, run by the real bash against programs that only
//! print their arguments. The argument lines are the contract between Spark's pods and its images.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

const COARSE: &str = "org.apache.spark.executor.CoarseGrainedExecutorBackend";
const KUBERNETES: &str = "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend";

/// A Spark home and a Java whose programs print one argument per line.
pub(crate) struct Image {
    home: TempDir,
}

impl Image {
    pub(crate) fn new(line: Option<(&str, &str, &str)>) -> Self {
        let image = Self { home: tempfile::tempdir().expect("temporary folders are available") };
        for directory in ["spark/bin", "java/bin", "bin", "work"] {
            fs::create_dir_all(image.path(directory)).expect("writable");
        }
        image.program("spark/bin/spark-submit", "printf '%s\\n' spark-submit \"$@\"");
        image.program("java/bin/java", "printf '%s\\n' java \"$@\"");
        image.program("bin/tini", "printf 'tini %s %s\\n' \"$1\" \"$2\"; shift 2; exec \"$@\"");
        if let Some((backend, profile, pod)) = line {
            let text = format!(
                "HEARTH_EXECUTOR_BACKEND={backend}\nHEARTH_RESOURCE_PROFILE={profile}\nHEARTH_POD_NAME={pod}\n"
            );
            fs::write(image.path("spark/hearth.env"), text).expect("writable");
        }
        image
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn program(&self, name: &str, body: &str) {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/bash\n{body}\n")).expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
    }

    pub(crate) fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = Command::new("bash");
        command.arg(script("entrypoint.sh")).args(arguments).current_dir(self.path("work")).env_clear();
        command.env("PATH", format!("{}:/usr/bin:/bin", self.text("bin")));
        command.env("SPARK_HOME", self.path("spark")).env("JAVA_HOME", self.path("java"));
        command.envs(environment.iter().copied()).output().expect("bash starts")
    }

    /// What was run, an argument per line.
    pub(crate) fn lines(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
        let output = self.run(arguments, environment);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
    }
}

pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/spark").join(name)
}

pub(crate) const EXECUTOR: &[(&str, &str)] = &[
    ("SPARK_EXECUTOR_MEMORY", "1g"),
    ("SPARK_DRIVER_URL", "spark://driver:7078"),
    ("SPARK_EXECUTOR_ID", "7"),
    ("SPARK_EXECUTOR_CORES", "2"),
    ("SPARK_APPLICATION_ID", "spark-1"),
    ("SPARK_EXECUTOR_POD_IP", "10.0.0.9"),
    ("SPARK_RESOURCE_PROFILE_ID", "3"),
    ("SPARK_EXECUTOR_POD_NAME", "pod-7"),
];

#[test]
fn a_driver_is_submitted_in_client_mode() {
    let image = Image::new(None);
    let arguments = ["driver", "--properties-file", "/opt/spark/conf/spark.properties", "local:///a b.jar"];
    let lines = image.lines(&arguments, &[("SPARK_DRIVER_BIND_ADDRESS", "10.0.0.1")]);
    let expected = [
        "tini -s --",
        "spark-submit",
        "--conf",
        "spark.driver.bindAddress=10.0.0.1",
        "--conf",
        "spark.executorEnv.SPARK_DRIVER_POD_IP=10.0.0.1",
        "--deploy-mode",
        "client",
        "--properties-file",
        "/opt/spark/conf/spark.properties",
        "local:///a b.jar",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_python_driver_of_spark_2_gets_its_application_from_variables() {
    let image = Image::new(None);
    let environment = [
        ("SPARK_DRIVER_BIND_ADDRESS", "10.0.0.1"),
        ("PYSPARK_PRIMARY", "local:///pi.py"),
        ("PYSPARK_APP_ARGS", "10 20"),
    ];
    let lines = image.lines(&["driver-py", "--x"], &environment);
    assert_eq!(lines[lines.len() - 4..], ["--x", "local:///pi.py", "10", "20"]);
}

#[test]
fn executors_are_started_as_their_line_expects() {
    let cases = [
        (Some((COARSE, "no", "no")), COARSE, &[][..]),
        (Some((COARSE, "yes", "no")), COARSE, &["--resourceProfileId", "3"][..]),
        (
            Some((KUBERNETES, "yes", "yes")),
            KUBERNETES,
            &["--resourceProfileId", "3", "--podName", "pod-7"][..],
        ),
        (None, KUBERNETES, &["--resourceProfileId", "3", "--podName", "pod-7"][..]),
    ];
    for (line, backend, flags) in cases {
        let image = Image::new(line);
        let class_path = format!("{0}/conf:{0}/jars/*:{1}", image.text("spark"), image.text("work"));
        let mut expected = vec!["tini -s --", "java", "-Xms1g", "-Xmx1g", "-cp", &class_path, backend];
        expected.extend(["--driver-url", "spark://driver:7078", "--executor-id", "7", "--cores", "2"]);
        expected.extend(["--app-id", "spark-1", "--hostname", "10.0.0.9"]);
        expected.extend(flags);
        assert_eq!(image.lines(&["executor"], EXECUTOR), expected);
    }
}

#[test]
fn java_options_come_in_numeric_order_and_whole() {
    let image = Image::new(None);
    let mut environment = EXECUTOR.to_vec();
    environment.extend([
        ("SPARK_JAVA_OPT_10", "-Dlast=1"),
        ("SPARK_JAVA_OPT_2", "-Dsecond=a b"),
        ("SPARK_JAVA_OPT_0", "--add-opens=java.base/java.nio=ALL-UNNAMED"),
        ("SPARK_JAVA_OPT_08", "-Dleading=0"),
        ("SPARK_JAVA_OPTS_OTHER", "-Dno"),
    ]);
    let lines = image.lines(&["executor"], &environment);
    let expected =
        ["--add-opens=java.base/java.nio=ALL-UNNAMED", "-Dsecond=a b", "-Dleading=0", "-Dlast=1", "-Xms1g"];
    assert_eq!(lines[2..7], expected);
}

#[test]
fn the_class_path_has_every_part_in_its_place() {
    let image = Image::new(None);
    let mut environment = EXECUTOR.to_vec();
    environment.extend([
        ("SPARK_CONF_DIR", "/conf"),
        ("HADOOP_CONF_DIR", "/hadoop"),
        ("SPARK_CLASSPATH", "/given"),
        ("SPARK_EXTRA_CLASSPATH", "/extra/*"),
        ("SPARK_DIST_CLASSPATH", "/dist"),
    ]);
    let lines = image.lines(&["executor"], &environment);
    let expected =
        format!("/conf:/hadoop:/given:{}/jars/*:/extra/*:{}:/dist", image.text("spark"), image.text("work"));
    assert_eq!(lines[5], expected);
}

#[test]
fn anything_else_is_run_as_it_is() {
    let image = Image::new(None);
    assert_eq!(image.lines(&["printf", "%s\\n", "a b", "c"], &[]), ["a b", "c"]);
}

#[test]
fn what_is_missing_is_named() {
    let image = Image::new(None);
    let failure = |arguments: &[&str], environment: &[(&str, &str)]| {
        let output = image.run(arguments, environment);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (missing, _) in EXECUTOR.iter().take(6) {
        let environment: Vec<_> = EXECUTOR.iter().copied().filter(|(name, _)| name != missing).collect();
        let (code, message) = failure(&["executor"], &environment);
        assert!(code == Some(2) && message.contains(missing), "{message}");
    }
    let (code, message) = failure(&["driver"], &[]);
    assert!(code == Some(2) && message.contains("SPARK_DRIVER_BIND_ADDRESS"), "{message}");
    let (code, message) = failure(&[], &[]);
    assert!(code == Some(2) && message.contains("nothing to run"), "{message}");
}

#[test]
fn without_tini_spark_is_started_directly() {
    let image = Image::new(None);
    fs::remove_file(image.path("bin/tini")).expect("removable");
    // Only the programs that the script itself needs, so that a tini of this machine is not found.
    for program in ["id", "bash"] {
        let found = ["/usr/bin", "/bin"].iter().map(|directory| Path::new(directory).join(program));
        let found = found.into_iter().find(|path| path.exists()).expect("coreutils are here");
        std::os::unix::fs::symlink(found, image.path("bin").join(program)).expect("writable");
    }
    let path = image.text("bin");
    let lines = image.lines(&["driver"], &[("SPARK_DRIVER_BIND_ADDRESS", "h"), ("PATH", &path)]);
    assert_eq!(lines[0], "spark-submit");
}

#[test]
fn decommissioning_signals_the_executor_and_waits_for_it() {
    let image = Image::new(None);
    let log = image.path("log");
    fs::write(&log, "").expect("writable");
    // A process that is called `java`, has an executor's main class, and ends on SIGPWR.
    fs::copy("/bin/bash", image.path("java/bin/java")).expect("bash is a file");
    let body =
        format!("trap 'echo asked; exit 0' PWR; touch {}; while :; do sleep 0.05; done", image.text("ready"));
    let mut executor = Command::new(image.path("java/bin/java"))
        .args(["-c", &body, KUBERNETES, "--driver-url"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let until = Instant::now() + Duration::from_secs(10);
    while !image.path("ready").exists() {
        assert!(Instant::now() < until, "the executor does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Reaped here, so that it does not linger as a zombie that still has a folder in /proc.
    let reaper = std::thread::spawn(move || {
        let status = executor.wait().expect("it is our child");
        (status, std::io::read_to_string(executor.stdout.take().expect("piped")).expect("text"))
    });
    let mut command = Command::new("bash");
    command.arg(script("decom.sh")).env("HEARTH_DECOM_LOG", &log).env("HEARTH_DECOM_TIMEOUT", "20");
    let output = command.output().expect("bash starts");
    let (status, said) = reaper.join().expect("it does not panic");
    assert!(status.success() && said == "asked\n", "{status} {said}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("has ended"), "{printed}");
    assert_eq!(fs::read_to_string(&log).expect("readable"), printed);
    let output = command.output().expect("bash starts");
    assert!(String::from_utf8_lossy(&output.stdout).contains("no executor is running here"));
}
