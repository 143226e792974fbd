//! The report as a page that needs nothing else.

use crate::plot;
use crate::report::{Report, Table};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;\
    color:#1f2328;background:#fff}table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;\
    border-bottom:1px solid #8884;text-align:left}td:nth-child(n+3){text-align:right}.bad{color:#cf222e}\
    @media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}}";

const CAPTION: &str = "<h2>Times by percentile</h2>\n<p>Each nine takes as much room as the one before it; both \
    scales are logarithmic. Corrected: from when an event should have been sent.</p>\n";

/// The page.
pub fn html(report: &Report, title: &str) -> String {
    let title = escaped(title);
    let mut parts = vec![
        format!("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>"),
        format!("<style>{STYLE}</style>\n<h1>{title}</h1>\n"),
        table(&report.figures()),
    ];
    if !report.curves.is_empty() {
        parts.push(CAPTION.to_owned());
        parts.push(plot::svg(&report.curves));
    }
    let cpu = report.cpu_uses();
    if !cpu.1.is_empty() {
        parts.push(table(&cpu));
    }
    if report.checked > 0 || !report.failures.is_empty() {
        let class = if report.failures.is_empty() { "" } else { " class=\"bad\"" };
        parts.push(format!("<p{class}>{}</p>\n", escaped(&report.verdict().replace("**", ""))));
    }
    parts.extend(report.notes.iter().map(|note| format!("<p>{}</p>\n", escaped(note))));
    parts.concat()
}

fn table((head, rows): &Table) -> String {
    let line = |cells: &[String], tag: &str| -> String {
        let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(&cell.replace("**", ""))));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let rows: String = rows.iter().map(|row| line(row, "td")).collect();
    format!("<table>\n{}{rows}</table>\n", line(head, "th"))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_answer_is_only_text() {
        let mut report = Report::default();
        report.notes.push("3 × 502 <html>".into());
        let page = html(&report, "a & b");
        assert!(page.contains("3 × 502 &lt;html&gt;") && page.contains("<h1>a &amp; b</h1>"));
    }
}
