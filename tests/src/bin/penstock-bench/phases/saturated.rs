//! Everything running, as fast as it goes: what is accepted, and what is stored meanwhile?

use std::time::Duration;

use crate::bench::{AT_ONCE, Bench, CONTACTS};
use crate::check::Expected;
use crate::number::{rate, together};
use crate::report::Aim;
use crate::stage::Stage;

const PHASE: &str = "saturated";

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    bench.say(&format!("{PHASE}: ingest and one worker, {AT_ONCE} requests at the same time"));
    let mut stage = Stage::start(bench, &[]).await?;
    stage.start_worker(bench).await;
    let (generator, meter) = (stage.generator(bench, CONTACTS)?, stage.meter());
    let time = bench.size(Duration::from_secs(20), Duration::from_secs(2));
    let load = generator.closed(AT_ONCE, time, u64::MAX).await?;
    let stored = rate(stage.stored().await?, load.took);
    bench.report.add_cpu(PHASE, load.accepted(), &meter.used());
    bench.note_oddities(PHASE, &load);
    bench.add(PHASE, "accepted", load.rate(), "/s", None);
    bench.add(PHASE, "stored meanwhile", stored, "/s", None);
    // Of accepting and draining.
    if bench.ceilings.len() == 3 {
        let ceiling = together(&bench.ceilings);
        bench.add(PHASE, "the three ceilings together", ceiling, "/s", None);
        let (share, aim) = (100.0 * stored / ceiling, Aim::AtLeast(50.0));
        bench.add(PHASE, "stored, of the three ceilings together", share, " %", Some(aim));
    }
    let mut expected = Expected::default();
    expected.add(&load);
    bench.check(PHASE, &stage, &expected).await;
    stage.remove().await
}
