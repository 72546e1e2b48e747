//! The builder's modules and files depend in one direction, read from its sources.

use kit::layering::{Room, sources};

#[test]
fn modules_and_files_of_the_builder_depend_in_one_direction() {
    let folder = "builder/src/";
    // The two roots name everything and are named by nothing.
    let files = sources(folder).into_iter().map(|(path, text)| (path[folder.len()..].to_owned(), text));
    let files = files.filter(|(path, _)| !matches!(path.as_str(), "lib.rs" | "main.rs"));
    let builder = Room::new("", files);
    assert!(builder.len() > 80, "the files of the builder were not found");
    let modules = builder.circles_of_modules();
    assert!(modules.is_empty(), "modules:\n{}", modules.join("\n"));
    let files = builder.circles();
    assert!(files.is_empty(), "files:\n{}", files.join("\n"));
}
