//! How often `uv` runs while Python packages are locked, and what it is asked.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
};

use kit::build_fixture::{Fixture, finish, report, skipped};

/// Every wheel of the test's own index: package, version, tags, dependencies.
const WHEELS: [(&str, &str, &str, &[&str]); 10] = [
    ("alpha", "1.0", "py3-none-any", &["beta"]),
    ("alpha", "2.0", "py3-none-any", &["beta"]),
    ("beta", "1.5", "cp311-cp311-manylinux_2_17_x86_64", &[]),
    ("beta", "1.5", "cp311-cp311-manylinux_2_17_aarch64", &[]),
    ("beta", "2.0", "cp311-cp311-manylinux_2_17_x86_64", &[]),
    ("beta", "2.0", "cp311-cp311-manylinux_2_17_aarch64", &[]),
    ("gamma", "1.0", "cp311-cp311-manylinux_2_17_x86_64", &[]),
    ("gamma", "1.0", "cp311-cp311-manylinux_2_17_aarch64", &[]),
    // For a newer C library than that of the image.
    ("gamma", "2.0", "cp311-cp311-manylinux_2_38_x86_64", &[]),
    ("gamma", "2.0", "cp311-cp311-manylinux_2_38_aarch64", &[]),
];

/// A specification beside an index, and a `uv` that notes each run.
struct Locking {
    fixture: Fixture,
    uv: PathBuf,
}

impl Locking {
    /// `None` on a machine without uv, where Python packages cannot be locked.
    fn new() -> Option<Self> {
        let path = std::env::var_os("PATH")?;
        let uv = std::env::split_paths(&path).map(|place| place.join("uv")).find(|place| place.is_file())?;
        let fixture = Fixture::new();
        for directory in ["index", "bin"] {
            fs::create_dir(fixture.path(directory)).expect("writable");
        }
        for (name, version, tag, requires) in WHEELS {
            wheel(&fixture, name, version, tag, requires);
        }
        let counting = format!(
            "#!/bin/sh\necho \"$@\" >> '{}'\nexec '{}' \"$@\"\n",
            fixture.path("runs").display(),
            uv.display()
        );
        fs::write(fixture.path("bin/uv"), counting).expect("writable");
        fs::set_permissions(fixture.path("bin/uv"), fs::Permissions::from_mode(0o755)).expect("writable");
        Some(Self { fixture, uv })
    }

    /// Images for two platforms and two variants that all require the same.
    fn spec(&self, requirements: &str) {
        let index = self.fixture.path("index").display().to_string();
        fs::write(
            self.fixture.path("requirements.txt"),
            format!("--no-index\n--find-links {index}\n{requirements}"),
        )
        .expect("writable");
        let more = "wheels: { requirements: requirements.txt }\nvariants:\n  a: {}\n  b: { env: { B: b } }\n";
        self.fixture.spec("registry.test/data/spark", "{ rootfs: base.tar }", more);
        let text = fs::read_to_string(self.fixture.path("hearth.yaml")).expect("readable");
        let text = text.replace("{python}\"", "{python}-{variant}\"");
        let text = text.replace("axes:\n", "axes:\n  platform: [linux/amd64, linux/arm64]\n");
        fs::write(self.fixture.path("hearth.yaml"), text).expect("writable");
    }

    /// Locks, and gives the runs of uv and the wheels of the lock.
    fn lock(&self, more: &[&str]) -> (usize, Vec<String>) {
        let runs = self.fixture.path("runs");
        fs::write(&runs, "").expect("writable");
        let mut command = self.fixture.subcommand("lock", more);
        let path = format!(
            "{}:{}:/usr/bin:/bin",
            self.fixture.path("bin").display(),
            self.uv.parent().expect("a file").display()
        );
        command.env("PATH", path).env("UV_CACHE_DIR", self.fixture.path("uv-cache"));
        report(&finish(command.args(["--output-format", "json"])));
        let text = fs::read_to_string(self.fixture.path("hearth.lock")).expect("it was written");
        let lock: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let names = lock["inputs"].as_object().expect("a table").keys();
        let wheels = names.filter_map(|name| {
            let (request, file) = name.split_once(": ")?;
            let platform = request.rsplit(' ').find(|word| word.starts_with("linux/"))?;
            let mut parts = file.split('-');
            Some(format!("{} {}-{}", &platform[6..], parts.next()?, parts.next()?))
        });
        (fs::read_to_string(runs).expect("readable").lines().count(), wheels.collect())
    }
}

fn wheel(fixture: &Fixture, name: &str, version: &str, tag: &str, requires: &[&str]) {
    let file = fixture.path(&format!("index/{name}-{version}-{tag}.whl"));
    let mut wheel = zip::ZipWriter::new(File::create(file).expect("writable"));
    let requires: Vec<String> = requires.iter().map(|name| format!("Requires-Dist: {name}\n")).collect();
    let requires = requires.concat();
    let info = format!("{name}-{version}.dist-info");
    for (path, text) in [
        (format!("{name}/__init__.py"), format!("version = '{version}'\n")),
        (
            format!("{info}/METADATA"),
            format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"),
        ),
        (
            format!("{info}/WHEEL"),
            format!("Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"),
        ),
        (format!("{info}/RECORD"), format!("{name}/__init__.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n")),
    ] {
        wheel.start_file(path, zip::write::SimpleFileOptions::default()).expect("writable");
        wheel.write_all(text.as_bytes()).expect("writable");
    }
    wheel.finish().expect("writable");
}

#[test]
fn one_run_of_uv_resolves_all_images_that_allow_it() {
    let Some(locking) = Locking::new() else { return skipped("needs `uv`") };
    locking.spec("alpha<2\nbeta<2\n");
    let (runs, wheels) = locking.lock(&[]);
    let expected = ["amd64 alpha-1.0", "amd64 beta-1.5", "arm64 alpha-1.0", "arm64 beta-1.5"];
    assert_eq!((runs, wheels), (1, expected.map(str::to_owned).to_vec()));
    assert_eq!(locking.lock(&[]).0, 0, "everything is locked");
    // Another requirement moves nothing else, although the index has newer versions.
    locking.spec("alpha\nbeta\ngamma<2\n");
    let (runs, wheels) = locking.lock(&[]);
    let with_gamma = |alpha: &str| {
        let of = |platform| {
            [
                format!("{platform} alpha-{alpha}"),
                format!("{platform} beta-1.5"),
                format!("{platform} gamma-1.0"),
            ]
        };
        [of("amd64"), of("arm64")].concat()
    };
    assert_eq!((runs, wheels), (1, with_gamma("1.0")));
    let (runs, wheels) = locking.lock(&["--upgrade", "alpha"]);
    assert_eq!((runs, wheels), (1, with_gamma("2.0")));
}

#[test]
fn images_that_a_common_resolution_does_not_suit_are_resolved_by_themselves() {
    let Some(locking) = Locking::new() else { return skipped("needs `uv`") };
    locking.spec("alpha\ngamma\n");
    let (runs, wheels) = locking.lock(&[]);
    // The common one came to gamma 2.0, which neither can load.
    let expected = [
        "amd64 alpha-2.0",
        "amd64 beta-2.0",
        "amd64 gamma-1.0",
        "arm64 alpha-2.0",
        "arm64 beta-2.0",
        "arm64 gamma-1.0",
    ];
    assert_eq!((runs, wheels), (3, expected.map(str::to_owned).to_vec()));
}
