//! What several reports say.

use std::io::{self, Write};

use serde::Serialize;

/// A cell that was not built.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedReport {
    /// The cell.
    pub cell: String,
    /// Why it cannot run.
    pub impossible: Vec<String>,
    /// Why nobody vouches for it.
    pub untested: Vec<String>,
}

pub(super) fn write_refused(out: &mut impl Write, refused: &[RefusedReport]) -> io::Result<()> {
    for refused in refused {
        writeln!(out, "not built: {}", refused.cell)?;
        for reason in refused.impossible.iter().chain(&refused.untested) {
            writeln!(out, "  {reason}")?;
        }
    }
    Ok(())
}

pub(super) fn write_warnings(out: &mut impl Write, warnings: &[String]) -> io::Result<()> {
    warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}"))
}

/// A size for people, such as `314.1 MiB`.
pub fn mebibytes(bytes: u64) -> String {
    let tenths = bytes / 1024 * 10 / 1024;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
