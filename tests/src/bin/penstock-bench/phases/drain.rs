//! How fast one worker stores a backlog, next to raw transactions of the same documents.

use std::time::Duration;

use crate::bench::{Bench, CONNECTIONS, CONTACTS};
use crate::check::Expected;
use crate::generate::Limit;
use crate::number::{float, grouped, rate};
use crate::phases::accept::Backlog;
use crate::processes::used;
use crate::raw_store::Batches;
use crate::report::{Aim, Unit};
use crate::stage::{Stage, follow, storing_rate};

const PHASE: &str = "drain";

/// Drains what accepting has left behind, or else a backlog of its own.
pub async fn run(bench: &mut Bench, left: Option<Backlog>) -> anyhow::Result<()> {
    let Backlog { mut stage, expected } = if let Some(left) = left {
        left
    } else {
        let stage = Stage::start(bench).await;
        let expected = pile_up(bench, &stage, CONTACTS, bench.plan.backlog).await?;
        Backlog { stage, expected }
    };
    bench.say(&format!("{PHASE}: one worker, {} events", grouped(float(expected.len()))));
    let stored = drain(bench, &mut stage, &expected, Some(PHASE)).await?;
    bench.say(&format!("  {}/s", grouped(stored)));
    bench.report.add(PHASE, "one worker stores", stored, Unit::PerSecond);
    bench.check(PHASE, &stage, &expected).await;
    ceiling(bench, &mut stage, stored).await?;
    stage.remove().await
}

/// Posts a backlog to ingest as fast as it takes it.
pub async fn pile_up(
    bench: &mut Bench,
    stage: &Stage,
    contacts: u64,
    events: u64,
) -> anyhow::Result<Expected> {
    let limit = Limit { time: Duration::from_mins(1), events };
    let (tally, _) = stage.generator(bench, contacts)?.closed(CONNECTIONS, limit).await?;
    bench.tell(PHASE, "backlog", &tally);
    let mut expected = Expected::default();
    expected.add(&tally);
    Ok(expected)
}

/// Starts a worker, and gives how many events it stores per second. Its CPU goes into the report by this name.
pub async fn drain(
    bench: &mut Bench,
    stage: &mut Stage,
    expected: &Expected,
    name: Option<&str>,
) -> anyhow::Result<f64> {
    let before = stage.watched().cpu();
    let followed = follow(stage.database.clone(), expected.len(), bench.plan.patience, |_| {});
    let followed = tokio::spawn(followed);
    stage.start_worker(bench).await;
    let samples = followed.await??;
    if let Some(name) = name {
        bench.report.cpu(name, expected.len(), used(&before, &stage.watched().cpu()));
    }
    Ok(storing_rate(&samples))
}

async fn ceiling(bench: &mut Bench, stage: &mut Stage, stored: f64) -> anyhow::Result<()> {
    bench.say(&format!("{PHASE}: raw transactions of the same documents"));
    stage.workers.clear();
    let batches = Batches::read(&stage.database.0, CONTACTS).await?;
    let fresh = stage.database.0.client().database(&format!("{}_raw", stage.place.name));
    let events = batches.events();
    let before = stage.watched().cpu();
    let raw = rate(events, batches.write(&fresh).await?);
    bench.report.cpu("raw transactions", events, used(&before, &stage.watched().cpu()));
    fresh.drop().await?;
    bench.say(&format!("  {}/s", grouped(raw)));
    bench.report.add(PHASE, "raw transactions of the same", raw, Unit::PerSecond);
    bench.ceilings.transactions = Some(raw);
    let share = 100.0 * stored / raw;
    bench.report.aim(PHASE, "worker, of raw transactions", share, Unit::Percent, Aim::AtLeast(70.0));
    Ok(())
}
