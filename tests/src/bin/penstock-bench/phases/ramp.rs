//! Everything running, at a constant rate that is raised step by step: what is the highest at which all is accepted
//! and stored as fast as it comes?

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::bench::{Bench, CONNECTIONS, CONTACTS};
use crate::check::Expected;
use crate::generate::{Generator, Limit};
use crate::number::{float, grouped, rate as rate_of, short};
use crate::pace::Pace;
use crate::processes::{Cpu, used};
use crate::report::{Aim, Unit};
use crate::stage::Stage;
use crate::tally::{Tally, percentile};

const PHASE: &str = "ramp";
/// The step whose CPU is shown, or the highest one below it that was sustained.
const CPU_RATE: u64 = 5000;
/// A step fails on a busy machine by chance: only so many in a row end the ramp.
const FAILURES: u32 = 2;
/// Backlog that is none, on average over the last third of a step: what comes within this time, in seconds.
const ROOM: f64 = 0.25;
/// Growth since the second third that is none, likewise.
const SLACK: f64 = 0.03;
/// How often the backlog is looked at. It goes up and down with every batch, so that a single look says little.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// Longest time between steps for the backlog to be stored.
const CALM: Duration = Duration::from_secs(15);

/// Measures.
pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let mut stage = Stage::start(bench).await;
    stage.start_worker(bench).await;
    let generator = stage.generator(bench, CONTACTS)?;
    let mut ramp = Ramp { stage, generator, expected: Expected::default() };
    ramp.climb(bench).await?;
    ramp.saturate(bench).await?;
    bench.check(PHASE, &ramp.stage, &ramp.expected).await;
    ramp.stage.remove().await
}

struct Ramp {
    stage: Stage,
    generator: Generator,
    expected: Expected,
}

/// What a step has shown; the backlog in its second third and its last, on average.
struct Step {
    rate: u64,
    tally: Tally,
    arrivals: u64,
    middle: u64,
    end: u64,
    stored: f64,
}

impl Step {
    /// Whether the rate can be kept up.
    fn is_sustained(&self) -> bool {
        let (rate, middle, end) = (float(self.rate), float(self.middle), float(self.end));
        let accepted = float(self.tally.accepted()) >= 0.99 * float(self.arrivals);
        accepted && end < ROOM * rate && end <= middle + SLACK * rate
    }
}

impl Ramp {
    async fn climb(&mut self, bench: &mut Bench) -> anyhow::Result<()> {
        bench.say(&format!("{PHASE}: ingest and one worker, open loop, {:?} a step", bench.plan.step));
        let (mut highest, mut failures, mut cpu) = (None, 0, None);
        for rate in bench.plan.rates.clone() {
            let before = self.stage.watched().cpu();
            let step = self.step(rate, bench.plan.step).await?;
            let used = used(&before, &self.stage.watched().cpu());
            bench.tell(PHASE, &format!("{}/s", grouped(float(rate))), &step.tally);
            self.expected.add(&step.tally);
            note(bench, &step, &used);
            if step.is_sustained() {
                if rate <= CPU_RATE {
                    cpu = Some((rate, step.tally.accepted(), used));
                }
                (highest, failures) = (Some((rate, step.stored)), 0);
            } else {
                failures += 1;
            }
            if failures == FAILURES {
                break;
            }
            self.calm().await?;
        }
        let (rate, stored) = highest.unwrap_or_default();
        bench.report.aim(PHASE, "highest rate sustained", float(rate), Unit::PerSecond, Aim::AtLeast(5000.0));
        bench.report.add(PHASE, "stored at that rate", stored, Unit::PerSecond);
        if let Some((rate, events, used)) = cpu {
            bench.report.cpu(format!("{PHASE}, {}/s", grouped(float(rate))), events, used);
        }
        Ok(())
    }

    /// One rate.
    async fn step(&self, rate: u64, time: Duration) -> anyhow::Result<Step> {
        let pace = Pace { rate, warm: Duration::ZERO, time };
        let (begun, generator) = (self.stage.stored().await?, self.generator.clone());
        let (before, started) = (self.generator.accepted(), Instant::now());
        let load = tokio::spawn(async move { generator.open(pace).await });
        let mut backlog = Vec::new();
        while started.elapsed() < time {
            sleep(SAMPLE_INTERVAL).await;
            backlog.push(self.backlog(before, begun).await?);
        }
        let stored = rate_of(self.stage.stored().await? - begun, started.elapsed());
        let third = backlog.len() / 3;
        let (middle, end) = (mean(&backlog[third..2 * third]), mean(&backlog[2 * third..]));
        Ok(Step { rate, tally: load.await??, arrivals: pace.arrivals(), middle, end, stored })
    }

    /// Accepted and not stored yet, since then.
    async fn backlog(&self, accepted_before: u64, stored_before: u64) -> anyhow::Result<u64> {
        let accepted = self.generator.accepted() - accepted_before;
        Ok(accepted.saturating_sub(self.stage.stored().await? - stored_before))
    }

    async fn calm(&self) -> anyhow::Result<()> {
        // A backlog that stays distorts the next step, but says so there.
        let done = timeout(CALM, self.stage.until_stored(self.expected.len(), CALM)).await;
        done.unwrap_or(Ok(()))
    }

    async fn saturate(&mut self, bench: &mut Bench) -> anyhow::Result<()> {
        bench.say(&format!("{PHASE}: closed loop, {CONNECTIONS} connections"));
        self.stage.until_stored(self.expected.len(), bench.plan.patience).await?;
        let (begun, before) = (self.stage.stored().await?, self.stage.watched().cpu());
        let (tally, took) = self.generator.closed(CONNECTIONS, Limit::time(bench.plan.saturation)).await?;
        let stored = rate_of(self.stage.stored().await? - begun, took);
        bench.report.cpu(
            format!("{PHASE}, saturated"),
            tally.accepted(),
            used(&before, &self.stage.watched().cpu()),
        );
        bench.tell(PHASE, "saturated", &tally);
        self.expected.add(&tally);
        let accepted = rate_of(tally.accepted(), took);
        bench.say(&format!("  accepted {}/s, stored {}/s meanwhile", grouped(accepted), grouped(stored)));
        bench.report.add(PHASE, "accepted at saturation", accepted, Unit::PerSecond);
        bench.report.add(PHASE, "stored meanwhile", stored, Unit::PerSecond);
        if let Some(ceiling) = bench.ceilings.together() {
            bench.report.add(PHASE, "the three ceilings together", ceiling, Unit::PerSecond);
            bench.report.add(PHASE, "stored meanwhile, of that", 100.0 * stored / ceiling, Unit::Percent);
        }
        Ok(())
    }
}

fn mean(samples: &[u64]) -> u64 {
    samples.iter().sum::<u64>() / (samples.len() as u64).max(1)
}

fn note(bench: &mut Bench, step: &Step, used: &Cpu) {
    let p99 = percentile(&step.tally.corrected, 99.0);
    let verdict = if step.is_sustained() { "" } else { ": not sustained" };
    bench.say(&format!(
        "  {}/s: accepted {}, stored {}/s, backlog {} then {}, reply p99 {} ms{verdict}",
        grouped(float(step.rate)),
        grouped(float(step.tally.accepted())),
        grouped(step.stored),
        step.middle,
        step.end,
        short(p99)
    ));
    bench.report.steps.push(json!({
        "rate": step.rate, "arrivals": step.arrivals, "accepted": step.tally.accepted(), "stored_per_second": step.stored,
        "backlog_in_the_second_third": step.middle, "backlog_in_the_last_third": step.end, "reply_p99_ms": p99,
        "sustained": step.is_sustained(), "cpu_seconds": used,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(accepted: u64, middle: u64, end: u64) -> Step {
        let mut tally = Tally::new(Instant::now());
        tally.received = (0..accepted).map(|n| (n, Instant::now())).collect();
        Step { rate: 1000, tally, arrivals: 6000, middle, end, stored: 0.0 }
    }

    #[test]
    fn a_rate_is_sustained_if_all_is_accepted_and_the_backlog_stays() {
        assert!(step(6000, 10, 20).is_sustained());
        assert!(step(5950, 200, 220).is_sustained());
        assert!(!step(5900, 10, 20).is_sustained());
        assert!(!step(6000, 200, 240).is_sustained());
        assert!(!step(6000, 100, 200).is_sustained());
    }
}
