//! Several images of one specification: what they share is planned, stored and pushed once.

use std::{
    collections::BTreeSet,
    fs::{self, File},
};

use serde_json::Value;

use kit::build_fixture::{Fixture, blob, finish, report, write_spark};

use crate::archive_of;

/// Two patch releases: one JAR of five megabytes is the same, the ones that carry the version in their name differ.
fn two_releases() -> Fixture {
    let fixture = Fixture::new();
    write_spark(File::create(fixture.path("pyspark-3.5.8.tar.gz")).expect("writable"), "3.5.8", &[]);
    let text = fs::read_to_string(fixture.path("hearth.yaml")).expect("readable");
    let text = text.replace("[\"3.5.9\"]", "[\"3.5.8\", \"3.5.9\"]").replace("[\"17\"]", "[\"17\", \"25\"]");
    fs::write(fixture.path("hearth.yaml"), text).expect("writable");
    fixture
}

fn plan(fixture: &Fixture) -> Value {
    let mut command = fixture.subcommand("plan", &["--output", "json"]);
    report(&finish(&mut command))
}

/// The layers of an image, lowest first.
fn stack(built: &Value, image: usize) -> Vec<String> {
    let layers = built["images"][image]["layers"].as_array().expect("it was built");
    layers.iter().map(|layer| layer["digest"].as_str().expect("a digest").to_owned()).collect()
}

#[test]
fn a_plan_shows_images_refusals_and_what_is_shared_and_writes_nothing() {
    let fixture = two_releases();
    let planned = plan(&fixture);
    let tags: Vec<&str> = planned["images"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|image| image["tag"].as_str())
        .collect();
    assert_eq!(tags, ["3.5.8-java17-python3.11", "3.5.9-java17-python3.11"]);
    assert_eq!(planned["refused"].as_array().map(Vec::len), Some(2));
    assert!(planned["refused"][0]["impossible"][0].as_str().is_some_and(|reason| reason.contains("Java 25")));
    let shared = planned["layers"].as_array().expect("a list").iter().filter(|layer| {
        layer["images"].as_array().map(Vec::len) == Some(2) && layer["bytes"].as_u64() >= Some(5_000_000)
    });
    assert_eq!(shared.count(), 1);
    assert!(planned["uniqueBytes"].as_u64() < planned["totalBytes"].as_u64());
    assert!(planned["layers"][0]["blob"].is_null());
    assert!(!fixture.path("dist").exists());
    fixture.build(&["--skip-refused"]);
    assert!(plan(&fixture)["layers"][0]["blob"]["digest"].is_string(), "what was built is known");
}

#[test]
fn images_stack_what_they_share_first_and_hold_exactly_their_files() {
    let fixture = two_releases();
    let built = fixture.build(&["--skip-refused"]);
    let (older, newer) = (stack(&built, 0), stack(&built, 1));
    // The base and the common JAR, then what differs, then our scripts.
    assert_eq!(older[..2], newer[..2]);
    assert_ne!(older[2], newer[2]);
    assert_eq!(older.last(), newer.last());
    let names = |stack: &[String]| {
        let mut names = BTreeSet::new();
        for digest in stack {
            let mut archive = tar::Archive::new(archive_of(&blob(&fixture.path("dist"), digest)));
            for member in archive.entries().expect("a tar archive") {
                let path = member.expect("whole").path().expect("text").display().to_string();
                names.insert(path.trim_end_matches('/').to_owned());
            }
        }
        names
    };
    let (older, newer) = (names(&older), names(&newer));
    // Alone, the same release comes to the same files. It takes the place of the image of its name.
    let alone = Fixture::new();
    let single = alone.build(&["--to", &fixture.path("dist").display().to_string()]);
    assert_eq!(newer, names(&stack(&single, 0)));
    assert!(older.contains("opt/spark/jars/spark-core_2.12-3.5.8.jar"));
    assert!(!older.contains("opt/spark/jars/spark-core_2.12-3.5.9.jar"));
}

#[test]
fn sources_can_be_replaced_on_the_command_line() {
    let fixture = Fixture::new();
    let expected = fixture.build(&[]);
    fs::create_dir(fixture.path("elsewhere")).expect("writable");
    for name in ["base.tar", "pyspark-3.5.9.tar.gz"] {
        fs::rename(fixture.path(name), fixture.path("elsewhere").join(name)).expect("movable");
    }
    let arguments =
        ["--set-source", "base=elsewhere/base.tar", "--set-source", "spark=elsewhere/pyspark-{spark}.tar.gz"];
    assert_eq!(fixture.build(&arguments)["images"], expected["images"]);
}

#[test]
fn fixtures_ask_for_a_python_that_their_spark_supports() {
    for version in ["3.4.4", "3.5.9", "4.0.5", "4.1.4", "4.2.0"] {
        let spark = version.parse().expect("a version");
        let (major, minor) = hearth_builder::matrix::compat::line(&spark).python_floor;
        let asked = kit::fixtures::requires_python(version);
        let floor: u32 = asked.trim_start_matches(">=3.").parse().expect("a minor version");
        assert!(major == 3 && floor >= minor, "{version}: {asked} is below {major}.{minor}");
    }
}
