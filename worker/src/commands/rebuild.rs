//! `worker rebuild`: a tenant's documents computed anew from its ledger, while workers go on.
//!
//! Each transaction computes all documents that a group of events concerns, so that they are never seen half done, and
//! a worker that writes one of them at the same time makes one of the two start over. What workers store after the
//! ledger was read is applied once more in the end; to apply an event twice changes nothing.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt, stream};
use mongodb::Cursor;
use mongodb::bson::{DateTime, Document, doc};
use mongodb::options::ReadConcern;
use serde::Serialize;
use serde_json::json;
use shared::env::Env;
use shared::telemetry::chain;
use tokio::time::{Instant, sleep, timeout};

use super::groups::Groups;
use super::{CommandError, printable, progress, say};
use crate::attempts::{Attempts, Next};
use crate::decode::Event;
use crate::failure::Failure;
use crate::project::{Wanted, ledger};
use crate::settings::Settings;
use crate::store::Store;
use crate::transaction::{Work, Written};

/// Longest time for one transaction, and for a part of the ledger to be read.
const DEADLINE: Duration = Duration::from_mins(1);
/// So long is tried again while MongoDB fails.
const PATIENCE: Duration = Duration::from_mins(1);
/// Events stored shortly before the ledger was read may have been committed after it. Clocks differ, too.
const MARGIN: Duration = Duration::from_mins(10);
/// While the ledger is read and worked through, it forgets more.
const LONGEST_RUN: Duration = Duration::from_hours(1);

/// What to rebuild.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The tenant
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    /// Only find out what would change
    #[arg(long)]
    dry_run: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Rebuilt {
    tenant: String,
    dry_run: bool,
    /// Events in the ledger that concern documents.
    events: usize,
    /// Entries of the ledger that can't be read.
    unreadable: usize,
    /// Documents that were missing.
    inserted: usize,
    /// Documents that were not as they should be.
    updated: usize,
    failed: Vec<Failed>,
}

/// Events whose documents MongoDB doesn't take.
#[derive(Debug, Serialize)]
struct Failed {
    /// One of them.
    event_key: String,
    events: usize,
    error: String,
}

/// Runs the command.
pub async fn run(arguments: Arguments, env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let Arguments { tenant, dry_run, json } = arguments;
    let mut settings = Settings::read(env)?;
    settings.mongo_timeout = settings.mongo_timeout.max(DEADLINE);
    let known = settings.tenants.iter().find(|known| known.name == tenant).cloned();
    let known = known.ok_or_else(|| CommandError::UnknownTenant(tenant.clone()))?;
    let store = Store::open(&known, &settings).await?;
    if dry_run {
        store.check_replica_set().await?;
    } else {
        store.prepare(settings.event_retention).await?;
    }
    let mut rebuilt = Rebuilt { tenant: tenant.clone(), dry_run, ..Rebuilt::default() };
    Rebuild { tenant, settings, store, dry_run }.run(&mut rebuilt).await?;
    if json {
        say(out, json!(rebuilt))?;
    } else {
        let Rebuilt { tenant, events, unreadable, inserted, updated, .. } = &rebuilt;
        let would = if dry_run { "would be " } else { "" };
        say(
            out,
            format!("{tenant}: {events} events, {inserted} documents {would}added, {updated} {would}changed"),
        )?;
        if *unreadable > 0 {
            say(out, format!("  {unreadable} entries of the ledger can't be read"))?;
        }
        for Failed { event_key, events, error } in &rebuilt.failed {
            say(
                out,
                printable(&format!("  {events} events, {event_key} among them, are left out: {error}")),
            )?;
        }
    }
    match rebuilt.failed.len() {
        0 => Ok(()),
        failed => Err(CommandError::Incomplete(format!("{failed} groups of documents could not be rebuilt"))),
    }
}

struct Rebuild {
    tenant: String,
    settings: Settings,
    store: Store,
    dry_run: bool,
}

impl Rebuild {
    async fn run(&self, rebuilt: &mut Rebuilt) -> Result<(), CommandError> {
        let started = DateTime::now();
        let work = Work::Rebuild { horizon: self.horizon(started).await? };
        let groups = self.read(rebuilt).await?;
        rebuilt.events = groups.events();
        let bar = progress("rebuilding", groups.events() as u64);
        let batches = groups.into_batches(self.settings.batch_size);
        let running = stream::iter(batches).map(|batch| self.batch(batch, work));
        let mut running = running.buffer_unordered(self.settings.lanes);
        while let Some(done) = running.next().await {
            let Done { events, written, failed } = done?;
            bar.inc(events as u64);
            rebuilt.inserted += written.inserted;
            rebuilt.updated += written.updated;
            rebuilt.failed.extend(failed);
        }
        bar.finish_and_clear();
        if !self.dry_run {
            self.catch_up(started, rebuilt).await?;
        }
        Ok(())
    }

    /// The ledger has every event that was stored since then, and will have it until this is done.
    async fn horizon(&self, now: DateTime) -> Result<DateTime, Failure> {
        let oldest = self.ledger(doc! {}, doc! {"stored_at": 1}, Some(doc! {"stored_at": 1})).await?;
        let oldest = Reading(oldest).next().await?;
        let oldest = oldest.and_then(|entry| entry.get_datetime("stored_at").ok().copied());
        let kept = self.settings.event_retention.saturating_sub(LONGEST_RUN);
        Ok(oldest.unwrap_or(now).max(before(now, kept)))
    }

    /// Reads the ledger, to know which events belong together.
    async fn read(&self, rebuilt: &mut Rebuilt) -> Result<Groups, Failure> {
        let count = timeout(DEADLINE, self.store.ledger().estimated_document_count().into_future()).await;
        let bar = progress("reading", count.map_err(|_| Failure::TimedOut(DEADLINE))??);
        let mut entries = Reading(self.ledger(doc! {}, ledger::fields_of_events(), None).await?);
        let mut groups = Groups::default();
        while let Some(entry) = entries.next().await? {
            bar.inc(1);
            match (entry.get_str("_id"), ledger::event(&self.tenant, &entry)) {
                (Ok(id), Some(event)) => {
                    let concerned = Wanted::by(std::slice::from_ref(&event));
                    if concerned.concerns_documents() {
                        groups.add(id.to_owned(), &concerned);
                    }
                }
                _ => rebuilt.unreadable += 1,
            }
        }
        bar.finish_and_clear();
        Ok(groups)
    }

    /// Does the work with each group of a batch; with all at once, unless that fails.
    async fn batch(&self, batch: Vec<Vec<String>>, work: Work) -> Result<Done, Failure> {
        let mut done = Done { events: batch.iter().map(Vec::len).sum(), ..Done::default() };
        match self.write(&batch.concat(), work).await? {
            Ok(written) => done.written = written,
            Err(failure) if batch.len() == 1 => done.failed.extend(failed(&batch[0], &failure)),
            Err(_) => {
                for group in &batch {
                    match self.write(group, work).await? {
                        Ok(Written { inserted, updated, .. }) => {
                            done.written.inserted += inserted;
                            done.written.updated += updated;
                        }
                        Err(failure) => done.failed.extend(failed(group, &failure)),
                    }
                }
            }
        }
        Ok(done)
    }

    /// What workers have stored since the ledger was read.
    async fn catch_up(&self, started: DateTime, rebuilt: &mut Rebuilt) -> Result<(), Failure> {
        let since = doc! {"stored_at": {"$gte": before(started, MARGIN)}};
        let mut entries = Reading(self.ledger(since, doc! {"_id": 1}, None).await?);
        let bar = progress("catching up", 0);
        let mut ids = Vec::new();
        loop {
            let entry = entries.next().await?;
            let is_last = entry.is_none();
            ids.extend(entry.and_then(|entry| entry.get_str("_id").ok().map(str::to_owned)));
            if is_last || ids.len() >= self.settings.batch_size {
                bar.inc(ids.len() as u64);
                let single = std::mem::take(&mut ids).into_iter().map(|id| vec![id]).collect();
                rebuilt.failed.extend(self.batch(single, Work::Reapply).await?.failed);
            }
            if is_last {
                bar.finish_and_clear();
                return Ok(());
            }
        }
    }

    /// Does the work with these events. The inner failure is a matter of these events alone.
    async fn write(&self, ids: &[String], work: Work) -> Result<Result<Written, Failure>, Failure> {
        let events: Arc<[Event]> = self.events(ids).await?.into();
        let (mut attempts, started) = (Attempts::default(), Instant::now());
        loop {
            let failure = match self.store.write(events.clone(), work, self.dry_run).await {
                Ok(written) => return Ok(Ok(written)),
                Err(failure) => failure,
            };
            match attempts.failed(&failure, true).1 {
                Next::Again(_) if started.elapsed() > PATIENCE => return Err(failure),
                Next::Again(pause) => sleep(pause).await,
                Next::Halve | Next::Refuse => return Ok(Err(failure)),
            }
        }
    }

    /// Reads events from the ledger. Some may have expired meanwhile.
    async fn events(&self, ids: &[String]) -> Result<Vec<Event>, Failure> {
        let mut events = Vec::new();
        // A command must not be larger than 16 MiB.
        for ids in ids.chunks(1000) {
            let wanted = doc! {"_id": {"$in": ids}};
            let mut entries = Reading(self.ledger(wanted, ledger::fields_of_events(), None).await?);
            while let Some(entry) = entries.next().await? {
                events.extend(ledger::event(&self.tenant, &entry));
            }
        }
        Ok(events)
    }

    async fn ledger(
        &self,
        filter: Document,
        fields: Document,
        sort: Option<Document>,
    ) -> Result<Cursor<Document>, Failure> {
        let ledger = self.store.ledger();
        let mut find = ledger.find(filter).projection(fields).read_concern(ReadConcern::majority());
        if let Some(sort) = sort {
            find = find.sort(sort).limit(1);
        }
        timeout(DEADLINE, find.into_future())
            .await
            .map_or(Err(Failure::TimedOut(DEADLINE)), |found| Ok(found?))
    }
}

/// What came of a batch.
#[derive(Debug, Default)]
struct Done {
    events: usize,
    written: Written,
    failed: Vec<Failed>,
}

fn failed(group: &[String], failure: &Failure) -> Option<Failed> {
    Some(Failed { event_key: group.first()?.clone(), events: group.len(), error: chain(failure) })
}

fn before(at: DateTime, by: Duration) -> DateTime {
    DateTime::from_millis(
        at.timestamp_millis().saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)),
    )
}

/// A cursor with a deadline.
struct Reading(Cursor<Document>);

impl Reading {
    async fn next(&mut self) -> Result<Option<Document>, Failure> {
        let next = timeout(DEADLINE, self.0.next()).await.map_err(|_| Failure::TimedOut(DEADLINE))?;
        Ok(next.transpose()?)
    }
}
