//! Backlogs of other shapes: a few contacts that everything is about, and very many; and several workers at one backlog, whose
//! batches have conversations in common.

use crate::bench::{Bench, CONTACTS};
use crate::number::{float, grouped};
use crate::phases::drain::{drain, pile_up};
use crate::report::Unit;
use crate::stage::Stage;

const PHASE: &str = "shapes";
/// Name, contacts, workers.
const SHAPES: [(&str, u64, usize); 4] =
    [("hot", 10, 1), ("wide", 100_000, 1), ("two workers", CONTACTS, 2), ("four workers", CONTACTS, 4)];

/// Measures.
pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    for (name, contacts, workers) in SHAPES {
        let (events, many) = (bench.plan.shape, grouped(float(contacts)));
        bench.say(&format!("{PHASE}: {name}, {} events of {many} contacts", grouped(float(events))));
        let mut stage = Stage::start(bench).await;
        let expected = pile_up(bench, &stage, contacts, events).await?;
        let stored = drain(bench, &mut stage, &expected, workers, None).await?;
        bench.say(&format!("  {}/s", grouped(stored)));
        let figure = format!("{name} ({many} contacts), stored");
        bench.report.add(PHASE, figure, stored, Unit::PerSecond);
        bench.check(PHASE, &stage, &expected).await;
        stage.remove().await?;
    }
    Ok(())
}
