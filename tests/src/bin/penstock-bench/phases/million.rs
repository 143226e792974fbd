//! A million events wait, then are stored: is memory bounded, and does an event cost more when there are
//! many?

use std::time::{Duration, Instant};

use anyhow::ensure;
use mongodb::bson::doc;
use tokio::time::sleep;

use crate::bench::{AT_ONCE, Bench, CONTACTS};
use crate::check::Expected;
use crate::number::{grouped, rate};
use crate::processes::{cpu_seconds, mongod, peak_memory};
use crate::report::Aim;
use crate::stage::{STORING, Stage, TENANT};

const PHASE: &str = "million";
/// Messages in flight when publishing past ingest.
const IN_FLIGHT: usize = 256;
/// How often MongoDB is asked whether the end of a slice has come.
const INTERVAL: Duration = Duration::from_millis(20);

/// What was used up to a moment.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    stored: u64,
    cpu: f64,
}

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let events = bench.size(1_000_000, 20_000);
    bench.say(&format!("{PHASE}: {} events wait, then one worker stores them", grouped(events as f64)));
    let mut stage = Stage::start(bench, &[]).await?;
    let expected = pile_up(bench, &stage, events).await?;
    stage.start_worker(bench).await;
    let (begun, early_end, late) = bench.size((10_000, 210_000, 200_000), (2_000, 8_000, 6_000));
    let mut marks = Vec::new();
    for bound in [begun, early_end, expected.len().saturating_sub(late), expected.len()] {
        marks.push(mark(&stage, bound).await?);
    }
    bench.add(
        PHASE,
        &format!("one worker stores {}", grouped(events as f64)),
        speed(&marks[0], &marks[3]),
        "/s",
        None,
    );
    for (what, early, late) in [
        ("time", 1.0 / speed(&marks[0], &marks[1]), 1.0 / speed(&marks[2], &marks[3])),
        ("CPU of worker and mongod", cpu_cost(&marks[0], &marks[1]), cpu_cost(&marks[2], &marks[3])),
    ] {
        let name = format!("{what} per event, at the end against after {}", grouped(begun as f64));
        bench.add(PHASE, &name, late / early, "×", Some(Aim::AtMost(1.3)));
    }
    memory(bench, &stage);
    bench.check(PHASE, &stage, &expected).await;
    disk(bench, &stage, expected.len()).await?;
    stage.remove().await
}

/// Through ingest as long as that takes no longer than the rest, which goes to RabbitMQ directly.
async fn pile_up(bench: &mut Bench, stage: &Stage, events: u64) -> anyhow::Result<Expected> {
    let time = bench.size(Duration::from_secs(100), Duration::from_secs(4));
    let load = stage.generator(bench, CONTACTS)?.closed(AT_ONCE, time, events).await?;
    bench.note_oddities(PHASE, &load);
    let mut expected = Expected::default();
    expected.add(&load);
    let rest = events.saturating_sub(load.accepted());
    let (raw, _) = stage.raw_generator(bench, TENANT).await?;
    expected.add(&raw.closed(IN_FLIGHT, STORING, rest).await?);
    Ok(expected)
}

/// Marks the moment when this many are stored. MongoDB writes much of its work to disk up to a minute later:
/// a checkpoint comes first, so that each slice bears its own.
async fn mark(stage: &Stage, bound: u64) -> anyhow::Result<Mark> {
    let deadline = Instant::now() + STORING;
    while stage.stored().await? < bound {
        ensure!(Instant::now() < deadline, "after {STORING:?} less than {bound} events are stored");
        sleep(INTERVAL).await;
    }
    stage.checkpoint().await?;
    let worker = stage.workers.iter().map(|worker| worker.process.pid());
    let cpu = worker.chain([mongod()]).map(cpu_seconds).sum();
    Ok(Mark { at: Instant::now(), stored: stage.stored().await?, cpu })
}

/// Events stored per second between two moments.
fn speed(first: &Mark, last: &Mark) -> f64 {
    rate(last.stored.saturating_sub(first.stored), last.at - first.at)
}

/// CPU seconds per event between them.
fn cpu_cost(first: &Mark, last: &Mark) -> f64 {
    (last.cpu - first.cpu) / last.stored.saturating_sub(first.stored) as f64
}

fn memory(bench: &mut Bench, stage: &Stage) {
    let ingest = peak_memory(stage.ingest.process.pid());
    bench.add(PHASE, "memory of ingest, peak", ingest, " MiB", Some(Aim::AtMost(64.0)));
    for worker in &stage.workers {
        let peak = peak_memory(worker.process.pid());
        bench.add(PHASE, "memory of the worker, peak", peak, " MiB", Some(Aim::AtMost(128.0)));
    }
}

/// What an event takes on disk, in collections and indexes.
async fn disk(bench: &mut Bench, stage: &Stage, events: u64) -> anyhow::Result<()> {
    // What isn't in a checkpoint has no size yet.
    stage.checkpoint().await?;
    let stats = stage.database.0.run_command(doc! {"dbStats": 1}).await?;
    let bytes = stats.get_f64("storageSize")? + stats.get_f64("indexSize")?;
    bench.add(PHASE, "disk per event, collections and indexes", bytes / events as f64, " bytes", None);
    Ok(())
}
