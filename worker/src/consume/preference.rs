//! Which worker is to have which queue. Pure.
//!
//! Every worker consumes every queue of its tenants, and RabbitMQ sends a queue's events to one of them: to
//! the consumer with the highest priority. So the workers share the queues, as long as they see each other's
//! announcements. The priority is a hint: correctness never depends on which worker consumes a queue.

use shared::partition::{self, MAX_PARTITIONS, WorkQueue};

/// The priority of a worker that has stepped down: below all others.
pub const STEPPED_DOWN: i32 = -1000;

/// The priority with which a worker consumes a queue of a tenant, if these are the names of all who serve
/// that tenant, sorted: 0 for its own queues, less for those of the others.
#[must_use]
pub fn priority(me: &str, workers: &[String], tenant: &str, queue: WorkQueue) -> i32 {
    let count = workers.len().max(1);
    let Some(rank) = workers.iter().position(|worker| worker == me) else { return 0 };
    // With the tenant's hash, or the first worker would have the first queue of each tenant.
    let owner = (number(queue) + hash(tenant)) % count;
    let after_owner = (rank + count - owner) % count;
    -i32::try_from(after_owner).unwrap_or(i32::MAX)
}

/// The queue for large bodies counts as the one after the last.
fn number(queue: WorkQueue) -> usize {
    usize::from(match queue {
        WorkQueue::Partition(n) => n,
        WorkQueue::Large => MAX_PARTITIONS,
    })
}

fn hash(tenant: &str) -> usize {
    usize::try_from(partition::fnv_1a(tenant.as_bytes()) % 1000).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("worker-{n}")).collect()
    }

    fn owner(workers: &[String], tenant: &str, queue: WorkQueue) -> String {
        let of = |worker: &&String| priority(worker, workers, tenant, queue);
        workers.iter().max_by_key(of).expect("somebody").clone()
    }

    #[test]
    fn each_queue_has_one_owner_and_an_order_of_heirs() {
        let workers = names(3);
        for queue in WorkQueue::all(8) {
            let mut priorities: Vec<_> =
                workers.iter().map(|worker| priority(worker, &workers, "faster", queue)).collect();
            priorities.sort_unstable();
            assert_eq!(priorities, [-2, -1, 0], "{queue:?}");
            assert!(priorities[0] > STEPPED_DOWN);
        }
    }

    #[test]
    fn queues_are_shared_evenly() {
        for count in [1, 2, 4, 8] {
            let workers = names(count);
            for worker in &workers {
                let owned = (0..8)
                    .map(WorkQueue::Partition)
                    .filter(|queue| owner(&workers, "faster", *queue) == *worker);
                assert_eq!(owned.count(), 8 / count, "{worker} of {count}");
            }
        }
    }

    #[test]
    fn tenants_begin_with_different_workers() {
        let workers = names(4);
        let first = |tenant: usize| owner(&workers, &format!("tenant-{tenant}"), WorkQueue::Partition(0));
        let mut owners: Vec<_> = (0..20).map(first).collect();
        owners.sort();
        owners.dedup();
        assert_eq!(owners.len(), 4);
    }

    #[test]
    fn a_worker_that_nobody_names_acts_as_if_alone() {
        assert_eq!(priority("me", &names(3), "faster", WorkQueue::Partition(1)), 0);
        assert_eq!(priority("me", &["me".to_owned()], "faster", WorkQueue::Large), 0);
    }
}
