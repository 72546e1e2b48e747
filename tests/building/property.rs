//! The same inputs give the same bytes: whatever the order in which they are listed and made, and whatever surrounds the
//! build; and the digests are those that other machines got.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    process::Command,
};

use kit::{process::binary, registry::random_bytes};
use proptest::{
    prelude::{Just, Strategy, any},
    sample::select,
    test_runner::{Config, TestRunner},
};
use serde_json::Value;

use kit::build_fixture::{Fixture, finish, report, write_spark};

/// What may be different from build to build and machine to machine.
#[derive(Clone, Debug)]
struct Surroundings {
    sparks: Vec<&'static str>,
    platforms: Vec<&'static str>,
    files: Vec<&'static str>,
    names: Vec<&'static str>,
    jobs: u8,
    umask: &'static str,
    zone: &'static str,
    locale: &'static str,
    directory: &'static str,
    /// Whether another image was built into the same cache before.
    used: bool,
}

const SPARKS: [&str; 3] = ["3.5.1", "3.5.8", "3.5.9"];
const SHARED: [(&str, [&str; 2]); 3] = [
    ("deps/jars/a.jar", ["3.5.8", "3.5.9"]),
    ("deps/jars/b.jar", ["3.5.1", "3.5.9"]),
    ("deps/jars/c.jar", ["3.5.1", "3.5.8"]),
];
const PLATFORMS: [&str; 2] = ["linux/amd64", "linux/arm64"];
const FILES: [&str; 3] = [
    "{ to: /opt/app/a.txt, text: one }",
    "{ to: /opt/app/conf, path: conf }",
    "{ to: /etc/motd, text: hello, mode: \"0600\", owner: \"185:0\" }",
];
const NAMES: [&str; 4] = ["z.conf", "a.conf", "B.conf", "\u{e9}.conf"];

fn surroundings() -> impl Strategy<Value = Surroundings> {
    let order = |list: &[&'static str]| Just(list.to_vec()).prop_shuffle();
    (
        (order(&SPARKS), order(&PLATFORMS), order(&FILES), order(&NAMES)),
        (1..=8_u8, select(vec!["000", "022", "027", "077"]), any::<bool>()),
        select(vec!["UTC", "Asia/Tokyo", "America/St_Johns"]),
        select(vec!["C", "tr_TR.UTF-8", "de_DE.UTF-8"]),
        select(vec![".", "/", "conf"]),
    )
        .prop_map(|((sparks, platforms, files, names), (jobs, umask, used), zone, locale, directory)| {
            Surroundings { sparks, platforms, files, names, jobs, umask, zone, locale, directory, used }
        })
}

fn specification(surroundings: &Surroundings, codec: &str) -> String {
    let Surroundings { sparks, platforms, files, .. } = surroundings;
    format!(
        "apiVersion: hearth.dev/v1alpha1\nkind: ImageMatrix\nrepository: registry.test/data/spark\n\
         tag: \"{{spark}}\"\ntags: [\"{{sparkLine}}-{{spark}}\"]\nbase: {{ rootfs: base.tar }}\ncompression: {codec}\n\
         axes: {{ spark: [\"{}\"], java: [\"17\"], python: [\"3.11\"], platform: [{}] }}\n\
         sources: {{ spark: {{ path: \"pyspark-{{spark}}.tar.gz\" }} }}\nfiles: [{}]\n",
        sparks.join("\", \""),
        platforms.join(", "),
        files.join(", ")
    )
}

/// Inputs made in the given order, as another checkout would have them.
fn world(surroundings: &Surroundings, codec: &str) -> Fixture {
    let fixture = Fixture::new();
    let shared = [21, 22, 23].map(|seed| random_bytes(seed, 4_500_000));
    for version in &surroundings.sparks {
        let file = File::create(fixture.path(&format!("pyspark-{version}.tar.gz"))).expect("writable");
        let readme = if *version == "3.5.1" { "old" } else { "new" };
        let mut more = vec![("deps/data/README", readme.as_bytes())];
        // Of three releases each two share a layer that the third has not: each image has two of these to put in order.
        if surroundings.sparks.len() == SPARKS.len() {
            let shared = SHARED.iter().zip(&shared).filter(|((_, by), _)| by.contains(version));
            more.extend(shared.map(|((path, _), bytes)| (*path, bytes.as_slice())));
        }
        write_spark(file, version, &more);
    }
    fs::create_dir(fixture.path("conf")).expect("writable");
    for name in &surroundings.names {
        fs::write(fixture.path("conf").join(name), name).expect("writable");
    }
    fs::write(fixture.path("hearth.yaml"), specification(surroundings, codec)).expect("writable");
    fixture
}

/// Every image by name and platform, and every tag, with its digest.
fn digests(built: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let images = built["images"].as_array().expect("images were built").iter();
    let images = images.map(|image| {
        (format!("{} {}", text(&image["reference"]), text(&image["platform"])), text(&image["manifest"]))
    });
    let tags = built["tags"].as_object().expect("tags are an object").iter();
    images.chain(tags.map(|(tag, digest)| (tag.clone(), text(digest)))).collect()
}

fn build(surroundings: &Surroundings) -> BTreeMap<String, String> {
    let fixture = world(surroundings, "zstd:chunked");
    let cache = fixture.path("cache");
    if surroundings.used {
        let other = Surroundings { sparks: vec!["3.5.8"], files: Vec::new(), ..surroundings.clone() };
        fs::write(fixture.path("other.yaml"), specification(&other, "zstd:chunked")).expect("writable");
        fixture.build(&["-f", "other.yaml", "--to", "other"]);
    }
    let directory = match surroundings.directory {
        "/" => "/".into(),
        below => fixture.path(below),
    };
    let script = format!(
        "umask {}; exec '{}' build -f '{}' --jobs {} --output json",
        surroundings.umask,
        binary("hearth").expect("the binary is built").display(),
        fixture.path("hearth.yaml").display(),
        surroundings.jobs
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(directory).env_remove("SOURCE_DATE_EPOCH");
    shell.env("HEARTH_CACHE_DIR", cache).env("TZ", surroundings.zone).env("LC_ALL", surroundings.locale);
    digests(&report(&finish(&mut shell)))
}

#[test]
fn neither_order_nor_surroundings_change_a_digest() {
    let plain = Surroundings {
        sparks: SPARKS.to_vec(),
        platforms: PLATFORMS.to_vec(),
        files: FILES.to_vec(),
        names: NAMES.to_vec(),
        jobs: 1,
        umask: "022",
        zone: "UTC",
        locale: "C",
        directory: ".",
        used: false,
    };
    let expected = build(&plain);
    assert_eq!(expected.len(), 12, "three releases for two platforms under two tags each");
    // Each case makes its inputs and builds six images; the seeds are new in every run.
    let mut runner = TestRunner::new(Config {
        cases: 4,
        max_shrink_iters: 8,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&surroundings(), |surroundings| {
        assert_eq!(build(&surroundings), expected);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

/// What every machine gets for these inputs. A change of the scripts in `docker/spark`, of the layout of images or of
/// how layers are planned and compressed changes these digests, and every user's: where that is meant, write the new
/// ones here.
const EXPECTED: [(&str, &str, &str); 3] = [
    ("zstd:chunked", "3.5.9", "sha256:2e3f768190737734346a5b3856bea7917cd44418e087b83a17747be794dd746d"),
    ("gzip", "3.5.9", "sha256:9ccbc8fae0795793c39dd5f9d0e34ffcfe9c22e4673f5abe2ac90563c5ae8e4d"),
    ("zstd", "3.5.9", "sha256:dc0ac7172457ff490ef26fc2dc49089963aa90489f25524ab6920bd867190e62"),
];

#[test]
fn every_machine_gets_these_digests() {
    let mut found = Vec::new();
    for (codec, tag, _) in EXPECTED {
        let surroundings = Surroundings {
            sparks: vec!["3.5.8", "3.5.9"],
            platforms: PLATFORMS.to_vec(),
            files: FILES.to_vec(),
            names: NAMES.to_vec(),
            jobs: 2,
            umask: "022",
            zone: "UTC",
            locale: "C",
            directory: ".",
            used: false,
        };
        let built = world(&surroundings, codec).build(&[]);
        found.push((codec, tag, built["tags"][tag].as_str().expect("it is built").to_owned()));
    }
    let expected = EXPECTED.map(|(codec, tag, digest)| (codec, tag, digest.to_owned()));
    assert_eq!(found, expected);
}
