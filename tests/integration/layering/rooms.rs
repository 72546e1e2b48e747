//! No circles between the files of one module: what each file names of the others, read from its `use` lines and paths.
//! A name that a `mod.rs` passes on counts as a use of the file that it comes from.

use kit::layering::{Room, sources};

/// Modules of the agent whose files are held to this.
const ROOMS: &[&str] = &["download", "peers", "swarm", "upstream"];

#[test]
fn files_of_one_module_depend_in_one_direction() {
    let mut wrong = Vec::new();
    for name in ROOMS {
        let folder = format!("agent/src/{name}/");
        let files = sources(&folder).into_iter().map(|(path, text)| (path[folder.len()..].to_owned(), text));
        let room = Room::new(name, files);
        assert!(room.len() > 5, "the files of {name} were not found");
        wrong.extend(room.circles());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_circle_is_seen_whichever_way_it_is_written() {
    let circles = |files: &[(&str, &str)]| {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        Room::new("room", files).circles().len()
    };
    let passes_on = ("mod.rs", "mod a;\nmod b;\npub use a::A;\n");
    assert_eq!(circles(&[passes_on, ("a.rs", "pub struct A;"), ("b.rs", "use super::A;")]), 0);
    for (a, b) in [
        ("use super::b::B;", "use super::A;"),
        ("use crate::{room::b::{self, B}, x};", "use super::a;"),
        ("fn f() { super::b::g() }", "fn g(_: super::a::A) {}"),
    ] {
        assert_eq!(circles(&[passes_on, ("a.rs", a), ("b.rs", b)]), 3, "{a} {b}: both, and what uses them");
    }
    assert_eq!(circles(&[("mod.rs", "mod a;\nuse a::A;\npub struct M;"), ("a.rs", "use super::M;")]), 2);
    let only_in_tests = "pub struct A;\n#[cfg(test)]\nmod tests {\n    use super::super::b::B;\n}";
    assert_eq!(circles(&[passes_on, ("a.rs", only_in_tests), ("b.rs", "use super::A;")]), 0);
}
