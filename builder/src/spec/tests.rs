use std::path::Path;

use super::{
    file::{load, parse},
    *,
};
use crate::platform::Platform;

const GOOD: &str = r#"apiVersion: hearth.dev/v1alpha1
kind: ImageMatrix
repository: registry.example.com/data/spark
tag: "{spark}-java{java}-python{python}"
base: { rootfs: base.tar }
axes:
  spark: ["3.5.9"]
  java: ["17"]
  python: [3.10, "3.11"]
sources:
  spark: { pypi: pyspark }
"#;

fn read(text: &str) -> Result<Matrix, String> {
    parse(Path::new("/specs/hearth.yaml"), text, None).map_err(|error| error.to_string())
}

#[test]
fn a_good_specification_is_read_with_its_defaults() {
    let matrix = read(GOOD).unwrap();
    let Wanted { cell, recipe } = &matrix.wanted[0];
    assert_eq!(recipe.base, Base::RootFs("/specs/base.tar".into()));
    assert_eq!(recipe.spark, Some(SparkSource::PyPi("pyspark".to_owned())));
    assert_eq!(matrix.compression, Codec::ZstdChunked);
    assert_eq!(cell.platform, Platform::host());
    let python = |wanted: &Wanted| wanted.cell.python.as_ref().unwrap().to_string();
    let pythons: Vec<String> = matrix.wanted.iter().map(python).collect();
    assert_eq!(pythons, ["3.10", "3.11"], "an unquoted 3.10 is not 3.1");
}

#[test]
fn every_other_source_and_base_is_read() {
    let digest = "0".repeat(64);
    let url = format!("{{ url: \"https://example.com/{{spark}}.tar.gz\", sha256: \"{digest}\" }}");
    let cases = [
        ("{ rootfs: base.tar }", "{ layout: ./base, ref: jre }"),
        ("{ rootfs: base.tar }", "{ image: \"docker.io/library/eclipse-temurin:{java}-jre\" }"),
        ("{ pypi: pyspark }", "{ path: \"pyspark-{spark}.tar.gz\" }"),
        ("{ pypi: pyspark }", &url),
    ];
    for (from, to) in cases {
        let text = GOOD.replace(from, to);
        assert!(read(&text).is_ok(), "{to}: {:?}", read(&text));
    }
}

#[test]
fn mistakes_are_shown_with_file_line_column_and_remedy() {
    let digest = "0".repeat(64);
    let url = "{ url: \"https://example.com/s.tar.gz\" }";
    let two = format!("{{ path: s.tar.gz, sha256: \"{digest}\" }}");
    // What is replaced, by what, and what the message must hold.
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "repository:",
            "repositry:",
            &["hearth.yaml:3:1", "unknown key `repositry`: did you mean `repository`?"],
        ),
        ("  spark: [", "  sparc: [", &["hearth.yaml:7:3", "did you mean `spark`?"]),
        ("{ rootfs:", "{ rootFs:", &["hearth.yaml:5:9", "did you mean `rootfs`?"]),
        ("sources:", "zebra: 1\nsources:", &["hearth.yaml:10:1", "expected one of `apiVersion`"]),
        ("v1alpha1", "v2", &["hearth.yaml:1:13", "reads `hearth.dev/v1alpha1`"]),
        ("ImageMatrix", "Image", &["hearth.yaml:2:7", "`kind` is `Image`"]),
        ("registry.example.com/data/spark", "UPPER/x", &["hearth.yaml:3:13", "`repository`"]),
        ("registry.example.com/data/spark", "registry.example.com/a:tag", &["hearth.yaml:3:13", "tag"]),
        ("-java{java}", "-java{jva}", &["hearth.yaml:4:6", "`{jva}` is no axis"]),
        ("-python{python}", "", &["hearth.yaml:4:6", "several cells would be called `3.5.9-java17`"]),
        ("\"{spark}-", "\"-{spark}", &["hearth.yaml:4:6", "is no tag"]),
        ("{ rootfs: base.tar }", "{ rootfs: a, image: b }", &["hearth.yaml:5:7", "exactly one of"]),
        ("{ rootfs: base.tar }", "{ rootfs: a, ref: b }", &["hearth.yaml:5:", "goes with `base.layout`"]),
        ("{ rootfs: base.tar }", "{ image: \"UPPER:x y\" }", &["hearth.yaml:5:", "`base.image`"]),
        ("\"3.5.9\"", "\"3.5\"", &["hearth.yaml:7:11", "should look like `3.5.9`"]),
        ("\"3.5.9\"", "\"3.5.9-SNAPSHOT\"", &["hearth.yaml:7:11", "is not a version"]),
        ("[\"17\"]", "[\"17-corretto\"]", &["hearth.yaml:8:10", "major version alone"]),
        ("\"3.5.9\"", "\"3.5.9\", \"3.5.9\"", &["hearth.yaml:7:20", "listed twice"]),
        ("\"3.5.9\"", "latest", &["hearth.yaml:7:11", "is not a version"]),
        ("[\"3.5.9\"]", "[]", &["hearth.yaml:", "needs at least one version"]),
        ("[\"17\"]", "[\"17.0.1\"]", &["hearth.yaml:8:10", "major version alone"]),
        ("{ pypi: pyspark }", "{ pypi: numpy }", &["hearth.yaml:11:", "only `pyspark`"]),
        ("{ pypi: pyspark }", url, &["hearth.yaml:11:", "needs a `sha256`"]),
        ("{ pypi: pyspark }", "{ url: \"ftp://x\" }", &["hearth.yaml:11:", "`https`", "`hdfs`"]),
        ("{ pypi: pyspark }", "{ path: a, sha256: \"12\" }", &["hearth.yaml:11:", "64 hex digits"]),
        ("{ pypi: pyspark }", "{}", &["hearth.yaml:11:", "exactly one of `path`, `url` and `pypi`"]),
        ("sources:\n  spark: { pypi: pyspark }\n", "", &["the key `sources.spark` is missing"]),
        ("sources:", "compression: xz\nsources:", &["hearth.yaml:10:14", "`zstd:chunked`, `zstd` or `gzip`"]),
        ("sources:", "platform: windows\nsources:", &["hearth.yaml:10:11", "`linux/amd64`"]),
        ("sources:", "allowUntested: perhaps\nsources:", &["hearth.yaml:10:16"]),
        ("sources:", "env: { \"A=B\": x }\nsources:", &["no name of an environment variable"]),
        ("sources:", "tag: again\nsources:", &["hearth.yaml:10:1", "tag"]),
        ("axes:", "axes: [", &["hearth.yaml:"]),
    ];
    for (from, to, expected) in cases {
        let error = read(&GOOD.replacen(from, to, 1)).expect_err(to);
        for part in *expected {
            assert!(error.contains(part), "`{to}`: `{error}` should hold `{part}`");
        }
    }
    let several = GOOD.replace("\"3.5.9\"", "\"3.5.8\", \"3.5.9\"").replace("{ pypi: pyspark }", &two);
    assert!(read(&several).unwrap_err().contains("fits one Spark version"));
}

const PLAIN: &str = r#"apiVersion: hearth.dev/v1alpha1
kind: ImageMatrix
repository: registry.example.com/tools/agent
tag: "1.2"
base: { image: scratch }
files: [{ path: "{arch}/agent", to: /usr/local/bin/ }]
user: "65532:65532"
ports: ["5050", "53/udp"]
axes: { platform: [linux/amd64, linux/arm64] }
"#;

#[test]
fn an_image_needs_no_spark() {
    let matrix = read(PLAIN).unwrap();
    let Wanted { cell, recipe } = &matrix.wanted[1];
    assert_eq!((&cell.spark, &cell.java, &recipe.spark), (&None, &None, &None));
    assert_eq!((&recipe.base, recipe.tags.as_slice()), (&Base::Scratch, &["1.2".to_owned()][..]));
    let Some(FileContent::Input(Input { place, .. })) = recipe.files.first().map(|file| &file.content) else {
        panic!("{recipe:?}")
    };
    assert_eq!(place, &Source::Path("/specs/arm64/agent".into()));
    assert_eq!(Vec::from_iter(&recipe.ports), ["5050/tcp", "53/udp"]);
    let one = read(PLAIN.split("axes:").next().unwrap()).unwrap();
    assert_eq!(one.wanted.len(), 1, "without axes there is one image");
    let tagged = parse(Path::new("/specs/hearth.yaml"), PLAIN, Some("{arch}-2")).unwrap();
    assert_eq!(tagged.wanted[1].recipe.tags, ["arm64-2"]);
}

#[test]
fn keys_of_spark_are_refused_without_it() {
    for (from, to, expected) in [
        ("user:", "sources: { spark: { pypi: pyspark } }\nuser:", "`sources.spark` needs the axis `spark`"),
        ("user:", "sources: { java: { path: a } }\nuser:", "`sources.java` needs the axis `java`"),
        ("user:", "jars: { packages: [\"a:b:1\"] }\nuser:", "hearth.yaml:7:7: `jars` needs the axis `spark`"),
        ("user:", "jvm: { classDataSharing: true }\nuser:", "`jvm` needs the axis `spark`"),
        ("user:", "wheels: { packages: [numpy] }\nuser:", "`wheels` needs the axis `python`"),
        ("1.2", "{spark}", "hearth.yaml:4:6: `tag`: `{spark}` needs the axis `spark`"),
        ("1.2", "{sparkLine}", "`{sparkLine}` needs the axis `spark`"),
        ("axes: {", "axes: { spark: [\"3.5.9\"],", "`axes.spark` needs `axes.java` as well"),
        ("axes: {", "axes: { scala: [\"2.12\"],", "`axes.scala` needs `axes.spark` as well"),
        ("base: { image: scratch }\n", "", "the key `base` is missing for the plain image"),
        ("53/udp", "53/icmp", "`ports`: `53/icmp` is no port"),
        ("\"5050\"", "\"0\"", "`ports`: `0` is no port"),
    ] {
        let error = read(&PLAIN.replacen(from, to, 1)).expect_err(to);
        assert!(error.contains(expected), "`{to}`: `{error}` should hold `{expected}`");
    }
    let included = PLAIN.replace("axes:", "include: [{ spark: \"3.5.9\" }]\naxes:");
    assert!(read(&included).unwrap_err().contains("`include`: `spark` needs `java` as well"));
}

#[test]
fn a_spark_may_be_that_of_a_vendor() {
    let matrix = read(&GOOD.replace("\"3.5.9\"", "3.5.1-amzn-1")).unwrap();
    assert_eq!(matrix.wanted[0].recipe.tags, ["3.5.1-amzn-1-java17-python3.10"]);
}

#[test]
fn a_missing_file_is_named() {
    let error = load(Path::new("/nowhere/hearth.yaml"), None).unwrap_err();
    assert!(error.to_string().contains("/nowhere/hearth.yaml"), "{error}");
}

#[test]
fn the_examples_are_valid() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let matrix = load(&path, None).unwrap();
            assert!(matrix.refused.is_empty() && !matrix.wanted.is_empty(), "{}", path.display());
            count += 1;
        }
    }
    assert!(count >= 3);
}

/// Every overlay in one specification.
const RICH: &str = r#"apiVersion: hearth.dev/v1alpha1
kind: ImageMatrix
repository: registry.example.com/data/spark
tag: "{spark}-java{java}-{variant}"
tags: ["{spark}-java{java}-{variant}-latest"]
axes:
  spark: ["3.5.9", "4.1.4"]
  java: ["17"]
  python: ["3.11"]
  platform: [linux/amd64, linux/arm64]
base: { rootfs: "base-{arch}.tar" }
sources:
  spark: { pypi: pyspark }
env: { A: default, B: default }
files:
  - { text: "x", to: /etc/motd }
lines:
  - when: { spark: "4" }
    base: { image: "registry.example.com/jre:{java}" }
    env: { A: line }
    sources:
      java: { path: jre.tar.gz }
variants:
  plain: {}
  geo:
    when: { spark: ">=3.5 <4 | 4.0", platform: linux/amd64 }
    env: { A: variant }
    tags: ["{sparkLine}-geo"]
    files:
      - { path: geo.conf, to: "/opt/spark/geo-{sparkLine}.conf", mode: "0600", owner: "185:0" }
    jars:
      repositories: [{ url: "file:repository" }]
      packages: ["org.example:geo_2.12:{spark}"]
    wheels: { packages: ["shapely==2.0.6"] }
exclude:
  - { spark: "4", platform: linux/arm64 }
include:
  - { spark: "3.4.4", java: "11", python: "3.10", variant: plain }
"#;

#[test]
fn overlays_are_merged_from_defaults_over_lines_to_variants() {
    let matrix = read(RICH).unwrap();
    let named: Vec<String> =
        matrix.wanted.iter().map(|one| format!("{} {}", one.recipe.tags[0], one.cell.platform)).collect();
    let expected = [
        "3.5.9-java17-geo linux/amd64",
        "3.5.9-java17-plain linux/amd64",
        "3.5.9-java17-plain linux/arm64",
        "4.1.4-java17-plain linux/amd64",
        "3.4.4-java11-plain linux/amd64",
        "3.4.4-java11-plain linux/arm64",
    ];
    assert_eq!(named, expected);
    let geo = &matrix.wanted[0].recipe;
    assert_eq!(geo.tags, ["3.5.9-java17-geo", "3.5.9-java17-geo-latest", "3.5-geo"]);
    assert_eq!((geo.env["A"].as_str(), geo.env["B"].as_str()), ("variant", "default"));
    assert_eq!(geo.base, Base::RootFs("/specs/base-amd64.tar".into()));
    assert_eq!(geo.files.len(), 2);
    let file = &geo.files[1];
    assert_eq!((file.to.as_str(), file.mode, file.owner), ("opt/spark/geo-3.5.conf", Some(0o600), (185, 0)));
    assert_eq!(geo.jars.packages[0].to_string(), "org.example:geo_2.12:3.5.9");
    assert_eq!(geo.jars.repositories[0].urls, ["file:/specs/repository"]);
    assert_eq!(geo.wheels, Some(Wheels::Requirements(None, vec!["shapely==2.0.6".to_owned()])));
    let line = &matrix.wanted[3].recipe;
    assert_eq!(line.base, Base::Image("registry.example.com/jre:17".to_owned()));
    assert_eq!((line.env["A"].as_str(), line.java.is_some()), ("line", true));
    assert!(matrix.wanted[1].recipe.jars.packages.is_empty() && matrix.wanted[1].recipe.java.is_none());
    let tags = matrix.tags();
    let plain = tags.iter().find(|(tag, _)| *tag == "3.5.9-java17-plain").unwrap();
    assert_eq!(plain.1, [1, 2], "the platforms of an image share its tags");
}

#[test]
fn mistakes_in_overlays_are_shown_with_place_and_remedy() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("    env: { A: line }", "    envv: { A: line }", &["hearth.yaml:20:5", "did you mean `env`?"]),
        ("when: { spark: \"4\" }", "when: {}", &["hearth.yaml:18:", "needs at least one axis"]),
        ("when: { spark: \"4\" }", "when: { spark: x }", &["hearth.yaml:18:", "is no condition"]),
        ("{sparkLine}-geo", "{sparkline}-geo", &["hearth.yaml:28:", "did you mean `{sparkLine}`?"]),
        ("{sparkLine}-geo", "3.5.9-java17-plain", &["several cells would be called"]),
        ("variant: plain", "variant: plan", &["did you mean `plain`?"]),
        ("mode: \"0600\"", "mode: \"rw\"", &["hearth.yaml:30:", "`files.mode`"]),
        ("owner: \"185:0\"", "owner: spark", &["hearth.yaml:30:", "`files.owner`"]),
        ("to: /etc/motd", "to: etc/motd", &["hearth.yaml:16:", "no absolute path"]),
        ("to: /etc/motd", "to: /../motd", &["hearth.yaml:16:", "no absolute path"]),
        ("org.example:geo_2.12:{spark}", "org.example:geo", &["hearth.yaml:33:", "group:artifact"]),
        ("file:repository", "ftp://x", &["hearth.yaml:32:", "no http(s) or file URL"]),
        ("repositories: [{ url: \"file:repository\" }]", "exclude: [\"a:b\"]", &["none is built in"]),
        ("{ packages: [\"shapely==2.0.6\"] }", "{}", &["hearth.yaml:34:", "`wheels` needs either"]),
        ("{ path: jre.tar.gz }", "{ pypi: x }", &["hearth.yaml:22:", "`path` and `url`"]),
        ("linux/arm64]", "linux/amd64]", &["hearth.yaml:10:", "listed twice"]),
        ("kind:", "platform: linux/amd64\nkind:", &["say the same"]),
        (
            "when: { spark: \"4\" }",
            "when: { spark: \"3.3\" }",
            &["hearth.yaml:18:", "`lines.when` holds for no"],
        ),
        (
            "platform: linux/amd64 }",
            "java: \"21\" }",
            &["hearth.yaml:26:", "`variants.geo.when` holds for no"],
        ),
        ("- { spark: \"4\", pl", "- { spark: \"2\", pl", &["hearth.yaml:36:", "`exclude` holds for no"]),
        ("- { spark: \"4\", platform: linux/arm64 }", "- { variant: geo }", &["`variants.geo.when`"]),
        ("A: variant", "A: \"{sprak}\"", &["hearth.yaml:27:", "did you mean `{spark}`?"]),
        ("to: /etc/motd", "to: /etc/", &["hearth.yaml:16:", "a `text` has no name"]),
        ("    env: { A: variant }", "    user: spark nobody", &["hearth.yaml:27:", "`user:group`"]),
        ("    env: { A: variant }", "    user: \"1:2:3\"", &["hearth.yaml:27:", "`user:group`"]),
        ("    env: { A: variant }", "    workingDirectory: work", &["hearth.yaml:27:", "absolute path"]),
        ("    env: { A: variant }", "    workingDirectory: /a/../b", &["hearth.yaml:27:", "absolute path"]),
    ];
    for (from, to, expected) in cases {
        let error = read(&RICH.replacen(from, to, 1)).expect_err(to);
        for part in *expected {
            assert!(error.contains(part), "`{to}`: `{error}` should hold `{part}`");
        }
    }
    let nothing = RICH.replace("{ spark: \"4\", platform: linux/arm64 }", "{ java: \">=8\" }");
    let nothing = nothing.replace("java: \"11\"", "java: \"8\"").replace("include:", "exclude2:");
    assert!(read(&nothing).is_err());
}

#[test]
fn placeholders_are_filled_in_texts() {
    let more = "labels: { line: \"{sparkLine}\", raw: \"{{java}}\" }\nentrypoint: [\"/opt/{spark}\", \"${HOME}\"]\nuser: \"spark{java}\"\nkind:";
    let matrix = read(&RICH.replace("A: default", "A: \"{spark}\"").replacen("kind:", more, 1)).unwrap();
    let plain = &matrix.wanted[1].recipe;
    assert_eq!((plain.env["A"].as_str(), plain.labels["line"].as_str()), ("3.5.9", "3.5"));
    assert_eq!((plain.labels["raw"].as_str(), plain.user.as_deref()), ("{java}", Some("spark17")));
    let entrypoint = plain.entrypoint.as_ref().unwrap();
    assert_eq!(entrypoint, &["/opt/3.5.9", "${HOME}"]);
}

#[test]
fn lists_of_overlays_grow_and_contradictions_are_named() {
    let with = |default: &str, variant: &str| {
        let text = RICH.replacen("lines:", &format!("{default}\nlines:"), 1);
        let text = text.replace("wheels: { packages: [\"shapely==2.0.6\"] }", variant);
        read(&text).map(|matrix| matrix.wanted[0].recipe.clone())
    };
    let wheels = |packages: &[&str]| {
        Some(Wheels::Requirements(None, packages.iter().map(|text| (*text).to_owned()).collect()))
    };
    let shapely = "wheels: { packages: [\"shapely==2.0.6\"] }";
    let both = with("wheels: { packages: [pandas==2.2.3, shapely] }", shapely).unwrap();
    assert_eq!(both.wheels, wheels(&["pandas==2.2.3", "shapely", "shapely==2.0.6"]));
    let with_file = with("wheels: { requirements: r.txt }", shapely).unwrap().wheels;
    assert!(matches!(with_file, Some(Wheels::Requirements(Some(_), more)) if more.len() == 1));
    let locks = with("wheels: { lock: a.lock }", "wheels: { lock: b.lock }").unwrap().wheels;
    let lock = |extras: &[&str]| {
        let extras = extras.iter().map(|text| (*text).to_owned()).collect();
        Some(Wheels::Lock { path: "/specs/b.lock".into(), extras, groups: Vec::new() })
    };
    assert_eq!(locks, lock(&[]), "a single value is replaced");
    let extras = with("wheels: { lock: b.lock, extras: [a] }", "wheels: { extras: [b] }").unwrap().wheels;
    assert_eq!(extras, lock(&["a", "b"]));
    for (default, variant, expected) in [
        (
            "wheels: { packages: [Shapely==2.0.7] }",
            shapely,
            &["shapely==2.0.6", "`shapely==2.0.7` of line 17"],
        ),
        ("", "wheels: { packages: [a], groups: [b] }", &["go with `wheels.lock` only", "hearth.yaml:3"]),
        ("wheels: { lock: uv.lock }", shapely, &["either `lock`", "(line 35)"]),
        (
            "jars: { repositories: [{ url: \"file:r\" }], packages: [\"org.example:geo_2.12:1.0\"] }",
            shapely,
            &["`org.example:geo_2.12:3.5.9` contradicts", "`org.example:geo_2.12:1.0` of line 17"],
        ),
    ] {
        let error = with(default, variant).unwrap_err();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn the_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/hearth.schema.json");
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == schema(), "make it again: `hearth schema > docker/hearth.schema.json`");
}
