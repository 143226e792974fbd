//! Curves of times by percentile as SVG. From left to right each nine takes as much room as the one before it.

use std::fmt::Write;

use hdrhistogram::Histogram;

use crate::number::{float, short};
use crate::report::Curve;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const MARGIN: (f64, f64, f64, f64) = (70.0, 20.0, 20.0, 60.0); // left, right, top, bottom
const COLOURS: [&str; 4] = ["#8a8f98", "#1f6feb", "#2da44e", "#bf3989"];
const STEPS_PER_NINE: f64 = 50.0;
/// Six nines.
const STEPS: u32 = 300;

/// Nines and milliseconds, up to where a single event decides.
pub fn points(times: &Histogram<u64>) -> Vec<(f64, f64)> {
    let nines = float(times.len().max(1)).log10().min(f64::from(STEPS) / STEPS_PER_NINE);
    let at = |x: f64| (x, float(times.value_at_quantile(1.0 - 0.1_f64.powf(x))) / 1000.0);
    let steps = (0..STEPS).map(|step| f64::from(step) / STEPS_PER_NINE);
    let mut points: Vec<_> = steps.take_while(|x| *x < nines).map(at).collect();
    points.push((nines, float(times.max()) / 1000.0));
    points
}

/// The picture.
pub fn svg(curves: &[Curve]) -> String {
    let lines: Vec<_> = curves.iter().map(|curve| points(&curve.times)).collect();
    let frame = Frame::around(&lines);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         font-family=\"system-ui,sans-serif\" font-size=\"12\" fill=\"currentColor\">\n"
    );
    frame.draw_grid(&mut out);
    for ((curve, line), colour) in curves.iter().zip(&lines).zip(COLOURS.iter().cycle()) {
        frame.draw_line(&mut out, line, colour, curve.name);
    }
    draw_legend(&mut out, curves);
    out.push_str("</svg>\n");
    out
}

/// Where the axes begin and end, in nines and in decades of milliseconds.
struct Frame {
    nines: f64,
    decades: (f64, f64),
}

impl Frame {
    fn around(lines: &[Vec<(f64, f64)>]) -> Self {
        let all = || lines.iter().flatten();
        let nines = all().map(|(x, _)| x.ceil()).fold(1.0, f64::max);
        let logs = || all().map(|(_, ms)| ms.max(0.01).log10());
        let (low, high) = (logs().fold(0.0, f64::min).floor(), logs().fold(1.0, f64::max).ceil());
        Self { nines, decades: (low, high) }
    }

    fn x(&self, nines: f64) -> f64 {
        MARGIN.0 + nines / self.nines * (WIDTH - MARGIN.0 - MARGIN.1)
    }

    fn y(&self, ms: f64) -> f64 {
        let part = (ms.max(0.01).log10() - self.decades.0) / (self.decades.1 - self.decades.0);
        HEIGHT - MARGIN.3 - part * (HEIGHT - MARGIN.2 - MARGIN.3)
    }

    fn draw_grid(&self, out: &mut String) {
        let (left, right, top, bottom) = (MARGIN.0, WIDTH - MARGIN.1, MARGIN.2, HEIGHT - MARGIN.3);
        let mut nines = 0.0;
        while nines <= self.nines {
            let x = self.x(nines);
            put(out, format_args!("<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"#8884\"/>"));
            put(
                out,
                format_args!(
                    "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                    bottom + 18.0,
                    percent(nines)
                ),
            );
            nines += 1.0;
        }
        let mut decade = self.decades.0;
        while decade <= self.decades.1 {
            let ms = 10_f64.powf(decade);
            let y = self.y(ms);
            put(out, format_args!("<path d=\"M{left} {y:.1}H{right}\" stroke=\"#8884\"/>"));
            put(
                out,
                format_args!(
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{} ms</text>\n",
                    left - 8.0,
                    y + 4.0,
                    trimmed(ms)
                ),
            );
            decade += 1.0;
        }
    }

    fn draw_line(&self, out: &mut String, line: &[(f64, f64)], colour: &str, name: &str) {
        put(out, format_args!("<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\""));
        for (nines, ms) in line {
            put(out, format_args!("{:.1},{:.1} ", self.x(*nines), self.y(*ms)));
        }
        let slowest = line.last().map_or(0.0, |(_, ms)| *ms);
        put(out, format_args!("\"><title>{name}: slowest {} ms</title></polyline>\n", short(slowest)));
    }
}

fn draw_legend(out: &mut String, curves: &[Curve]) {
    let mut x = MARGIN.0;
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let y = HEIGHT - 18.0;
        put(out, format_args!("<path d=\"M{x:.0} {y}h24\" stroke=\"{colour}\" stroke-width=\"3\"/>"));
        put(out, format_args!("<text x=\"{:.0}\" y=\"{}\">{}</text>\n", x + 30.0, y + 4.0, curve.name));
        x += 60.0 + 6.8 * float(curve.name.chars().count() as u64);
    }
}

/// 0 %, 90 %, 99 %, 99.9 % …
fn percent(nines: f64) -> String {
    let digits = (2_u8..9).take_while(|place| f64::from(*place) < nines).count();
    format!("{:.digits$} %", 100.0 - 100.0 * 0.1_f64.powf(nines))
}

fn trimmed(ms: f64) -> String {
    if ms >= 1.0 { crate::number::grouped(ms) } else { format!("{ms}") }
}

/// Writing to a text can't fail.
fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(what);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::histogram;

    fn thousand() -> Histogram<u64> {
        let mut times = histogram();
        (1..=1000).for_each(|ms| times.saturating_record(ms * 1000));
        times
    }

    #[test]
    fn points_rise_from_the_median_to_the_slowest() {
        let points = points(&thousand());
        assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        let at = |nines: f64| points.iter().find(|(x, _)| *x >= nines - 1e-9).unwrap().1;
        assert!((at(1.0) - 900.0).abs() < 5.0 && (at(2.0) - 990.0).abs() < 5.0);
        let (nines, slowest) = points.last().unwrap();
        assert!((nines - 3.0).abs() < 1e-9 && (slowest - 1000.0).abs() < 1.0);
    }

    #[test]
    fn nothing_measured_can_be_drawn() {
        assert_eq!(points(&histogram()).len(), 1);
        assert!(svg(&[]).ends_with("</svg>\n"));
    }

    #[test]
    fn each_curve_has_a_line_and_a_name() {
        let curves = ["a", "b"].map(|name| Curve { name, times: thousand() });
        let svg = svg(&curves);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(
            svg.contains(">99.9 %</text>") && svg.contains(">1,000 ms</text>") && svg.contains(">b</text>")
        );
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn nines_are_named() {
        assert_eq!(
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0].map(percent),
            ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"]
        );
    }
}
