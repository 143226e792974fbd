//! The thread that owns the file. It commits everything that waits at once, so that many callers share an
//! fsync.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use prometheus::Histogram;
use shared::telemetry::chain;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::SpoolError;
use super::file::{File, Page};
use super::folder::{Folder, OpenError};
use super::stats::Stats;
use crate::webhook::Webhook;

/// Most records in a commit.
const MAX_GROUP: usize = 512;
/// How often the thread checks the file when nothing happens: is there room, can it be written?
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// What the owner is asked to do.
pub enum Job {
    Append(Box<Append>),
    Opened { done: oneshot::Sender<Result<(), SpoolError>> },
    Tenants { done: oneshot::Sender<Vec<String>> },
    After { tenant: String, id: i64, limit: usize, done: oneshot::Sender<Option<Page>> },
    Delete { ids: Vec<i64>, done: oneshot::Sender<bool> },
    Close { done: oneshot::Sender<()> },
}

/// A webhook that waits to be written.
pub struct Append {
    pub webhook: Webhook,
    pub place: OwnedSemaphorePermit,
    pub done: oneshot::Sender<Result<(), SpoolError>>,
}

/// Owns the file. All jobs come through one channel.
pub struct Owner {
    path: PathBuf,
    max_bytes: u64,
    // None while the folder can't be taken.
    folder: Option<Arc<Folder>>,
    // None until the file is open, and while it can't be opened.
    file: Option<File>,
    stats: Arc<Stats>,
    // The owner counts, not the callers: these may have gone before their records are written.
    appended: Arc<Notify>,
    commits: Histogram,
    checked: Instant,
    // Damaged files among those that were opened before.
    corruptions: u64,
    // The last record that was read of them.
    last_read: i64,
    // The last failure, if it still lasts.
    failure: Option<SpoolError>,
    cannot_catch_up: bool,
    cannot_delete: bool,
    // All is done: a check would void the file's mark.
    is_closed: bool,
}

impl Owner {
    /// Owns a file that is opened when this runs, in a folder that may have been taken before.
    pub fn new(
        (path, max_bytes): (PathBuf, u64),
        folder: Option<Folder>,
        stats: Arc<Stats>,
        appended: Arc<Notify>,
        commits: Histogram,
    ) -> Self {
        Self {
            path,
            max_bytes,
            folder: folder.map(Arc::new),
            file: None,
            stats,
            appended,
            commits,
            checked: Instant::now(),
            corruptions: 0,
            last_read: 0,
            failure: None,
            cannot_catch_up: false,
            cannot_delete: false,
            is_closed: false,
        }
    }

    /// Works until all senders of jobs are gone.
    pub fn run(mut self, mut jobs: mpsc::UnboundedReceiver<Job>) {
        let Ok(clock) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
        self.check();
        loop {
            let patience = if self.catch_up() { Duration::ZERO } else { CHECK_INTERVAL };
            self.stats.waits();
            let job = clock.block_on(async { timeout(patience, jobs.recv()).await });
            self.stats.works();
            match job {
                Ok(Some(first)) => self.work(first, &mut jobs),
                Ok(None) => return,
                Err(_) => {}
            }
            if self.checked.elapsed() >= CHECK_INTERVAL && !self.is_closed {
                self.check();
            }
            self.update_stats();
        }
    }

    fn check(&mut self) {
        self.checked = Instant::now();
        if self.file.is_none() {
            self.open();
        }
        if let Some(file) = &mut self.file {
            let checked = file.check();
            self.record_outcome(&checked);
        }
        self.update_stats();
    }

    fn open(&mut self) {
        match self.try_to_open() {
            Ok(file) => {
                self.file = Some(file);
                self.appended.notify_one();
            }
            Err(error) => self.record_outcome(&Err(SpoolError::Failed(chain(&error)))),
        }
    }

    fn try_to_open(&mut self) -> Result<File, OpenError> {
        let folder = match &self.folder {
            Some(folder) => folder.clone(),
            None => self.folder.insert(Arc::new(Folder::take(&self.path)?)).clone(),
        };
        File::open(&folder, self.max_bytes, self.last_read)
    }

    /// Takes a small step of the work that is left with older or damaged files; false if there is none now.
    fn catch_up(&mut self) -> bool {
        let Some(file) = &mut self.file else { return false };
        let done = file.catch_up();
        if let Err(error) = &done
            && !self.cannot_catch_up
        {
            error!(error = chain(error), "can't copy what an earlier or damaged spool holds");
        }
        self.cannot_catch_up = done.is_err();
        let is_done = done.unwrap_or(false);
        if is_done {
            self.update_stats();
            self.appended.notify_one();
        }
        is_done
    }

    /// Does a job, and with it everything that waits to be written.
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
                    // A job must see what was appended before it.
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
        // Before the callers get their result, so that they find the record in the totals.
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
            Job::Opened { done } => {
                let opened = self
                    .file
                    .as_ref()
                    .map(|_| ())
                    .ok_or_else(|| self.failure.clone().unwrap_or(SpoolError::Opening));
                let _ = done.send(opened);
            }
            Job::Tenants { done } => {
                let tenants = self.file.as_mut().map(File::tenants);
                let _ = done.send(tenants.unwrap_or_default());
            }
            Job::After { tenant, id, limit, done } => {
                let page = self.file.as_mut().and_then(|file| file.after(&tenant, id, limit));
                let _ = done.send(page);
            }
            Job::Delete { ids, done } => {
                let deleted = self.file.as_mut().map_or(Ok(()), |file| file.delete(&ids));
                if let Err(error) = &deleted
                    && !self.cannot_delete
                {
                    warn!(
                        error = chain(error),
                        "can't delete published records of the spool, will try again"
                    );
                }
                self.cannot_delete = deleted.is_err();
                self.update_stats();
                let _ = done.send(deleted.is_ok());
            }
            Job::Close { done } => {
                if let Some(Err(error)) = self.file.as_ref().map(File::close) {
                    warn!(
                        error = chain(&error),
                        "can't mark the spool as closed: the next start takes longer"
                    );
                }
                self.is_closed = true;
                let _ = done.send(());
            }
            Job::Append(_) => {}
        }
    }

    fn update_stats(&mut self) {
        let Some(file) = &self.file else { return };
        let (size, stats) = (file.size(), &self.stats);
        stats.records.store(size.records, Ordering::Relaxed);
        stats.bytes.store(size.bytes, Ordering::Relaxed);
        stats.room.store(file.room(), Ordering::Relaxed);
        stats.oldest_ms.store(file.oldest_ms(), Ordering::Relaxed);
        stats.left_to_copy.store(file.left_to_copy(), Ordering::Relaxed);
        let (corruptions, last_read) = (self.corruptions + file.corruptions(), file.last_read());
        stats.corruptions.store(corruptions, Ordering::Relaxed);
        let is_lost = file.is_lost();
        if is_lost {
            // It is opened again at the next check.
            self.file = None;
            (self.corruptions, self.last_read) = (corruptions, last_read);
        }
        self.stats.is_open.store(!is_lost, Ordering::Relaxed);
    }

    fn record_outcome(&mut self, outcome: &Result<(), SpoolError>) {
        self.stats.unwritable.store(outcome.is_err(), Ordering::Relaxed);
        match (outcome, &self.failure) {
            (Err(failure), None) => error!(error = chain(failure), "the spool can't be written"),
            (Ok(()), Some(_)) => info!("the spool can be written again"),
            _ => {}
        }
        self.failure = outcome.clone().err();
    }
}
