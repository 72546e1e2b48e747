//! A plot of a few durations: one bar each.

use std::fmt::Write as _;

const WIDTH: f64 = 420.0;
const ROW: f64 = 34.0;

/// Bars of (name, seconds) from the same zero.
pub(crate) fn bars(title: &str, rows: &[(&str, f64)]) -> String {
    let longest = rows.iter().map(|(_, seconds)| *seconds).fold(1e-9, f64::max);
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let place = |at: usize| 48.0 + at as f64 * ROW;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 {0:.0}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"760\" height=\"{0:.0}\" fill=\"white\"/>\n<text x=\"16\" y=\"26\">{title}</text>\n",
        place(rows.len()) + 8.0
    );
    for (at, (name, seconds)) in rows.iter().enumerate() {
        let (y, width) = (place(at), (seconds / longest * WIDTH).max(1.0));
        let _ = writeln!(
            out,
            "<text x=\"230\" y=\"{:.1}\" text-anchor=\"end\">{name}</text><rect x=\"240\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"22\" fill=\"#1b6ca8\"/><text x=\"{:.1}\" y=\"{:.1}\">{seconds:.1} s</text>",
            y + 16.0,
            248.0 + width,
            y + 16.0
        );
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_fills_the_width() {
        let drawn = bars("t", &[("a", 10.0), ("b", 5.0)]);
        assert!(drawn.contains("width=\"420.0\"") && drawn.contains("width=\"210.0\""), "{drawn}");
    }
}
