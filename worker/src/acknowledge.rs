//! Acknowledges deliveries, many of them at once: RabbitMQ writes each acknowledgement to the queue's log, whether it is of
//! one delivery or of a thousand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::Acker;
use lapin::options::BasicAckOptions;
use tokio::sync::mpsc;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Longest time for acknowledgements to be written to the connection.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time that a delivery waits for earlier ones.
const PATIENCE: Duration = Duration::from_secs(1);

/// Most deliveries that are looked at together.
const AT_ONCE: usize = 400;

/// A delivery that is to be acknowledged.
#[derive(Debug)]
pub struct Done {
    /// Its number on the channel.
    pub tag: u64,
    /// To acknowledge it with.
    pub acker: Acker,
}

/// Acknowledges the deliveries of a channel, all those up to one at a time. No more than `held_back` (read each time) wait for earlier ones
/// to be done, and none for long: if one never is, RabbitMQ must not deliver again what came after it.
///
/// Ends when no more can come. Cancels `lost` if the channel takes no acknowledgements, and makes none once that is cancelled.
pub async fn run(mut done: mpsc::Receiver<Done>, held_back: Arc<AtomicUsize>, lost: CancellationToken) {
    let (mut order, mut ackers, mut some) = (Order::default(), BTreeMap::new(), Vec::new());
    let mut patience = interval(PATIENCE);
    loop {
        tokio::select! {
            number = done.recv_many(&mut some, AT_ONCE) => if number == 0 { break },
            _ = patience.tick() => acknowledge_each(&mut order, &mut ackers, &lost).await,
        }
        for Done { tag, acker } in some.drain(..) {
            order.done.insert(tag);
            ackers.insert(tag, acker);
        }
        if let Some(tag) = order.complete() {
            let later = ackers.split_off(&(tag + 1));
            let last = std::mem::replace(&mut ackers, later).remove(&tag);
            acknowledge(last, BasicAckOptions { multiple: true }, &lost).await;
        }
        if order.done.len() > held_back.load(Ordering::Relaxed) {
            acknowledge_each(&mut order, &mut ackers, &lost).await;
        }
    }
    acknowledge_each(&mut order, &mut ackers, &lost).await;
}

async fn acknowledge_each(order: &mut Order, ackers: &mut BTreeMap<u64, Acker>, lost: &CancellationToken) {
    let ready = order.single().into_iter().filter_map(|tag| ackers.remove(&tag));
    acknowledge(ready, BasicAckOptions::default(), lost).await;
}

/// Gives up when `lost` is cancelled: the answer may never come on a connection that is gone.
async fn acknowledge(
    ackers: impl IntoIterator<Item = Acker>,
    options: BasicAckOptions,
    lost: &CancellationToken,
) {
    let acknowledging = ackers.into_iter().map(|acker| async move { acker.ack(options).await });
    let acknowledged = tokio::select! {
        acknowledged = timeout(TIMEOUT, join_all(acknowledging)) => acknowledged,
        () = lost.cancelled() => return,
    };
    let Ok(acknowledged) = acknowledged else {
        warn!("deliveries can't be acknowledged in time, starting to consume anew");
        return lost.cancel();
    };
    // The broker will deliver these again, and the ledger knows them.
    let void = acknowledged.iter().filter(|outcome| !matches!(outcome, Ok(true))).count();
    if void > 0 {
        debug!(void, "deliveries could not be acknowledged, since their channel is gone");
    }
}

/// The tags of a channel's deliveries, which RabbitMQ counts from 1.
#[derive(Debug)]
struct Order {
    /// All before this one are acknowledged.
    next: u64,
    /// Done, and not acknowledged.
    done: BTreeSet<u64>,
    /// Acknowledged before an earlier one was: first and last of each run without a gap. There are no more gaps than
    /// deliveries in hand.
    early: BTreeMap<u64, u64>,
}

impl Default for Order {
    fn default() -> Self {
        Self { next: 1, done: BTreeSet::new(), early: BTreeMap::new() }
    }
}

impl Order {
    /// The last one of those that are done as all before them are, to be acknowledged with these.
    fn complete(&mut self) -> Option<u64> {
        let mut complete = None;
        loop {
            if self.done.remove(&self.next) {
                complete = Some(self.next);
                self.next += 1;
            } else if let Some(last) = self.early.remove(&self.next) {
                self.next = last + 1;
            } else {
                return complete;
            }
        }
    }

    /// All that are done, each to be acknowledged by itself.
    fn single(&mut self) -> BTreeSet<u64> {
        let done = std::mem::take(&mut self.done);
        for tag in &done {
            let last = self.early.remove(&(tag + 1)).unwrap_or(*tag);
            match self.early.range_mut(..tag).next_back() {
                Some((_, end)) if *end + 1 == *tag => *end = last,
                _ => drop(self.early.insert(*tag, last)),
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(done: &[u64]) -> Order {
        Order { done: done.iter().copied().collect(), ..Order::default() }
    }

    #[test]
    fn what_has_no_gap_before_it_is_acknowledged_at_once() {
        let mut order = order(&[1, 3, 2, 5]);
        assert_eq!(order.complete(), Some(3));
        assert_eq!(order.complete(), None);
        order.done.insert(4);
        assert_eq!(order.complete(), Some(5));
        assert!(order.done.is_empty());
    }

    #[test]
    fn nothing_is_acknowledged_twice() {
        let mut order = order(&[2, 3]);
        assert_eq!(order.single(), BTreeSet::from([2, 3]));
        assert_eq!(order.single(), BTreeSet::new());
        order.done.insert(1);
        // RabbitMQ closes the channel if it is told of a tag that it has crossed off.
        assert_eq!(order.complete(), Some(1));
        order.done.insert(4);
        assert_eq!(order.complete(), Some(4));
        assert!(order.early.is_empty());
    }

    #[test]
    fn one_that_is_never_done_costs_no_memory_for_those_after_it() {
        let mut order = Order::default();
        for tags in [[5, 2], [3, 8], [4, 7]] {
            order.done.extend(tags);
            order.single();
        }
        assert_eq!(order.early, BTreeMap::from([(2, 5), (7, 8)]));
        order.done.extend([1, 6]);
        assert_eq!(order.complete(), Some(6));
        assert_eq!((order.next, order.early.len()), (9, 0));
    }
}
