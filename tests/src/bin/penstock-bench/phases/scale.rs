//! What more workers are worth to one tenant with a backlog: each held to a share of a processor, so that the machine isn't
//! what limits them, and each far from MongoDB.

use std::time::Duration;

use penstock_tests::relay::Fault;
use tokio::time::sleep;

use crate::bench::Bench;
use crate::control_group::ControlGroup;
use crate::number::{float, grouped};
use crate::phases::drain::pile_up;
use crate::report::{Aim, Unit};
use crate::stage::{Stage, follow, storing_rate};

const PHASE: &str = "scale";
const CONVERSATIONS: u64 = 2_000;
/// Twice as many queues as there are workers.
const SETTINGS: [(&str, &str); 1] = [("WEBHOOK_WORKERS", "8")];
/// Of one processor.
const PERCENT: u32 = 12;
/// Half of it each way.
const DISTANCE: Duration = Duration::from_millis(20);

/// What limits each worker.
#[derive(Clone, Copy, Debug)]
enum Limit {
    Processor,
    /// Nothing, where no control group can be made.
    Nothing,
    Distance,
}

impl Limit {
    fn name(self) -> String {
        match self {
            Self::Processor => format!("each held to {PERCENT} % of a processor"),
            Self::Nothing => "not held back: no control group can be made here".to_owned(),
            Self::Distance => format!("MongoDB {} ms away", DISTANCE.as_millis()),
        }
    }

    /// How much of what one worker stores two and four have to store.
    fn aims(self) -> Option<[f64; 2]> {
        match self {
            Self::Processor => Some([1.9, 3.6]),
            Self::Nothing => None,
            Self::Distance => Some([1.0, 1.0]),
        }
    }
}

/// Measures.
pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let held = if ControlGroup::can_be_made() { Limit::Processor } else { Limit::Nothing };
    compare(bench, held).await?;
    compare(bench, Limit::Distance).await
}

async fn compare(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    let one = measure(bench, limit, 1).await?;
    bench.report.add(PHASE, format!("one worker stores, {}", limit.name()), one, Unit::PerSecond);
    for (place, (name, workers)) in [("two", 2), ("four", 4)].into_iter().enumerate() {
        let times = measure(bench, limit, workers).await? / one;
        let figure = format!("{name} workers, of one, {}", limit.name());
        match limit.aims() {
            Some(aims) => bench.report.aim(PHASE, figure, times, Unit::Times, Aim::AtLeast(aims[place])),
            None => bench.report.add(PHASE, figure, times, Unit::Times),
        }
    }
    Ok(())
}

/// Events per second that so many workers store, which have divided the queues among them before.
async fn measure(bench: &mut Bench, limit: Limit, workers: usize) -> anyhow::Result<f64> {
    let events = bench.plan.scale;
    bench.say(&format!("{PHASE}: workers: {workers}; {} events, {}", grouped(float(events)), limit.name()));
    // Dropped after the stage: a group can't be removed before its worker has ended.
    let mut groups = Vec::new();
    let mut stage = Stage::start_with(bench, &SETTINGS).await;
    let (relay, uri) = stage.place.mongo_relay().await;
    if matches!(limit, Limit::Distance) {
        relay.set(Fault::Delay(DISTANCE / 2));
        stage.place.mongo_uri = uri;
    }
    for _ in 0..workers {
        stage.start_worker(bench).await;
    }
    if matches!(limit, Limit::Processor) {
        for worker in &stage.workers {
            groups.push(ControlGroup::hold(worker.process.pid(), PERCENT)?);
        }
    }
    sleep(bench.plan.division).await;
    signal(&stage, "STOP");
    let expected = pile_up(bench, &stage, CONVERSATIONS, events).await?;
    signal(&stage, "CONT");
    let samples = follow(stage.database.clone(), expected.len(), bench.plan.patience, |_| {}).await?;
    let stored = storing_rate(&samples);
    bench.say(&format!("  {}/s", grouped(stored)));
    bench.check(PHASE, &stage, &expected).await;
    stage.remove().await?;
    Ok(stored)
}

/// Workers keep their queues while they are stopped, for less than RabbitMQ's heartbeats allow: then all begin at once.
fn signal(stage: &Stage, signal: &str) {
    for worker in &stage.workers {
        worker.process.signal(signal);
    }
}
