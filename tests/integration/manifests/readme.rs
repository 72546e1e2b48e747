//! The commands of `manifests/README.md` and of the main page: no cluster is here to run them on, so what they name is tried. Every
//! kustomization renders, the chart takes every value that is set, and the sample of a kustomization works as it is pasted.

use std::{fs, path::Path};

use super::{chart::helm, components, folder, pods, render};

fn page(path: &str) -> String {
    fs::read_to_string(folder().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The commands of all console blocks.
fn commands() -> Vec<String> {
    let text = page("README.md") + &page("../README.md");
    let commands: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix("$ ")).map(str::to_owned).collect();
    commands.into_iter().filter(|one| one.starts_with("kubectl ") || one.starts_with("helm ")).collect()
}

#[test]
fn every_command_names_what_exists() {
    let commands = commands();
    let (mut rendered, mut set) = (0, 0);
    for command in &commands {
        let words: Vec<_> = command.split(' ').collect();
        for pair in words.windows(2).filter(|pair| pair[0] == "-k" && pair[1].starts_with("manifests/")) {
            assert!(!render::kustomize(&folder().join("..").join(pair[1])).is_empty(), "{command}");
            rendered += 1;
        }
        for path in words.iter().filter(|word| word.starts_with("manifests/")) {
            assert!(folder().join("..").join(path).exists(), "{command}");
        }
        if words[0] == "helm" && (words[1] == "install" || words[1] == "upgrade") {
            let values = words.windows(2).filter(|pair| pair[0] == "--set").flatten().copied();
            let arguments: Vec<_> = ["a-release"].into_iter().chain(values).collect();
            helm("template", &arguments, "{}").unwrap_or_else(|error| panic!("{command}: {error}"));
            set += 1;
        }
    }
    assert!(rendered >= 6 && set >= 3, "{commands:#?}");
}

#[test]
fn the_sample_of_a_kustomization_works_as_it_is_pasted() {
    let text = page("README.md");
    let (_, rest) = text.split_once("```yaml\n# kustomization.yaml\n").expect("there is a sample");
    let (sample, _) = rest.split_once("```").expect("it ends");
    let work = tempfile::Builder::new().prefix("hearth-").tempdir_in(folder().join("overlays"));
    let work = work.expect("the overlays are in a working copy");
    fs::write(work.path().join("kustomization.yaml"), sample.replace("../manifests/", "../../"))
        .expect("writable");
    let changed = page("base/agent.yaml") + "limits: { connections: 77 }\n";
    fs::write(work.path().join("agent.yaml"), changed).expect("writable");
    let documents = render::kustomize(work.path());
    let namespaces = components::namespaces(&documents);
    assert!(namespaces.iter().all(|name| name == "image-cache"), "{namespaces:?}");
    let text = pods::configuration(&documents);
    assert!(text.contains("connections: 77"), "{text}");
    let daemon_set = pods::daemon_set(&documents);
    let pod = pods::pod(&daemon_set);
    for container in pod.containers.iter().chain(pod.init_containers.iter().flatten()) {
        assert_eq!(container.image.as_deref(), Some("registry.example.org/platform/hearth-agent:0.1.0"));
    }
    let environment = pods::environment(&pod.containers[0], "image-cache");
    assert_eq!(environment["HEARTH_PEER_TLS_NAME"], "hearth-peers.image-cache.svc");
    assert!(Path::new(&environment["HEARTH_RUNTIME_SOCKET"]).starts_with("/run/k3s"), "{environment:?}");
}
