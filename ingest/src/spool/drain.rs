//! Publishes spooled webhooks to RabbitMQ, the oldest of each tenant first, as soon as RabbitMQ takes them.
//!
//! Each tenant has its own drain: a queue that doesn't answer or is full delays no other tenant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use shared::partition;
use shared::publisher::PublishError;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use super::{Record, Spool};
use crate::durable::Durable;
use crate::webhook::Webhook;

/// Records of a tenant published at the same time: a share of what may be in flight, so that live traffic
/// keeps its latency.
const PAGE: usize = 64;
/// Tenants that have a page in memory at the same time, not counting those under suspicion: these have one
/// record.
const MAX_PAGES: usize = 4;
/// Longest wait for a confirm. Callers wait for a shorter time; here no caller waits.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// First and longest pause after RabbitMQ has confirmed nothing.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How often the drain looks for tenants that it doesn't drain yet, while it drains others.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Records that are deleted together.
const DELETED: usize = 512;

/// The result of an attempt to publish everything of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drained {
    /// Nothing is left.
    All,
    /// RabbitMQ has taken some and refused others, for instance because a queue is full.
    Some,
    /// RabbitMQ takes nothing.
    Nothing,
}

/// How far a tenant's drain has come.
struct Progress {
    /// Nothing is left to be published up to this record.
    up_to: i64,
    /// Published records that could not be deleted yet: they are not to be published again.
    undeleted: BTreeSet<i64>,
}

impl Progress {
    fn new() -> Self {
        Self { up_to: i64::MIN, undeleted: BTreeSet::new() }
    }

    /// Deletes what is published, as far as that works now.
    async fn delete(&mut self, spool: &Spool) {
        while !self.undeleted.is_empty() {
            let some: Vec<i64> = self.undeleted.iter().copied().take(DELETED).collect();
            if !spool.delete(some.clone()).await {
                return;
            }
            for id in &some {
                self.undeleted.remove(id);
            }
        }
    }
}

/// Drains the spool whenever there is something in it, until `stop`.
pub async fn run(durable: Arc<Durable>, partitions: u16, stop: CancellationToken) {
    let pages = Arc::new(Semaphore::new(MAX_PAGES));
    let mut draining: BTreeMap<String, AbortOnDropHandle<()>> = BTreeMap::new();
    loop {
        draining.retain(|_, task| !task.is_finished());
        for tenant in durable.spool().tenants().await {
            draining.entry(tenant).or_insert_with_key(|tenant| {
                let (durable, tenant, pages) = (durable.clone(), tenant.clone(), pages.clone());
                let draining = async move { drain(&durable, &tenant, partitions, &pages).await };
                AbortOnDropHandle::new(tokio::spawn(draining))
            });
        }
        tokio::select! {
            () = durable.spool().appended(), if draining.is_empty() => {}
            () = sleep(LOOK_INTERVAL), if !draining.is_empty() => {}
            // The tenants may not have been readable just now.
            () = sleep(PAUSE.1), if durable.spool().to_be_published() > 0 => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Publishes everything of a tenant, however long it takes.
async fn drain(durable: &Durable, tenant: &str, partitions: u16, pages: &Semaphore) {
    let (mut pause, mut progress) = (PAUSE.0, Progress::new());
    loop {
        match once(durable, tenant, partitions, pages, &mut progress).await {
            Drained::All => return,
            Drained::Some => pause = PAUSE.0,
            Drained::Nothing => pause = (pause * 2).min(PAUSE.1),
        }
        sleep(pause).await;
    }
}

/// Drains until the spool is empty; false if a tenant made no progress for `patience`, or the disk hangs.
pub async fn to_the_end(durable: &Durable, partitions: u16, patience: Duration) -> bool {
    tokio::select! {
        is_empty = drain_all(durable, partitions, patience) => is_empty,
        () = hangs(durable.spool()) => false,
    }
}

/// Completes when the spool's thread has been at one operation for as long as RabbitMQ may take to confirm.
pub(super) async fn hangs(spool: &Spool) {
    while spool.works_for() < CONFIRM_TIMEOUT {
        sleep(PAUSE.0).await;
    }
}

async fn drain_all(durable: &Durable, partitions: u16, patience: Duration) -> bool {
    let pages = Semaphore::new(MAX_PAGES);
    let drain = async |tenant: String| {
        let (mut moved, mut progress) = (Instant::now(), Progress::new());
        while moved.elapsed() < patience {
            match once(durable, &tenant, partitions, &pages, &mut progress).await {
                Drained::All => return true,
                Drained::Some => moved = Instant::now(),
                Drained::Nothing => sleep(PAUSE.0).await,
            }
        }
        false
    };
    let mut progress = Instant::now();
    while progress.elapsed() < patience {
        let tenants = durable.spool().tenants().await;
        if tenants.is_empty() {
            if durable.spool().is_empty() {
                return true;
            }
            // A damaged file is still being copied.
            sleep(PAUSE.0).await;
        } else if join_all(tenants.into_iter().map(&drain)).await.contains(&false) {
            return false;
        } else {
            progress = Instant::now();
        }
    }
    false
}

/// Publishes the records of a tenant once, one after the other.
async fn once(
    durable: &Durable,
    tenant: &str,
    partitions: u16,
    pages: &Semaphore,
    progress: &mut Progress,
) -> Drained {
    let spool = durable.spool();
    let (mut at, mut published, mut is_all) = (progress.up_to, 0, true);
    progress.delete(spool).await;
    loop {
        // A queue under suspicion gets a single record, which shows whether it confirms in time.
        let is_probe = durable.is_suspect(tenant) && published == 0;
        let _page = if is_probe { None } else { pages.acquire().await.ok() };
        let limit = if is_probe { 1 } else { PAGE };
        let Some(mut page) = spool.after(tenant, at, limit).await else { return Drained::Nothing };
        let Some(last) = page.last else { break };
        at = last;
        page.records.retain(|record| !progress.undeleted.contains(&record.id));
        let outcomes =
            join_all(page.records.iter().map(|record| publish(durable, &record.webhook, partitions))).await;
        let taken = ids(&page.records, &outcomes);
        is_all &= page.is_whole && taken.len() == page.records.len();
        if is_all {
            progress.up_to = last;
        }
        published += taken.len();
        progress.undeleted.extend(taken);
        progress.delete(spool).await;
        // One that is refused stays, and lets the others pass; when there is no answer at all, nothing
        // passes.
        if outcomes.iter().any(|outcome| !matches!(outcome, Ok(()) | Err(PublishError::Nacked))) {
            break;
        }
    }
    if published > 0 {
        info!(tenant, published, left = spool.size().records, "published from the spool");
    }
    match (is_all && progress.undeleted.is_empty(), published) {
        (true, _) => Drained::All,
        (_, 0) => Drained::Nothing,
        _ => Drained::Some,
    }
}

/// The queue is found now, not when the webhook was stored: the number of partitions may have changed
/// meanwhile.
async fn publish(durable: &Durable, webhook: &Webhook, partitions: u16) -> Result<(), PublishError> {
    let queue = partition::queue_of_body(&webhook.metadata.key, &webhook.body, partitions);
    durable.route(&webhook.metadata.tenant).publish_patiently(webhook, queue, CONFIRM_TIMEOUT).await
}

fn ids(records: &[Record], outcomes: &[Result<(), PublishError>]) -> Vec<i64> {
    let taken = records.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok());
    taken.map(|(record, _)| record.id).collect()
}
