//! Where a phase takes place: a virtual host, databases, an ingest, and mostly a worker.

use std::time::{Duration, Instant};

use anyhow::bail;
use mongodb::bson::{Bson, Document, doc};
use penstock_tests::database::Database;
use penstock_tests::http::metric;
use penstock_tests::process::{Ingest, Worker};
use penstock_tests::stack::Place;
use tokio::time::sleep;

use crate::bench::Bench;
use crate::client::Target;
use crate::generate::Generator;
use crate::number::rate;
use crate::processes::Watched;

/// The tenant.
pub const TENANT: &str = "faster";
/// The key that events are signed with.
const KEY: &str = "uFAxofi8EllW61wAk/mYmahz7bPOhnIeu+FIbnpxIG0=";
/// How often MongoDB is asked how much it has.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

/// Where a phase takes place. Killed when dropped.
#[derive(Debug)]
pub struct Stage {
    /// Names on the servers.
    pub place: Place,
    /// What is stored.
    pub database: Database,
    /// The ingest.
    pub ingest: Ingest,
    /// The workers so far.
    pub workers: Vec<Worker>,
    settings: &'static [(&'static str, &'static str)],
}

/// How much was stored at a time.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// Events in the ledger.
    pub stored: u64,
}

impl Stage {
    /// With an ingest alone.
    pub async fn start(bench: &Bench) -> Self {
        Self::start_with(bench, &[]).await
    }

    /// With an ingest alone, and settings for it and for the workers.
    pub async fn start_with(bench: &Bench, own: &'static [(&'static str, &'static str)]) -> Self {
        let place = Place::new().await;
        let mut settings = vec![("RUST_LOG", "warn,ingest=info"), ("SIGNING_KEYS", KEY)];
        settings.extend(own);
        settings.extend(bench.settings());
        let ingest = Ingest::start(&place, &settings).await;
        let database = Database::of(&place, TENANT).await;
        // Or this phase would bear the writing of what the one before has stored.
        checkpoint(&database).await.expect("MongoDB makes a checkpoint");
        Self { place, database, ingest, workers: Vec::new(), settings: own }
    }

    /// Adds a worker.
    pub async fn start_worker(&mut self, bench: &Bench) {
        let mut settings = vec![("RUST_LOG", "warn,worker=info")];
        settings.extend(self.settings);
        settings.extend(bench.settings());
        self.workers.push(Worker::start(&self.place, &settings).await);
    }

    /// Sends signed events of so many contacts to the ingest.
    pub fn generator(&self, bench: &Bench, contacts: u64) -> anyhow::Result<Generator> {
        Ok(Generator::new(Target::new(&self.ingest.url, TENANT)?, bench.maker(contacts, Some(KEY))))
    }

    /// What is at work here.
    pub fn watched(&self) -> Watched {
        let watched = Watched::new().and("ingest", self.ingest.process.pid());
        self.workers.iter().fold(watched, |watched, worker| watched.and("worker", worker.process.pid()))
    }

    /// Events in the ledger, and in transactions on their way there: see [`stored`].
    pub async fn stored(&self) -> anyhow::Result<u64> {
        stored(&self.database).await
    }

    /// Waits until so many events are stored.
    pub async fn until_stored(&self, events: u64, patience: Duration) -> anyhow::Result<()> {
        follow(self.database.clone(), events, patience, |_| {}).await?;
        Ok(())
    }

    /// Events that RabbitMQ was too slow for, so that they went through the spool.
    pub async fn spooled(&self) -> f64 {
        let labels = [("tenant", TENANT), ("via", "spool")];
        metric(&self.ingest.admin, "ingest_accepted_total", &labels).await.unwrap_or_default()
    }

    /// Gives everything back.
    pub async fn remove(self) -> anyhow::Result<()> {
        let Self { place, database, ingest, workers, .. } = self;
        drop((ingest, workers));
        place.remove().await;
        database.0.drop().await?;
        Ok(())
    }
}

/// Has MongoDB write to its files what is only in its cache and journal.
pub async fn checkpoint(database: &Database) -> anyhow::Result<()> {
    database.0.client().database("admin").run_command(doc! {"fsync": 1}).await?;
    Ok(())
}

/// What the server knows without counting. It counts what is inserted, though nobody can see it before the commit: so
/// it may be ahead by a batch of each lane.
pub async fn stored(database: &Database) -> anyhow::Result<u64> {
    Ok(database.0.collection::<Document>("webhook_events").estimated_document_count().await?)
}

/// Whether no transaction is open on the whole server, which nobody else uses.
async fn is_committed(database: &Database) -> anyhow::Result<bool> {
    let sections = doc! {"serverStatus": 1, "metrics": 0, "wiredTiger": 0, "locks": 0, "tcmalloc": 0};
    let status = database.0.client().database("admin").run_command(sections).await?;
    let open = status.get_document("transactions")?.get("currentOpen").cloned();
    Ok(matches!(open, Some(Bson::Int32(0) | Bson::Int64(0))))
}

/// Watches the ledger fill until it has so many events, all committed, and calls `each` every time.
pub async fn follow(
    database: Database,
    events: u64,
    patience: Duration,
    mut each: impl FnMut(Sample),
) -> anyhow::Result<Vec<Sample>> {
    let (deadline, mut samples) = (Instant::now() + patience, Vec::new());
    loop {
        let stored = stored(&database).await?;
        let is_done = stored >= events && is_committed(&database).await?;
        let sample = Sample { at: Instant::now(), stored };
        samples.push(sample);
        each(sample);
        if is_done {
            return Ok(samples);
        }
        if sample.at > deadline {
            bail!("after {patience:?} only {stored} of {events} events are stored");
        }
        sleep(SAMPLE_INTERVAL).await;
    }
}

/// Events per second, from the first that was seen stored to the last.
pub fn storing_rate(samples: &[Sample]) -> f64 {
    let Some(first) = samples.iter().find(|sample| sample.stored > 0) else { return 0.0 };
    let Some(last) = samples.last().filter(|last| last.at > first.at) else { return 0.0 };
    rate(last.stored - first.stored, last.at - first.at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storing_begins_with_the_first_event() {
        let begin = Instant::now();
        let sample = |ms, stored| Sample { at: begin + Duration::from_millis(ms), stored };
        let samples = [sample(0, 0), sample(500, 100), sample(1500, 1100)];
        assert!((storing_rate(&samples) - 1000.0).abs() < 1e-6);
        assert!(storing_rate(&samples[..2]) < 1e-6);
    }
}
