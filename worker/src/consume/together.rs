//! Writes small batches of a tenant's queues together.
//!
//! A transaction costs MongoDB and the worker some milliseconds of processor time, however few events it has.
//! So in calm traffic all queues end their batches at the same moments (`Together::tick`), and what is ready
//! then shares one transaction. If that fails, each batch is written alone, as if it had not been tried:
//! nothing is decided here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::TenantContext;
use super::intake::MAX_BATCH_BYTES;
use crate::decode::Event;
use crate::project::Outcome;
use crate::store::failure::Class;
use crate::store::transaction::{self, Work};

/// How long the first batch of a moment waits for those of other queues: their tasks wake up one after the
/// other.
const OTHERS_TIMEOUT: Duration = Duration::from_millis(2);
/// Batches that wait: each queue has one at a time.
const MAX_WAITING: usize = 128;

/// Takes batches, and says when they end.
#[derive(Clone, Debug)]
pub struct Together {
    began: Instant,
    batches: mpsc::Sender<Waiting>,
}

/// A batch that waits to be written.
#[derive(Debug)]
pub struct Waiting {
    events: Arc<[Event]>,
    outcomes: oneshot::Sender<Vec<Outcome>>,
}

impl Together {
    /// Takes batches, and passes them to [`write_all`].
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Waiting>) {
        let (batches, waiting) = mpsc::channel(MAX_WAITING);
        (Self { began: Instant::now(), batches }, waiting)
    }

    /// When a batch ends whose first event is in hand since then: at the same moment as those of the other
    /// queues, and after `linger` at the latest.
    #[must_use]
    pub fn tick(&self, since: Instant, linger: Duration) -> Instant {
        if linger.is_zero() {
            return since;
        }
        let ticks = since.duration_since(self.began).as_nanos() / linger.as_nanos() + 1;
        self.began + linger.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    /// Writes events that are taken for new, and returns the outcome of each. None if they have to be written
    /// alone: they fill a transaction, or could not be written with those of other queues.
    pub async fn write(&self, events: &Arc<[Event]>, most: usize) -> Option<Vec<Outcome>> {
        if !is_small(events, most) {
            return None;
        }
        let (outcomes, told) = oneshot::channel();
        self.batches.send(Waiting { events: events.clone(), outcomes }).await.ok()?;
        told.await.ok()
    }
}

/// Writes what waits, for as long as this is polled.
pub async fn write_all(context: Arc<TenantContext>, mut batches: mpsc::Receiver<Waiting>) {
    let (mut ready, mut writing) = (Vec::new(), JoinSet::new());
    loop {
        tokio::select! {
            taken = batches.recv_many(&mut ready, MAX_WAITING) => if taken == 0 { return },
            Some(_) = writing.join_next() => continue,
        }
        sleep(OTHERS_TIMEOUT).await;
        ready.extend(std::iter::from_fn(|| batches.try_recv().ok()));
        for group in groups(std::mem::take(&mut ready), context.settings.batch_size) {
            writing.spawn(write(context.clone(), group));
        }
    }
}

async fn write(context: Arc<TenantContext>, group: Vec<Waiting>) {
    let events: Arc<[Event]> = group.iter().flat_map(|waiting| waiting.events.iter().cloned()).collect();
    let (count, started) = (events.len(), Instant::now());
    match transaction::attempt(&context.store, events, Work::ApplyNew, false).await {
        Ok(written) => {
            context.metrics.committed(count, started.elapsed());
            context.state.record_success();
            let mut outcomes = written.outcomes.into_iter();
            for waiting in group {
                let of_batch = outcomes.by_ref().take(waiting.events.len()).collect();
                // Fails if the queue's task has ended: RabbitMQ will deliver the events again.
                let _ = waiting.outcomes.send(of_batch);
            }
        }
        Err(failure) => {
            context.metrics.retries.inc();
            let class = failure.class(0);
            // What is wrong with an event or its documents shows again when the batch is written alone.
            if matches!(class, Class::Infrastructure | Class::Configuration) {
                context.state.record_failure(class, &failure);
            }
        }
    }
}

fn bytes(events: &[Event]) -> usize {
    events.iter().map(|event| event.body.len()).sum()
}

/// Whether a batch is far from filling a transaction.
fn is_small(events: &[Event], most: usize) -> bool {
    events.len() <= most / 2 && bytes(events) <= MAX_BATCH_BYTES / 2
}

/// Batches that fit into one transaction each.
fn groups(ready: Vec<Waiting>, most: usize) -> Vec<Vec<Waiting>> {
    let (mut groups, mut room) = (Vec::<Vec<Waiting>>::new(), (0, 0));
    for waiting in ready {
        let needs = (waiting.events.len(), bytes(&waiting.events));
        match groups.last_mut() {
            Some(group) if needs.0 <= room.0 && needs.1 <= room.1 => group.push(waiting),
            _ => {
                room = (most, MAX_BATCH_BYTES);
                groups.push(vec![waiting]);
            }
        }
        room = (room.0.saturating_sub(needs.0), room.1.saturating_sub(needs.1));
    }
    groups
}

#[cfg(test)]
mod tests {
    use shared::event::Stream;

    use super::*;
    use crate::decode::Envelope;

    fn batch(events: usize, bytes: usize) -> Waiting {
        let event = |n| {
            let envelope =
                Envelope { tenant: "t", stream: Stream::Any, received_at_ms: 1, signature: "unsigned" };
            let body = format!(r#"{{"event_id":"{n}","text":"{}"}}"#, "a".repeat(bytes));
            Event::decode(body.as_bytes(), envelope).unwrap()
        };
        Waiting { events: (0..events).map(event).collect(), outcomes: oneshot::channel().0 }
    }

    fn sizes(groups: &[Vec<Waiting>]) -> Vec<Vec<usize>> {
        groups.iter().map(|group| group.iter().map(|waiting| waiting.events.len()).collect()).collect()
    }

    #[test]
    fn a_transaction_takes_as_many_batches_as_fit() {
        let ready = |counts: &[usize]| counts.iter().map(|count| batch(*count, 1)).collect::<Vec<_>>();
        assert_eq!(sizes(&groups(ready(&[50, 60, 90, 1, 100]), 200)), [vec![50, 60, 90], vec![1, 100]]);
        assert_eq!(sizes(&groups(ready(&[3]), 1)), [[3]], "what is larger than one stands alone");
        let large = (0..3).map(|_| batch(1, MAX_BATCH_BYTES / 2)).collect();
        assert_eq!(sizes(&groups(large, 200)), [[1], [1], [1]], "by bytes, too");
    }

    #[test]
    fn only_a_batch_that_leaves_room_for_others_waits_for_them() {
        let is_small = |count, bytes| is_small(&batch(count, bytes).events, 200);
        assert!(is_small(100, 1) && !is_small(101, 1) && !is_small(1, MAX_BATCH_BYTES / 2));
    }

    #[tokio::test(start_paused = true)]
    async fn batches_of_all_queues_end_at_the_same_moments() {
        let (together, _waiting) = Together::new();
        let (linger, at) = (Duration::from_millis(50), |ms| together.began + Duration::from_millis(ms));
        let ticks = [0, 1, 49, 50, 149].map(|ms| together.tick(at(ms), linger));
        assert_eq!(ticks, [50, 50, 50, 100, 150].map(at));
        assert_eq!(together.tick(at(7), Duration::ZERO), at(7));
    }
}
