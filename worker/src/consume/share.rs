//! How many deliveries each queue may have in hand. RabbitMQ bounds what it sends by number, not by bytes: so
//! the bytes of the whole process are bounded by the number of queues that it consumes.

use std::collections::BTreeMap;

use shared::partition::{LARGE_BODY, WorkQueue};
use tokio::sync::watch;

/// Most bytes of bodies in hand from all partitions, if all are as large as those of partitions get.
const MAX_BYTES: usize = 256 << 20;
/// The same for the queues of large bodies.
const MAX_LARGE_BYTES: usize = 64 << 20;
/// The largest body that ingest takes.
const LARGEST_BODY: usize = 5 << 18;
/// Most deliveries in hand of a queue for large bodies.
const MAX_LARGE_PREFETCH: usize = 4;
/// Most partitions of a worker: with one delivery in hand of each, the bytes are what they may be.
pub const MAX_QUEUES: usize = MAX_BYTES / LARGE_BODY;

/// The queues that a worker consumes, of all its tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumed(BTreeMap<String, u16>);

impl Consumed {
    /// This many partitions of each of these tenants.
    #[must_use]
    pub fn new<'a>(tenants: impl Iterator<Item = &'a str>, partitions: u16) -> Self {
        Self(tenants.map(|tenant| (tenant.to_owned(), partitions)).collect())
    }

    /// How many deliveries a queue may have in hand, if a batch has this many.
    #[must_use]
    pub fn prefetch(&self, queue: WorkQueue, batch_size: usize) -> u16 {
        let (bytes, queues, body, most) = match queue {
            WorkQueue::Large => (MAX_LARGE_BYTES, self.0.len(), LARGEST_BODY, MAX_LARGE_PREFETCH),
            WorkQueue::Partition(_) => {
                (MAX_BYTES, self.0.values().copied().map(usize::from).sum(), LARGE_BODY, 2 * batch_size)
            }
        };
        u16::try_from((bytes / (queues.max(1) * body)).clamp(1, most)).unwrap_or(u16::MAX)
    }
}

/// Records that a tenant has this many partitions now: each queue gets less.
pub fn set_partitions(consumed: &watch::Sender<Consumed>, tenant: &str, partitions: u16) {
    consumed.send_if_modified(|consumed| {
        let known = consumed.0.entry(tenant.to_owned()).or_default();
        let is_more = partitions > *known;
        *known = partitions.max(*known);
        is_more
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumed(tenants: u16, partitions: u16) -> Consumed {
        let names: Vec<String> = (0..tenants).map(|n| format!("t{n}")).collect();
        Consumed::new(names.iter().map(String::as_str), partitions)
    }

    #[test]
    fn what_is_in_hand_is_bounded_whatever_the_number_of_tenants_and_queues() {
        let of = |tenants, partitions| consumed(tenants, partitions).prefetch(WorkQueue::Partition(0), 200);
        assert_eq!([of(1, 4), of(2, 4), of(4, 4), of(50, 8), of(50, 64)], [400, 400, 256, 10, 1]);
        let large = |tenants| consumed(tenants, 4).prefetch(WorkQueue::Large, 200);
        assert_eq!([large(1), large(12), large(50)], [4, 4, 1]);
        for (tenants, partitions) in [(1, 4), (3, 21), (50, 8), (64, 64)] {
            let queues = usize::from(tenants * partitions);
            assert!(usize::from(of(tenants, partitions)) * queues * LARGE_BODY <= MAX_BYTES, "{tenants}");
            assert!(
                usize::from(large(tenants.min(51))) * usize::from(tenants.min(51)) * LARGEST_BODY
                    <= MAX_LARGE_BYTES
            );
        }
    }

    #[test]
    fn partitions_that_turn_up_later_are_counted_once() {
        let (sender, mut receiver) = watch::channel(consumed(2, 4));
        set_partitions(&sender, "t0", 64);
        assert!(receiver.has_changed().unwrap());
        assert_eq!(receiver.borrow_and_update().prefetch(WorkQueue::Partition(0), 200), 60);
        set_partitions(&sender, "t0", 8);
        assert!(!receiver.has_changed().unwrap(), "no fewer");
    }
}
