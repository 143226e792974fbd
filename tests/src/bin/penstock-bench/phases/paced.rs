//! Everything running at a steady rate: how long does a caller wait, and how old is an event when others can see it?

use crate::age::Watch;
use crate::bench::{Bench, CONTACTS};
use crate::check::Expected;
use crate::number::{float, grouped, short};
use crate::pace::Pace;
use crate::processes::used;
use crate::report::{Aim, Curve, Unit};
use crate::stage::Stage;
use crate::tally::{Tally, longest, percentile};

const PHASE: &str = "paced";

/// Measures.
pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let (warm, time) = bench.plan.paced;
    let pace = Pace { rate: bench.plan.rate, warm, time };
    let rate = grouped(float(pace.rate));
    bench.say(&format!("{PHASE}: {rate}/s, open loop, {warm:?} to warm up and {time:?}"));
    let mut stage = Stage::start(bench).await;
    stage.start_worker(bench).await;
    let watch = Watch::start(&stage.database).await?;
    let before = stage.watched().cpu();
    let tally = stage.generator(bench, CONTACTS)?.open(pace).await?;
    bench.report.cpu(format!("{PHASE}, {rate}/s"), tally.accepted(), used(&before, &stage.watched().cpu()));
    bench.tell(PHASE, "ingest", &tally);
    let mut expected = Expected::default();
    expected.add(&tally);
    replies(bench, &tally);
    let ages = watch.ages(&tally, bench.plan.patience).await?;
    age(bench, &ages);
    bench.report.curves = vec![
        Curve { name: "reply, uncorrected", times: tally.uncorrected },
        Curve { name: "reply, corrected", times: tally.corrected },
        Curve { name: "from the reply to being visible in MongoDB", times: ages },
    ];
    bench.check(PHASE, &stage, &expected).await;
    stage.remove().await
}

/// Reply times into the report.
pub fn replies(bench: &mut Bench, tally: &Tally) {
    let times = [50.0, 99.0, 99.9].map(|percent| percentile(&tally.corrected, percent));
    let aims = [Some(Aim::AtMost(2.0)), Some(Aim::AtMost(10.0)), None];
    for ((name, ms), aim) in ["reply p50", "reply p99", "reply p99.9"].iter().zip(times).zip(aims) {
        match aim {
            Some(aim) => bench.report.aim(PHASE, *name, ms, Unit::Milliseconds, aim),
            None => bench.report.add(PHASE, *name, ms, Unit::Milliseconds),
        }
    }
    bench.report.add(PHASE, "reply, slowest", longest(&tally.corrected), Unit::Milliseconds);
    let uncorrected = percentile(&tally.uncorrected, 99.0);
    bench.report.add(PHASE, "reply p99, uncorrected", uncorrected, Unit::Milliseconds);
    let late = percentile(&tally.late, 99.0);
    bench.report.add(PHASE, "sent late by p99 (the generator's own)", late, Unit::Milliseconds);
    let [p50, p99, p999] = times.map(short);
    bench.say(&format!(
        "  replies: p50 {p50} ms, p99 {p99} ms, p99.9 {p999} ms; sent late by p99 {} ms",
        short(late)
    ));
}

fn age(bench: &mut Bench, ages: &hdrhistogram::Histogram<u64>) {
    let (p50, p99) = (percentile(ages, 50.0), percentile(ages, 99.0));
    bench.report.add(PHASE, "event age p50", p50, Unit::Milliseconds);
    bench.report.aim(PHASE, "event age p99", p99, Unit::Milliseconds, Aim::AtMost(100.0));
    bench.report.add(PHASE, "event age, oldest", longest(ages), Unit::Milliseconds);
    let [p50, p99, oldest] = [p50, p99, longest(ages)].map(short);
    bench.say(&format!("  event age: p50 {p50} ms, p99 {p99} ms, oldest {oldest} ms"));
}
