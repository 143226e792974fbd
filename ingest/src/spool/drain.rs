//! Gives spooled webhooks to RabbitMQ, the oldest first, whenever it takes them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use shared::partition;
use shared::publisher::PublishError;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Record;
use crate::durable::Durable;
use crate::webhook::Webhook;

/// Records published at the same time: a share of what may be in flight, so that live traffic keeps its latency.
const CONCURRENCY: usize = 64;
/// Longest wait for a confirm. Longer than any caller would wait, since here nobody does.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// First and longest pause after RabbitMQ has taken nothing.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What became of an attempt to empty the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// It is empty.
    Empty,
    /// RabbitMQ has taken some and refused others, for instance because a tenant's queue is full.
    Some,
    /// RabbitMQ takes nothing.
    Nothing,
}

/// Drains the spool whenever there is something in it, until `stop`.
pub async fn run(durable: Arc<Durable>, partitions: u16, stop: CancellationToken) {
    let mut pause = PAUSE.0;
    loop {
        let drained = tokio::select! {
            drained = once(&durable, partitions) => drained,
            () = stop.cancelled() => return,
        };
        pause = if drained == Drained::Nothing { (pause * 2).min(PAUSE.1) } else { PAUSE.0 };
        tokio::select! {
            () = durable.spool().appended(), if drained == Drained::Empty => {}
            () = sleep(pause), if drained != Drained::Empty => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Goes through the spool once.
pub async fn once(durable: &Durable, partitions: u16) -> Drained {
    let (mut at, mut published) = (i64::MIN, 0);
    loop {
        // A broker under suspicion is asked with a single record, which shows whether it confirms in time.
        let limit = if durable.is_suspect() && published == 0 { 1 } else { CONCURRENCY };
        let records = durable.spool().after(at, limit).await;
        let Some(last) = records.last() else { break };
        at = last.id;
        let outcomes =
            join_all(records.iter().map(|record| publish(durable, &record.webhook, partitions))).await;
        let taken = ids(&records, &outcomes);
        published += taken.len();
        durable.spool().delete(taken).await;
        // One that is refused stays, and lets the others pass; when there is no answer at all, nothing passes.
        if outcomes.iter().any(|outcome| !matches!(outcome, Ok(()) | Err(PublishError::Nacked))) {
            break;
        }
    }
    if published > 0 {
        info!(published, left = durable.spool().size().records, "published from the spool");
    }
    match (durable.spool().size().records, published) {
        (0, _) => Drained::Empty,
        (_, 0) => Drained::Nothing,
        _ => Drained::Some,
    }
}

/// The queue is found now, not when the webhook was stored: the number of partitions may have changed meanwhile.
async fn publish(durable: &Durable, webhook: &Webhook, partitions: u16) -> Result<(), PublishError> {
    let queue = partition::queue_of_body(&webhook.metadata.key, &webhook.body, partitions);
    durable.publish(webhook, queue, PATIENCE).await
}

fn ids(records: &[Record], outcomes: &[Result<(), PublishError>]) -> Vec<i64> {
    let taken = records.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok());
    taken.map(|(record, _)| record.id).collect()
}

/// Drains until the spool is empty; false if nothing went out for `patience`.
pub async fn to_the_end(durable: &Durable, partitions: u16, patience: Duration) -> bool {
    let mut progress = Instant::now();
    while progress.elapsed() < patience {
        match once(durable, partitions).await {
            Drained::Empty => return true,
            Drained::Some => progress = Instant::now(),
            Drained::Nothing => sleep(PAUSE.0).await,
        }
    }
    false
}
