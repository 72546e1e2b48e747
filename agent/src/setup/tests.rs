use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::*;

type Tree = BTreeMap<String, Vec<u8>>;

fn node(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn tree(root: &Path) -> Tree {
    let mut files = Tree::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    files
}

fn job(root: &Path, registries: &[&str]) -> Job {
    Job {
        root: root.to_owned(),
        mirror: "127.0.0.1:5050".parse().unwrap(),
        registries: registries.iter().map(|name| name.parse().unwrap()).collect(),
        runtimes: Vec::new(),
    }
}

fn set_up(job: &Job, undo: bool) -> Plan {
    let plan = plan(job, undo).unwrap();
    apply(&job.root, &plan.edits).unwrap();
    plan
}

const CONTAINERD: (&str, &str) = (
    "etc/containerd/config.toml",
    "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = \"/etc/containerd/certs.d\"\n",
);

#[test]
fn every_runtime_is_configured_and_restored_byte_for_byte() {
    let root = node(&[
        CONTAINERD,
        ("etc/containerd/certs.d/r.test/hosts.toml", "server = \"https://r.test\" # mine"),
        ("etc/containers/registries.conf", "unqualified-search-registries = [\"r.test\"]\n"),
        (
            "etc/containers/registries.conf.d/10.conf",
            "[[registry]]\nlocation = \"r.test\"\nblocked = false\n",
        ),
        ("etc/docker/daemon.json", "{ \"debug\": true,\n\t\"a\": 1 }"),
        ("etc/rancher/k3s/registries.yaml", "# ours\nmirrors:\n  r.test: {endpoint: [\"https://m.test\"]}\n"),
        ("etc/rancher/rke2/config.yaml", "token: x\n"),
    ]);
    let before = tree(root.path());
    let job = job(root.path(), &["r.test", "docker.io"]);

    let first = set_up(&job, false);
    assert_eq!(first.runtimes, Runtime::ALL);
    assert!(first.findings.iter().all(|finding| !finding.trap), "{:?}", first.findings);
    let after = tree(root.path());
    for path in [
        "etc/containerd/certs.d/r.test/hosts.toml",
        "etc/containerd/certs.d/docker.io/hosts.toml",
        "etc/containers/registries.conf.d/zz-hearth.conf",
        "etc/docker/daemon.json",
        "etc/rancher/k3s/registries.yaml",
        "etc/rancher/rke2/registries.yaml",
    ] {
        let text = String::from_utf8(after[path].clone()).unwrap();
        assert!(text.contains("127.0.0.1:5050"), "{path}: {text}");
    }
    let mode = |path: &str| fs::metadata(root.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("etc/rancher/rke2/registries.yaml"), 0o644);

    assert_eq!(set_up(&job, false).edits, [], "again changes nothing");
    set_up(&job, true);
    assert_eq!(tree(root.path()), before);
    assert_eq!(set_up(&job, true).edits, [], "nothing is left to restore");
}

#[test]
fn an_empty_file_is_restored_and_a_new_file_is_removed() {
    for empty in ["", " \n"] {
        let root = node(&[
            ("etc/docker/daemon.json", empty),
            ("etc/rancher/k3s/registries.yaml", empty),
            ("etc/rancher/rke2/config.yaml", ""),
        ]);
        let before = tree(root.path());
        let mut job = job(root.path(), &["docker.io"]);
        set_up(&job, false);
        job.mirror = "127.0.0.1:6060".parse().unwrap();
        set_up(&job, false);
        assert!(tree(root.path()).contains_key("etc/rancher/rke2/registries.yaml"));
        set_up(&job, true);
        assert_eq!(tree(root.path()), before);
    }
}

#[test]
fn another_address_replaces_the_one_before() {
    let root = node(&[CONTAINERD, ("etc/docker/daemon.json", "{}")]);
    let before = tree(root.path());
    let mut job = job(root.path(), &["docker.io"]);
    set_up(&job, false);
    job.mirror = "127.0.0.1:6060".parse().unwrap();
    set_up(&job, false);
    let hosts = fs::read_to_string(root.path().join("etc/containerd/certs.d/docker.io/hosts.toml")).unwrap();
    assert!(hosts.contains("6060") && !hosts.contains("5050"), "{hosts}");
    set_up(&job, true);
    assert!(!tree(root.path()).contains_key("etc/containerd/certs.d/docker.io/hosts.toml"));
    assert_eq!(tree(root.path())["etc/containerd/config.toml"], before["etc/containerd/config.toml"]);
}

#[test]
fn changes_of_others_after_setup_are_kept() {
    let root = node(&[("etc/docker/daemon.json", "{\"debug\": true}")]);
    let job = job(root.path(), &["docker.io"]);
    set_up(&job, false);
    let path = root.path().join("etc/docker/daemon.json");
    let edited = fs::read_to_string(&path).unwrap().replace("true", "false");
    fs::write(&path, edited).unwrap();
    set_up(&job, true);
    let left: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(left, serde_json::json!({"debug": false}));
    assert!(!root.path().join("etc/docker/daemon.json.before-hearth").exists());
}

#[test]
fn a_wildcard_covers_registries_that_have_a_directory_too() {
    let root = node(&[
        CONTAINERD,
        ("etc/containerd/certs.d/own.test/hosts.toml", "server = \"https://own.test\"\n"),
    ]);
    set_up(&job(root.path(), &["*"]), false);
    for name in ["_default", "own.test"] {
        let hosts = root.path().join(format!("etc/containerd/certs.d/{name}/hosts.toml"));
        assert!(fs::read_to_string(hosts).unwrap().contains("127.0.0.1:5050"), "{name}");
    }
}

#[test]
fn traps_and_broken_files_are_named() {
    let root = node(&[
        ("etc/containerd/config.toml", "imports = [\"/etc/containerd/conf.d/*.toml\"]\n"),
        (
            "etc/containerd/conf.d/eks.toml",
            "[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = \"/etc/a:/etc/b\"\n",
        ),
        ("etc/a/other.test/hosts.toml", "[host"),
    ]);
    let plan_of = |registries: &[&str]| plan(&job(root.path(), registries), false);
    let found = plan_of(&["r.test"]).unwrap();
    assert_eq!(found.edits[0].path, "/etc/a/r.test/hosts.toml");
    let places: Vec<_> =
        found.findings.iter().map(|finding| (finding.trap, finding.place.as_str())).collect();
    assert_eq!(places, [(true, "/etc/containerd/config.toml"), (false, "/etc/a/other.test/hosts.toml")]);
    let error = plan_of(&["other.test"]).unwrap_err();
    assert!(error.to_string().contains("/etc/a/other.test/hosts.toml"), "{error}");
    assert!(matches!(plan(&job(node(&[]).path(), &["r.test"]), false), Err(SetupError::NoRuntime(_))));
}

#[test]
fn files_that_changed_meanwhile_or_lie_outside_of_the_node_are_not_written() {
    let root = node(&[CONTAINERD, ("etc/containerd/certs.d/r.test/hosts.toml", "")]);
    let job = job(root.path(), &["r.test"]);
    let planned = plan(&job, false).unwrap();
    let hosts = root.path().join("etc/containerd/certs.d/r.test/hosts.toml");
    fs::write(&hosts, "server = \"https://new.test\"\n").unwrap();
    assert!(apply(&job.root, &planned.edits).unwrap_err().to_string().contains("meanwhile"));
    assert_eq!(fs::read_to_string(&hosts).unwrap(), "server = \"https://new.test\"\n");

    let elsewhere = tempfile::tempdir().unwrap();
    fs::remove_dir_all(root.path().join("etc/containerd/certs.d")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), root.path().join("etc/containerd/certs.d")).unwrap();
    assert!(plan(&job, false).unwrap_err().to_string().contains("leads out"));
}
