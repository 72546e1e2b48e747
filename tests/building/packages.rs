//! What a release publishes beside images, by `docker/pack` as `release.yml` calls it. In the place of `cargo deb`, which this
//! machine need not have, a script checks that every file of the packages is there.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use kit::{
    build_fixture::{finish, printed},
    layering::root,
    process::binary,
};

/// `cargo deb --quiet --no-build --package NAME --output DIRECTORY/`
const CARGO: &str = "#!/bin/sh\n[ \"$1 $3 $4\" = 'deb --no-build --package' ] && touch \"$7$5.deb\"\n";

fn pack(home: &Path, more: &[&str]) -> Output {
    let path = format!("{}:{}", home.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(root().join("docker/pack"));
    command.args(["1.2.3", "amd64", "out"]).args(more).current_dir(home);
    finish(command.env("PATH", path).env("CARGO_TARGET_DIR", home.join("target")))
}

/// The files that a package takes from the programs that were built, with their patterns.
fn assets(package: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string(root().join(package).join("Cargo.toml")).expect("readable");
    let manifest: toml::Table = text.parse().expect("TOML");
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().expect("there are some").clone();
    assets
        .iter()
        .filter_map(|asset| asset[0].as_str())
        .filter(|path| path.starts_with("target/"))
        .map(PathBuf::from)
        .collect()
}

#[test]
fn a_release_packs_programs_man_pages_and_completions() {
    let home = tempfile::tempdir().expect("temporary folders are available");
    let home = home.path();
    let (built, bin) = (home.join("target/release"), home.join("bin"));
    fs::create_dir_all(&built).expect("writable");
    fs::create_dir(&bin).expect("writable");
    fs::write(bin.join("cargo"), CARGO).expect("writable");
    fs::set_permissions(bin.join("cargo"), fs::Permissions::from_mode(0o755)).expect("its owner may");
    for name in ["hearth", "hearth-agent"] {
        printed("strip", &[Path::new("-o"), &built.join(name), &binary(name).expect("the binary is built")]);
    }
    let refused = pack(home, &[]);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && message.contains("hearth is linked dynamically"), "{message}");

    let packed = pack(home, &["--dynamic"]);
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let archive = home.join("out/hearth-1.2.3-linux-amd64.tar.gz");
    let listed = printed("tar", &[Path::new("--list"), Path::new("--file"), &archive]);
    for name in
        ["hearth", "hearth-agent", "hearth.bash", "hearth-agent.fish", "man/hearth-build.1.gz", "LICENSE"]
    {
        assert!(listed.lines().any(|line| line == format!("hearth-1.2.3/{name}")), "{name}: {listed}");
    }
    for package in ["agent", "builder"] {
        assert!(home.join(format!("out/{package}.deb")).exists());
        for asset in assets(package) {
            let (directory, name) =
                (asset.parent().expect("a directory"), asset.file_name().expect("a name"));
            let found =
                fs::read_dir(home.join(directory)).unwrap_or_else(|error| panic!("{asset:?}: {error}"));
            let mut names = found.map(|entry| entry.expect("readable").file_name());
            let matches =
                |found: &std::ffi::OsString| match name.to_str().and_then(|name| name.strip_prefix('*')) {
                    Some(end) => found.to_string_lossy().ends_with(end),
                    None => found == name,
                };
            assert!(names.any(|found| matches(&found)), "{package}/Cargo.toml names `{}`", asset.display());
        }
    }
}
