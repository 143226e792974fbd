//! What was found, as tables for people and as JSON.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::number::{float, grouped, short};
use crate::processes::Cpu;

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Aim {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Aim {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    PerSecond,
    Milliseconds,
    Percent,
    Mebibytes,
    Bytes,
    Times,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::PerSecond => format!("{}/s", grouped(value)),
            Self::Milliseconds => format!("{} ms", short(value)),
            Self::Percent => format!("{value:.0} %"),
            Self::Mebibytes => format!("{value:.0} MiB"),
            Self::Bytes => format!("{} bytes", grouped(value)),
            Self::Times => format!("{value:.2}×"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "1/s",
            Self::Milliseconds => "ms",
            Self::Percent => "%",
            Self::Mebibytes => "MiB",
            Self::Bytes => "bytes",
            Self::Times => "ratio",
        }
    }
}

/// A figure.
#[derive(Clone, Debug)]
pub struct Figure {
    phase: &'static str,
    name: String,
    value: f64,
    unit: Unit,
    aim: Option<Aim>,
}

/// The CPU that a phase took.
#[derive(Clone, Debug)]
pub struct CpuUse {
    phase: String,
    events: u64,
    used: Cpu,
}

/// A curve of times.
#[derive(Clone, Debug)]
pub struct Curve {
    /// What it shows.
    pub name: &'static str,
    /// In microseconds.
    pub times: Histogram<u64>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    figures: Vec<Figure>,
    cpu: Vec<CpuUse>,
    /// Times to be drawn.
    pub curves: Vec<Curve>,
    /// Steps of the ramp.
    pub steps: Vec<Value>,
    /// What a reader has to know.
    pub notes: Vec<String>,
    /// What must not be.
    pub failures: Vec<String>,
    /// Events whose fate was checked.
    pub checked: u64,
}

/// A table: its head, and its rows.
pub type Table = (Vec<String>, Vec<Vec<String>>);

impl Report {
    /// Adds a figure.
    pub fn add(&mut self, phase: &'static str, name: impl Into<String>, value: f64, unit: Unit) {
        self.figures.push(Figure { phase, name: name.into(), value, unit, aim: None });
    }

    /// Adds a figure that has an aim.
    pub fn aim(&mut self, phase: &'static str, name: impl Into<String>, value: f64, unit: Unit, aim: Aim) {
        self.figures.push(Figure { phase, name: name.into(), value, unit, aim: Some(aim) });
    }

    /// Adds the CPU that a phase took.
    pub fn cpu(&mut self, phase: impl Into<String>, events: u64, used: Cpu) {
        self.cpu.push(CpuUse { phase: phase.into(), events, used });
    }

    /// The figures.
    pub fn figures(&self) -> Table {
        let row = |figure: &Figure| {
            let Figure { phase, name, value, unit, aim } = figure;
            let (wanted, verdict) = match aim {
                None => (String::new(), ""),
                Some(aim) => {
                    let (sign, bound) = match aim {
                        Aim::AtLeast(bound) => ("≥", bound),
                        Aim::AtMost(bound) => ("≤", bound),
                    };
                    let verdict = if aim.is_met(*value) { "yes" } else { "**no**" };
                    (format!("{sign} {}", unit.show(*bound)), verdict)
                }
            };
            vec![(*phase).to_owned(), name.clone(), unit.show(*value), wanted, verdict.to_owned()]
        };
        (head(&["phase", "figure", "measured", "aim", "met"]), self.figures.iter().map(row).collect())
    }

    /// CPU seconds per 1000 events, by phase and process.
    pub fn cpu_uses(&self) -> Table {
        let mut names: Vec<&'static str> = self.cpu.iter().flat_map(|one| one.used.keys().copied()).collect();
        names.sort_unstable();
        names.dedup();
        let row = |one: &CpuUse| {
            let per_thousand = |seconds: f64| short(seconds * 1000.0 / float(one.events.max(1)));
            let of = |name: &&str| one.used.get(name).map_or(String::new(), |seconds| per_thousand(*seconds));
            let mut row = vec![one.phase.clone()];
            row.extend(names.iter().map(of));
            row.push(per_thousand(one.used.values().sum()));
            row
        };
        let mut titles = vec!["CPU seconds per 1,000 events"];
        titles.extend(&names);
        titles.push("all");
        (head(&titles), self.cpu.iter().map(row).collect())
    }

    /// Whether all that must be is.
    pub fn verdict(&self) -> String {
        if self.failures.is_empty() {
            let checked = grouped(float(self.checked));
            format!("Checked: {checked} events were answered 200, and each is stored exactly once.")
        } else {
            format!("**FAILED**: {}", self.failures.join("; "))
        }
    }

    /// Fit to be pasted into a README.
    pub fn markdown(&self) -> String {
        let mut parts = vec![markdown(&self.figures())];
        if !self.cpu.is_empty() {
            parts.push(markdown(&self.cpu_uses()));
        }
        if self.checked > 0 || !self.failures.is_empty() {
            parts.push(self.verdict() + "\n");
        }
        if !self.notes.is_empty() {
            parts.push(format!("- {}\n", self.notes.join("\n- ")));
        }
        parts.join("\n")
    }

    /// Everything.
    pub fn json(&self) -> Value {
        let figure = |figure: &Figure| {
            let Figure { phase, name, value, unit, aim } = figure;
            let aim = aim.map(|aim| match aim {
                Aim::AtLeast(bound) => json!({"at_least": bound, "met": aim.is_met(*value)}),
                Aim::AtMost(bound) => json!({"at_most": bound, "met": aim.is_met(*value)}),
            });
            json!({"phase": phase, "name": name, "value": value, "unit": unit.name(), "aim": aim})
        };
        let cpu =
            |one: &CpuUse| json!({"phase": one.phase, "events": one.events, "cpu_seconds": one.used.clone()});
        let curve = |curve: &Curve| {
            let points = crate::plot::points(&curve.times);
            let points: Vec<_> =
                points.into_iter().map(|(x, ms)| json!([1.0 - 0.1_f64.powf(x), ms])).collect();
            json!({"name": curve.name, "count": curve.times.len(), "quantile_and_ms": points})
        };
        json!({
            "figures": self.figures.iter().map(figure).collect::<Vec<_>>(),
            "cpu": self.cpu.iter().map(cpu).collect::<Vec<_>>(),
            "ramp": self.steps,
            "curves": self.curves.iter().map(curve).collect::<Vec<_>>(),
            "checked": self.checked,
            "failures": self.failures,
            "notes": self.notes,
        })
    }
}

fn head(titles: &[&str]) -> Vec<String> {
    titles.iter().map(|title| (*title).to_owned()).collect()
}

fn markdown((head, rows): &Table) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|{}\n", "---|".repeat(head.len()));
    line(head) + &rule + &rows.iter().map(|row| line(row)).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_what_is_met() {
        let mut report = Report::default();
        report.aim("paced", "reply p99", 12.3, Unit::Milliseconds, Aim::AtMost(10.0));
        report.aim("ramp", "stored", 7890.4, Unit::PerSecond, Aim::AtLeast(5000.0));
        report.add("ramp", "share", 55.4, Unit::Percent);
        let wanted = "| phase | figure | measured | aim | met |\n|---|---|---|---|---|\n\
            | paced | reply p99 | 12.3 ms | ≤ 10.0 ms | **no** |\n\
            | ramp | stored | 7,890/s | ≥ 5,000/s | yes |\n\
            | ramp | share | 55 % |  |  |\n";
        assert_eq!(report.markdown(), wanted);
        assert_eq!(report.json()["figures"][0]["aim"]["met"], false);
    }

    #[test]
    fn processes_that_a_phase_lacks_stay_blank() {
        let mut report = Report::default();
        report.cpu("one", 2000, Cpu::from([("mongod", 1.0)]));
        report.cpu("two", 1000, Cpu::from([("mongod", 0.25), ("ingest", 0.5)]));
        let (head, rows) = report.cpu_uses();
        assert_eq!(head[1..], ["ingest", "mongod", "all"]);
        assert_eq!(rows, [["one", "", "0.50", "0.50"], ["two", "0.50", "0.25", "0.75"]]);
    }

    #[test]
    fn a_failure_is_shown() {
        let report = Report { failures: vec!["drain: lost".into()], ..Default::default() };
        assert!(report.markdown().contains("**FAILED**: drain: lost"));
    }
}
