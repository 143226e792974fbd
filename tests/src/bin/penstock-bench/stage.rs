//! Where a phase takes place: a virtual host, databases, an ingest, and mostly a worker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use mongodb::bson::{Bson, Document, doc};
use penstock_tests::database::Database;
use penstock_tests::http::metric;
use penstock_tests::process::{Ingest, Worker};
use penstock_tests::stack::Place;
use tokio::time::sleep;

use crate::bench::{AT_ONCE, Bench, CONTACTS};
use crate::check::Expected;
use crate::client::HttpTarget;
use crate::load::{Generator, Target};
use crate::number::rate;
use crate::processes::Meter;
use crate::raw_publish::RawPublisher;

/// The tenant.
pub const TENANT: &str = "faster";
/// Lives beside the real tenant, with queues like theirs.
pub const CEILING_TENANT: &str = "ceiling";
/// The key that events are signed with.
const KEY: &str = "uFAxofi8EllW61wAk/mYmahz7bPOhnIeu+FIbnpxIG0=";
/// How often MongoDB is asked how much it has.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// Longest time for a backlog to be stored: three times what a million takes on two idle cores.
pub const STORING: Duration = Duration::from_mins(6);
/// Longest time to post a backlog.
const PILE_UP: Duration = Duration::from_mins(1);

/// Where a phase takes place. Its processes are killed when it is dropped.
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
    own: &'static [(&'static str, &'static str)],
}

impl Stage {
    /// With an ingest alone; with these settings for it and for the workers.
    pub async fn start(bench: &Bench, own: &'static [(&'static str, &'static str)]) -> anyhow::Result<Self> {
        let place = Place::new().await;
        let ingest = [("RUST_LOG", "warn,ingest=info"), ("SIGNING_KEYS", KEY)];
        let ingest = Ingest::start(&place, &settings(bench, &ingest, own)).await;
        let database = Database::of(&place, TENANT).await;
        let stage = Self { place, database, ingest, workers: Vec::new(), own };
        // Or this phase would bear the writing of what the one before has stored.
        stage.checkpoint().await?;
        Ok(stage)
    }

    /// Adds a worker.
    pub async fn start_worker(&mut self, bench: &Bench) {
        let settings = settings(bench, &[("RUST_LOG", "warn,worker=info")], self.own);
        self.workers.push(Worker::start(&self.place, &settings).await);
    }

    /// Sends signed events about this many contacts to ingest.
    pub fn generator(&self, bench: &Bench, contacts: u64) -> anyhow::Result<Generator> {
        let target = Target::Http(Arc::new(HttpTarget::new(&self.ingest.url)?));
        Ok(Generator { target, maker: bench.maker(contacts, Some(KEY)) })
    }

    /// Publishes events of a tenant past ingest.
    pub async fn raw_generator(
        &self,
        bench: &Bench,
        tenant: &str,
    ) -> anyhow::Result<(Generator, Arc<RawPublisher>)> {
        let rabbitmq = Arc::new(RawPublisher::connect(&self.place.amqp_url, tenant).await?);
        let target = Target::Raw(rabbitmq.clone());
        Ok((Generator { target, maker: bench.maker(CONTACTS, None) }, rabbitmq))
    }

    /// Posts a backlog to ingest as fast as it takes it.
    pub async fn pile_up(&self, bench: &mut Bench, contacts: u64, events: u64) -> anyhow::Result<Expected> {
        let load = self.generator(bench, contacts)?.closed(AT_ONCE, PILE_UP, events).await?;
        bench.note_oddities("backlog", &load);
        let mut expected = Expected::default();
        expected.add(&load);
        Ok(expected)
    }

    /// Measures what is at work here.
    pub fn meter(&self) -> Meter {
        let workers = self.workers.iter().map(|worker| ("worker", worker.process.pid()));
        Meter::start([("ingest", self.ingest.process.pid())].into_iter().chain(workers).collect())
    }

    /// Events in the ledger, by what MongoDB knows without counting. It includes what is inserted and not
    /// committed yet, up to a batch of each queue.
    pub async fn stored(&self) -> anyhow::Result<u64> {
        Ok(self.database.0.collection::<Document>("webhook_events").estimated_document_count().await?)
    }

    /// Waits until this many events are stored. Returns the rate since the first of them, per second.
    pub async fn until_stored(&self, events: u64) -> anyhow::Result<f64> {
        let (deadline, mut first) = (Instant::now() + STORING, None);
        loop {
            let (stored, now) = (self.stored().await?, Instant::now());
            if stored > 0 {
                first.get_or_insert((stored, now));
            }
            if stored >= events {
                // It ends, since MongoDB aborts a transaction after a minute.
                while !self.is_committed().await? {
                    sleep(SAMPLE_INTERVAL).await;
                }
                return Ok(first.map_or(0.0, |(before, since)| rate(stored - before, since.elapsed())));
            }
            ensure!(now < deadline, "after {STORING:?} only {stored} of {events} events are stored");
            sleep(SAMPLE_INTERVAL).await;
        }
    }

    /// Whether no transaction is open on the whole server, which nobody else uses.
    async fn is_committed(&self) -> anyhow::Result<bool> {
        let sections = doc! {"serverStatus": 1, "metrics": 0, "wiredTiger": 0, "locks": 0, "tcmalloc": 0};
        let status = self.database.0.client().database("admin").run_command(sections).await?;
        let open = status.get_document("transactions")?.get("currentOpen").cloned();
        Ok(matches!(open, Some(Bson::Int32(0) | Bson::Int64(0))))
    }

    /// Has MongoDB write to its files what is only in its cache and journal.
    pub async fn checkpoint(&self) -> anyhow::Result<()> {
        self.database.0.client().database("admin").run_command(doc! {"fsync": 1}).await?;
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

/// Settings of a process; what comes later wins.
fn settings<'a>(
    bench: &'a Bench,
    common: &[(&'a str, &'a str)],
    own: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let asked_for = bench.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    common.iter().chain(own).copied().chain(asked_for).collect()
}
