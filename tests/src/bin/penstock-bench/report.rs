//! What was found, as tables for people and as JSON.

use serde_json::{Value, json};

use crate::number::{grouped, short};
use crate::processes::Cpu;

/// Processes whose time is shown, in the order in which an event passes.
const PROCESSES: [&str; 5] = ["bench", "ingest", "RabbitMQ", "worker", "mongod"];

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

    fn shown(self, unit: &str) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {}{unit}", short(bound)),
            Self::AtMost(bound) => format!("≤ {}{unit}", short(bound)),
        }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    figures: Vec<Value>,
    figure_rows: Vec<Vec<String>>,
    cpu_rows: Vec<Vec<String>>,
    /// What a reader has to know.
    pub notes: Vec<String>,
    /// What must not be.
    pub failures: Vec<String>,
    /// Events whose fate was checked.
    pub checked: u64,
}

impl Report {
    /// Adds a figure.
    pub fn add(&mut self, phase: &str, name: &str, value: f64, unit: &str, aim: Option<Aim>) {
        let met = aim.map(|aim| aim.is_met(value));
        let (aim, verdict) = (
            aim.map(|aim| aim.shown(unit)).unwrap_or_default(),
            match met {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            },
        );
        let unit_name = unit.trim();
        self.figures
            .push(json!({"phase": phase, "name": name, "value": value, "unit": unit_name, "met": met}));
        self.figure_rows.push(vec![phase.into(), name.into(), short(value) + unit, aim, verdict.into()]);
    }

    /// Adds the CPU that a load took, for each of its events.
    pub fn add_cpu(&mut self, load: &str, events: u64, used: &Cpu) {
        let per_event = |seconds: f64| format!("{:.0} µs", seconds * 1e6 / events.max(1) as f64);
        let of = |name: &&str| used.get(name).map_or(String::new(), |seconds| per_event(*seconds));
        let all = per_event(used.values().sum());
        self.cpu_rows
            .push([load.to_owned()].into_iter().chain(PROCESSES.iter().map(of)).chain([all]).collect());
    }

    /// Fit to be pasted into a README.
    pub fn markdown(&self) -> String {
        let mut parts = vec![table(&["phase", "figure", "measured", "aim", "met"], &self.figure_rows)];
        if !self.cpu_rows.is_empty() {
            let titles = [&["processor time per event"], &PROCESSES[..], &["all"]].concat();
            parts.push(table(&titles, &self.cpu_rows));
        }
        if !self.failures.is_empty() {
            parts.push(format!("**FAILED**: {}\n", self.failures.join("; ")));
        } else if self.checked > 0 {
            let checked = grouped(self.checked as f64);
            parts.push(format!(
                "Checked: {checked} events were answered 200, and each is stored exactly once.\n"
            ));
        }
        if !self.notes.is_empty() {
            parts.push(format!("- {}\n", self.notes.join("\n- ")));
        }
        parts.join("\n")
    }

    /// The same for machines.
    pub fn json(&self) -> Value {
        let Self { figures, cpu_rows, notes, failures, checked, .. } = self;
        json!({"figures": figures, "cpu": cpu_rows, "checked": checked, "failures": failures, "notes": notes})
    }
}

fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let head = format!("| {} |\n|{}\n", titles.join(" | "), "---|".repeat(titles.len()));
    head + &rows.iter().map(|cells| format!("| {} |\n", cells.join(" | "))).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_show_what_is_met_and_leave_blank_what_is_missing() {
        let mut report = Report { failures: vec!["lost".into()], ..Report::default() };
        report.add("p", "slow", 12.3, " ms", Some(Aim::AtMost(10.0)));
        report.add("p", "fast", 78.4, " %", Some(Aim::AtLeast(70.0)));
        report.add("p", "rate", 7890.4, "/s", None);
        report.add_cpu("a", 1000, &Cpu::from([("ingest", 0.1), ("mongod", 0.2)]));
        let wanted = "| phase | figure | measured | aim | met |\n|---|---|---|---|---|\n\
            | p | slow | 12.3 ms | ≤ 10.0 ms | **no** |\n\
            | p | fast | 78.4 % | ≥ 70.0 % | yes |\n\
            | p | rate | 7,890/s |  |  |\n\n\
            | processor time per event | bench | ingest | RabbitMQ | worker | mongod | all |\n\
            |---|---|---|---|---|---|---|\n\
            | a |  | 100 µs |  |  | 200 µs | 300 µs |\n\n\
            **FAILED**: lost\n";
        assert_eq!(report.markdown(), wanted);
    }
}
