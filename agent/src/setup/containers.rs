//! CRI-O, podman, buildah and skopeo: one drop-in of `registries.conf` (containers-registries.conf.d(5)). They do not
//! send `ns`, so each registry is a path below the mirror. An entry in a later file replaces an earlier one
//! completely, so earlier entries are repeated here, with the agent as the first mirror.

use toml::{Table, Value};

use super::{Finding, SetupError, problem};
use crate::types::RegistryPattern;

pub(super) const MAIN: &str = "/etc/containers/registries.conf";
pub(super) const DROP_INS: &str = "/etc/containers/registries.conf.d";
/// Sorts after the usual names of other files.
pub(super) const OURS: &str = "zz-hearth.conf";

const HEADER: &str = "# Written by `hearth-agent setup`; `hearth-agent setup --uninstall` removes it.\n";

/// The drop-in, made from the other files (path and text, in the order in which they are read).
pub(super) fn drop_in(
    files: &[(String, String)],
    mirror: &str,
    registries: &[RegistryPattern],
) -> Result<(String, Vec<Finding>), SetupError> {
    let (mut entries, mut findings) = (Vec::new(), Vec::new());
    let mut known: Vec<(String, Table)> = Vec::new();
    for (path, text) in files {
        known.extend(entries_of(path, text)?);
    }
    for pattern in registries {
        let RegistryPattern::Exact(host) = pattern else {
            findings.push(Finding::note(
                DROP_INS,
                format!(
                    "`{pattern}` cannot be mirrored: registries.conf has one mirror location per registry"
                ),
                "list each registry of these nodes in `registries`".to_owned(),
            ));
            continue;
        };
        let before = known.iter().rev().find(|(_, entry)| prefix(entry) == Some(host.as_str()));
        if let Some((path, _)) = before.filter(|(path, _)| path.rsplit('/').next() > Some(OURS)) {
            findings.push(Finding::trap(
                path,
                format!("its entry for `{host}` overrides `{OURS}`, because it is read later"),
                "rename the file so that it sorts before, and run setup again".to_owned(),
            ));
        }
        entries.push(Value::Table(entry(before.map(|(_, entry)| entry), mirror, host.as_str())));
    }
    let document = Table::from_iter([("registry".to_owned(), Value::Array(entries))]);
    Ok((format!("{HEADER}{document}"), findings))
}

fn entries_of(path: &str, text: &str) -> Result<Vec<(String, Table)>, SetupError> {
    let file: Table =
        text.parse().map_err(|error| problem(path, &error, "fix the file, then run setup again"))?;
    let entries = file.get("registry").and_then(Value::as_array).into_iter().flatten();
    Ok(entries.filter_map(Value::as_table).map(|entry| (path.to_owned(), entry.clone())).collect())
}

/// The key of an entry: its `prefix`, else its `location`.
fn prefix(entry: &Table) -> Option<&str> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    text("prefix").or_else(|| text("location"))
}

fn entry(before: Option<&Table>, mirror: &str, host: &str) -> Table {
    let mut entry = before.cloned().unwrap_or_default();
    entry.entry("location").or_insert_with(|| host.into());
    let location = format!("{mirror}/{host}");
    let ours = Table::from_iter([
        ("location".to_owned(), Value::from(location.clone())),
        ("insecure".to_owned(), Value::from(true)),
    ]);
    let others = entry.get("mirror").and_then(Value::as_array).into_iter().flatten();
    let others = others.filter(|one| one.get("location").and_then(Value::as_str) != Some(&location));
    let mirrors = std::iter::once(Value::Table(ours)).chain(others.cloned()).collect();
    entry.insert("mirror".to_owned(), Value::Array(mirrors));
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(names: &[&str]) -> Vec<RegistryPattern> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn file(name: &str, text: &str) -> (String, String) {
        (format!("{DROP_INS}/{name}"), text.to_owned())
    }

    #[test]
    fn the_agent_is_the_first_mirror_and_earlier_entries_are_repeated() {
        let other = "[[registry]]\nlocation = \"r.test\"\nblocked = false\n[[registry.mirror]]\nlocation = \"m.test\"\n";
        let (text, findings) =
            drop_in(&[file("10-a.conf", other)], "127.0.0.1:5050", &patterns(&["r.test", "s.test:5000"]))
                .unwrap();
        assert!(findings.is_empty());
        let parsed: Table = text.parse().unwrap();
        let entries = parsed["registry"].as_array().unwrap();
        let mirrors = |at: usize| {
            let mirrors = entries[at]["mirror"].as_array().unwrap();
            mirrors.iter().map(|one| one["location"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(mirrors(0), ["127.0.0.1:5050/r.test", "m.test"]);
        assert_eq!(entries[0]["blocked"].as_bool(), Some(false));
        assert_eq!(mirrors(1), ["127.0.0.1:5050/s.test:5000"]);
        assert_eq!(entries[1]["location"].as_str(), Some("s.test:5000"));
    }

    #[test]
    fn settings_that_disable_the_drop_in_are_reported() {
        let later = [file("zzz.conf", "[[registry]]\nprefix = \"r.test\"\nlocation = \"x.test\"\n")];
        let (_, findings) = drop_in(&later, "127.0.0.1:5050", &patterns(&["r.test"])).unwrap();
        assert!(findings[0].trap && findings[0].place.ends_with("zzz.conf"), "{findings:?}");
        let (_, findings) = drop_in(&[], "127.0.0.1:5050", &patterns(&["*", "*.r.test"])).unwrap();
        assert_eq!(findings.len(), 2);
        let error = drop_in(&[file("bad.conf", "[[registry")], "127.0.0.1:5050", &[]).unwrap_err();
        assert!(error.to_string().contains("bad.conf"), "{error}");
    }
}
