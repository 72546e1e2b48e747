//! The direction of dependencies and the homes of outside crates, read from the sources.

mod rooms;

use std::{collections::BTreeSet, fs};

use kit::layering::{code, root, sources};

/// Which modules of the agent each module may name (the design's picture). `app` and `main` wire everything.
const MAY_USE: &[(&str, &[&str])] = &[
    ("main", &[]),
    ("lib", &[]),
    (
        "app",
        &[
            "access",
            "config",
            "controller",
            "download",
            "explain",
            "gc",
            "http",
            "images",
            "journal",
            "metrics",
            "peers",
            "prepull",
            "proof",
            "runtime",
            "scrub",
            "store",
            "swarm",
            "task",
            "types",
            "upstream",
            "verify",
        ],
    ),
    ("certificates", &[]),
    (
        "cli",
        &[
            "certificates",
            "config",
            "http",
            "images",
            "journal",
            "kubernetes",
            "peers",
            "setup",
            "store",
            "types",
        ],
    ),
    // Configuration is the parts' own `Config` types side by side.
    (
        "config",
        &[
            "certificates",
            "controller",
            "download",
            "gc",
            "http",
            "peers",
            "prepull",
            "runtime",
            "store",
            "trace",
            "types",
            "upstream",
        ],
    ),
    ("controller", &["certificates", "kubernetes", "metrics", "prepull", "types"]),
    (
        "http",
        &[
            "access", "download", "explain", "images", "journal", "metrics", "peers", "store", "swarm",
            "task", "trace", "types", "upstream", "verify",
        ],
    ),
    (
        "prepull",
        &[
            "access",
            "download",
            "images",
            "kubernetes",
            "metrics",
            "proof",
            "runtime",
            "store",
            "task",
            "types",
            "upstream",
            "verify",
        ],
    ),
    ("access", &["download", "store", "types", "upstream"]),
    ("fuzz", &["config", "http", "images", "peers", "types"]),
    ("verify", &["access", "download", "metrics", "store", "types", "upstream"]),
    ("explain", &["download", "images", "journal", "peers", "store", "types", "upstream"]),
    ("kubernetes", &["types"]),
    ("proof", &["images", "journal", "runtime", "setup", "store", "types"]),
    ("runtime", &["types"]),
    ("limits", &[]),
    ("journal", &["types"]),
    ("download", &["journal", "limits", "metrics", "peers", "store", "task", "trace", "types", "upstream"]),
    ("swarm", &["download", "limits", "metrics", "peers", "store", "task", "types", "upstream"]),
    ("gc", &["images", "metrics", "store", "task", "types"]),
    ("images", &["store", "types"]),
    ("scrub", &["metrics", "store", "task", "types"]),
    ("setup", &["runtime", "types"]),
    ("store", &["types"]),
    ("peers", &["certificates", "kubernetes", "limits", "metrics", "task", "trace", "types"]),
    ("upstream", &["metrics", "task", "trace", "types"]),
    ("metrics", &[]),
    ("task", &["trace"]),
    ("trace", &["types"]),
    ("types", &[]),
];

/// Outside crates and the only places that may name them.
const HOMES: &[(&str, &[&str])] = &[
    ("sled", &["agent/src/store/index.rs"]),
    ("opentelemetry", &["agent/src/trace.rs"]),
    ("prost", &["agent/src/runtime/"]),
    ("rcgen", &["agent/src/certificates/"]),
    ("x509_parser", &["agent/src/certificates/"]),
    (
        "kube",
        &[
            "agent/src/controller/",
            "agent/src/kubernetes.rs",
            "agent/src/kubernetes/",
            "agent/src/prepull/",
            "agent/src/peers/enrol.rs",
            "agent/src/peers/kubernetes.rs",
        ],
    ),
    ("indicatif", &["agent/src/cli/progress.rs", "builder/src/"]),
    ("aws_lc_rs", &["agent/src/peers/tls.rs", "builder/oci/src/signature/"]),
    ("hdfs_native", &["builder/src/fetch/objects.rs"]),
    ("object_store", &["builder/src/fetch/objects.rs"]),
    ("oci_client", &["builder/src/registry/"]),
    ("roxmltree", &["builder/src/sources/maven/pom.rs"]),
    ("schemars", &["agent/src/prepull/", "builder/src/spec/"]),
];

/// The modules named after `crate::`, alone or in braces.
fn modules_used(text: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, matched) in text.match_indices("crate::") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &text[at + matched.len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(heads(group)),
            None => used.extend(head(rest)),
        }
    }
    used
}

fn head(text: &str) -> Option<String> {
    let word: String = text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

/// First words of the members of a brace group, up to its closing brace.
fn heads(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.extend(head(&group[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.extend(head(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    found
}

fn names_crate(text: &str, name: &str) -> bool {
    text.match_indices(&format!("{name}::")).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

#[test]
fn modules_of_the_agent_depend_in_one_direction() {
    let mut wrong = Vec::new();
    for (path, text) in sources("agent/src") {
        let below = path.strip_prefix("agent/src/").expect("the sources are readable and named in UTF-8");
        let module = below
            .split('/')
            .next()
            .expect("the sources are readable and named in UTF-8")
            .trim_end_matches(".rs");
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{path}: module `{module}` is not in the table"));
            continue;
        };
        for used in modules_used(&code(&text)) {
            if used != module && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{path}: `{module}` must not use `{used}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_outside_crate_has_one_home() {
    let mut wrong = Vec::new();
    for (path, text) in sources("agent/src").into_iter().chain(sources("builder/src")) {
        for (name, homes) in HOMES {
            if names_crate(&code(&text), name) && !homes.iter().any(|home| path.starts_with(home)) {
                wrong.push(format!("{path}: `{name}` belongs to {homes:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_builder_and_the_agent_meet_over_the_protocol_and_in_what_they_share() {
    for (package, other) in
        [("agent", "builder"), ("builder", "agent"), ("builder/oci", "agent"), ("builder/oci", "builder")]
    {
        let manifest = fs::read_to_string(root().join(package).join("Cargo.toml"))
            .expect("the sources are readable and named in UTF-8");
        let depends = manifest
            .lines()
            .any(|line| line.starts_with(&format!("{other}.")) || line.starts_with(&format!("{other} ")));
        assert!(!depends, "{package} must not depend on {other}");
    }
}

#[test]
fn the_reader_of_sources_sees_every_form_of_use() {
    let text = "use crate::{store::{Blob, a}, types::Digest};\nfn f() -> crate::metrics::Metrics { $crate::x() }\nsled::open();";
    assert_eq!(modules_used(text).into_iter().collect::<Vec<_>>(), ["metrics", "store", "types"]);
    assert!(names_crate(text, "sled") && !names_crate("my_sled::x", "sled"));
    assert_eq!(code("// sled::x\nsled"), "sled");
}
