//! What more workers are worth to one tenant with a backlog: each held to a share of a processor, so that the
//! machine doesn't limit them, and then each far from MongoDB.

use std::time::Duration;

use penstock_tests::relay::Fault;
use tokio::time::sleep;

use crate::bench::Bench;
use crate::control_group::ControlGroup;
use crate::report::Aim;
use crate::stage::Stage;

const PHASE: &str = "scale";
const CONVERSATIONS: u64 = 2_000;
/// Twice as many queues as there are workers.
const SETTINGS: [(&str, &str); 1] = [("WEBHOOK_WORKERS", "8")];
/// Of one processor.
const PERCENT: u32 = 12;
/// Half of it each way.
const DISTANCE: Duration = Duration::from_millis(20);

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let is_held = ControlGroup::can_be_made();
    let name = if is_held { "each held to 12 % of a processor" } else { "with the machine as it is" };
    let aims = [1.9, 3.6].map(|aim| is_held.then_some(Aim::AtLeast(aim)));
    compare(bench, name, is_held, Duration::ZERO, aims).await?;
    let name = format!("MongoDB {} ms away", DISTANCE.as_millis());
    compare(bench, &name, false, DISTANCE, [Some(Aim::AtLeast(1.0)); 2]).await
}

async fn compare(
    bench: &mut Bench,
    name: &str,
    is_held: bool,
    distance: Duration,
    aims: [Option<Aim>; 2],
) -> anyhow::Result<()> {
    bench.say(&format!("{PHASE}: one, two and four workers, {name}"));
    let one = measure(bench, 1, is_held, distance).await?;
    bench.add(PHASE, &format!("one worker stores, {name}"), one, "/s", None);
    for ((number, workers), aim) in [("two", 2), ("four", 4)].into_iter().zip(aims) {
        let times = measure(bench, workers, is_held, distance).await? / one;
        bench.add(PHASE, &format!("{number} workers, of one, {name}"), times, "×", aim);
    }
    Ok(())
}

/// Events per second that this many workers store, which have divided the queues among them before.
async fn measure(
    bench: &mut Bench,
    workers: usize,
    is_held: bool,
    distance: Duration,
) -> anyhow::Result<f64> {
    // Dropped after the stage: a group can't be removed before its worker has ended.
    let mut groups = Vec::new();
    let mut stage = Stage::start(bench, &SETTINGS).await?;
    let (relay, uri) = stage.place.mongo_relay().await;
    if !distance.is_zero() {
        relay.set(Fault::Delay(distance / 2));
        stage.place.mongo_uri = uri;
    }
    for _ in 0..workers {
        stage.start_worker(bench).await;
    }
    if is_held {
        for worker in &stage.workers {
            groups.push(ControlGroup::hold(worker.process.pid(), PERCENT)?);
        }
    }
    sleep(bench.size(Duration::from_secs(12), Duration::from_secs(1))).await;
    signal(&stage, "STOP");
    let expected = stage.pile_up(bench, CONVERSATIONS, bench.size(40_000, 1_000)).await?;
    signal(&stage, "CONT");
    let stored = stage.until_stored(expected.len()).await?;
    bench.check(PHASE, &stage, &expected).await;
    stage.remove().await?;
    Ok(stored)
}

/// Stopped workers keep their queues for as long as RabbitMQ's heartbeats allow. So all can begin at once.
fn signal(stage: &Stage, signal: &str) {
    for worker in &stage.workers {
        worker.process.signal(signal);
    }
}
