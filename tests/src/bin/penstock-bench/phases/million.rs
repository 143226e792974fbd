//! A million events wait, and then are stored: does memory stay bounded, and does an event cost more when there are many?

use std::time::{Duration, Instant};

use mongodb::bson::doc;
use penstock_tests::database::Database;
use tokio::time::sleep;

use crate::bench::{Bench, CONNECTIONS, CONTACTS};
use crate::check::Expected;
use crate::generate::Limit;
use crate::number::{float, grouped, rate};
use crate::processes::{memory, mongod, seconds};
use crate::raw_publish::RawPublisher;
use crate::report::{Aim, Unit};
use crate::stage::{Sample, Stage, TENANT, checkpoint, follow, stored, storing_rate};

const PHASE: &str = "million";
/// Messages in flight when publishing past ingest.
const IN_FLIGHT: usize = 256;
/// Events between two lines of progress.
const PROGRESS: u64 = 100_000;
/// How often MongoDB is asked whether the end of a slice has come.
const INTERVAL: Duration = Duration::from_millis(20);

/// What was used up to a moment of the drain, when MongoDB had just written all that it puts off.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    stored: u64,
    cpu: f64,
}

/// What was seen of the drain.
#[derive(Debug)]
struct Drain {
    /// At the bounds of the slices that are compared.
    marks: Vec<Mark>,
    samples: Vec<Sample>,
    /// Memory of the worker, in MiB.
    resident: Vec<f64>,
}

/// Measures.
pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let mut stage = Stage::start(bench).await;
    let expected = pile_up(bench, &stage).await?;
    ingest_memory(bench, &stage);
    let drain = drain(bench, &mut stage, expected.len()).await?;
    compare(bench, &drain);
    worker_memory(bench, &stage, drain.resident);
    bench.check(PHASE, &stage, &expected).await;
    disk(bench, &stage, expected.len()).await?;
    stage.remove().await
}

/// What an event takes on disk, in collections and indexes.
async fn disk(bench: &mut Bench, stage: &Stage, events: u64) -> anyhow::Result<()> {
    // What isn't in a checkpoint has no size yet.
    checkpoint(&stage.database).await?;
    let stats = stage.database.0.run_command(doc! {"dbStats": 1}).await?;
    for (what, field) in [("collections", "storageSize"), ("indexes", "indexSize")] {
        let bytes = stats.get_f64(field)? / float(events);
        bench.report.add(PHASE, format!("disk per event, {what}"), bytes, Unit::Bytes);
    }
    Ok(())
}

async fn pile_up(bench: &mut Bench, stage: &Stage) -> anyhow::Result<Expected> {
    let events = bench.plan.million;
    bench.say(&format!("{PHASE}: publishing {} events", grouped(float(events))));
    let generator = stage.generator(bench, CONTACTS)?;
    let limit = Limit { time: bench.plan.million_publish, events };
    let (tally, took) = generator.closed(CONNECTIONS, limit).await?;
    bench.tell(PHASE, "ingest", &tally);
    bench.say(&format!(
        "  {} through ingest, {}/s",
        grouped(float(tally.accepted())),
        grouped(rate(tally.accepted(), took))
    ));
    let mut expected = Expected::default();
    expected.add(&tally);
    let rest = events.saturating_sub(tally.accepted());
    if rest > 0 {
        // Just as ingest does, only faster.
        let raw = RawPublisher::connect(&stage.place.amqp_url, TENANT).await?;
        let limit = Limit { time: bench.plan.patience, events: rest };
        let (confirmed, _) = raw.publish(&bench.maker(CONTACTS, None), IN_FLIGHT, limit).await?;
        bench.say(&format!("  {} past ingest, for lack of time", grouped(float(confirmed.len() as u64))));
        expected.accepted.extend(confirmed);
    }
    Ok(expected)
}

fn ingest_memory(bench: &mut Bench, stage: &Stage) {
    let (now, peak) = memory(stage.ingest.process.pid());
    bench.say(&format!("  ingest: {now:.0} MiB resident, at most {peak:.0} MiB"));
    bench.report.aim(PHASE, "memory of ingest, peak", peak, Unit::Mebibytes, Aim::AtMost(64.0));
}

async fn drain(bench: &mut Bench, stage: &mut Stage, events: u64) -> anyhow::Result<Drain> {
    bench.say(&format!("{PHASE}: one worker stores them"));
    stage.start_worker(bench).await;
    let worker = stage.workers.first().map_or(0, |worker| worker.process.pid());
    let (from, to, last) = bench.plan.slices;
    let bounds = vec![from, to, events.saturating_sub(last)];
    let marking = tokio::spawn(mark(stage.database.clone(), worker, bounds));
    let (mut resident, mut told) = (Vec::new(), 0);
    let samples = follow(stage.database.clone(), events, bench.plan.patience, |sample| {
        resident.push(memory(worker).0);
        if sample.stored >= told + PROGRESS {
            told = sample.stored - sample.stored % PROGRESS;
            bench.say(&format!("  {} stored", grouped(float(told))));
        }
    })
    .await?;
    let mut marks = marking.await??;
    marks.extend(mark(stage.database.clone(), worker, vec![events]).await?);
    Ok(Drain { marks, samples, resident })
}

/// Marks the moments when so many are stored. MongoDB writes much of its work to disk up to a minute later: each slice
/// should bear its own, so a checkpoint comes first.
async fn mark(database: Database, worker: u32, bounds: Vec<u64>) -> anyhow::Result<Vec<Mark>> {
    let mut marks = Vec::new();
    for bound in bounds {
        while stored(&database).await? < bound {
            sleep(INTERVAL).await;
        }
        checkpoint(&database).await?;
        let (at, cpu) = (Instant::now(), seconds(worker) + seconds(mongod()));
        marks.push(Mark { at, stored: stored(&database).await?, cpu });
    }
    Ok(marks)
}

/// Cost of an event between two moments: wall clock and CPU, in seconds.
fn cost(first: &Mark, last: &Mark) -> Option<(f64, f64)> {
    let events = float(last.stored.checked_sub(first.stored)?);
    let time = (last.at - first.at).as_secs_f64();
    (events > 0.0).then(|| (time / events, (last.cpu - first.cpu) / events))
}

fn compare(bench: &mut Bench, drain: &Drain) {
    let all = storing_rate(&drain.samples);
    let events = grouped(float(drain.samples.last().map_or(0, |last| last.stored)));
    bench.report.add(PHASE, format!("one worker stores {events}"), all, Unit::PerSecond);
    let costs = match &drain.marks[..] {
        [from, to, late, end] => cost(from, to).zip(cost(late, end)),
        _ => None,
    };
    let Some(((early_time, early_cpu), (late_time, late_cpu))) = costs else {
        return bench.report.notes.push(format!("{PHASE}: drained too fast to be compared"));
    };
    let (time, cpu) = (late_time / early_time, late_cpu / early_cpu);
    let (from, at_most) = (grouped(float(bench.plan.slices.0)), Aim::AtMost(1.3));
    let name = |what| format!("{what} per event, at the end against after {from}");
    bench.report.aim(PHASE, name("time"), time, Unit::Times, at_most);
    bench.report.aim(PHASE, name("CPU of worker and mongod"), cpu, Unit::Times, at_most);
    bench.say(&format!(
        "  {}/s; per event at the end: {time:.2}× the time, {cpu:.2}× the CPU of the beginning ({:.0} µs)",
        grouped(all),
        early_cpu * 1e6
    ));
}

fn worker_memory(bench: &mut Bench, stage: &Stage, mut resident: Vec<f64>) {
    let Some(worker) = stage.workers.first() else { return };
    let (_, peak) = memory(worker.process.pid());
    resident.sort_by(f64::total_cmp);
    let usual = resident.get(resident.len() / 2).copied().unwrap_or_default();
    bench.say(&format!("  worker: {usual:.0} MiB resident while draining, at most {peak:.0} MiB"));
    bench.report.aim(PHASE, "memory of the worker, peak", peak, Unit::Mebibytes, Aim::AtMost(128.0));
    bench.report.add(PHASE, "memory of the worker, median", usual, Unit::Mebibytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_costs_what_lies_between_its_marks() {
        let begin = Instant::now();
        let mark = |seconds, stored, cpu| Mark { at: begin + Duration::from_secs(seconds), stored, cpu };
        let (time, cpu) = cost(&mark(1, 1000, 2.0), &mark(3, 2000, 2.5)).unwrap();
        assert!((time - 0.002).abs() < 1e-9 && (cpu - 0.0005).abs() < 1e-9);
        assert_eq!(cost(&mark(1, 1000, 2.0), &mark(3, 1000, 2.5)), None);
    }
}
