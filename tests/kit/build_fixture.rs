//! Small inputs for `hearth build` that have every shape of the real ones, and the binary as a child process.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::{process::binary, registry::random_bytes};
use flate2::{Compression, write::GzEncoder};
use serde_json::Value;
use tempfile::TempDir;

/// A build of these inputs takes a second; the large ones say so themselves.
const LIMIT: Duration = Duration::from_mins(2);

/// A specification beside its inputs, with a cache of its own.
#[derive(Debug)]
pub struct Fixture {
    home: TempDir,
}

impl Default for Fixture {
    fn default() -> Self {
        Self::new()
    }
}

impl Fixture {
    /// `hearth.yaml`, `base.tar` and `pyspark-3.5.9.tar.gz` in a new folder.
    pub fn new() -> Self {
        let fixture = Self { home: tempfile::tempdir().expect("temporary folders are available") };
        write_base(File::create(fixture.path("base.tar")).expect("writable"), &[]);
        write_spark(File::create(fixture.path("pyspark-3.5.9.tar.gz")).expect("writable"), "3.5.9", &[]);
        fixture.spec("registry.test/data/spark", "{ rootfs: base.tar }", "");
        fixture
    }

    /// Replaces the specification.
    pub fn spec(&self, repository: &str, base: &str, more: &str) {
        let text = format!(
            r#"apiVersion: hearth.dev/v1alpha1
kind: ImageMatrix
repository: {repository}
tag: "{{spark}}-java{{java}}-python{{python}}"
base: {base}
axes:
  spark: ["3.5.9"]
  java: ["17"]
  python: ["3.11"]
sources:
  spark: {{ path: "pyspark-{{spark}}.tar.gz" }}
{more}"#
        );
        fs::write(self.path("hearth.yaml"), text).expect("writable");
    }

    /// Something in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// `hearth build` in this folder, ready to be changed.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.subcommand("build", arguments)
    }

    /// Another command of `hearth` in this folder.
    pub fn subcommand(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("hearth").expect("the binary is built"));
        command.arg(name).args(arguments).current_dir(self.home.path());
        command.env("HEARTH_CACHE_DIR", self.path("cache")).env_remove("SOURCE_DATE_EPOCH");
        command
    }

    /// Runs a build and gives its JSON report.
    pub fn build(&self, arguments: &[&str]) -> Value {
        let mut command = self.command(arguments);
        report(&finish(command.args(["--output", "json"])))
    }

    /// Runs a build that must fail, and gives exit code and message.
    pub fn failure(&self, arguments: &[&str]) -> (i32, String) {
        let output = finish(&mut self.command(arguments));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().expect("it ends by itself"), message)
    }
}

/// Runs a command to its end, within bounds.
pub fn finish(command: &mut Command) -> Output {
    wait(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts"))
}

/// Waits for a child, within bounds.
pub fn wait(mut child: Child) -> Output {
    let until = Instant::now() + LIMIT;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            break status;
        }
        if Instant::now() > until {
            child.kill().expect("it runs");
            child.wait().expect("it is our child");
            panic!("the build runs on:\n{}", String::from_utf8_lossy(&stderr.join().expect("it reads")));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let read = |pipe: std::thread::JoinHandle<Vec<u8>>| pipe.join().expect("it reads");
    Output { status, stdout: read(stdout), stderr: read(stderr) }
}

fn drain(pipe: Option<impl io::Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).expect("pipes can be read");
        }
        bytes
    })
}

/// The report of a build that must have succeeded.
pub fn report(output: &Output) -> Value {
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}:\n{log}", output.status);
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}

/// The values of one key in all layers of the first image.
pub fn layers(report: &Value, key: &str) -> Vec<String> {
    let layers = report["images"][0]["layers"].as_array().expect("an image was built");
    layers.iter().map(|layer| layer[key].as_str().expect("layers have it").to_owned()).collect()
}

/// A tar archive that is written member by member.
pub struct Archive<W: Write>(tar::Builder<W>);

impl<W: Write> std::fmt::Debug for Archive<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").finish_non_exhaustive()
    }
}

impl<W: Write> Archive<W> {
    /// Starts one.
    pub fn new(out: W) -> Self {
        Self(tar::Builder::new(out))
    }

    fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.stream(path, mode, content.len() as u64, content);
    }

    /// Adds a file whose content is not in memory.
    pub fn stream(&mut self, path: &str, mode: u32, size: u64, content: impl io::Read) {
        let mut header = Self::header(tar::EntryType::Regular, mode, size);
        self.0.append_data(&mut header, path, content).expect("writable");
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str) {
        let mut header = Self::header(tar::EntryType::Directory, 0o755, 0);
        self.0.append_data(&mut header, format!("{path}/"), io::empty()).expect("writable");
    }

    /// Adds a symbolic or hard link.
    pub fn link(&mut self, kind: tar::EntryType, path: &str, target: &str) {
        let mode = if kind == tar::EntryType::Symlink { 0o777 } else { 0o755 };
        let mut header = Self::header(kind, mode, 0);
        self.0.append_link(&mut header, path, target).expect("writable");
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        let mut header = Self::header(tar::EntryType::Char, 0o666, 0);
        header.set_device_major(major).expect("it fits");
        header.set_device_minor(minor).expect("it fits");
        self.0.append_data(&mut header, path, io::empty()).expect("writable");
    }

    /// Adds an extended attribute to the member that follows.
    pub fn attribute(&mut self, name: &str, value: &[u8]) {
        let key = format!("SCHILY.xattr.{name}");
        self.0.append_pax_extensions([(key.as_str(), value)]).expect("writable");
    }

    /// Writes the end mark.
    pub fn finish(self) -> W {
        self.0.into_inner().expect("writable")
    }
}

const JAVA: &str = "JAVA_VERSION=\"17.0.21\"\nMODULES=\"java.base jdk.incubator.vector\"\n";

/// A root file system with everything a builder can get wrong. Members in `without` are left out.
pub fn write_base(out: impl Write, without: &[&str]) {
    write_base_with(out, without, |_| {});
}

/// The same with a shell that runs (this machine's), and a Python that is this shell script.
pub fn write_base_with_python(out: impl Write, script: &str) {
    write_base_with(out, &["usr/bin/python3.11"], |base| {
        base.file("usr/bin/sh", 0o755, &fs::read("/bin/sh").expect("every machine has a shell"));
        for library in printed("ldd", &["/bin/sh"]).split_whitespace().filter(|word| word.starts_with('/')) {
            let place = library.trim_start_matches('/').replacen("lib/", "usr/lib/", 1);
            let place = if library.starts_with("/lib/") { place } else { library[1..].to_owned() };
            base.file(&place, 0o755, &fs::read(library).expect("the loader finds it"));
        }
        base.file("usr/bin/python3.11", 0o755, format!("#!/bin/sh\n{script}").as_bytes());
    });
}

fn write_base_with<W: Write>(out: W, without: &[&str], more: impl FnOnce(&mut Archive<W>)) {
    use tar::EntryType::{Link, Symlink};
    let mut base = Archive::new(out);
    for directory in ["dev", "etc", "usr", "usr/bin", "usr/lib", "usr/lib/jvm", "opt", "tmp"] {
        base.directory(directory);
    }
    base.link(Symlink, "bin", "usr/bin");
    base.link(Symlink, "lib", "usr/lib");
    base.device("dev/null", 1, 3);
    base.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/bash\n");
    base.file("etc/group", 0o644, b"root:x:0:\n");
    for program in ["bash", "tini", "ps", "python3.11"] {
        let path = format!("usr/bin/{program}");
        if !without.contains(&path.as_str()) {
            base.file(&path, 0o755, format!("#!{program}\n").as_bytes());
        }
    }
    base.link(Symlink, "usr/bin/python3", "python3.11");
    base.file("usr/bin/perl", 0o755, &random_bytes(1, 40_000));
    base.link(Link, "usr/bin/perl5.36.0", "usr/bin/perl");
    base.file("usr/bin/su", 0o4755, b"set-id");
    base.attribute("security.capability", &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    base.file("usr/bin/ping", 0o755, b"capable");
    base.file(&format!("usr/lib/{}/{}", "d".repeat(120), "f".repeat(120)), 0o644, b"long");
    base.file("usr/lib/F\u{151}tan\u{fa}s\u{ed}tv\u{e1}ny.crt", 0o644, b"accents");
    if !without.contains(&"java") {
        base.file("usr/lib/jvm/java-17/release", 0o644, JAVA.as_bytes());
        base.file("usr/lib/jvm/java-17/bin/java", 0o755, b"#!java\n");
    }
    more(&mut base);
    base.finish().flush().expect("writable");
}

/// A pyspark source distribution; `more` adds members below its root.
pub fn write_spark(out: impl Write, version: &str, more: &[(&str, &[u8])]) {
    let mut archive = Archive::new(GzEncoder::new(out, Compression::fast()));
    let root = format!("pyspark-{version}");
    for (name, mode) in [("spark-submit", 0o755), ("spark-class", 0o755), ("load-spark-env.sh", 0o644)] {
        archive.file(&format!("{root}/deps/bin/{name}"), mode, format!("# {name}\n").as_bytes());
    }
    archive.file(&format!("{root}/deps/sbin/spark-daemon.sh"), 0o755, b"# daemon\n");
    for (seed, jar) in
        [(3, format!("spark-core_2.12-{version}")), (4, format!("spark-kubernetes_2.12-{version}"))]
    {
        archive.file(&format!("{root}/deps/jars/{jar}.jar"), 0o644, &random_bytes(seed, 900_000));
    }
    archive.file(
        &format!("{root}/deps/jars/hadoop-client-api-3.3.4.jar"),
        0o644,
        &random_bytes(5, 5_000_000),
    );
    archive.file(&format!("{root}/deps/examples/pi.py"), 0o644, b"print(3.14)\n");
    archive.file(&format!("{root}/deps/data/users.txt"), 0o644, b"1,a\n");
    archive.file(&format!("{root}/pyspark/__init__.py"), 0o644, b"__version__ = 0\n");
    archive.file(&format!("{root}/lib/pyspark.zip"), 0o644, &random_bytes(6, 200_000));
    archive.file(&format!("{root}/lib/py4j-0.10.9.7-src.zip"), 0o644, &random_bytes(7, 40_000));
    for (path, content) in more {
        archive.file(&format!("{root}/{path}"), 0o644, content);
    }
    archive.finish().finish().expect("writable").flush().expect("writable");
}

/// Runs a program and gives what it prints; it must succeed.
pub fn printed<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C.UTF-8").output().expect("it starts");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A blob of an OCI layout.
pub fn blob(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs/sha256").join(digest.strip_prefix("sha256:").expect("a digest"))
}

/// Says why a test that needs something of the machine does nothing.
#[expect(clippy::print_stderr, reason = "the test harness shows it with --no-capture")]
pub fn skipped(reason: &str) {
    eprintln!("skipped: {reason}");
}
