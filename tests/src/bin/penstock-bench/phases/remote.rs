//! A server that runs already, whatever it is: only what HTTP shows.

use std::time::Duration;

use crate::arguments::Remote;
use crate::bench::{Bench, CONTACTS};
use crate::client::Target;
use crate::generate::{Generator, Limit};
use crate::number::{float, grouped, rate, short};
use crate::pace::Pace;
use crate::report::{Curve, Unit};
use crate::tally::{Tally, longest, percentile};

const PHASE: &str = "remote";

/// Measures: as fast as it can, and at a constant rate.
pub async fn run(bench: &mut Bench, url: &str, remote: &Remote) -> anyhow::Result<()> {
    let maker = bench.maker(CONTACTS, remote.key.as_deref());
    let generator = Generator::new(Target::new(url, &remote.tenant)?, maker);
    let time = Duration::from_secs(remote.seconds);
    bench.say(&format!("{PHASE}: closed loop, {} connections, {time:?}", remote.connections));
    let (tally, took) = generator.closed(remote.connections.into(), Limit::time(time)).await?;
    let accepted = rate(tally.accepted(), took);
    bench.say(&format!("  {}/s", grouped(accepted)));
    bench.report.add(
        PHASE,
        format!("accepted, {} connections", remote.connections),
        accepted,
        Unit::PerSecond,
    );
    bench.tell(PHASE, "closed loop", &tally);
    paced(bench, &generator, Pace { rate: remote.rate, warm: Duration::from_secs(1), time }).await
}

async fn paced(bench: &mut Bench, generator: &Generator, pace: Pace) -> anyhow::Result<()> {
    let name = format!("{}/s", grouped(float(pace.rate)));
    bench.say(&format!("{PHASE}: {name}, open loop, {:?}", pace.time));
    let tally = generator.open(pace).await?;
    let share = 100.0 * float(tally.accepted()) / float(pace.arrivals());
    bench.report.add(PHASE, format!("{name}: accepted, of what was due"), share, Unit::Percent);
    let [p50, p99, p999] = [50.0, 99.0, 99.9].map(|percent| percentile(&tally.corrected, percent));
    for (which, ms) in [("p50", p50), ("p99", p99), ("p99.9", p999), ("slowest", longest(&tally.corrected))] {
        bench.report.add(PHASE, format!("{name}: reply {which}"), ms, Unit::Milliseconds);
    }
    let [p50, p99, p999] = [p50, p99, p999].map(short);
    let late = percentile(&tally.late, 99.0);
    bench.report.add(
        PHASE,
        format!("{name}: sent late by p99 (the generator's own)"),
        late,
        Unit::Milliseconds,
    );
    bench.say(&format!("  accepted {share:.1} %; replies: p50 {p50} ms, p99 {p99} ms, p99.9 {p999} ms"));
    bench.tell(PHASE, &name, &tally);
    draw(bench, tally);
    Ok(())
}

fn draw(bench: &mut Bench, tally: Tally) {
    bench.report.curves = vec![
        Curve { name: "reply, uncorrected", times: tally.uncorrected },
        Curve { name: "reply, corrected", times: tally.corrected },
    ];
}
