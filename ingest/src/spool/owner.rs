//! The thread that owns the file. It commits whatever has come in meanwhile at once, so that many callers share an fsync.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use prometheus::Histogram;
use shared::telemetry::chain;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::file::{File, OpenError};
use super::format::Record;
use super::{SpoolError, Stats};
use crate::webhook::Webhook;

/// Most records in a commit.
const MAX_GROUP: usize = 512;
/// How often the file is looked at when nothing happens: is there room, can it be written?
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// What the owner is asked to do.
pub enum Job {
    Append(Box<Append>),
    Tenants { done: oneshot::Sender<Vec<String>> },
    After { tenant: String, id: i64, limit: usize, done: oneshot::Sender<Vec<Record>> },
    Delete { ids: Vec<i64>, done: oneshot::Sender<bool> },
}

/// A webhook that waits to be written.
pub struct Append {
    pub webhook: Webhook,
    pub place: OwnedSemaphorePermit,
    pub done: oneshot::Sender<Result<(), SpoolError>>,
}

/// Has the file. All that is asked of it comes through one channel.
pub struct Owner {
    folder: PathBuf,
    max_bytes: u64,
    // None while it can't be opened.
    file: Option<File>,
    stats: Arc<Stats>,
    // Told by the owner, not by the callers: those may have gone before their records are written.
    appended: Arc<Notify>,
    commits: Histogram,
    has_failed: bool,
}

impl Owner {
    /// Owns a file that was just opened, or is opened later.
    pub fn new(
        (folder, max_bytes): (PathBuf, u64),
        opened: Result<File, OpenError>,
        stats: Arc<Stats>,
        appended: Arc<Notify>,
        commits: Histogram,
    ) -> Self {
        let mut owner = Self { folder, max_bytes, file: None, stats, appended, commits, has_failed: false };
        owner.opened(opened);
        owner
    }

    /// Works until nobody can ask for anything any more.
    pub fn run(mut self, mut jobs: mpsc::UnboundedReceiver<Job>) {
        let Ok(clock) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
        loop {
            match clock.block_on(async { timeout(CHECK_INTERVAL, jobs.recv()).await }) {
                Ok(Some(first)) => self.work(first, &mut jobs),
                Ok(None) => return,
                Err(_) => self.check(),
            }
            self.update_stats();
        }
    }

    fn check(&mut self) {
        match &mut self.file {
            Some(file) => {
                let checked = file.check();
                self.record_outcome(&checked);
            }
            None => {
                let opened = File::open(&self.folder, self.max_bytes);
                self.opened(opened);
            }
        }
    }

    fn opened(&mut self, opened: Result<File, OpenError>) {
        match opened {
            Ok(file) => {
                self.file = Some(file);
                self.check();
                self.update_stats();
                self.appended.notify_one();
            }
            Err(error) => self.record_outcome(&Err(SpoolError::Failed(chain(&error)))),
        }
    }

    /// Does a job, and with it whatever else waits to be written.
    fn work(&mut self, first: Job, jobs: &mut mpsc::UnboundedReceiver<Job>) {
        let (mut appends, mut next) = (Vec::new(), Some(first));
        while let Some(job) = next.take() {
            match job {
                Job::Append(append) => {
                    appends.push(*append);
                    if appends.len() < MAX_GROUP {
                        next = jobs.try_recv().ok();
                    }
                }
                other => {
                    // What was appended before must be seen by what was asked after.
                    self.append(std::mem::take(&mut appends));
                    self.read_or_delete(other);
                }
            }
        }
        self.append(appends);
    }

    fn append(&mut self, appends: Vec<Append>) {
        if appends.is_empty() {
            return;
        }
        let started = Instant::now();
        let outcomes = match &mut self.file {
            Some(file) => file.append(appends.iter().map(|append| &append.webhook)),
            None => vec![Err(SpoolError::Failed("it can't be opened".to_owned())); appends.len()],
        };
        self.commits.observe(started.elapsed().as_secs_f64());
        self.record_outcome(outcomes.iter().find(|outcome| outcome.is_err()).unwrap_or(&Ok(())));
        // Before the callers are told, so that whoever was told finds it there.
        self.update_stats();
        if outcomes.iter().any(Result::is_ok) {
            self.appended.notify_one();
        }
        self.stats.waiting.fetch_sub(appends.len(), Ordering::Relaxed);
        for (Append { place, done, .. }, outcome) in appends.into_iter().zip(outcomes) {
            drop(place);
            let _ = done.send(outcome);
        }
    }

    fn read_or_delete(&mut self, job: Job) {
        match job {
            Job::Tenants { done } => {
                let tenants = self.file.as_mut().map(File::tenants);
                let _ = done.send(tenants.unwrap_or_default());
            }
            Job::After { tenant, id, limit, done } => {
                let records = self.file.as_mut().map(|file| file.after(&tenant, id, limit));
                let _ = done.send(records.unwrap_or_default());
            }
            Job::Delete { ids, done } => {
                let deleted = self.file.as_mut().map_or(Ok(()), |file| file.delete(&ids));
                if let Err(error) = &deleted {
                    warn!(
                        error = chain(error),
                        "published records stay in the spool and will be published again"
                    );
                }
                self.update_stats();
                let _ = done.send(deleted.is_ok());
            }
            Job::Append(_) => {}
        }
    }

    fn update_stats(&self) {
        let Some(file) = &self.file else { return };
        let (size, stats) = (file.size(), &self.stats);
        stats.records.store(size.records, Ordering::Relaxed);
        stats.bytes.store(size.bytes, Ordering::Relaxed);
        stats.room.store(file.room(), Ordering::Relaxed);
        stats.oldest_ms.store(file.oldest_ms(), Ordering::Relaxed);
        stats.corruptions.store(file.corruptions(), Ordering::Relaxed);
    }

    fn record_outcome(&mut self, outcome: &Result<(), SpoolError>) {
        self.stats.unwritable.store(outcome.is_err(), Ordering::Relaxed);
        match outcome {
            Err(failure) if !self.has_failed => {
                error!(error = chain(failure), "the spool can't be written");
            }
            Ok(()) if self.has_failed => info!("the spool can be written again"),
            _ => {}
        }
        self.has_failed = outcome.is_err();
    }
}
