//! The text format of Prometheus (0.0.4), from the OpenMetrics text that the registry writes. Pure.

/// In OpenMetrics a counter's family lacks the `_total` of its samples, and the end is marked; in the older format `HELP` and
/// `TYPE` name the samples, and nothing marks the end.
pub fn plain(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len() + open_metrics.len() / 16);
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap_or((typed, "untyped"));
            let end = if kind == "counter" { "_total" } else { "" };
            if let Some((_, text)) = help.take_if(|(described, _)| *described == name) {
                out.extend(["# HELP ", name, end, " ", text, "\n"]);
            }
            out.extend(["# TYPE ", name, end, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            out.extend([line, "\n"]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_after_their_samples_and_nothing_marks_the_end() {
        let before = "# HELP a_bytes Bytes.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total{x=\"# y\"} 1\n# HELP b Now.\n# TYPE b gauge\nb 2\n# EOF\n";
        let after = "# HELP a_bytes_total Bytes.\n# TYPE a_bytes_total counter\na_bytes_total{x=\"# y\"} 1\n# HELP b Now.\n# TYPE b gauge\nb 2\n";
        assert_eq!(plain(before), after);
        assert_eq!(plain("# EOF\n"), "");
    }
}
