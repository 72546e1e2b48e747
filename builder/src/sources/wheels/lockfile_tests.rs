use super::*;
use crate::platform::Platform;

fn environment(python: &str) -> Environment {
    Environment { python: python.parse().unwrap(), platform: Platform::Amd64, libc: tags::ASSUMED }
}

fn files(found: &[Wheel]) -> Vec<&str> {
    found.iter().map(|wheel| wheel.file.as_str()).collect()
}

fn hash(letter: &str) -> String {
    letter.repeat(64)
}

fn pylock_text() -> String {
    format!(
        r#"lock-version = "1.0"
[[packages]]
name = "NumPy"
version = "2.0.0"
wheels = [
  {{ url = "https://files.example.com/numpy-2.0.0-cp311-cp311-manylinux_2_17_x86_64.whl", hashes = {{ sha256 = "{a}" }} }},
  {{ path = "wheels/numpy-2.0.0-cp312-cp312-manylinux_2_17_x86_64.whl", hashes = {{ sha256 = "{b}" }} }},
]
[[packages]]
name = "colorama"
version = "0.4"
marker = "sys_platform == 'win32'"
wheels = [{{ name = "colorama-0.4-py3-none-any.whl", url = "https://x/y", hashes = {{ sha256 = "{a}" }} }}]
"#,
        a = hash("a"),
        b = hash("b")
    )
}

#[test]
fn a_pylock_gives_the_wheels_of_one_environment() {
    let text = pylock_text();
    let found = wheels(&text, &environment("3.11"), &More::default()).unwrap();
    assert_eq!(files(&found), ["numpy-2.0.0-cp311-cp311-manylinux_2_17_x86_64.whl"]);
    assert_eq!(found[0].package, "numpy");
    let found = wheels(&text, &environment("3.12"), &More::default()).unwrap();
    assert_eq!(found[0].place, "wheels/numpy-2.0.0-cp312-cp312-manylinux_2_17_x86_64.whl");
    let error = wheels(&text, &environment("3.13"), &More::default()).unwrap_err();
    assert!(error.contains("`numpy 2.0.0` has no wheel for Python 3.13 on linux/amd64"), "{error}");
    let source = "lock-version = \"1.0\"\n[[packages]]\nname = \"old\"\nsdist = { url = \"x\" }\n";
    let error = wheels(source, &environment("3.11"), &More::default()).unwrap_err();
    assert!(error.contains("source distribution only"), "{error}");
    for (from, to, expected) in [
        ("1.0\"\n[[", "2.0\"\n[[", "not one that hearth reads"),
        ("sha256 = \"aaa", "md5 = \"aaa", "no SHA-256"),
        ("lock-version", "something", "neither"),
        ("marker = \"", "marker = \"? ", "stray"),
    ] {
        let error = wheels(&text.replace(from, to), &environment("3.11"), &More::default()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn pyspark_comes_with_spark_whatever_needs_it() {
    // There is no wheel of it: looked at, it would be refused.
    let pylock = "lock-version = \"1.0\"\n[[packages]]\nname = \"PySpark\"\nsdist = { url = \"x\" }\n";
    assert_eq!(wheels(pylock, &environment("3.11"), &More::default()), Ok(Vec::new()));
    let uv = "version = 1\n[[package]]\nname = \"app\"\nsource = { virtual = \".\" }\n\
              dependencies = [{ name = \"pyspark\" }]\n[[package]]\nname = \"pyspark\"\nversion = \"3.5.9\"\n\
              source = { registry = \"https://i\" }\nsdist = { url = \"x\" }\ndependencies = [{ name = \"py4j\" }]\n";
    assert_eq!(wheels(uv, &environment("3.11"), &More::default()), Ok(Vec::new()));
}

#[test]
fn a_uv_lock_is_followed_from_the_project_along_markers_and_extras() {
    let wheel = |name: &str, version: &str| {
        let (file, hash) = (format!("{name}-{version}-py3-none-any.whl"), hash("c"));
        format!("wheels = [{{ url = \"https://x/{file}\", hash = \"sha256:{hash}\", size = 1 }}]\n")
    };
    let package = |name: &str, version: &str, more: &str| {
        let wheel = wheel(name, version);
        format!(
            "[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nsource = {{ registry = \"https://i\" }}\n{wheel}{more}"
        )
    };
    let text = [
        "version = 1\nrevision = 3\nrequires-python = \">=3.8\"\n".to_owned(),
        "[[package]]\nname = \"project\"\nversion = \"0\"\nsource = { virtual = \".\" }\ndependencies = [{ name = \"a\", extra = [\"fast\"] }, { name = \"w\", marker = \"sys_platform == 'win32'\" }]\n[package.optional-dependencies]\ngeo = [{ name = \"d\" }]\n[package.dev-dependencies]\nlint_er = [{ name = \"e\" }]\n".to_owned(),
        package("a", "1", "dependencies = [{ name = \"b\" }]\n[package.optional-dependencies]\nfast = [{ name = \"c\", version = \"2\" }]\nslow = [{ name = \"d\" }]\n"),
        package("b", "1", "dependencies = [{ name = \"a\" }]\n"),
        package("c", "1", "resolution-markers = [\"python_version < '3.9'\"]\n"),
        package("c", "2", "resolution-markers = [\"python_version >= '3.9'\"]\n"),
        package("d", "1", ""),
        package("e", "1", ""),
        package("w", "1", ""),
    ]
    .concat();
    let found = wheels(&text, &environment("3.11"), &More::default()).unwrap();
    assert_eq!(files(&found), ["a-1-py3-none-any.whl", "b-1-py3-none-any.whl", "c-2-py3-none-any.whl"]);
    let more = |extras: &[&str], groups: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        wheels(&text, &environment("3.11"), &More { extras: owned(extras), groups: owned(groups) })
    };
    assert_eq!(files(&more(&["geo"], &[]).unwrap())[3], "d-1-py3-none-any.whl");
    assert_eq!(files(&more(&["geo"], &["lint-er"]).unwrap())[4], "e-1-py3-none-any.whl");
    assert_eq!(more(&["gis"], &[]).unwrap_err(), "it has no extra `gis` (it has `geo`)");
    assert_eq!(more(&[], &["geo"]).unwrap_err(), "it has no group `geo` (it has `lint_er`)");
    let error =
        wheels(&text.replace("virtual", "registry"), &environment("3.11"), &More::default()).unwrap_err();
    assert!(error.contains("no project"), "{error}");
    let error =
        wheels(&text.replace("name = \"b\" }", "name = \"z\" }"), &environment("3.11"), &More::default())
            .unwrap_err();
    assert!(error.contains("needs `z`"), "{error}");
}
