//! A plot of time over nodes, both axes logarithmic.

use std::fmt::Write as _;

const COLOURS: [&str; 3] = ["#1b6ca8", "#c0392b", "#7f8c8d"];

/// Curves of (nodes, time of the last node over the bound).
pub(crate) fn svg(curves: &[(&str, &[(f64, f64)])]) -> String {
    let x = |nodes: f64| 60.0 + nodes.log10() / 4.0 * 500.0;
    let y = |time: f64| 320.0 - time.max(0.5).log10() / 4.0 * 280.0;
    let mut out = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 370\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"720\" height=\"370\" fill=\"white\"/>\n",
    );
    for power in 0..=4 {
        let value = 10_f64.powi(power);
        let _ = writeln!(
            out,
            "<path d=\"M60 {0:.1}H560M{1:.1} 320V40\" stroke=\"#ddd\"/><text x=\"54\" y=\"{2:.1}\" text-anchor=\"end\">{value}</text><text x=\"{1:.1}\" y=\"336\" text-anchor=\"middle\">{value}</text>",
            y(value),
            x(value),
            y(value) + 4.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"310\" y=\"358\" text-anchor=\"middle\">nodes that pull one cold blob at once</text><text x=\"60\" y=\"24\">time of the last node over the time its link needs</text>"
    );
    for ((name, points), colour) in curves.iter().zip(COLOURS) {
        let line: Vec<_> =
            points.iter().map(|(nodes, time)| format!("{:.1},{:.1}", x(*nodes), y(*time))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        if let Some((nodes, time)) = points.last() {
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
                x(*nodes) + 6.0,
                y(*time) + 4.0
            );
        }
    }
    out + "</svg>\n"
}
