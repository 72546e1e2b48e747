use super::{super::pom, *};

/// POMs written as `g:a:v` with the inside of their `<project>`.
fn poms(texts: &[(&str, &str)]) -> Poms {
    let mut poms = Poms::new();
    for (name, inside) in texts {
        let coordinate: Coordinate = name.parse().unwrap();
        let Project { group, artifact, version } = &coordinate.project;
        let own = format!(
            "<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        );
        let text = format!("<project>{own}{inside}</project>");
        poms.insert(coordinate.project, Some(pom::parse(&text).unwrap()));
    }
    poms
}

/// `<dependency>` elements of `g:a:v`, `g:a` (managed) or `g:a:v <more/>`.
fn needs(texts: &[&str]) -> String {
    let one = |text: &&str| {
        let (name, more) = text.split_once(' ').unwrap_or((text, ""));
        let mut parts = name.split(':');
        let (group, artifact) = (parts.next().unwrap(), parts.next().unwrap());
        let version = parts.next().map(|version| format!("<version>{version}</version>")).unwrap_or_default();
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>{version}{more}</dependency>"
        )
    };
    format!("<dependencies>{}</dependencies>", texts.iter().map(one).collect::<String>())
}

fn managed(texts: &[&str]) -> String {
    format!("<dependencyManagement>{}</dependencyManagement>", needs(texts))
}

fn wanted(packages: &[&str]) -> Wanted<'static> {
    Wanted { packages: packages.iter().map(|text| text.parse().unwrap()).collect(), ..Wanted::default() }
}

fn names(packages: &[&str], poms: &Poms) -> Result<Vec<String>, String> {
    match resolve(&wanted(packages), poms) {
        Ok(found) => Ok(found.iter().map(ToString::to_string).collect()),
        Err(Lack::Wrong(problem)) => Err(problem),
        Err(Lack::Need(more)) => panic!("{more:?} are missing"),
    }
}

#[test]
fn the_nearest_wins_then_the_first() {
    let all = poms(&[
        ("g:root:1", &needs(&["g:far:1", "g:b:1"])),
        ("g:far:1", &needs(&["g:farther:1", "g:c:1"])),
        ("g:farther:1", &needs(&["g:d:1"])),
        ("g:b:1", &needs(&["g:c:2", "g:d:2"])),
        ("g:c:1", &needs(&["g:only-of-c1:1"])),
        ("g:c:2", &needs(&["g:only-of-c2:1"])),
        ("g:d:1", ""),
        ("g:d:2", ""),
        ("g:only-of-c1:1", ""),
        ("g:only-of-c2:1", ""),
    ]);
    let found = names(&["g:root:1"], &all).unwrap();
    let expected = ["g:root:1", "g:far:1", "g:b:1", "g:farther:1", "g:c:1", "g:d:2", "g:only-of-c1:1"];
    assert_eq!(found, expected);
    assert_eq!(names(&["g:b:1", "g:root:1"], &all).unwrap()[3], "g:d:2");
}

#[test]
fn parents_properties_management_and_boms_fill_in_versions() {
    let bom = "<type>pom</type><scope>import</scope>";
    let import = format!("g:bom:${{bom.version}} {bom}");
    let parent = format!(
        "<properties><bom.version>7</bom.version><x.version>1</x.version></properties>{}",
        managed(&["g:x:${x.version}", "g:sibling:${project.version}", &import])
    );
    let child = format!(
        "<parent><groupId>g</groupId><artifactId>parent</artifactId><version>3</version></parent><properties><x.version>2</x.version></properties>{}",
        needs(&["g:x", "g:sibling", "g:from-bom"])
    );
    let all = poms(&[
        ("g:child:9", &child),
        ("g:parent:3", &parent),
        ("g:bom:7", &managed(&["g:from-bom:${project.version}", "g:x:99"])),
        ("g:x:2", ""),
        ("g:sibling:9", ""),
        ("g:from-bom:7", ""),
    ]);
    let found = names(&["g:child:9"], &all).unwrap();
    assert_eq!(found, ["g:child:9", "g:x:2", "g:sibling:9", "g:from-bom:7"]);
}

#[test]
fn scopes_options_and_exclusions_leave_out() {
    let exclusion =
        "<exclusions><exclusion><groupId>g</groupId><artifactId>x</artifactId></exclusion></exclusions>";
    let excluding = format!("g:b:1 {exclusion}");
    let all = poms(&[
        (
            "g:a:1",
            &needs(&[
                "g:t:1 <scope>test</scope>",
                "g:p:1 <scope>provided</scope>",
                "g:o:1 <optional>true</optional>",
                "g:r:1 <scope>runtime</scope>",
                &excluding,
            ]),
        ),
        ("g:r:1", ""),
        ("g:b:1", &needs(&["g:c:1"])),
        ("g:c:1", &needs(&["g:x:1", "g:y:1"])),
        ("g:y:1", ""),
    ]);
    assert_eq!(names(&["g:a:1"], &all).unwrap(), ["g:a:1", "g:r:1", "g:b:1", "g:c:1", "g:y:1"]);
    let exclude = ["g:c".to_owned()];
    let found = resolve(&Wanted { exclude: &exclude, ..wanted(&["g:a:1"]) }, &all).unwrap();
    assert_eq!(found.len(), 3);
}

#[test]
fn classifiers_types_relocations_and_exact_ranges_are_followed() {
    let relocation =
        "<distributionManagement><relocation><groupId>h</groupId></relocation></distributionManagement>";
    let all = poms(&[
        (
            "g:a:1",
            &needs(&[
                "g:b:1 <classifier>shaded</classifier>",
                "g:b:1",
                "g:b:1 <type>test-jar</type>",
                "g:old:2",
                "g:r:[3]",
                "g:bundle:1 <type>bundle</type>",
                "g:gather:1 <type>pom</type>",
            ]),
        ),
        ("g:b:1", ""),
        ("g:old:2", relocation),
        ("h:old:2", ""),
        ("g:r:3", ""),
        ("g:bundle:1", ""),
        ("g:gather:1", &needs(&["g:z:1"])),
        ("g:z:1", ""),
    ]);
    let found = names(&["g:a:1"], &all).unwrap();
    let expected =
        ["g:a:1", "g:b:jar:shaded:1", "g:b:1", "g:b:jar:tests:1", "h:old:2", "g:r:3", "g:bundle:1", "g:z:1"];
    assert_eq!(found, expected);
}

#[test]
fn what_cannot_be_resolved_is_said_with_the_way_to_it() {
    let parent = "<parent><groupId>g</groupId><artifactId>cycle</artifactId><version>1</version></parent>";
    let import = managed(&["g:import:1 <type>pom</type><scope>import</scope>"]);
    let mut all = poms(&[
        ("g:range:1", &needs(&["g:x:[1,2)"])),
        ("g:snapshot:1", &needs(&["g:x:1-SNAPSHOT"])),
        ("g:nothing:1", &needs(&["g:x"])),
        ("g:unfilled:1", &needs(&["g:x:${what}"])),
        ("g:via:1", &needs(&["g:range:1"])),
        ("g:lost:1", &needs(&["g:absent:1"])),
        ("g:cycle:1", parent),
        ("g:import:1", &import),
    ]);
    all.insert("g:absent:1".parse::<Coordinate>().unwrap().project, None);
    for (package, expected) in [
        ("g:range:1", "as the range `[1,2)`"),
        ("g:snapshot:1", "is a snapshot"),
        ("g:nothing:1", "nobody says which version of `g:x`"),
        ("g:unfilled:1", "`g:x:jar:${what}` is no name"),
        ("g:via:1", "(by g:via:1)"),
        ("g:lost:1", "no repository has the POM of `g:absent:1` (by g:lost:1)"),
        ("g:cycle:1", "form a cycle"),
        ("g:import:1", "form a cycle"),
    ] {
        let error = names(&[package], &all).unwrap_err();
        assert!(error.contains(expected), "{package}: {error}");
    }
}

#[test]
fn cycles_and_swarms_of_poms_end_at_once() {
    // Every BOM imports all ten of the next level, seven levels deep: ten million ways.
    let mut texts: Vec<(String, String)> = Vec::new();
    for level in 0..7 {
        let below: Vec<String> = (0..10)
            .map(|at| format!("g:l{}-{at}:1 <type>pom</type><scope>import</scope>", level + 1))
            .collect();
        let below: Vec<&str> = below.iter().map(String::as_str).collect();
        texts.extend((0..10).map(|at| (format!("g:l{level}-{at}:1"), managed(&below))));
    }
    texts.extend((0..10).map(|at| (format!("g:l7-{at}:1"), String::new())));
    // Two that import each other, two that are each other's parents, two that need each other.
    let import = |name: &str| managed(&[&format!("g:{name}:1 <type>pom</type><scope>import</scope>")]);
    let parent = |name: &str| {
        format!("<parent><groupId>g</groupId><artifactId>{name}</artifactId><version>1</version></parent>")
    };
    for (name, text) in [
        ("tick", import("tock")),
        ("tock", import("tick")),
        ("mother", parent("daughter")),
        ("daughter", parent("mother")),
        ("hen", needs(&["g:egg:1"])),
        ("egg", needs(&["g:hen:1"])),
    ] {
        texts.push((format!("g:{name}:1"), text));
    }
    let texts: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let all = poms(&texts);
    for (package, expected) in [
        ("g:l0-0:1", "imports more than"),
        ("g:tick:1", "form a cycle: g:tick:1 imports g:tock:1 imports g:tick:1"),
        ("g:mother:1", "form a cycle"),
    ] {
        let error = names(&[package], &all).unwrap_err();
        assert!(error.contains(expected), "{package}: {error}");
    }
    assert_eq!(names(&["g:hen:1"], &all).unwrap(), ["g:hen:1", "g:egg:1"]);
}

#[test]
fn what_spark_has_is_left_out_and_another_version_of_it_is_a_conflict() {
    let all =
        poms(&[("g:a:1", &needs(&["s:core:3.5", "com.google.guava:guava:33", "g:b:1"])), ("g:b:1", "")]);
    let mut provided = Provided::default();
    provided.exact.insert(("s".to_owned(), "core".to_owned()), "3.5".to_owned());
    provided.by_name.insert("guava".to_owned(), "14.0.1".to_owned());
    let wanted = Wanted { provided: Some(&provided), ..wanted(&["g:a:1"]) };
    let Err(Lack::Wrong(error)) = resolve(&wanted, &all) else { panic!("guava is another one") };
    assert!(error.contains("`com.google.guava:guava:33` is needed (by g:a:1)"), "{error}");
    assert!(error.contains("Spark has `com.google.guava:guava:14.0.1`"), "{error}");
    let keep = ["com.google.guava:*".to_owned()];
    let found = resolve(&Wanted { keep: &keep, ..wanted }, &all).unwrap();
    assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["g:a:1", "g:b:1"]);
}

#[test]
fn poms_that_are_missing_are_asked_for_together() {
    let all = poms(&[("g:a:1", &needs(&["g:b:1", "g:c:1"]))]);
    let Err(Lack::Need(more)) = resolve(&wanted(&["g:a:1", "g:z:1"]), &all) else {
        panic!("some are missing")
    };
    let more: Vec<String> = more.iter().map(ToString::to_string).collect();
    assert_eq!(more, ["g:b:1", "g:c:1", "g:z:1"]);
}
