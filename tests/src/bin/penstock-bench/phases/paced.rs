//! Everything running at a calm rate: how long does a caller wait, how old is an event when others can see
//! it, and what does it cost? Replies are compared with bare publishing at the same rate.

use std::time::Duration;

use crate::age::Watch;
use crate::bench::{Bench, CONTACTS};
use crate::check::Expected;
use crate::load::{Generator, Load, Sent};
use crate::number::{grouped, percentiles};
use crate::report::Aim;
use crate::stage::{CEILING_TENANT, Stage};

const PHASE: &str = "paced";
/// Events per second; the last rate has aims.
const RATES: [u64; 2] = [100, 1000];
/// How much longer a reply may take than a bare confirm.
const REPLY_FACTOR: f64 = 4.0;
/// How old an event may be, in milliseconds after the reply.
const AGE: f64 = 100.0;

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let mut stage = Stage::start(bench, &[]).await?;
    let (raw, queues) = stage.raw_generator(bench, CEILING_TENANT).await?;
    let mut confirms = Vec::new();
    for rate in RATES {
        bench.say(&format!("{PHASE}: bare publishing, {}/s", grouped(rate as f64)));
        let (load, warm) = open(bench, &raw, rate).await?;
        confirms.push(show(bench, rate, "bare publish", load.after(warm).map(Sent::reply_time), None));
        queues.purge().await?;
    }
    stage.start_worker(bench).await;
    let (generator, mut expected) = (stage.generator(bench, CONTACTS)?, Expected::default());
    for (rate, confirm_p99) in RATES.into_iter().zip(confirms) {
        bench.say(&format!("{PHASE}: ingest and one worker, {}/s", grouped(rate as f64)));
        let meter = stage.meter();
        let (load, warm) = open(bench, &generator, rate).await?;
        bench.report.add_cpu(&format!("{PHASE}, {}/s", grouped(rate as f64)), load.accepted(), &meter.used());
        expected.add(&load);
        let aim = |bound| (Some(rate) == RATES.last().copied()).then_some(Aim::AtMost(bound));
        show(bench, rate, "reply", load.after(warm).map(Sent::reply_time), aim(REPLY_FACTOR * confirm_p99));
        let watch = Watch::start(&stage.database).await?;
        let (load, warm) = open(bench, &generator, rate).await?;
        expected.add(&load);
        show(bench, rate, "event age, from the reply", watch.ages(&load, warm).await?.into_iter(), aim(AGE));
    }
    bench.check(PHASE, &stage, &expected).await;
    stage.remove().await
}

/// An open loop at this rate. Also gives the time at its beginning that isn't measured.
async fn open(bench: &mut Bench, generator: &Generator, rate: u64) -> anyhow::Result<(Load, Duration)> {
    let [warm, measured] = [(4, 1), (20, 3)]
        .map(|(full, quick)| bench.size(Duration::from_secs(full), Duration::from_secs(quick)));
    let load = generator.open(rate, warm + measured).await?;
    bench.note_oddities(&format!("{PHASE}, {}/s", grouped(rate as f64)), &load);
    Ok((load, warm))
}

/// Half and 99 % of these times into the report; the latter may have an aim. Gives it.
fn show(
    bench: &mut Bench,
    rate: u64,
    what: &str,
    times: impl Iterator<Item = Duration>,
    aim: Option<Aim>,
) -> f64 {
    let [p50, p99] = percentiles(times, [50.0, 99.0]);
    for (which, value, aim) in [("p50", p50, None), ("p99", p99, aim)] {
        bench.add(PHASE, &format!("{}/s: {what}, {which}", grouped(rate as f64)), value, " ms", aim);
    }
    p99
}
