//! How fast one worker stores a backlog, next to raw transactions of the same documents.

use crate::bench::{Bench, CONTACTS};
use crate::check::Expected;
use crate::number::rate;
use crate::raw_store::Batches;
use crate::report::Aim;
use crate::stage::Stage;

const PHASE: &str = "drain";

/// Drains what accepting has left behind, or else a backlog of its own.
pub async fn run(bench: &mut Bench, left: Option<(Stage, Expected)>) -> anyhow::Result<()> {
    bench.say(&format!("{PHASE}: one worker, then raw transactions"));
    let (mut stage, expected) = match left {
        Some(left) => left,
        None => {
            let stage = Stage::start(bench, &[]).await?;
            let expected = stage.pile_up(bench, CONTACTS, bench.size(100_000, 10_000)).await?;
            (stage, expected)
        }
    };
    stage.start_worker(bench).await;
    let meter = stage.meter();
    let stored = stage.until_stored(expected.len()).await?;
    bench.report.add_cpu(PHASE, expected.len(), &meter.used());
    bench.add(PHASE, "one worker stores", stored, "/s", None);
    bench.check(PHASE, &stage, &expected).await;
    stage.workers.clear();
    let raw = raw_transactions(&stage).await?;
    bench.ceilings.push(raw);
    bench.add(PHASE, "raw transactions of the same", raw, "/s", None);
    let share = 100.0 * stored / raw;
    bench.add(PHASE, "worker, of raw transactions", share, " %", Some(Aim::AtLeast(70.0)));
    stage.remove().await
}

/// Events per second.
async fn raw_transactions(stage: &Stage) -> anyhow::Result<f64> {
    let batches = Batches::read(&stage.database.0).await?;
    let fresh = stage.database.0.client().database(&format!("{}_raw", stage.place.name));
    let written = rate(batches.events, batches.write(&fresh).await?);
    fresh.drop().await?;
    Ok(written)
}
