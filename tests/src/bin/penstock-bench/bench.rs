//! What all phases share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::ceilings::Ceilings;
use crate::check::{self, Expected};
use crate::event::Maker;
use crate::number::grouped;
use crate::plan::Plan;
use crate::report::Report;
use crate::stage::Stage;
use crate::tally::Tally;

/// Contacts, unless a phase is about their number.
pub const CONTACTS: u64 = 10_000;
/// Connections of closed loops.
pub const CONNECTIONS: usize = 64;

/// What all phases share.
#[derive(Debug)]
pub struct Bench {
    /// How long and how much.
    pub plan: Plan,
    /// What was found.
    pub report: Report,
    /// What it is to be compared with.
    pub ceilings: Ceilings,
    settings: Vec<(String, String)>,
    numbers: Arc<AtomicU64>,
    started: Instant,
}

impl Bench {
    /// With further settings for ingest and worker.
    pub fn new(plan: Plan, settings: Vec<(String, String)>) -> Self {
        let (report, ceilings) = (Report::default(), Ceilings::default());
        Self { plan, report, ceilings, settings, numbers: Arc::default(), started: Instant::now() }
    }

    /// Further settings for ingest and worker.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Makes events that no other maker makes.
    pub fn maker(&self, contacts: u64, key: Option<&str>) -> Maker {
        Maker::new(self.numbers.clone(), contacts, key)
    }

    /// Events made so far.
    pub fn made(&self) -> u64 {
        self.numbers.load(Ordering::Relaxed)
    }

    /// A line of progress.
    pub fn say(&self, what: &str) {
        println!("[{:3}s] {what}", self.started.elapsed().as_secs());
    }

    /// A line about a load, also about what went wrong with it.
    pub fn tell(&mut self, phase: &str, what: &str, tally: &Tally) {
        if let Some(oddities) = tally.oddities() {
            let line = format!("{phase}, {what}: {oddities}");
            self.say(&format!("  {line}"));
            self.report.notes.push(line);
        }
    }

    /// Says so if RabbitMQ was too slow at times.
    pub async fn tell_spooled(&mut self, phase: &str, stage: &Stage) {
        let spooled = stage.spooled().await;
        if spooled > 0.0 {
            let line = format!("{phase}: {} events went through the spool", grouped(spooled));
            self.say(&format!("  {line}"));
            self.report.notes.push(line);
        }
    }

    /// Checks what is stored; a failure goes into the report.
    pub async fn check(&mut self, phase: &str, stage: &Stage, expected: &Expected) {
        self.tell_spooled(phase, stage).await;
        match check::check(stage, expected, self.plan.patience).await {
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
