//! What all phases share.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use crate::check::{self, Expected};
use crate::event::Maker;
use crate::load::Load;
use crate::number::{grouped, short};
use crate::report::{Aim, Report};
use crate::stage::Stage;

/// Contacts that events are about, unless a phase says otherwise.
pub const CONTACTS: u64 = 10_000;
/// Requests at the same time in closed loops.
pub const AT_ONCE: usize = 64;

/// What all phases share.
#[derive(Debug)]
pub struct Bench {
    /// What was found.
    pub report: Report,
    /// What the parts do by themselves: replies, confirms, and events in transactions per second.
    pub ceilings: Vec<f64>,
    /// Further settings for ingest and worker.
    pub settings: Vec<(String, String)>,
    is_quick: bool,
    numbers: Arc<AtomicU64>,
    started: Instant,
}

impl Bench {
    /// With further settings for ingest and worker.
    pub fn new(is_quick: bool, settings: Vec<(String, String)>) -> Self {
        let (report, started) = (Report::default(), Instant::now());
        Self { report, ceilings: Vec::new(), settings, is_quick, numbers: Arc::default(), started }
    }

    /// How long or how much: of the whole benchmark, and of the quick one.
    pub fn size<T>(&self, full: T, quick: T) -> T {
        if self.is_quick { quick } else { full }
    }

    /// Makes events that no other maker makes, about as many contacts; signed, if there is a key.
    pub fn maker(&self, contacts: u64, key: Option<&str>) -> Maker {
        Maker::new(self.numbers.clone(), contacts, key)
    }

    /// A line of progress.
    pub fn say(&self, what: &str) {
        println!("[{:3}s] {what}", self.started.elapsed().as_secs());
    }

    /// A figure for the report.
    pub fn add(&mut self, phase: &str, name: &str, value: f64, unit: &str, aim: Option<Aim>) {
        if !value.is_finite() {
            return self.note(format!("{phase}: it went too fast to tell: {name}"));
        }
        self.say(&format!("  {name}: {}{unit}", short(value)));
        self.report.add(phase, name, value, unit, aim);
    }

    /// A line that belongs into the report too.
    fn note(&mut self, line: String) {
        self.say(&format!("  {line}"));
        self.report.notes.push(line);
    }

    /// Notes what went wrong with a load.
    pub fn note_oddities(&mut self, phase: &str, load: &Load) {
        for (what, count) in load.oddities() {
            self.note(format!("{phase}: {count} × {what}"));
        }
    }

    /// Checks what is stored; a failure goes into the report.
    pub async fn check(&mut self, phase: &str, stage: &Stage, expected: &Expected) {
        let spooled = stage.spooled().await;
        if spooled > 0.0 {
            self.note(format!("{phase}: {} events went through the spool", grouped(spooled)));
        }
        match check::check(stage, expected).await {
            Ok(line) => {
                self.say(&format!("  {line}"));
                self.report.checked += expected.len();
            }
            Err(error) => self.fail(phase, &error),
        }
    }

    /// Something that must not be.
    pub fn fail(&mut self, phase: &str, error: &anyhow::Error) {
        let line = format!("{phase}: {error:#}");
        self.say(&format!("  FAILED: {line}"));
        self.report.failures.push(line);
    }
}
