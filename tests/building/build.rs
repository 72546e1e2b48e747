//! `hearth build` as its users run it: the binary, small inputs, an OCI layout.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    process::{Command, Stdio},
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use kit::process::binary;
use serde_json::Value;

use kit::build_fixture::{
    Archive, Fixture, blob, finish, layers, printed, report, skipped, wait, write_base, write_spark,
};

use crate::archive_of;

#[test]
fn the_same_inputs_give_the_same_bytes_whatever_surrounds_them() {
    let first = Fixture::new();
    let expected = first.build(&["--jobs", "1"]);
    let second = Fixture::new();
    let script = format!(
        "umask 077; exec '{}' build -f ./hearth.yaml --to elsewhere --jobs 7 --output json",
        binary("hearth").expect("the binary is built").display()
    );
    let mut command = second.command(&[]);
    let cache = second.path("another-cache");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(command.get_current_dir().expect("it is set"));
    shell
        .env("HEARTH_CACHE_DIR", cache)
        .env("TZ", "Asia/Tokyo")
        .env("LC_ALL", "tr_TR.UTF-8")
        .env("HOME", "/nonexistent");
    let found = report(&finish(&mut shell));
    assert_eq!(found["images"], expected["images"]);
    // And once more with everything in the cache.
    assert_eq!(report(&finish(command.args(["--output", "json"])))["images"], expected["images"]);
}

#[test]
fn only_the_configuration_follows_source_date_epoch() {
    let fixture = Fixture::new();
    let plain = fixture.build(&[]);
    let mut command = fixture.command(&["--output", "json"]);
    let dated = report(&finish(command.env("SOURCE_DATE_EPOCH", "1700000000")));
    assert_eq!(layers(&plain, "digest"), layers(&dated, "digest"));
    let config = dated["images"][0]["config"].as_str().expect("an image was built");
    assert_ne!(plain["images"][0]["config"], config);
    let text = fs::read(blob(&fixture.path("dist"), config)).expect("it was written");
    let config: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
}

#[test]
fn how_the_base_was_packed_does_not_matter() {
    let fixture = Fixture::new();
    let plain = fixture.build(&[]);
    let out = GzEncoder::new(File::create(fixture.path("base.tar")).expect("writable"), Compression::best());
    write_base(out, &[]);
    assert_eq!(layers(&plain, "digest"), layers(&fixture.build(&[]), "digest"));
}

/// Names, kinds, modes, owners, sizes, times and links as GNU tar shows them.
pub fn listing(archive: &std::path::Path) -> BTreeSet<String> {
    let arguments = [
        "--list",
        "--verbose",
        "--numeric-owner",
        "--full-time",
        "--utc",
        "--quoting-style=escape",
        "--file",
    ];
    let mut arguments: Vec<&std::ffi::OsStr> = arguments.iter().map(std::ffi::OsStr::new).collect();
    arguments.push(archive.as_os_str());
    let lines = printed("tar", &arguments);
    // Columns are as wide as their widest entry so far.
    lines.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn the_base_layer_holds_the_root_file_system_as_it_was() {
    let fixture = Fixture::new();
    let built = fixture.build(&[]);
    let layer = blob(&fixture.path("dist"), &layers(&built, "digest")[0]);
    let expected = listing(&fixture.path("base.tar"));
    let mut found = listing(&layer);
    // The archive leaves these directories out; every unpacking program makes them.
    found.retain(|line| {
        !line.ends_with("jvm/java-17/") && !line.ends_with("java-17/bin/") && !line.ends_with("dd/")
    });
    assert_eq!(found, expected);
    let mut raw = Vec::new();
    archive_of(&layer).read_to_end(&mut raw).expect("whole");
    let attribute = b"SCHILY.xattr.security.capability=";
    assert!(raw.windows(attribute.len()).any(|window| window == attribute), "capabilities are kept");
}

#[test]
fn spark_lies_where_its_scripts_expect_it() {
    let fixture = Fixture::new();
    let built = fixture.build(&[]);
    let digests = layers(&built, "digest");
    let mut names = BTreeSet::new();
    for digest in &digests[1..] {
        names.extend(listing(&blob(&fixture.path("dist"), digest)));
    }
    let expected = [
        "-rwxr-xr-x 0/0 15 1980-01-01 00:00:00 opt/spark/bin/spark-submit",
        "-rw-r--r-- 0/0 5000000 1980-01-01 00:00:00 opt/spark/jars/hadoop-client-api-3.3.4.jar",
        "-rw-r--r-- 0/0 12 1980-01-01 00:00:00 opt/spark/examples/src/main/python/pi.py",
        "drwxrwxr-x 185/0 0 1980-01-01 00:00:00 opt/spark/work-dir/",
        "drwxr-xr-x 0/0 0 1980-01-01 00:00:00 opt/spark/conf/",
    ];
    for line in expected {
        assert!(names.contains(line), "`{line}` is missing in {names:#?}");
    }
    assert!(names.iter().any(|line| line.ends_with("opt/entrypoint.sh")));
    assert!(!names.iter().any(|line| line.ends_with(" opt/")), "the base's own directories stay as they are");
}

#[test]
fn layers_of_a_layout_are_reused_byte_for_byte() {
    let fixture = Fixture::new();
    let lower = fixture.build(&[]);
    let name = "3.5.9-java17-python3.11";
    fs::rename(fixture.path("dist"), fixture.path("lower")).expect("movable");
    fixture.spec(
        "registry.test/data/spark",
        &format!("{{ layout: lower, ref: {name} }}"),
        "compression: gzip\n",
    );
    let upper = fixture.build(&[]);
    let (lower, upper) = (layers(&lower, "digest"), layers(&upper, "digest"));
    assert_eq!(upper[..lower.len()], lower[..]);
    assert!(upper.len() > lower.len());

    // A damaged layout is noticed before anything is built upon it.
    let path = blob(&fixture.path("lower"), &lower[1]);
    let bytes = fs::read(&path).expect("it was written");
    fs::remove_file(&path).expect("removable");
    fs::write(&path, &bytes[1..]).expect("writable");
    let (code, message) = fixture.failure(&["--cache-dir", "fresh"]);
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("the layout is damaged"), "{message}");
}

#[test]
fn mistakes_of_the_user_end_with_two_and_say_what_to_do() {
    let fixture = Fixture::new();
    let valid = fs::read_to_string(fixture.path("hearth.yaml")).expect("the specification can be read");
    let cases: &[(&str, &str, &[&str])] = &[
        ("axes:", "axis:", &["hearth.yaml:6:1", "did you mean `axes`?"]),
        ("\"17\"", "\"25\"", &["Spark 3.5.9 does not run on Java 25", "--skip-refused"]),
        ("\"3.11\"", "\"3.12\"", &["tested up to Python 3.11", "allowUntested: true"]),
        ("\"17\"", "\"11\"", &["the base has Java 17, but the cell asks for Java 11"]),
        ("\"3.11\"", "\"3.10\"", &["no Python 3.10 (it has 3.11)"]),
    ];
    for (from, to, expected) in cases {
        fs::write(fixture.path("hearth.yaml"), valid.replace(from, to)).expect("writable");
        let (code, message) = fixture.failure(&[]);
        assert_eq!(code, 2, "{to}: {message}");
        for part in *expected {
            assert!(message.contains(part), "`{message}` should hold `{part}`");
        }
    }
    let two = valid.replace("[\"17\"]", "[\"17\", \"25\"]");
    fs::write(fixture.path("hearth.yaml"), two).expect("writable");
    let built = fixture.build(&["--skip-refused"]);
    assert_eq!(built["images"].as_array().map(Vec::len), Some(1));
    assert_eq!(built["refused"][0]["cell"], "Spark 3.5.9, Java 25, Python 3.11");
}

#[test]
fn unusable_inputs_end_with_one_and_name_the_file() {
    let fixture = Fixture::new();
    let spark = fixture.path("pyspark-3.5.9.tar.gz");
    let whole = fs::read(&spark).expect("readable");
    fs::write(&spark, &whole[..whole.len() / 2]).expect("writable");
    let (code, message) = fixture.failure(&[]);
    assert!(
        code == 1 && message.contains("pyspark-3.5.9.tar.gz") && message.contains("cut short"),
        "{message}"
    );
    assert!(!fixture.path("dist").exists(), "nothing half-written");

    let mut hostile = Archive::new(GzEncoder::new(Vec::new(), Compression::fast()));
    hostile.link(tar::EntryType::Symlink, "pyspark-3.5.9/jars", "/etc");
    fs::write(&spark, hostile.finish().finish().expect("in memory")).expect("writable");
    let (code, message) = fixture.failure(&[]);
    assert!(code == 1 && message.contains("outside the archive"), "{message}");

    write_spark(File::create(&spark).expect("writable"), "3.5.8", &[]);
    let (code, message) = fixture.failure(&[]);
    assert!(code == 1 && message.contains("holds Spark 3.5.8, but 3.5.9"), "{message}");

    fs::remove_file(fixture.path("base.tar")).expect("removable");
    let (code, message) = fixture.failure(&[]);
    assert!(code == 1 && message.contains("base.tar") && message.contains("No such file"), "{message}");
}

#[test]
fn a_pinned_archive_must_have_its_digest() {
    let fixture = Fixture::new();
    let digest = kit::registry::sha256(&fs::read(fixture.path("pyspark-3.5.9.tar.gz")).expect("readable"));
    let pin = |digest: &str| {
        let valid = fs::read_to_string(fixture.path("hearth.yaml")).expect("the specification can be read");
        let pinned = valid.replace(".tar.gz\" }", &format!(".tar.gz\", sha256: \"{digest}\" }}"));
        fs::write(fixture.path("pinned.yaml"), pinned).expect("writable");
    };
    pin(digest.strip_prefix("sha256:").expect("a digest"));
    fixture.build(&["-f", "pinned.yaml"]);
    pin(&"0".repeat(64));
    let (code, message) = fixture.failure(&["-f", "pinned.yaml"]);
    assert!(code == 1 && message.contains("instead of `sha256:0000"), "{message}");
}

#[test]
fn a_killed_build_leaves_nothing_to_repair() {
    let expected = Fixture::new().build(&[]);
    let fixture = Fixture::new();
    for delay in [1, 5, 10, 20, 40, 60, 90, 130, 180, 240] {
        let mut command = fixture.command(&["--jobs", "2"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
    }
    assert_eq!(fixture.build(&[])["images"], expected["images"]);
    let index = fs::read(fixture.path("dist/index.json")).expect("it was written");
    assert!(serde_json::from_slice::<Value>(&index).is_ok());
}

#[test]
fn a_full_disk_is_called_by_its_name() {
    let fixture = Fixture::new();
    let hearth = binary("hearth").expect("the binary is built");
    let script = format!(
        "mkdir small && mount -t tmpfs -o size=3m none small && '{}' build --cache-dir small/cache",
        hearth.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", &script]).current_dir(fixture.path(""));
    let output = finish(&mut command);
    let message = String::from_utf8_lossy(&output.stderr);
    if message.contains("unshare failed") || message.contains("permission denied") {
        skipped(&format!("mount namespaces are not allowed here: {message}"));
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("no space left on the disk") && message.contains("--cache-dir"), "{message}");
    assert!(!fixture.path("dist").exists(), "nothing half-written");
}

/// The promise is 256 MiB for a 2 GB image. The content compresses well, so that the test spends its time in
/// the builder and not in the disk; memory does not depend on that.
#[test]
fn a_two_gigabyte_image_is_built_in_bounded_memory() {
    const LARGEST: u64 = 1400 << 20;
    const LARGE: u64 = 250 << 20;
    let fixture = Fixture::new();
    let out = File::create(fixture.path("pyspark-3.5.9.tar.gz")).expect("writable");
    let mut archive = Archive::new(GzEncoder::new(out, Compression::fast()));
    let root = "pyspark-3.5.9";
    for (index, size) in [LARGEST, LARGE, LARGE, LARGE].into_iter().enumerate() {
        let content = std::io::repeat(u8::try_from(index).expect("four files")).take(size);
        archive.stream(&format!("{root}/deps/jars/large-{index}.jar"), 0o644, size, content);
    }
    for path in ["deps/bin/spark-submit", "deps/bin/spark-class", "lib/pyspark.zip", "lib/py4j-1-src.zip"] {
        archive.file(&format!("{root}/{path}"), 0o755, b"x");
    }
    for path in [
        "pyspark/__init__.py",
        "deps/jars/spark-core_2.12-3.5.9.jar",
        "deps/jars/spark-kubernetes_2.12-3.5.9.jar",
    ] {
        archive.file(&format!("{root}/{path}"), 0o644, b"x");
    }
    archive.finish().finish().expect("writable");
    let mut command = fixture.command(&["--jobs", "4"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let status = format!("/proc/{}/status", child.id());
    let peak = std::thread::spawn(move || {
        let mut peak = 0;
        // The figure only grows; the file loses it when the process has ended.
        while let Some(kib) = fs::read_to_string(&status).ok().and_then(|text| high_water(&text)) {
            peak = kib;
            std::thread::sleep(Duration::from_millis(10));
        }
        peak
    });
    let output = wait(child);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mebibytes = peak.join().expect("it reads") / 1024;
    assert!((1..256).contains(&mebibytes), "{mebibytes} MiB");
}

fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
