//! Reads a POM as it is written; nothing is inherited or filled in yet.

use std::collections::BTreeMap;

use roxmltree::{Document, Node};

/// A POM of real life is below one megabyte; markup bombs are not.
pub const LIMIT: usize = 8 << 20;

/// A POM as written; texts may hold `${properties}`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pom {
    /// The parent's group, artifact and version.
    pub parent: Option<(String, String, String)>,
    /// Its group, unless it is the parent's.
    pub group: Option<String>,
    /// Its artifact.
    pub artifact: String,
    /// Its version, unless it is the parent's.
    pub version: Option<String>,
    /// Properties.
    pub properties: BTreeMap<String, String>,
    /// What it needs.
    pub dependencies: Vec<Dependency>,
    /// Versions and more for dependencies that do not say.
    pub managed: Vec<Dependency>,
    /// Where the project went: group, artifact, version.
    pub relocation: Option<(Option<String>, Option<String>, Option<String>)>,
}

/// A dependency as written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dependency {
    /// Group.
    pub group: String,
    /// Artifact.
    pub artifact: String,
    /// Version, unless it is managed.
    pub version: Option<String>,
    /// Type; `jar` when it is not said.
    pub kind: Option<String>,
    /// Classifier.
    pub classifier: Option<String>,
    /// Scope; `compile` when it is not said.
    pub scope: Option<String>,
    /// `true` for what users of the project do not need.
    pub optional: Option<String>,
    /// `group:artifact` that are left out below it.
    pub exclusions: Vec<String>,
}

/// Reads the text of a POM.
pub fn parse(text: &str) -> Result<Pom, String> {
    // External entities and their bombs need a document type, which is refused.
    let document = Document::parse(text).map_err(|error| format!("it is no POM: {error}"))?;
    let project = document.root_element();
    if project.tag_name().name() != "project" {
        return Err(format!("it is no POM but a `{}`", project.tag_name().name()));
    }
    let artifact = text_of(project, "artifactId").ok_or("it has no `artifactId`")?;
    let parent = child(project, "parent").and_then(|parent| {
        Some((text_of(parent, "groupId")?, text_of(parent, "artifactId")?, text_of(parent, "version")?))
    });
    let mut pom = Pom {
        parent,
        artifact,
        group: text_of(project, "groupId"),
        version: text_of(project, "version"),
        relocation: child(project, "distributionManagement")
            .and_then(|node| child(node, "relocation"))
            .map(|node| (text_of(node, "groupId"), text_of(node, "artifactId"), text_of(node, "version"))),
        ..Pom::default()
    };
    add(&mut pom, project)?;
    // Maven switches these on for everybody who uses the project.
    for profile in children(child(project, "profiles"), "profile") {
        let activation = child(profile, "activation");
        let active = activation.and_then(|node| text_of(node, "activeByDefault"));
        if active.as_deref() == Some("true") {
            add(&mut pom, profile)?;
        }
    }
    Ok(pom)
}

fn add(pom: &mut Pom, node: Node<'_, '_>) -> Result<(), String> {
    for property in child(node, "properties").into_iter().flat_map(|node| node.children()) {
        if property.is_element() {
            let value = property.text().unwrap_or_default().trim().to_owned();
            pom.properties.insert(property.tag_name().name().to_owned(), value);
        }
    }
    let read = |node: Option<Node<'_, '_>>| -> Result<Vec<Dependency>, String> {
        children(node.and_then(|node| child(node, "dependencies")), "dependency").map(dependency).collect()
    };
    pom.dependencies.extend(read(Some(node))?);
    pom.managed.extend(read(child(node, "dependencyManagement"))?);
    Ok(())
}

fn dependency(node: Node<'_, '_>) -> Result<Dependency, String> {
    let exclusion = |node: Node<'_, '_>| {
        let text = |name| text_of(node, name).unwrap_or_else(|| "*".to_owned());
        format!("{}:{}", text("groupId"), text("artifactId"))
    };
    Ok(Dependency {
        group: text_of(node, "groupId").ok_or("a dependency has no `groupId`")?,
        artifact: text_of(node, "artifactId").ok_or("a dependency has no `artifactId`")?,
        version: text_of(node, "version"),
        kind: text_of(node, "type"),
        classifier: text_of(node, "classifier"),
        scope: text_of(node, "scope"),
        optional: text_of(node, "optional"),
        exclusions: children(child(node, "exclusions"), "exclusion").map(exclusion).collect(),
    })
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.is_element() && child.tag_name().name() == name)
}

fn children<'a, 'input: 'a>(
    node: Option<Node<'a, 'input>>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    let all = node.into_iter().flat_map(|node| node.children());
    all.filter(move |child| child.is_element() && child.tag_name().name() == name)
}

fn text_of(node: Node<'_, '_>, name: &str) -> Option<String> {
    let text = child(node, name)?.text()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pom_is_read_as_it_is_written() {
        let text = r#"<?xml version="1.0"?>
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<parent><groupId>p</groupId><artifactId>parent</artifactId><version>1</version></parent>
<artifactId>a</artifactId>
<properties><x.version> 2 </x.version></properties>
<dependencyManagement><dependencies><dependency><groupId>g</groupId><artifactId>bom</artifactId><version>3</version><type>pom</type><scope>import</scope></dependency></dependencies></dependencyManagement>
<dependencies><!-- why --><dependency><groupId>g</groupId><artifactId>x</artifactId><version>${x.version}</version><optional>true</optional>
<exclusions><exclusion><groupId>*</groupId><artifactId>y</artifactId></exclusion></exclusions></dependency></dependencies>
<profiles><profile><activation><activeByDefault>true</activeByDefault></activation><properties><z>1</z></properties></profile>
<profile><properties><z>2</z></properties></profile></profiles>
</project>"#;
        let pom = parse(text).unwrap();
        assert_eq!(pom.parent, Some(("p".to_owned(), "parent".to_owned(), "1".to_owned())));
        assert_eq!((pom.group.as_deref(), pom.artifact.as_str()), (None, "a"));
        assert_eq!((pom.properties["x.version"].as_str(), pom.properties["z"].as_str()), ("2", "1"));
        assert_eq!(pom.managed[0].scope.as_deref(), Some("import"));
        assert_eq!(pom.dependencies[0].exclusions, ["*:y"]);
        assert_eq!(pom.dependencies[0].optional.as_deref(), Some("true"));
    }

    #[test]
    fn what_is_no_pom_is_refused() {
        let bomb = "<!DOCTYPE x [<!ENTITY a \"aa\"><!ENTITY b \"&a;&a;\">]><project>&b;</project>";
        for text in ["", "<html/>", "<project/>", "<project><artifactId>a</artifactId>", bomb] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
