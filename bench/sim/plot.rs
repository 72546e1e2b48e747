//! A plot of time over nodes, both axes logarithmic.

use std::fmt::Write as _;

const COLOURS: [&str; 5] = ["#1b6ca8", "#c0392b", "#7f8c8d", "#27ae60", "#8e44ad"];

/// Height of a label, in units of the drawing.
const LABEL: f64 = 14.0;

/// Curves of (nodes, time of the last node over the bound).
pub(crate) fn svg(curves: &[(&str, &[(f64, f64)])]) -> String {
    let x = |nodes: f64| 60.0 + nodes.log10() / 4.0 * 500.0;
    let most =
        curves.iter().flat_map(|(_, points)| *points).fold(1.0, |most: f64, (_, time)| most.max(*time));
    let decades = most.log10().ceil().max(1.0);
    let y = |time: f64| 320.0 - time.max(0.5).log10() / decades * 280.0;
    let mut out = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 370\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"720\" height=\"370\" fill=\"white\"/>\n",
    );
    for power in 0..=4 {
        let value = 10_f64.powi(power);
        let _ = writeln!(
            out,
            "<path d=\"M{0:.1} 320V40\" stroke=\"#ddd\"/><text x=\"{0:.1}\" y=\"336\" text-anchor=\"middle\">{value}</text>",
            x(value)
        );
        if f64::from(power) <= decades {
            let _ = writeln!(
                out,
                "<path d=\"M60 {0:.1}H560\" stroke=\"#ddd\"/><text x=\"54\" y=\"{1:.1}\" text-anchor=\"end\">{value}</text>",
                y(value),
                y(value) + 4.0
            );
        }
    }
    let _ = writeln!(
        out,
        "<text x=\"310\" y=\"358\" text-anchor=\"middle\">nodes that pull one cold blob at once</text><text x=\"60\" y=\"24\">time of the last node over the time its link needs</text>"
    );
    let mut curves: Vec<_> = curves.iter().zip(COLOURS).collect();
    let end = |points: &[(f64, f64)]| points.last().map_or(0.0, |(_, time)| *time);
    curves.sort_by(|((_, a), _), ((_, b), _)| end(a).total_cmp(&end(b)));
    let mut free = f64::INFINITY;
    for ((name, points), colour) in curves {
        let line: Vec<_> =
            points.iter().map(|(nodes, time)| format!("{:.1},{:.1}", x(*nodes), y(*time))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        if let Some((nodes, time)) = points.last() {
            let place = (y(*time) + 4.0).min(free);
            free = place - LABEL;
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
                x(*nodes) + 6.0,
                place
            );
        }
    }
    out + "</svg>\n"
}
