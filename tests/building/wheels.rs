//! Python packages: wheels from locks, laid out as `uv pip install --target` does.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use kit::build_fixture::{Fixture, blob, finish, report, skipped};

/// Makes wheels with everything that a wheel can have, and one package that exists as source only.
const MAKE: &str = r##"
import base64, hashlib, os, sys, zipfile
def wheel(name, version, tag, files, deps=()):
    info = f"{name}-{version}.dist-info"
    files = dict(files)
    files[f"{info}/METADATA"] = (0o644, "Metadata-Version: 2.1\nName: %s\nVersion: %s\n%s" % (name, version, "".join(f"Requires-Dist: {d}\n" for d in deps)))
    files[f"{info}/WHEEL"] = (0o644, f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n")
    record = ""
    for path, (_, text) in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = (0o644, record + f"{info}/RECORD,,\n")
    with zipfile.ZipFile(f"wheels/{name}-{version}-{tag}.whl", "w", zipfile.ZIP_DEFLATED) as out:
        for path, (mode, text) in files.items():
            entry = zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0))
            entry.external_attr = (0o100000 | mode) << 16
            out.writestr(entry, text, zipfile.ZIP_DEFLATED)
os.makedirs("wheels", exist_ok=True)
wheel("alpha", "1.0", "py3-none-any", {
    "alpha/__init__.py": (0o644, "def main():\n    print('alpha runs')\n"),
    "alpha/helper.sh": (0o755, "#!/bin/sh\n"),
    "alpha/data.txt": (0o644, "x" * 100000),
    "alpha-1.0.data/scripts/alpha-tool": (0o755, "#!python\nimport alpha\nalpha.main()\n"),
    "alpha-1.0.data/scripts/alpha-shell": (0o755, "#!/bin/sh\necho shell\n"),
    "alpha-1.0.data/purelib/alpha/extra.py": (0o644, "y = 1\n"),
    "alpha-1.0.data/platlib/alpha_native.py": (0o644, "z = 1\n"),
    "alpha-1.0.data/data/share/alpha/readme": (0o644, "data\n"),
    "alpha-1.0.data/headers/alpha.h": (0o644, "int alpha;\n"),
    "alpha-1.0.dist-info/entry_points.txt": (0o644, "[console_scripts]\nalpha-run = alpha:main\n[gui_scripts]\nalpha-gui = alpha:main\n[alpha.plugins]\na = alpha:main\n"),
}, ["beta>=1", "gamma; sys_platform == 'win32'"])
wheel("beta", "1.5", "cp311-cp311-manylinux_2_17_x86_64", {"beta/__init__.py": (0o644, "b = 'amd64'\n")})
wheel("beta", "1.5", "cp311-cp311-manylinux_2_17_aarch64", {"beta/__init__.py": (0o644, "b = 'arm64'\n")})
wheel("beta", "1.5", "cp310-cp310-manylinux_2_17_x86_64", {"beta/__init__.py": (0o644, "b = 'old'\n")})
"##;

fn make(fixture: &Fixture) {
    let mut python = Command::new("python3");
    let output = finish(python.args(["-c", MAKE]).current_dir(fixture.path("")));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A `pylock.toml` over the wheels.
fn lock(fixture: &Fixture) -> String {
    let mut packages: BTreeMap<String, String> = BTreeMap::new();
    for entry in fs::read_dir(fixture.path("wheels")).expect("they were made") {
        let path = entry.expect("readable").path();
        let file = path.file_name().and_then(|name| name.to_str()).expect("text").to_owned();
        let hash = hex::encode(Sha256::digest(fs::read(&path).expect("readable")));
        let line = format!(
            "  {{ name = \"{file}\", path = \"wheels/{file}\", hashes = {{ sha256 = \"{hash}\" }} }},\n"
        );
        packages.entry(file.split('-').next().expect("a name").to_owned()).or_default().push_str(&line);
    }
    let package = |(name, wheels): (&String, &String)| {
        format!("[[packages]]\nname = \"{name}\"\nversion = \"1\"\nwheels = [\n{wheels}]\n")
    };
    let text: String = packages.iter().map(package).collect();
    format!(
        "lock-version = \"1.0\"\n{text}[[packages]]\nname = \"gamma\"\nmarker = \"sys_platform == 'win32'\"\n"
    )
}

fn with_wheels(fixture: &Fixture, wheels: &str, more: &str) {
    make(fixture);
    fs::write(fixture.path("pylock.toml"), lock(fixture)).expect("writable");
    fixture.spec("registry.test/data/spark", "{ rootfs: base.tar }", &format!("wheels: {wheels}\n{more}"));
}

/// Unpacks what an image adds, as a container would see it below `opt/python-packages`.
fn unpacked(fixture: &Fixture, image: &Value) -> std::path::PathBuf {
    let root = fixture.path("unpacked");
    fs::create_dir_all(&root).expect("writable");
    for layer in image["layers"].as_array().expect("a list").iter().skip(1) {
        let layer = blob(&fixture.path("dist"), layer["digest"].as_str().expect("a digest"));
        let archive = fixture.path("layer.tar");
        let mut file = fs::File::create(&archive).expect("writable");
        std::io::copy(&mut crate::archive_of(&layer), &mut file).expect("the layer is whole");
        let mut tar = Command::new("tar");
        tar.arg("--no-same-owner").arg("-xf").arg(archive).arg("-C").arg(&root);
        assert!(finish(&mut tar).status.success());
    }
    root.join("opt/python-packages")
}

/// Every file with "executable or not" and its content, without what names the installer.
fn files(root: &Path) -> BTreeMap<String, (bool, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let below = path.strip_prefix(root).expect("below").to_str().expect("text").to_owned();
            let own = [
                "RECORD",
                "INSTALLER",
                "REQUESTED",
                "uv_cache.json",
                "direct_url.json",
                ".lock",
                ".gitignore",
            ];
            if own.iter().any(|name| below.ends_with(name)) {
                continue;
            }
            let mode =
                std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).expect("there").permissions());
            // Launchers differ in their first line and wording; what they call is tested by running one.
            let content =
                if below.starts_with("bin/") { Vec::new() } else { fs::read(&path).expect("readable") };
            found.insert(below, (mode & 0o111 != 0, content));
        }
    }
    found
}

#[test]
fn wheels_are_laid_out_as_uv_does_it() {
    let fixture = Fixture::new();
    with_wheels(&fixture, "{ lock: pylock.toml }", "platform: linux/amd64\n");
    let built = fixture.build(&[]);
    let ours = files(&unpacked(&fixture, &built["images"][0]));
    assert!(ours.contains_key("bin/alpha-run") && ours.contains_key("beta/__init__.py"), "{:?}", ours.keys());
    assert_eq!(ours["beta/__init__.py"].1, b"b = 'amd64'\n");
    let mut uv = Command::new("uv");
    uv.args(["pip", "install", "--quiet", "--no-index", "--find-links", "wheels", "--target", "theirs"]);
    uv.args([
        "--python-version",
        "3.11",
        "--python-platform",
        "x86_64-manylinux_2_28",
        "--no-config",
        "alpha",
    ]);
    let Ok(output) = uv.current_dir(fixture.path("")).output() else { return skipped("needs `uv`") };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs = files(&fixture.path("theirs"));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    assert_eq!(ours, theirs);
    // The launcher starts the image's Python; here any Python shows that it calls the function.
    let mut run = Command::new("python3");
    run.arg(fixture.path("unpacked/opt/python-packages/bin/alpha-run"));
    let output = finish(run.env("PYTHONPATH", fixture.path("unpacked/opt/python-packages")));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "alpha runs\n");
}

#[test]
fn each_platform_gets_its_own_wheels_and_shares_the_rest() {
    let fixture = Fixture::new();
    with_wheels(&fixture, "{ lock: pylock.toml }", "");
    let text = fs::read_to_string(fixture.path("hearth.yaml")).expect("readable");
    let text = text.replace("axes:\n", "axes:\n  platform: [linux/amd64, linux/arm64]\n");
    fs::write(fixture.path("hearth.yaml"), text).expect("writable");
    let built = fixture.build(&[]);
    let arm64 = files(&unpacked(&fixture, &built["images"][1]));
    assert_eq!(arm64["beta/__init__.py"].1, b"b = 'arm64'\n");
    let stack = |image: usize| built["images"][image]["layers"].clone();
    assert_ne!(stack(0), stack(1));
    assert_eq!(stack(0)[1], stack(1)[1], "Spark does not depend on the platform");
    let config = blob(&fixture.path("dist"), built["images"][0]["config"].as_str().expect("a digest"));
    let config = fs::read_to_string(config).expect("readable");
    assert!(config.contains(":/opt/python-packages\""), "{config}");
}

#[test]
fn a_lock_holds_wheels_and_notices_another_request() {
    let fixture = Fixture::new();
    with_wheels(&fixture, "{ lock: pylock.toml }", "platform: linux/amd64\n");
    let lock = |more: &[&str]| {
        let mut command = fixture.subcommand("lock", more);
        report(&finish(command.args(["--output", "json"])))
    };
    lock(&[]);
    let written = fs::read_to_string(fixture.path("hearth.lock")).expect("it was written");
    assert!(written.contains("wheels pylock.toml python3.11 linux/amd64: beta-1.5-cp311"), "{written}");
    fixture.build(&["--locked", "--offline"]);
    let text = fs::read_to_string(fixture.path("pylock.toml")).expect("readable");
    fs::write(
        fixture.path("pylock.toml"),
        text.replace(
            "[[packages]]\nname = \"alpha\"",
            "[[packages]]\nname = \"alpha\"\nmarker = \"os_name == 'nt'\"",
        ),
    )
    .expect("writable");
    let (code, message) = fixture.failure(&[]);
    assert!(
        code == 2 && message.contains("pylock.toml") && message.contains("run `hearth lock`"),
        "{message}"
    );
    let changes = lock(&[])["changes"].to_string();
    assert!(changes.contains("alpha-1.0-py3-none-any.whl` is no longer needed"), "{changes}");
    fixture.build(&["--locked", "--offline"]);
}

#[test]
fn a_lock_in_another_directory_has_paths_relative_to_itself() {
    let fixture = Fixture::new();
    with_wheels(&fixture, "{ lock: python/pylock.toml }", "platform: linux/amd64\n");
    fs::create_dir(fixture.path("python")).expect("writable");
    for name in ["pylock.toml", "wheels"] {
        fs::rename(fixture.path(name), fixture.path("python").join(name)).expect("writable");
    }
    let unlocked = fixture.build(&[]);
    let mut lock = fixture.subcommand("lock", &["--output-format", "json"]);
    report(&finish(&mut lock));
    assert_eq!(fixture.build(&["--locked", "--offline"])["images"], unlocked["images"]);
}

#[test]
fn what_cannot_be_installed_is_refused_with_the_reason() {
    let fixture = Fixture::new();
    with_wheels(&fixture, "{ lock: pylock.toml }", "platform: linux/amd64\n");
    let good = fs::read_to_string(fixture.path("pylock.toml")).expect("readable");
    let refused = |text: String| {
        fs::write(fixture.path("pylock.toml"), text).expect("writable");
        fixture.failure(&[])
    };
    let source = "[[packages]]\nname = \"delta\"\nversion = \"1\"\nsdist = { path = \"delta.tar.gz\" }\n";
    let (code, message) = refused(format!("{good}{source}"));
    assert!(code == 1 && message.contains("`delta 1` exists as a source distribution only"), "{message}");
    let (code, message) = refused(good.replace(
        "cp311-cp311-manylinux_2_17_x86_64.whl\", path",
        "cp312-cp312-manylinux_2_17_x86_64.whl\", path",
    ));
    assert!(
        code == 1 && message.contains("`beta 1` has no wheel for Python 3.11 on linux/amd64"),
        "{message}"
    );
    fs::write(fixture.path("pylock.toml"), &good).expect("writable");
    fs::write(fixture.path("wheels/alpha-1.0-py3-none-any.whl"), "PK\x03\x04 broken").expect("writable");
    let (code, message) = fixture.failure(&[]);
    assert!(code == 1 && message.contains("alpha-1.0-py3-none-any.whl"), "{message}");
    fs::write(fixture.path("pylock.toml"), lock(&fixture)).expect("writable");
    let (code, message) = fixture.failure(&[]);
    assert!(code == 1 && message.contains("no zip archive"), "{message}");
}
