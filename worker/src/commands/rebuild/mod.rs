//! `worker rebuild`: computes a tenant's documents again from its ledger, while workers run.
//!
//! Each transaction computes all documents that a group of events concerns, and a worker that writes one of
//! them at the same time makes one of the two start again. At the end, what workers have stored after the
//! ledger was read is applied once more; an event that is applied twice changes nothing.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt, stream};
use mongodb::bson::{DateTime, doc};
use shared::env::Env;
use shared::telemetry::chain;
use tokio::time::{Instant, sleep, timeout};

use super::{CommandError, progress};
use crate::project::{self, Wanted};
use crate::settings::{Purpose, Settings};
use crate::store::Store;
use crate::store::failure::{Class, Failure};
use crate::store::retries::{Attempts, Next};
use crate::store::transaction::{self, Work, Written};

mod answer;
mod catch_up;
pub mod changes;
pub mod groups;
pub mod ledger;
mod parts;

pub(super) use answer::Format;
use answer::{Answer, Failed, Rebuilt};
use groups::Groups;
use ledger::Reading;

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
const TOO_LONG: &str = "the rebuild took more than 6 hours, after which the ledger may lack expired events; documents that it has not reached are as they were";

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
    #[command(flatten)]
    format: Format,
}

/// Runs the command.
pub async fn run(arguments: Arguments, env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let Arguments { tenant, dry_run, format } = arguments;
    let rebuild = Rebuild::open(tenant, Settings::read(env)?, dry_run).await?;
    rebuild.work_and_tell(None, format, out).await
}

/// Does this work with the documents that these events concern, by their `_id` in the ledger.
pub(super) async fn of_events(
    tenant: &str,
    settings: &Settings,
    store: &Store,
    ids: &[String],
    work: Work,
) -> Result<(), Failure> {
    let rebuild = Rebuild::new(tenant.to_owned(), settings.clone(), store.clone(), false);
    rebuild.group(ids, &work).await.map(drop)
}

/// What rebuilds documents of a tenant.
pub(super) struct Rebuild {
    tenant: String,
    settings: Settings,
    /// The tenant's database.
    pub(super) store: Store,
    dry_run: bool,
    started: Instant,
    /// Set when the rebuild has to stop.
    ended: AtomicBool,
}

impl Rebuild {
    fn new(tenant: String, settings: Settings, store: Store, dry_run: bool) -> Self {
        Self { tenant, settings, store, dry_run, started: Instant::now(), ended: AtomicBool::new(false) }
    }

    /// Opens the tenant's database.
    pub(super) async fn open(
        tenant: String,
        mut settings: Settings,
        dry_run: bool,
    ) -> Result<Self, CommandError> {
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
        Ok(Self::new(tenant, settings, store, dry_run))
    }

    /// Rebuilds the documents of these events, and of all that share documents with them; if none are chosen, those
    /// of the whole ledger. Tells what came of it.
    pub(super) async fn work_and_tell(
        &self,
        chosen: Option<&BTreeSet<String>>,
        format: Format,
        out: &mut impl Write,
    ) -> Result<(), CommandError> {
        let (tenant, dry_run) = (self.tenant.clone(), self.dry_run);
        let chosen_events = chosen.map(BTreeSet::len);
        let mut rebuilt = Rebuilt { tenant, dry_run, chosen: chosen_events, ..Rebuilt::default() };
        let mut answer = Answer::new(format, out);
        let ran = self.work(chosen, &mut rebuilt, &mut answer).await;
        answer.end(&rebuilt)?;
        ran.map_err(CommandError::Unfinished)?;
        // For chosen events, one that can't be read is probably another.
        let unreadable = if chosen.is_none() { rebuilt.unreadable } else { 0 };
        match (rebuilt.failed.len(), unreadable) {
            (0, 0) => Ok(()),
            (0, unreadable) => Err(CommandError::Incomplete(format!(
                "{unreadable} entries of the ledger can't be read, so documents may lack their effects"
            ))),
            (failed, _) => {
                Err(CommandError::Incomplete(format!("{failed} groups of documents could not be rebuilt")))
            }
        }
    }

    async fn work(
        &self,
        chosen: Option<&BTreeSet<String>>,
        rebuilt: &mut Rebuilt,
        answer: &mut Answer<'_, impl Write>,
    ) -> Result<(), Failure> {
        if chosen.is_some_and(BTreeSet::is_empty) {
            return Ok(());
        }
        let started = DateTime::now();
        let work = Work::Rebuild { horizon: self.horizon(started).await? };
        let mut groups = self.read(rebuilt).await?;
        let documents = chosen.map(|chosen| groups.narrow(chosen));
        if documents.is_some() {
            rebuilt.backfilled = None;
        }
        rebuilt.events = groups.events();
        let done = self.rebuild(groups, work, rebuilt, answer).await;
        if self.dry_run {
            return done;
        }
        // Even after a failure: the rebuilt documents must have what workers have stored meanwhile.
        let caught_up = self.catch_up(started, documents.as_ref(), rebuilt).await;
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
            if answer.is_unread() {
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
        let (mut groups, mut backfilled) = (Groups::default(), 0);
        while let Some(entry) = entries.next().await? {
            bar.inc(1);
            match (entry.get_str("_id"), project::ledger::event(&self.tenant, &entry)) {
                (Ok(id), Some(event)) => {
                    let concerned = Wanted::by(std::slice::from_ref(&event));
                    if concerned.concerns_documents() {
                        backfilled += usize::from(event.is_backfilled());
                        groups.add(id.to_owned(), event.body.len(), &concerned);
                    }
                }
                _ => rebuilt.unreadable += 1,
            }
        }
        rebuilt.backfilled = Some(backfilled);
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

    /// Does the work with these events; repeats it up to `failures` times.
    async fn write(&self, ids: &[String], work: &Work, failures: u32) -> Result<Written, Failure> {
        let (mut attempts, started) = (Attempts::default(), Instant::now());
        let mut failed = 0;
        loop {
            if is_too_long(work, self.started.elapsed()) {
                return Err(Failure::Unfit(TOO_LONG.to_owned()));
            }
            let written = match self.events(ids).await {
                Ok(events) => {
                    transaction::attempt(&self.store, events.into(), work.clone(), self.dry_run).await
                }
                Err(failure) => Err(failure),
            };
            let Err(failure) = written else { return written };
            failed += 1;
            let is_too_late = failed >= failures || started.elapsed() > RETRY_TIMEOUT;
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

/// Whether documents must not be computed anew any more: the ledger may lack events by now that they have.
/// What workers have stored meanwhile is applied in any case.
fn is_too_long(work: &Work, elapsed: Duration) -> bool {
    !matches!(work, Work::Reapply) && elapsed > LONGEST_RUN
}

/// Whether a failure has nothing to do with the events. A missed deadline may have: their group may be large.
fn matters_to_all(failure: &Failure) -> bool {
    let class = failure.class(1);
    matches!(class, Class::Infrastructure | Class::Configuration) && !matches!(failure, Failure::TimedOut(_))
}

fn failed(group: &[String], failure: &Failure) -> Option<Failed> {
    Some(Failed { event_key: group.first()?.clone(), events: group.len(), error: chain(failure) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_six_hours_only_what_workers_have_stored_is_applied() {
        let rebuild = Work::Rebuild { horizon: DateTime::now() };
        let own = Work::RebuildOwn { horizon: DateTime::now() };
        let later = LONGEST_RUN + Duration::from_secs(1);
        assert!(is_too_long(&rebuild, later) && is_too_long(&own, later));
        assert!(!is_too_long(&rebuild, LONGEST_RUN) && !is_too_long(&Work::Reapply, later));
    }
}
