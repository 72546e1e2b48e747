//! Bytecode that the image's own Python makes: when it is there, when it is not, and what a lock says about it. The Python
//! here is a shell script; tests/e2e has a real one.

use std::{
    fs::{self, File},
    process::Command,
};

use kit::build_fixture::{Fixture, blob, finish, layers, printed, report, wait, write_base_with_python};
use serde_json::Value;

/// "Compiles" by writing the name of each source. It is called with `-I -S -B -c SCRIPT HOME JOBS`.
const PYTHON: &str = r#"
number=0
while IFS= read -r path || [ -n "$path" ]; do
  echo "bytecode of $path" > "$6/out/$number"
  number=$((number + 1))
done < "$6/sources"
echo cpython-311
"#;

const COMPILED: &str = "opt/spark/python/pyspark/__pycache__/__init__.cpython-311.pyc";

fn fixture(python: &str) -> Fixture {
    let fixture = Fixture::new();
    write_base_with_python(File::create(fixture.path("base.tar")).expect("writable"), python);
    fixture
}

/// What a file holds in the layers of the only image; `None` when no layer has it.
pub(crate) fn file(fixture: &Fixture, built: &Value, name: &str) -> Option<String> {
    layers(built, "digest").iter().find_map(|digest| {
        let blob = blob(&fixture.path("dist"), digest);
        let names = printed("tar", &["-tf".as_ref(), blob.as_os_str()]);
        names.lines().any(|line| line == name).then(|| {
            let arguments = ["-xOf".as_ref(), blob.as_os_str(), name.as_ref()];
            printed("tar", &arguments)
        })
    })
}

pub(crate) fn warnings(built: &Value) -> String {
    built["warnings"].to_string()
}

/// A command of hearth on a machine without `unshare`.
pub(crate) fn without_unshare(mut command: Command) -> Command {
    command.env("PATH", "/nonexistent");
    command
}

#[test]
fn the_python_of_the_image_compiles_its_files_to_the_same_bytes_each_time() {
    let first = fixture(PYTHON);
    let built = first.build(&["--jobs", "1"]);
    let found = file(&first, &built, COMPILED).expect("the bytecode is in a layer");
    assert_eq!(found.trim(), "bytecode of /opt/spark/python/pyspark/__init__.py");
    let archive = file(&first, &built, "opt/spark/python/lib/pyspark.zip").expect("it is in a layer");
    assert_eq!(archive.trim(), "bytecode of /opt/spark/python/lib/pyspark.zip", "it replaces Spark's own");
    let second = fixture(PYTHON);
    assert_eq!(second.build(&["--jobs", "5"])["images"], built["images"]);
    assert_eq!(first.build(&[])["images"], built["images"], "from the cache");
}

#[test]
fn an_image_without_bytecode_says_why_and_is_built() {
    let plain = fixture(PYTHON);
    plain.spec("registry.test/data/spark", "{ rootfs: base.tar }", "bytecode: false\n");
    let expected = plain.build(&[]);
    assert_eq!(file(&plain, &expected, COMPILED), None);
    assert!(!warnings(&expected).contains("bytecode"), "{expected:#}");

    let cases =
        [("echo broken >&2\nexit 3\n", "exit status: 3: broken"), ("echo a b\n", "names its bytecode `a b`")];
    for (python, why) in cases {
        let fixture = fixture(python);
        let built = fixture.build(&[]);
        assert!(warnings(&built).contains("without bytecode") && warnings(&built).contains(why), "{built:#}");
        assert_eq!(file(&fixture, &built, COMPILED), None);
    }

    let other = Fixture::new();
    let platform = if cfg!(target_arch = "aarch64") { "linux/amd64" } else { "linux/arm64" };
    other.spec("registry.test/data/spark", "{ rootfs: base.tar }", &format!("platform: {platform}\n"));
    let built = other.build(&[]);
    assert!(warnings(&built).contains(&format!("cannot run programs for {platform}")), "{built:#}");

    let command = fixture(PYTHON);
    let built = report(&finish(&mut without_unshare(command.command(&["--output-format", "json"]))));
    assert!(warnings(&built).contains("`unshare` (util-linux) is not installed"), "{built:#}");
}

#[test]
fn a_program_of_the_image_sees_nothing_of_the_machine_around_it() {
    let secret = tempfile::NamedTempFile::new().expect("temporary files are available");
    let script = format!(
        "for path in '{}' /work /root/.ssh; do [ -e \"$path\" ] && echo \"sees $path\" >&2 && exit 1; done\n\
         [ -z \"$SECRET$HOME\" ] || {{ echo \"sees variables\" >&2; exit 1; }}\n\
         for process in /proc/[0-9]*; do last=$process; done\n\
         [ \"$last\" = /proc/1 ] || {{ echo \"sees $last\" >&2; exit 1; }}\n\
         while read -r name rest; do case $name in *:) [ \"$name\" = lo: ] || {{ echo \"sees $name\" >&2; exit 1; }};; esac; done < /proc/net/dev\n{PYTHON}",
        secret.path().display()
    );
    let fixture = fixture(&script);
    let mut command = fixture.command(&["--output-format", "json"]);
    let built = report(&finish(command.env("SECRET", "x")));
    assert!(file(&fixture, &built, COMPILED).is_some(), "{}", warnings(&built));
}

#[test]
fn a_lock_freezes_what_was_compiled() {
    let fixture = fixture(PYTHON);
    finish(&mut fixture.subcommand("lock", &[]));
    let built = fixture.build(&["--locked"]);
    assert!(file(&fixture, &built, COMPILED).is_some());
    let elsewhere = fixture.build(&["--locked", "--cache-dir", "fresh"]);
    assert_eq!(elsewhere["images"], built["images"], "it is compiled again");

    let mut command = without_unshare(fixture.command(&["--locked", "--cache-dir", "another"]));
    let output = wait(command.stderr(std::process::Stdio::piped()).spawn().expect("it starts"));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("is locked, but cannot be made here: `unshare`"), "{message}");
    let mut command = without_unshare(fixture.command(&["--locked", "--output-format", "json"]));
    assert_eq!(report(&finish(&mut command))["images"], built["images"], "the cache has it");
}

#[test]
fn a_lock_without_bytecode_keeps_images_without_it() {
    let fixture = fixture(PYTHON);
    finish(&mut without_unshare(fixture.subcommand("lock", &[])));
    let built = fixture.build(&["--locked"]);
    assert_eq!(file(&fixture, &built, COMPILED), None);
    fs::remove_file(fixture.path("hearth.lock")).expect("it was written");
    assert!(file(&fixture, &fixture.build(&[]), COMPILED).is_some());
}

#[test]
fn a_python_that_compiles_differently_each_time_is_noticed() {
    let random =
        PYTHON.replace("echo \"bytecode", "read -r salt < /proc/sys/kernel/random/uuid; echo \"$salt");
    let fixture = fixture(&random);
    finish(&mut fixture.subcommand("lock", &[]));
    fixture.build(&["--locked"]);
    let (code, message) = fixture.failure(&["--locked", "--cache-dir", "fresh"]);
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("`bytecode spark ") && message.contains("is locked"), "{message}");
}
