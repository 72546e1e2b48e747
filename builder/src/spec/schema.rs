//! The JSON schema of `hearth.yaml`, for editors and checks in CI; `docker/hearth.schema.json` is its copy.

use super::keys::Document;

/// The schema, indented.
pub fn schema() -> String {
    let schema = schemars::schema_for!(Document);
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
    text.push('\n');
    text
}
