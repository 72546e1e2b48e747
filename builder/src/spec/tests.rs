use super::*;

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
    parse(Path::new("/specs/hearth.yaml"), text).map_err(|error| error.to_string())
}

#[test]
fn a_good_specification_is_read_with_its_defaults() {
    let matrix = read(GOOD).unwrap();
    assert_eq!(matrix.base, Base::RootFs("/specs/base.tar".into()));
    assert_eq!(matrix.spark, SparkSource::PyPi("pyspark".to_owned()));
    assert_eq!(matrix.compression, Codec::Gzip);
    assert_eq!(matrix.platform, Platform::host());
    let pythons: Vec<String> = matrix.axes.python.iter().map(ToString::to_string).collect();
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
        ("\"3.5.9\"", "\"3.5.9\", \"3.5.9\"", &["hearth.yaml:7:20", "listed twice"]),
        ("\"3.5.9\"", "latest", &["hearth.yaml:7:11", "is not a version"]),
        ("[\"3.5.9\"]", "[]", &["hearth.yaml:", "needs at least one version"]),
        ("[\"17\"]", "[\"17.0.1\"]", &["hearth.yaml:8:10", "major version alone"]),
        ("{ pypi: pyspark }", "{ pypi: numpy }", &["hearth.yaml:11:", "only `pyspark`"]),
        ("{ pypi: pyspark }", url, &["hearth.yaml:11:", "needs a `sha256`"]),
        ("{ pypi: pyspark }", "{ url: \"ftp://x\" }", &["hearth.yaml:11:", "http(s)"]),
        ("{ pypi: pyspark }", "{ path: a, sha256: \"12\" }", &["hearth.yaml:11:", "64 hex digits"]),
        ("{ pypi: pyspark }", "{}", &["hearth.yaml:11:", "exactly one of `path`, `url` and `pypi`"]),
        ("sources:\n  spark: { pypi: pyspark }\n", "", &["the key `sources` is missing"]),
        ("sources:", "compression: xz\nsources:", &["hearth.yaml:10:14", "`gzip` or `zstd`"]),
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

#[test]
fn a_missing_file_is_named() {
    let error = load(Path::new("/nowhere/hearth.yaml")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/hearth.yaml"), "{error}");
}

#[test]
fn the_examples_are_valid() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let matrix = load(&path).unwrap();
            let cells = crate::plan::cells(&matrix.axes, matrix.allow_untested);
            assert!(cells.refused.is_empty() && !cells.built.is_empty(), "{}", path.display());
            count += 1;
        }
    }
    assert!(count >= 3);
}
