//! A server that runs already, of which only HTTP is known: what it accepts as fast as it goes, and how long
//! replies take at a calm rate.

use std::sync::Arc;
use std::time::Duration;

use crate::bench::{AT_ONCE, Bench, CONTACTS};
use crate::client::HttpTarget;
use crate::load::{Generator, Sent, Target};
use crate::number::percentiles;

const PHASE: &str = "remote";
/// Events per second of the calm rate.
const RATE: u64 = 100;

pub async fn run(bench: &mut Bench, url: &str) -> anyhow::Result<()> {
    bench.say(&format!("{PHASE}: {url}"));
    let target = Target::Http(Arc::new(HttpTarget::new(url)?));
    let generator = Generator { target, maker: bench.maker(CONTACTS, None) };
    let time = bench.size(Duration::from_secs(10), Duration::from_secs(1));
    let load = generator.closed(AT_ONCE, time, u64::MAX).await?;
    bench.note_oddities(PHASE, &load);
    bench.add(PHASE, &format!("accepted, {AT_ONCE} requests at the same time"), load.rate(), "/s", None);
    let load = generator.open(RATE, time).await?;
    bench.note_oddities(PHASE, &load);
    let share = 100.0 * load.accepted() as f64 / load.sent.len() as f64;
    bench.add(PHASE, &format!("{RATE}/s: accepted, of what was due"), share, " %", None);
    let [p50, p99] = percentiles(load.sent.iter().map(Sent::reply_time), [50.0, 99.0]);
    bench.add(PHASE, &format!("{RATE}/s: reply, p50"), p50, " ms", None);
    bench.add(PHASE, &format!("{RATE}/s: reply, p99"), p99, " ms", None);
    Ok(())
}
