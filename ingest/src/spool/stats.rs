//! What other threads see of the spool, and of the thread that owns it.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shared::telemetry::chain;
use tokio::time::sleep;
use tracing::{error, info};

use super::SpoolError;

/// A thread that takes longer for an operation counts as hanging. In milliseconds.
const HANGS_AFTER_MS: u64 = 1000;
/// How often the thread is checked.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// What the owner's thread reports.
#[derive(Debug)]
pub struct Stats {
    pub records: AtomicU64,
    pub bytes: AtomicU64,
    pub room: AtomicU64,
    pub oldest_ms: AtomicI64,
    pub waiting: AtomicUsize,
    pub corruptions: AtomicU64,
    pub left_to_copy: AtomicU64,
    pub is_open: AtomicBool,
    pub unwritable: AtomicBool,
    has_ended: AtomicBool,
    started: Instant,
    // Milliseconds from `started` to when the thread began its piece of work; the maximum while it waits for
    // one.
    works_since: AtomicU64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            records: AtomicU64::default(),
            bytes: AtomicU64::default(),
            room: AtomicU64::default(),
            oldest_ms: AtomicI64::default(),
            waiting: AtomicUsize::default(),
            corruptions: AtomicU64::default(),
            left_to_copy: AtomicU64::default(),
            is_open: AtomicBool::default(),
            // Until it is opened.
            unwritable: AtomicBool::new(true),
            has_ended: AtomicBool::default(),
            started: Instant::now(),
            works_since: AtomicU64::default(),
        }
    }
}

impl Stats {
    /// The thread begins a piece of work.
    pub fn works(&self) {
        self.works_since.store(self.now(), Ordering::Relaxed);
    }

    /// The thread waits for work.
    pub fn waits(&self) {
        self.works_since.store(u64::MAX, Ordering::Relaxed);
    }

    /// For how long the thread has been at its piece of work.
    pub fn works_for(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.works_since.load(Ordering::Relaxed)))
    }

    /// Why nobody should wait for the thread, if there is a reason.
    pub fn obstacle(&self) -> Option<SpoolError> {
        if self.has_ended.load(Ordering::Relaxed) {
            return Some(SpoolError::Ended);
        }
        let hangs = self.works_for() >= Duration::from_millis(HANGS_AFTER_MS);
        let is_open = self.is_open.load(Ordering::Relaxed);
        hangs.then_some(if is_open { SpoolError::Hangs } else { SpoolError::Opening })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Says in the log when the thread hangs or has ended: it can't do so itself.
pub async fn watch(stats: Weak<Stats>) {
    let mut known = None;
    while let Some(stats) = stats.upgrade() {
        let obstacle = stats.obstacle();
        match (&obstacle, &known) {
            (Some(obstacle), _) if known.as_ref() != Some(obstacle) => {
                error!(error = chain(obstacle), "the spool can't be written");
            }
            (None, Some(_)) => info!("the spool's thread works again"),
            _ => {}
        }
        known = obstacle;
        drop(stats);
        sleep(WATCH_INTERVAL).await;
    }
}

/// Held by the thread: however that ends, this is dropped.
pub struct Life(pub std::sync::Arc<Stats>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{Spool, drain};
    use crate::webhook::{Metadata, Webhook};
    use std::sync::Arc;
    use tokio::sync::Notify;

    fn webhook() -> Webhook {
        let metadata = Metadata {
            tenant: "faster".into(),
            stream: "any".into(),
            received_at_ms: 1,
            key: "key".into(),
            event_type: "unknown".into(),
            signature: "unsigned".into(),
            traceparent: String::new(),
            evidence: None,
        };
        Webhook { metadata, body: "{}".into() }
    }

    /// A spool whose thread does this, which looks well.
    fn spool(work: impl FnOnce() + Send + 'static) -> Spool {
        let stats = Arc::new(Stats::default());
        stats.is_open.store(true, Ordering::Relaxed);
        stats.unwritable.store(false, Ordering::Relaxed);
        Spool::start(stats, Arc::new(Notify::new()), |_| work()).unwrap()
    }

    #[tokio::test]
    async fn a_thread_that_has_ended_shows_at_once() {
        let spool = spool(|| panic!("a defect"));
        while spool.is_writable() {
            tokio::task::yield_now().await;
        }
        assert_eq!(spool.append(&webhook()).await, Err(SpoolError::Ended));
        assert_eq!(spool.opened().await, Err(SpoolError::Ended));
        assert!(!spool.delete(vec![1]).await);
    }

    #[tokio::test]
    async fn a_thread_that_hangs_shows_and_nobody_waits_for_it() {
        let (goes_on, hangs) = std::sync::mpsc::channel::<()>();
        let spool = spool(move || {
            let _ = hangs.recv();
        });
        assert!(spool.is_writable());
        assert_eq!(spool.append(&webhook()).await, Err(SpoolError::TimedOut));
        while spool.is_writable() {
            tokio::task::yield_now().await;
        }
        let asked = Instant::now();
        assert_eq!(spool.append(&webhook()).await, Err(SpoolError::Hangs));
        assert!(asked.elapsed() < Duration::from_millis(500));
        assert!(spool.works_for() >= Duration::from_secs(1));
        // A drain, which may wait longer, gives up in the end.
        drain::hangs(&spool).await;
        assert!(spool.works_for() >= drain::CONFIRM_TIMEOUT);
        drop(goes_on);
    }
}
