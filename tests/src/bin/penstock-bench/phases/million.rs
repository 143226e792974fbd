//! A million events wait, and then are stored: does memory stay bounded, and does an event cost more when there are many?

use std::time::Instant;

use mongodb::bson::doc;

use crate::bench::{Bench, CONNECTIONS, CONTACTS};
use crate::check::Expected;
use crate::generate::Limit;
use crate::number::{float, grouped, rate};
use crate::processes::{memory, mongod, seconds};
use crate::raw_publish::RawPublisher;
use crate::report::{Aim, Unit};
use crate::stage::{Stage, TENANT, follow};

const PHASE: &str = "million";
/// Messages in flight when publishing past ingest.
const IN_FLIGHT: usize = 256;
/// Events between two lines of progress.
const PROGRESS: u64 = 100_000;

/// What was used up to a moment of the drain.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    stored: u64,
    cpu: f64,
    resident: f64,
}

/// Measures.
pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let mut stage = Stage::start(bench).await;
    let expected = pile_up(bench, &stage).await?;
    ingest_memory(bench, &stage);
    let marks = drain(bench, &mut stage, expected.len()).await?;
    compare(bench, &marks);
    worker_memory(bench, &stage, &marks);
    bench.check(PHASE, &stage, &expected).await;
    disk(bench, &stage, expected.len()).await?;
    stage.remove().await
}

/// What an event takes on disk, in collections and indexes.
async fn disk(bench: &mut Bench, stage: &Stage, events: u64) -> anyhow::Result<()> {
    // What isn't in a checkpoint has no size yet.
    stage.database.0.client().database("admin").run_command(doc! {"fsync": 1}).await?;
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

async fn drain(bench: &mut Bench, stage: &mut Stage, events: u64) -> anyhow::Result<Vec<Mark>> {
    bench.say(&format!("{PHASE}: one worker stores them"));
    stage.start_worker(bench).await;
    let worker = stage.worker.as_ref().map_or(0, |worker| worker.process.pid());
    let (mongod, mut marks, mut told) = (mongod(), Vec::new(), 0);
    let progress = |bench: &Bench, stored| bench.say(&format!("  {} stored", grouped(float(stored))));
    follow(stage.database.clone(), events, bench.plan.patience, |sample| {
        let cpu = seconds(worker) + seconds(mongod);
        marks.push(Mark { at: sample.at, stored: sample.stored, cpu, resident: memory(worker).0 });
        if sample.stored >= told + PROGRESS {
            told = sample.stored - sample.stored % PROGRESS;
            progress(bench, told);
        }
    })
    .await?;
    Ok(marks)
}

/// Cost of an event in a part of the drain: wall clock and CPU, in seconds.
fn cost(marks: &[Mark], from: u64, to: u64) -> Option<(f64, f64)> {
    let first = marks.iter().find(|mark| mark.stored >= from)?;
    // The last mark alone tells when all was committed.
    let last = marks.last().filter(|last| last.stored == to);
    let last = last.or_else(|| marks.iter().find(|mark| mark.stored >= to))?;
    let events = float(last.stored.checked_sub(first.stored)?);
    let time = (last.at - first.at).as_secs_f64();
    (events > 0.0).then(|| (time / events, (last.cpu - first.cpu) / events))
}

fn compare(bench: &mut Bench, marks: &[Mark]) {
    let (from, to, last) = bench.plan.slices;
    let events = marks.last().map_or(0, |mark| mark.stored);
    let early = cost(marks, from, to);
    let late = cost(marks, events.saturating_sub(last), events);
    let (Some((early_time, early_cpu)), Some((late_time, late_cpu))) = (early, late) else {
        return bench.report.notes.push(format!("{PHASE}: drained too fast to be compared"));
    };
    let report = &mut bench.report;
    let all = cost(marks, 1, events).map_or(0.0, |(time, _)| 1.0 / time);
    report.add(PHASE, format!("one worker stores {}", grouped(float(events))), all, Unit::PerSecond);
    let (time, cpu) = (late_time / early_time, late_cpu / early_cpu);
    let at_most = Aim::AtMost(1.3);
    let name = |what| format!("{what} per event, at the end against after {}", grouped(float(from)));
    report.aim(PHASE, name("time"), time, Unit::Times, at_most);
    report.aim(PHASE, name("CPU of worker and mongod"), cpu, Unit::Times, at_most);
    bench.say(&format!(
        "  {}/s; per event at the end: {time:.2}× the time, {cpu:.2}× the CPU of the beginning",
        grouped(all)
    ));
}

fn worker_memory(bench: &mut Bench, stage: &Stage, marks: &[Mark]) {
    let Some(worker) = &stage.worker else { return };
    let (_, peak) = memory(worker.process.pid());
    let mut resident: Vec<_> = marks.iter().map(|mark| mark.resident).collect();
    resident.sort_by(f64::total_cmp);
    let usual = resident.get(resident.len() / 2).copied().unwrap_or_default();
    bench.say(&format!("  worker: {usual:.0} MiB resident while draining, at most {peak:.0} MiB"));
    bench.report.aim(PHASE, "memory of the worker, peak", peak, Unit::Mebibytes, Aim::AtMost(128.0));
    bench.report.add(PHASE, "memory of the worker, median", usual, Unit::Mebibytes);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_slice_costs_what_lies_between_its_marks() {
        let begin = Instant::now();
        let mark = |seconds, stored, cpu| Mark {
            at: begin + Duration::from_secs(seconds),
            stored,
            cpu,
            resident: 0.0,
        };
        let marks = [mark(0, 0, 1.0), mark(1, 1000, 2.0), mark(3, 2000, 2.5)];
        let (time, cpu) = cost(&marks, 1000, 2000).unwrap();
        assert!((time - 0.002).abs() < 1e-9 && (cpu - 0.0005).abs() < 1e-9);
        assert_eq!(cost(&marks, 1000, 3000), None);
        assert_eq!(cost(&marks, 1500, 2000), None);
    }
}
