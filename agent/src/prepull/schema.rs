//! What the definitions say beyond the types: limits that the API server checks when an object is written, in the dialect of
//! its schemas. Pure.

use schemars::Schema;
use serde_json::{Value, json};

/// One of a list.
macro_rules! part {
    ($value:literal) => {
        concat!(r"([*?]|(", $value, r")(-(", $value, r"))?)(/0*[1-9][0-9]{0,5})?")
    };
}

/// A list of values, ranges and steps.
macro_rules! field {
    ($value:literal) => {
        concat!(part!($value), "(,", part!($value), ")*")
    };
}

/// A schedule as `schedule.rs` reads it; only ranges that run backwards pass here and are refused by the agent.
pub(super) const SCHEDULE: &str = concat!(
    r"^(@(hourly|daily|midnight|weekly|monthly|yearly|annually)|",
    field!(r"0?[0-9]|[1-5][0-9]"),
    r"\s+",
    field!(r"[01]?[0-9]|2[0-3]"),
    r"\s+",
    field!(r"0?[1-9]|[12][0-9]|3[01]"),
    r"\s+",
    field!(r"0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"),
    r"\s+",
    field!(r"0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat)"),
    r")$",
);

/// Operators of a pod's node affinity. Those of tolerations stay open: sets that agents make for Spark applications copy them, and an
/// operator that is new must not cost the whole set.
pub(super) fn selector_operators(terms: &mut Schema) {
    for expressions in ["matchExpressions", "matchFields"] {
        let pointer = format!("/items/properties/{expressions}/items/properties/operator");
        let operator = terms.pointer_mut(&pointer).and_then(Value::as_object_mut);
        let operator = operator.expect("the API's types have this field");
        operator.insert("enum".to_owned(), json!(["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]));
    }
}

/// Unsigned numbers in the one format that the API server knows for them: `kubectl` warns of others.
pub(super) fn known_formats(schema: &mut Schema) {
    if let Some(format) = schema.get_mut("format")
        && (*format == "uint32" || *format == "uint64")
    {
        *format = "int64".into();
    }
}
