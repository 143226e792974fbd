//! The spool: webhooks on disk that RabbitMQ couldn't take.
//!
//! # Constraints
//!
//! - An append succeeds only after the commit that holds it is fsynced (`journal_mode = WAL`, `synchronous =
//!   FULL`).
//! - Webhooks are appended in groups, up to 512 or 4 MiB with one fsync. Of a group for which there isn't
//!   enough room, those are appended that fit.
//! - A caller waits 1 s at most. At most 64 MiB of bodies wait to be written.
//! - The records count for at most `SPOOL_MAX_BYTES`: each for its body, its metadata and 64 bytes.
//! - Nothing is appended while the disk has less than 4 MiB left besides: SQLite's log may need them.
//! - When the last record is deleted, the disk gets its room back, 4 MiB at a time. Until then the next
//!   records use it.
//! - The file `reserve` takes another 4 MiB, and is deleted when a delete finds the disk full: so a full disk
//!   can be drained.
//! - One process has the folder, by a lock on the file `lock`. One thread of it has the file.
//! - A tenant's records are read in the order in which they were appended, and deleted after RabbitMQ has
//!   confirmed them. If they can't be deleted, the process remembers them until they can. What was confirmed
//!   and not yet deleted when it ended is published again; the event key makes that harmless.
//! - A record whose checksum is wrong is never published. It is copied to a file of its own before it is
//!   deleted.
//! - A file that SQLite finds damaged, or that the disk can't read, is kept under another name, which is done
//!   at once. Records with the right checksum are copied into the new file, 256 or 4 MiB at a time, each step
//!   in a transaction that also says how far it came. A step is taken while the new file holds less than 16
//!   MiB, so the disk never holds everything twice. The damaged file isn't changed, but renamed when the copy
//!   is complete; until then the next start continues the copy.
//! - Nobody waits for a thread that has been at one operation for more than 1 s, or has ended.
//! - Nobody but the owner may read the folder and its files. A folder that exists keeps its own mode.
//!
//! # On disk, in `SPOOL_DIR`
//!
//! - `lock`: empty.
//! - `reserve`: 4 MiB of zeros.
//! - `spool.db`, `spool.db-wal`, `spool.db-shm`: an SQLite database with `auto_vacuum = INCREMENTAL`, see
//!   [`mod@format`].
//!   - `records`, a row for each webhook: `id` (ascending, never used twice), `tenant` (empty if an earlier
//!     version has written the row, until it is entered), `received_at_ms` (since 1970), `facts`
//!     ([`crate::webhook::Metadata`] as JSON), `body` (the sender's bytes), and `checksum`: the first 8 bytes
//!     of the SHA-256 over the length of `facts` as 8 bytes, big-endian, `facts`, and `body`. An index leads
//!     from a tenant to its records.
//!   - `totals`, one row: number of records, and the bytes that they count for.
//!   - `writable`, one row: a number that is raised every 2 s, to see whether the file can be written.
//!   - `copied`, a row for each damaged file that is being copied: its name, and the `id` up to which that is
//!     done.
//! - `corrupt-spool-{time}Z-{random}`, each with its `-wal` and `-shm`: damaged files; with `.copied` behind
//!   the name when everything that can be read was copied.
//! - `setting-aside`: the name of a damaged file, while it is being renamed.
//! - `damaged-records-{time}Z-{random}`: two lines for each damaged record, `facts` and `body`.
//!
//! [`drain`] publishes the records when RabbitMQ takes them again.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::Histogram;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::webhook::Webhook;

mod aside;
pub mod command;
pub mod drain;
pub mod file;
pub mod folder;
pub mod format;
mod owner;
mod pages;
mod reserve;
mod salvage;
mod stats;
#[cfg(test)]
mod tests;

pub use file::{File, Page, Size};
pub use folder::{Folder, OpenError};
pub use format::Record;
use owner::{Append, Job, Owner};
use stats::{Life, Stats};

/// Longest wait for an fsync. With the time for the body and to publish it stays below respond.io's 5
/// seconds.
const APPEND_TIMEOUT: Duration = Duration::from_secs(1);
/// Bodies that wait to be written take at most this much memory, in units of 1 KiB.
const MAX_WAITING_KIB: u32 = 64 << 10;

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
    /// The file isn't open yet.
    #[error("the spool is still being opened and checked")]
    Opening,
    /// The thread hangs.
    #[error("the spool's thread hangs: the disk doesn't answer")]
    Hangs,
    /// The thread is gone.
    #[error("the spool's thread has ended, a defect: start ingest again")]
    Ended,
}

/// A handle on the spool.
#[derive(Clone, Debug)]
pub struct Spool {
    jobs: mpsc::UnboundedSender<Job>,
    places: Arc<Semaphore>,
    stats: Arc<Stats>,
    appended: Arc<Notify>,
}

impl Spool {
    /// Starts a thread that opens the spool in a folder. Fails if another process uses the folder; a spool
    /// that can't be opened for another reason is reported, and tried again and again. Needs a tokio runtime.
    pub fn open(path: &Path, max_bytes: u64, commits: Histogram) -> Result<Self, OpenError> {
        let folder = match Folder::take(path) {
            Err(error @ OpenError::InUse(_)) => return Err(error),
            // The thread tries again, and reports it.
            taken => taken.ok(),
        };
        let (stats, appended) = (Arc::new(Stats::default()), Arc::new(Notify::new()));
        let place = (path.to_owned(), max_bytes);
        let owner = Owner::new(place, folder, stats.clone(), appended.clone(), commits);
        Self::start(stats, appended, |jobs| owner.run(jobs))
            .map_err(|source| OpenError::Io { path: path.to_owned(), source })
    }

    fn start(
        stats: Arc<Stats>,
        appended: Arc<Notify>,
        work: impl FnOnce(mpsc::UnboundedReceiver<Job>) + Send + 'static,
    ) -> io::Result<Self> {
        // Bounded by `places`, except for the few jobs of the drain.
        let (jobs, received) = mpsc::unbounded_channel();
        let life = Life(stats.clone());
        std::thread::Builder::new().name("spool".to_owned()).spawn(move || {
            let _life = life;
            work(received);
        })?;
        tokio::spawn(stats::watch(Arc::downgrade(&stats)));
        let places = Arc::new(Semaphore::new(MAX_WAITING_KIB as usize));
        Ok(Self { jobs, places, stats, appended })
    }

    /// Appends a webhook and waits until it is fsynced.
    pub async fn append(&self, webhook: &Webhook) -> Result<(), SpoolError> {
        if let Some(obstacle) = self.stats.obstacle() {
            return Err(obstacle);
        }
        let append = async {
            let kib = u32::try_from(webhook.body.len() >> 10).unwrap_or(u32::MAX).saturating_add(1);
            let place = self.places.clone().acquire_many_owned(kib.min(MAX_WAITING_KIB)).await;
            let place = place.map_err(|_| SpoolError::Ended)?;
            let (done, answer) = oneshot::channel();
            let append = Append { webhook: webhook.clone(), place, done };
            self.stats.waiting.fetch_add(1, Ordering::Relaxed);
            self.jobs.send(Job::Append(Box::new(append))).map_err(|_| SpoolError::Ended)?;
            answer.await.unwrap_or(Err(SpoolError::Ended))
        };
        // After the deadline the webhook may still be written; the event key makes that harmless.
        timeout(APPEND_TIMEOUT, append).await.unwrap_or(Err(SpoolError::TimedOut))
    }

    /// Waits until the file is open, or couldn't be opened.
    pub async fn opened(&self) -> Result<(), SpoolError> {
        let (done, answer) = oneshot::channel();
        let _ = self.jobs.send(Job::Opened { done });
        answer.await.unwrap_or(Err(SpoolError::Ended))
    }

    /// The tenants of which there are records.
    pub async fn tenants(&self) -> Vec<String> {
        let (done, answer) = oneshot::channel();
        let _ = self.jobs.send(Job::Tenants { done });
        answer.await.unwrap_or_default()
    }

    /// The oldest records of a tenant behind the one called `id`: at most this many, and fewer if they are
    /// large. None if they can't be read.
    pub async fn after(&self, tenant: &str, id: i64, limit: usize) -> Option<Page> {
        let (done, answer) = oneshot::channel();
        let _ = self.jobs.send(Job::After { tenant: tenant.to_owned(), id, limit, done });
        answer.await.ok().flatten()
    }

    /// Deletes records; false if they are still there.
    pub async fn delete(&self, ids: Vec<i64>) -> bool {
        let (done, answer) = oneshot::channel();
        let _ = self.jobs.send(Job::Delete { ids, done });
        answer.await.unwrap_or(false)
    }

    /// Marks the file as whole, when all is done: so the next process need not read it through.
    pub async fn close(&self) {
        let (done, answer) = oneshot::channel();
        let _ = self.jobs.send(Job::Close { done });
        let _ = timeout(APPEND_TIMEOUT, answer).await;
    }

    /// Waits until something was appended since the last call.
    pub async fn appended(&self) {
        self.appended.notified().await;
    }

    /// Records in the spool, and their bytes.
    #[must_use]
    pub fn size(&self) -> Size {
        let (records, bytes) = (&self.stats.records, &self.stats.bytes);
        Size { records: records.load(Ordering::Relaxed), bytes: bytes.load(Ordering::Relaxed) }
    }

    /// Bytes that can still be appended; none while it can't be written.
    #[must_use]
    pub fn room(&self) -> u64 {
        if self.is_writable() { self.stats.room.load(Ordering::Relaxed) } else { 0 }
    }

    /// Time since the oldest record was received.
    #[must_use]
    pub fn oldest_age(&self) -> Duration {
        let received = match self.stats.oldest_ms.load(Ordering::Relaxed) {
            0 => return Duration::ZERO,
            ms => Duration::from_millis(u64::try_from(ms).unwrap_or_default()),
        };
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(received)
    }

    /// Webhooks that wait to be written.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.stats.waiting.load(Ordering::Relaxed)
    }

    /// Whether webhooks can be appended.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !self.stats.unwritable.load(Ordering::Relaxed) && self.stats.obstacle().is_none()
    }

    /// How long the thread's present operation has taken.
    #[must_use]
    pub fn works_for(&self) -> Duration {
        self.stats.works_for()
    }

    /// Records of damaged files that may still have to be copied, at most.
    #[must_use]
    pub fn left_to_copy(&self) -> u64 {
        self.stats.left_to_copy.load(Ordering::Relaxed)
    }

    /// Records that RabbitMQ doesn't have yet, at most.
    #[must_use]
    pub fn to_be_published(&self) -> u64 {
        self.size().records + self.left_to_copy()
    }

    /// Whether the file is open and nothing is left to be published.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stats.is_open.load(Ordering::Relaxed) && self.to_be_published() == 0
    }

    /// How often a damaged file was set aside.
    #[must_use]
    pub fn corruptions(&self) -> u64 {
        self.stats.corruptions.load(Ordering::Relaxed)
    }
}
