//! Backlogs of other shapes: a few contacts that everything is about, and very many.

use crate::bench::Bench;
use crate::number::{float, grouped};
use crate::phases::drain::{drain, pile_up};
use crate::report::Unit;
use crate::stage::Stage;

const PHASE: &str = "shapes";
/// Name, contacts.
const SHAPES: [(&str, u64); 2] = [("hot", 10), ("wide", 100_000)];

/// Measures.
pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    for (name, contacts) in SHAPES {
        let (events, many) = (bench.plan.shape, grouped(float(contacts)));
        bench.say(&format!("{PHASE}: {name}, {} events of {many} contacts", grouped(float(events))));
        let mut stage = Stage::start(bench).await;
        let expected = pile_up(bench, &stage, contacts, events).await?;
        let stored = drain(bench, &mut stage, &expected, None).await?;
        bench.say(&format!("  {}/s", grouped(stored)));
        let figure = format!("{name} ({many} contacts), stored");
        bench.report.add(PHASE, figure, stored, Unit::PerSecond);
        bench.check(PHASE, &stage, &expected).await;
        stage.remove().await?;
    }
    Ok(())
}
