//! The spool: webhooks on disk that RabbitMQ couldn't take, each fsynced before it is acknowledged.
//!
//! One thread owns the file and commits whatever has come in meanwhile at once, so that many callers share
//! an fsync. [`drain`] gives the records to RabbitMQ when that takes them again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus::Histogram;
use shared::telemetry::chain;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::webhook::Webhook;

pub mod command;
pub mod drain;
pub mod file;
mod pages;
#[cfg(test)]
mod tests;

pub use file::{File, OpenError, Record, Size};

/// Longest wait for an fsync. With the time for the body and to publish it stays below respond.io's 5 seconds.
const APPEND_TIMEOUT: Duration = Duration::from_secs(1);
/// Bodies that wait to be written take at most this much memory, in units of 1 KiB.
const MAX_WAITING_KIB: u32 = 64 << 10;
/// Most records in a commit.
const MAX_GROUP: usize = 512;
/// How often the file is looked at when nothing happens: is there room, can it be written?
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Why a webhook couldn't be spooled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    /// `SPOOL_MAX_BYTES` is reached.
    #[error("the spool is full")]
    Full,
    /// The disk is full.
    #[error("the spool's disk is full")]
    DiskFull,
    /// The disk is too slow.
    #[error("the spool didn't write within {APPEND_TIMEOUT:?}")]
    TimedOut,
    /// The file can't be written.
    #[error("the spool can't be written: {0}")]
    Failed(String),
}

/// What others see of the spool.
#[derive(Debug, Default)]
struct Shown {
    records: AtomicU64,
    bytes: AtomicU64,
    room: AtomicU64,
    oldest_ms: AtomicI64,
    waiting: AtomicUsize,
    unwritable: AtomicBool,
    corruptions: AtomicU64,
}

enum Job {
    Append(Box<Append>),
    After { id: i64, limit: usize, done: oneshot::Sender<Vec<Record>> },
    Delete { ids: Vec<i64>, done: oneshot::Sender<()> },
}

/// A webhook that waits to be written.
struct Append {
    webhook: Webhook,
    place: OwnedSemaphorePermit,
    done: oneshot::Sender<Result<(), SpoolError>>,
}

/// A handle on the spool.
#[derive(Clone, Debug)]
pub struct Spool {
    jobs: mpsc::UnboundedSender<Job>,
    places: Arc<Semaphore>,
    shown: Arc<Shown>,
    appended: Arc<Notify>,
}

impl Spool {
    /// Opens the spool in a folder and starts its thread. Fails if another process uses the folder; a spool that
    /// can't be opened for another reason is reported, and tried again and again.
    pub fn open(folder: &Path, max_bytes: u64, commits: Histogram) -> Result<Self, OpenError> {
        let file = match File::open(folder, max_bytes) {
            Err(error @ OpenError::InUse(_)) => return Err(error),
            opened => opened,
        };
        let shown = Arc::new(Shown::default());
        // Bounded by `places`, except for the few jobs of the drain.
        let (jobs, received) = mpsc::unbounded_channel();
        let (folder, path) = (folder.to_owned(), folder.to_owned());
        let appended = Arc::new(Notify::new());
        let mut owner = Owner {
            folder,
            max_bytes,
            file: None,
            shown: shown.clone(),
            appended: appended.clone(),
            commits,
            noted_failure: false,
        };
        owner.opened(file);
        std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || owner.run(received))
            .map_err(|source| OpenError::Io { path, source })?;
        let places = Arc::new(Semaphore::new(MAX_WAITING_KIB as usize));
        Ok(Self { jobs, places, shown, appended })
    }

    /// Appends a webhook and waits until it is fsynced.
    pub async fn append(&self, webhook: &Webhook) -> Result<(), SpoolError> {
        let append = async {
            let kib = u32::try_from(webhook.body.len() >> 10).unwrap_or(u32::MAX).saturating_add(1);
            let place = self.places.clone().acquire_many_owned(kib.min(MAX_WAITING_KIB)).await;
            let place = place.map_err(|_| gone())?;
            let (done, answer) = oneshot::channel();
            let append = Append { webhook: webhook.clone(), place, done };
            self.shown.waiting.fetch_add(1, Ordering::Relaxed);
            self.jobs.send(Job::Append(Box::new(append))).map_err(|_| gone())?;
            answer.await.unwrap_or_else(|_| Err(gone()))
        };
        // After the deadline it may be written all the same; then the event key makes it harmless.
        timeout(APPEND_TIMEOUT, append).await.unwrap_or(Err(SpoolError::TimedOut))
    }

    /// The oldest records behind the one called `id`.
    pub async fn after(&self, id: i64, limit: usize) -> Vec<Record> {
        let (done, answer) = oneshot::channel();
        let _ = self.jobs.send(Job::After { id, limit, done });
        answer.await.unwrap_or_default()
    }

    /// Deletes records.
    pub async fn delete(&self, ids: Vec<i64>) {
        let (done, answer) = oneshot::channel();
        let _ = self.jobs.send(Job::Delete { ids, done });
        let _ = answer.await;
    }

    /// Waits until something was appended since this was asked the last time.
    pub async fn appended(&self) {
        self.appended.notified().await;
    }

    /// Records in the spool, and their bytes.
    #[must_use]
    pub fn size(&self) -> Size {
        let (records, bytes) = (&self.shown.records, &self.shown.bytes);
        Size { records: records.load(Ordering::Relaxed), bytes: bytes.load(Ordering::Relaxed) }
    }

    /// Bytes that can still be appended; none while it can't be written.
    #[must_use]
    pub fn room(&self) -> u64 {
        if self.is_writable() { self.shown.room.load(Ordering::Relaxed) } else { 0 }
    }

    /// Time since the oldest record was received.
    #[must_use]
    pub fn oldest_age(&self) -> Duration {
        let received = match self.shown.oldest_ms.load(Ordering::Relaxed) {
            0 => return Duration::ZERO,
            ms => Duration::from_millis(u64::try_from(ms).unwrap_or_default()),
        };
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(received)
    }

    /// Webhooks that wait to be written.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shown.waiting.load(Ordering::Relaxed)
    }

    /// Whether webhooks can be appended.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !self.shown.unwritable.load(Ordering::Relaxed)
    }

    /// How often a damaged file was set aside.
    #[must_use]
    pub fn corruptions(&self) -> u64 {
        self.shown.corruptions.load(Ordering::Relaxed)
    }
}

fn gone() -> SpoolError {
    SpoolError::Failed("its thread has ended".to_owned())
}

/// The thread that owns the file.
struct Owner {
    folder: PathBuf,
    max_bytes: u64,
    // None while it can't be opened.
    file: Option<File>,
    shown: Arc<Shown>,
    // Told by the owner, not by the callers: those may have gone before their records are written.
    appended: Arc<Notify>,
    commits: Histogram,
    noted_failure: bool,
}

impl Owner {
    fn run(mut self, mut jobs: mpsc::UnboundedReceiver<Job>) {
        let Ok(clock) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
        loop {
            match clock.block_on(async { timeout(CHECK_INTERVAL, jobs.recv()).await }) {
                Ok(Some(first)) => self.work(first, &mut jobs),
                Ok(None) => return,
                Err(_) => self.check(),
            }
            self.show();
        }
    }

    fn check(&mut self) {
        match &mut self.file {
            Some(file) => {
                let checked = file.check();
                self.note(&checked);
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
                self.show();
                self.appended.notify_one();
            }
            Err(error) => self.note(&Err(SpoolError::Failed(chain(&error)))),
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
        let written = match &mut self.file {
            Some(file) => file.append(appends.iter().map(|append| &append.webhook)),
            None => Err(SpoolError::Failed("it can't be opened".to_owned())),
        };
        self.commits.observe(started.elapsed().as_secs_f64());
        self.note(&written);
        // Before the callers are told, so that whoever was told finds it there.
        self.show();
        if written.is_ok() {
            self.appended.notify_one();
        }
        self.shown.waiting.fetch_sub(appends.len(), Ordering::Relaxed);
        for Append { place, done, .. } in appends {
            drop(place);
            let _ = done.send(written.clone());
        }
    }

    fn read_or_delete(&mut self, job: Job) {
        match job {
            Job::After { id, limit, done } => {
                let records = self.file.as_mut().map(|file| file.after(id, limit));
                let _ = done.send(records.unwrap_or_default());
            }
            Job::Delete { ids, done } => {
                if let Some(Err(error)) = self.file.as_mut().map(|file| file.delete(&ids)) {
                    warn!(
                        error = chain(&error),
                        "published records stay in the spool and will be published again"
                    );
                }
                self.show();
                let _ = done.send(());
            }
            Job::Append(_) => {}
        }
    }

    fn show(&self) {
        let (Some(file), shown) = (&self.file, &self.shown) else { return };
        let size = file.size();
        shown.records.store(size.records, Ordering::Relaxed);
        shown.bytes.store(size.bytes, Ordering::Relaxed);
        shown.room.store(file.room(), Ordering::Relaxed);
        shown.oldest_ms.store(file.oldest_ms(), Ordering::Relaxed);
        shown.corruptions.store(file.corruptions(), Ordering::Relaxed);
    }

    fn note(&mut self, outcome: &Result<(), SpoolError>) {
        self.shown.unwritable.store(outcome.is_err(), Ordering::Relaxed);
        match outcome {
            Err(failure) if !self.noted_failure => {
                error!(error = chain(failure), "the spool can't be written");
            }
            Ok(()) if self.noted_failure => info!("the spool can be written again"),
            _ => {}
        }
        self.noted_failure = outcome.is_err();
    }
}
