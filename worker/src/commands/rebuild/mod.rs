//! `worker rebuild`: computes a tenant's documents again from its ledger, while workers run.
//!
//! Each transaction computes all documents that a group of events concerns, and a worker that writes one of
//! them at the same time makes one of the two start again. At the end, what workers have stored after the
//! ledger was read is applied once more; an event that is applied twice changes nothing.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt, stream};
use mongodb::bson::{DateTime, doc};
use serde::Serialize;
use serde_json::json;
use shared::env::Env;
use shared::telemetry::chain;
use tokio::time::{Instant, sleep, timeout};

use super::{CommandError, printable, progress, say};
use crate::project::table::Change;
use crate::project::{self, Wanted};
use crate::settings::{Purpose, Settings};
use crate::store::Store;
use crate::store::failure::{Class, Failure};
use crate::store::retries::{Attempts, Next};
use crate::store::transaction::{self, Work, Written};

pub mod changes;
pub mod groups;
pub mod ledger;
mod parts;

use groups::Groups;
use ledger::{MARGIN, Reading, before};

/// Longest time for one transaction, and for a part of the ledger to be read.
const DEADLINE: Duration = Duration::from_mins(1);
/// Attempts continue for this long while MongoDB fails, or while workers write the same documents.
const RETRY_TIMEOUT: Duration = Duration::from_mins(2);
/// After this many failures the groups of a batch are tried one by one: a smaller one has fewer conflicts.
const FAILURES_TOGETHER: u32 = 5;
/// Bodies in a batch, in bytes.
const BATCH_BYTES: usize = 4 << 20;
/// Events that are read from the ledger at once: a command must not be larger than 16 MiB.
const PAGE: usize = 1000;
/// Events that concern the same documents, in one transaction: MongoDB ends one that takes too long.
const LARGE_GROUP: usize = 2000;
/// A rebuild that takes longer gives up, since the ledger deletes expired events meanwhile.
const LONGEST_RUN: Duration = Duration::from_hours(6);

/// What to rebuild.
#[derive(Debug, Args)]
#[command(after_help = "Example: worker rebuild --tenant vip --dry-run")]
pub struct Arguments {
    /// The tenant
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    /// Only show what would change: each field, before and after
    #[arg(long)]
    dry_run: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// The result.
#[derive(Debug, Default, Serialize)]
struct Rebuilt {
    tenant: String,
    dry_run: bool,
    /// Events in the ledger that concern documents.
    events: usize,
    /// Of these, the events that `worker backfill` has brought.
    backfilled: usize,
    /// Entries of the ledger that can't be read.
    unreadable: usize,
    /// Documents that were missing.
    inserted: usize,
    /// Documents that were wrong.
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
    settings.purpose = Purpose::Rebuild;
    let known = settings.tenants.iter().find(|known| known.name == tenant).cloned();
    let known = known.ok_or_else(|| CommandError::UnknownTenant(tenant.clone()))?;
    let store = Store::open(&known, &settings).await?;
    store.check_replica_set().await?;
    if !dry_run {
        // Those of dropped collections are gone, too.
        store.make_other_indexes().await?;
    }
    let mut rebuilt = Rebuilt { tenant: tenant.clone(), dry_run, ..Rebuilt::default() };
    let rebuild =
        Rebuild { tenant, settings, store, dry_run, started: Instant::now(), ended: AtomicBool::new(false) };
    let mut answer = Answer { out, json, said: Ok(()) };
    let ran = rebuild.run(&mut rebuilt, &mut answer).await;
    answer.said.and_then(|()| tell(&rebuilt, json, answer.out))?;
    if let Err(failure) = ran {
        return Err(CommandError::Unfinished(failure));
    }
    match rebuilt.failed.len() {
        0 => Ok(()),
        failed => Err(CommandError::Incomplete(format!("{failed} groups of documents could not be rebuilt"))),
    }
}

/// Where changes are printed, as they are found.
struct Answer<'a, W> {
    out: &'a mut W,
    json: bool,
    /// The first failure to write.
    said: Result<(), CommandError>,
}

impl<W: Write> Answer<'_, W> {
    fn tell(&mut self, changes: &[(String, Change)]) {
        for (collection, change) in changes {
            if self.said.is_ok() {
                self.said = self.tell_one(collection, change);
            }
        }
    }

    fn tell_one(&mut self, collection: &str, change: &Change) -> Result<(), CommandError> {
        if self.json {
            return say(self.out, changes::as_json(collection, change));
        }
        changes::as_lines(collection, change).iter().try_for_each(|line| say(self.out, printable(line)))
    }
}

fn tell(rebuilt: &Rebuilt, json: bool, out: &mut impl Write) -> Result<(), CommandError> {
    if json {
        return say(out, json!(rebuilt));
    }
    let Rebuilt { tenant, dry_run, events, backfilled, unreadable, inserted, updated, failed } = rebuilt;
    let would = if *dry_run { "would be " } else { "" };
    say(
        out,
        format!(
            "{tenant}: {events} events ({backfilled} of them backfilled), {inserted} documents {would}added, {updated} {would}changed"
        ),
    )?;
    if *unreadable > 0 {
        say(out, format!("  {unreadable} entries of the ledger can't be read"))?;
    }
    for Failed { event_key, events, error } in failed {
        say(out, printable(&format!("  {events} events, {event_key} among them, are left out: {error}")))?;
    }
    Ok(())
}

/// Does this work with the documents that these events concern, by their `_id` in the ledger.
pub(super) async fn of_events(
    tenant: &str,
    settings: &Settings,
    store: &Store,
    ids: &[String],
    work: Work,
) -> Result<(), Failure> {
    let rebuild = Rebuild {
        tenant: tenant.to_owned(),
        settings: settings.clone(),
        store: store.clone(),
        dry_run: false,
        started: Instant::now(),
        ended: AtomicBool::new(false),
    };
    rebuild.group(ids, &work).await.map(drop)
}

struct Rebuild {
    tenant: String,
    settings: Settings,
    store: Store,
    dry_run: bool,
    started: Instant,
    /// Set when the rebuild has to stop.
    ended: AtomicBool,
}

impl Rebuild {
    async fn run(&self, rebuilt: &mut Rebuilt, answer: &mut Answer<'_, impl Write>) -> Result<(), Failure> {
        let started = DateTime::now();
        let work = Work::Rebuild { horizon: self.horizon(started).await? };
        let groups = self.read(rebuilt).await?;
        rebuilt.events = groups.events();
        let done = self.rebuild(groups, work, rebuilt, answer).await;
        if self.dry_run {
            return done;
        }
        // Even after a failure: the rebuilt documents must have what workers have stored meanwhile.
        let caught_up = self.catch_up(started, rebuilt).await;
        done.and(caught_up)
    }

    async fn rebuild(
        &self,
        groups: Groups,
        work: Work,
        rebuilt: &mut Rebuilt,
        answer: &mut Answer<'_, impl Write>,
    ) -> Result<(), Failure> {
        let bar = progress("rebuilding", groups.events() as u64);
        let batches = groups.into_batches(self.settings.batch_size, BATCH_BYTES);
        let running = stream::iter(batches).map(|batch| self.batch(batch, work.clone()));
        let mut running = running.buffer_unordered(self.settings.partitions.into());
        let mut first = Ok(());
        while let Some(done) = running.next().await {
            let Done { events, written, failed, ended } = done;
            bar.inc(events as u64);
            rebuilt.inserted += written.inserted;
            rebuilt.updated += written.updated;
            rebuilt.failed.extend(failed);
            answer.tell(&written.changes);
            if answer.said.is_err() {
                self.ended.store(true, Ordering::Relaxed);
            }
            if let Some(failure) = ended {
                // Waits for the other transactions, so that none stays open.
                self.ended.store(true, Ordering::Relaxed);
                first = first.and(Err(failure));
            }
        }
        bar.finish_and_clear();
        first
    }

    /// Reads the ledger, to know which events belong together.
    async fn read(&self, rebuilt: &mut Rebuilt) -> Result<Groups, Failure> {
        let count = timeout(DEADLINE, self.store.ledger().estimated_document_count().into_future()).await;
        let bar = progress("reading", count.map_err(|_| Failure::TimedOut(DEADLINE))??);
        let mut entries = Reading(self.ledger(doc! {}, project::ledger::fields_of_events(), None).await?);
        let mut groups = Groups::default();
        while let Some(entry) = entries.next().await? {
            bar.inc(1);
            match (entry.get_str("_id"), project::ledger::event(&self.tenant, &entry)) {
                (Ok(id), Some(event)) => {
                    let concerned = Wanted::by(std::slice::from_ref(&event));
                    if concerned.concerns_documents() {
                        rebuilt.backfilled += usize::from(event.is_backfilled());
                        groups.add(id.to_owned(), event.body.len(), &concerned);
                    }
                }
                _ => rebuilt.unreadable += 1,
            }
        }
        bar.finish_and_clear();
        Ok(groups)
    }

    /// Does the work with each group of a batch; with all at once, unless that fails.
    async fn batch(&self, batch: Vec<Vec<String>>, work: Work) -> Done {
        let mut done = Done { events: batch.iter().map(Vec::len).sum(), ..Done::default() };
        if self.ended.load(Ordering::Relaxed) {
            return done;
        }
        if batch.len() > 1
            && let Ok(written) = self.write(&batch.concat(), &work, FAILURES_TOGETHER).await
        {
            done.written = written;
            return done;
        }
        for group in &batch {
            match self.group(group, &work).await {
                Ok(written) => add(&mut done.written, written),
                Err(failure) if matters_to_all(&failure) => {
                    done.ended = Some(failure);
                    return done;
                }
                Err(failure) => done.failed.extend(failed(group, &failure)),
            }
        }
        done
    }

    async fn group(&self, group: &[String], work: &Work) -> Result<Written, Failure> {
        match work {
            Work::Rebuild { horizon } if group.len() > LARGE_GROUP => self.in_parts(group, *horizon).await,
            _ => self.write(group, work, u32::MAX).await,
        }
    }

    /// Applies what workers have stored since the ledger was read.
    async fn catch_up(&self, started: DateTime, rebuilt: &mut Rebuilt) -> Result<(), Failure> {
        self.ended.store(false, Ordering::Relaxed);
        // With an end: otherwise it would follow busy workers for ever.
        let (from, to) = (before(started, MARGIN), DateTime::now().timestamp_millis() + 1000);
        let meanwhile = doc! {"stored_at": {"$gte": from, "$lt": DateTime::from_millis(to)}};
        let mut entries = Reading(self.ledger(meanwhile, doc! {"_id": 1}, None).await?);
        let bar = progress("catching up", 0);
        let mut ids = Vec::new();
        loop {
            let entry = entries.next().await?;
            let is_last = entry.is_none();
            ids.extend(entry.and_then(|entry| entry.get_str("_id").ok().map(str::to_owned)));
            if is_last || ids.len() >= self.settings.batch_size {
                bar.inc(ids.len() as u64);
                let single = std::mem::take(&mut ids).into_iter().map(|id| vec![id]).collect();
                let Done { failed, ended, .. } = self.batch(single, Work::Reapply).await;
                rebuilt.failed.extend(failed);
                if let Some(failure) = ended {
                    return Err(failure);
                }
            }
            if is_last {
                bar.finish_and_clear();
                return Ok(());
            }
        }
    }

    /// Does the work with these events; repeats it up to `failures` times.
    async fn write(&self, ids: &[String], work: &Work, failures: u32) -> Result<Written, Failure> {
        let (mut attempts, started) = (Attempts::default(), Instant::now());
        let mut failed = 0;
        loop {
            let written = match self.events(ids).await {
                Ok(events) => {
                    transaction::attempt(&self.store, events.into(), work.clone(), self.dry_run).await
                }
                Err(failure) => Err(failure),
            };
            let Err(failure) = written else { return written };
            failed += 1;
            let is_too_late = failed >= failures
                || started.elapsed() > RETRY_TIMEOUT
                || self.started.elapsed() > LONGEST_RUN;
            match attempts.failed(&failure, Duration::ZERO).1 {
                Next::Again(pause) | Next::HalveIfProbed(pause) if !is_too_late => sleep(pause).await,
                _ => return Err(failure),
            }
        }
    }
}

/// The result of a batch.
#[derive(Debug, Default)]
struct Done {
    events: usize,
    written: Written,
    failed: Vec<Failed>,
    /// Why the rebuild has to stop.
    ended: Option<Failure>,
}

fn add(all: &mut Written, Written { inserted, updated, changes, .. }: Written) {
    all.inserted += inserted;
    all.updated += updated;
    all.changes.extend(changes);
}

/// Whether a failure has nothing to do with the events. A missed deadline may have: their group may be large.
fn matters_to_all(failure: &Failure) -> bool {
    let class = failure.class(1);
    matches!(class, Class::Infrastructure | Class::Configuration) && !matches!(failure, Failure::TimedOut(_))
}

fn failed(group: &[String], failure: &Failure) -> Option<Failed> {
    Some(Failed { event_key: group.first()?.clone(), events: group.len(), error: chain(failure) })
}
