//! The state that a tenant's tasks share and report: MongoDB's state, and the events in hand.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::partition::WorkQueue;
use shared::status::TenantStatus;
use shared::telemetry::chain;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::breaker::{Breaker, Limits};
use crate::store::failure::{Class, Failure};

/// A failure that lasts is logged again after this time.
const REMINDER: Duration = Duration::from_mins(1);

/// The state of one tenant.
#[derive(Debug)]
pub struct TenantState {
    tenant: String,
    breaker: Breaker,
    connected: AtomicBool,
    down: Mutex<Option<String>>,
    conflicts: AtomicU64,
    logged: Mutex<BTreeMap<Class, Instant>>,
    queues: Mutex<BTreeMap<WorkQueue, Arc<QueueState>>>,
}

/// The state of one queue's task.
#[derive(Debug, Default)]
pub struct QueueState {
    in_hand: AtomicUsize,
    bytes_in_hand: AtomicUsize,
    oldest: Mutex<Option<Waiting>>,
    refusing: AtomicBool,
}

impl TenantState {
    /// Before the first operation.
    #[must_use]
    pub fn new(tenant: &str, limits: Limits) -> Self {
        Self {
            tenant: tenant.to_owned(),
            breaker: Breaker::new(tenant, limits),
            connected: AtomicBool::new(false),
            down: Mutex::new(Some("MongoDB has not answered yet".to_owned())),
            conflicts: AtomicU64::new(0),
            logged: Mutex::default(),
            queues: Mutex::default(),
        }
    }

    /// The circuit breaker in front of MongoDB.
    #[must_use]
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// The state of a queue's task.
    #[must_use]
    pub fn queue(&self, queue: WorkQueue) -> Arc<QueueState> {
        lock(&self.queues).entry(queue).or_default().clone()
    }

    /// Why the tenant's queues aren't consumed, if they aren't. May name servers.
    #[must_use]
    pub fn down(&self) -> Option<String> {
        lock(&self.down).clone()
    }

    /// The tenant's queues aren't consumed, for this reason.
    pub fn set_down(&self, reason: String) {
        *lock(&self.down) = Some(reason);
    }

    /// The tenant's queues are consumed from now on.
    pub fn set_up(&self) {
        *lock(&self.down) = None;
    }

    /// MongoDB has answered.
    pub fn record_success(&self) {
        let failures = self.breaker.seen().failures;
        self.breaker.record_success();
        if !self.connected.swap(true, Ordering::Relaxed) {
            info!(tenant = self.tenant, failures, "MongoDB works");
            lock(&self.logged).clear();
        }
    }

    /// An operation on MongoDB failed. Logged the first time, and again after a while if that lasts.
    pub fn record_failure(&self, class: Class, failure: &Failure) {
        match class {
            Class::Conflict => {
                self.conflicts.fetch_add(1, Ordering::Relaxed);
                return;
            }
            // MongoDB has answered.
            Class::Data => return self.record_success(),
            Class::Infrastructure => self.breaker.record_failure(),
            Class::Configuration => self.breaker.record_answer(),
        }
        self.connected.store(false, Ordering::Relaxed);
        if !self.deserves_log(class, Instant::now()) {
            return;
        }
        let (tenant, error, failures) = (&self.tenant, chain(failure), self.breaker.seen().failures);
        if class == Class::Configuration {
            error!(
                tenant,
                error, failures, "MongoDB refuses us, holding events until somebody corrects that"
            );
        } else {
            warn!(tenant, error, failures, "MongoDB fails, holding events");
        }
    }

    /// Whether to log a failure; if so, it counts as logged.
    fn deserves_log(&self, class: Class, now: Instant) -> bool {
        let mut logged = lock(&self.logged);
        let known = logged.get(&class).is_some_and(|at| now.duration_since(*at) < REMINDER);
        if !known {
            logged.insert(class, now);
        }
        !known
    }

    /// Whether MongoDB works, as far as is known.
    #[must_use]
    pub fn works(&self) -> bool {
        self.breaker.is_closed() && self.connected.load(Ordering::Relaxed)
    }

    /// Conflicts with other writers so far.
    #[must_use]
    pub fn conflicts(&self) -> u64 {
        self.conflicts.load(Ordering::Relaxed)
    }

    /// Events received and not settled yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.sum(|queue| queue.in_hand.load(Ordering::Relaxed))
    }

    /// Bytes of the bodies of these.
    #[must_use]
    pub fn bytes_in_flight(&self) -> usize {
        self.sum(|queue| queue.bytes_in_hand.load(Ordering::Relaxed))
    }

    /// Queues that hold, since MongoDB refuses one event after the other.
    #[must_use]
    pub fn refusing_queues(&self) -> usize {
        self.sum(|queue| usize::from(queue.is_refusing()))
    }

    fn sum(&self, of: impl Fn(&QueueState) -> usize) -> usize {
        lock(&self.queues).values().map(|queue| of(queue)).sum()
    }

    /// How long the oldest event has been in hand.
    #[must_use]
    pub fn oldest_in_hand(&self) -> Duration {
        self.longest(|waiting| waiting.since.elapsed())
    }

    /// How long ago ingest received the oldest event in hand. Queues are in order, so no event in RabbitMQ waits
    /// for much longer while they are consumed.
    #[must_use]
    pub fn oldest_waiting(&self) -> Duration {
        self.longest(|waiting| waiting.before + waiting.since.elapsed())
    }

    fn longest(&self, of: impl Fn(Waiting) -> Duration) -> Duration {
        let waiting = lock(&self.queues).values().filter_map(|queue| queue.oldest()).map(of).max();
        waiting.unwrap_or_default()
    }

    /// What is announced.
    #[must_use]
    pub fn status(&self) -> TenantStatus {
        let seen = self.breaker.seen();
        let millis = |at: Instant| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        TenantStatus {
            breaker: seen.state,
            failures: seen.failures,
            threshold: self.breaker.limits().failures,
            seconds_in_state: seen.since.elapsed().as_secs(),
            mongodb_connected: self.connected.load(Ordering::Relaxed),
            success_age_ms: seen.succeeded_at.map(millis),
            in_flight: self.in_flight(),
            half_open_successes: seen.successes,
            seconds_since_failure: seen.failed_at.map(|at| at.elapsed().as_secs()),
            oldest_waiting_seconds: self.oldest_waiting().as_secs(),
        }
    }
}

impl QueueState {
    /// Counts an event, and the bytes of its body, as received until the returned value is dropped: the event
    /// is settled, or its channel is gone. `before` is how long ago ingest had received it.
    #[must_use]
    pub fn hold(self: &Arc<Self>, bytes: usize, before: Duration) -> InHand {
        self.in_hand.fetch_add(1, Ordering::Relaxed);
        self.bytes_in_hand.fetch_add(bytes, Ordering::Relaxed);
        InHand { queue: self.clone(), bytes, waiting: Waiting { since: Instant::now(), before } }
    }

    /// Events received and not settled yet.
    #[must_use]
    pub fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed)
    }

    /// Since when the oldest event is in hand.
    #[must_use]
    pub fn oldest(&self) -> Option<Waiting> {
        *lock(&self.oldest)
    }

    /// Says since when the oldest event is in hand, if there is one.
    pub fn set_oldest(&self, waiting: Option<Waiting>) {
        *lock(&self.oldest) = waiting;
    }

    /// Whether the queue holds, since MongoDB refuses one event after the other.
    #[must_use]
    pub fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    /// Says whether the queue holds for that reason.
    pub fn set_refusing(&self, refusing: bool) {
        self.refusing.store(refusing, Ordering::Relaxed);
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An event in hand.
#[derive(Debug)]
pub struct InHand {
    queue: Arc<QueueState>,
    bytes: usize,
    /// Since when it waits.
    pub waiting: Waiting,
}

/// Since when an event waits.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// When this worker received it.
    pub since: Instant,
    /// How long ago ingest had received it then.
    pub before: Duration,
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.queue.in_hand.fetch_sub(1, Ordering::Relaxed);
        self.queue.bytes_in_hand.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { failures: 10, longest_open: Duration::from_mins(1), successes: 3 };

    #[test]
    fn a_failure_is_logged_once_a_minute_for_each_class() {
        let (state, start) = (TenantState::new("faster", LIMITS), Instant::now());
        let logs = |class, seconds| state.deserves_log(class, start + Duration::from_secs(seconds));
        assert!(logs(Class::Infrastructure, 0));
        assert!(!logs(Class::Infrastructure, 59));
        assert!(logs(Class::Configuration, 59));
        assert!(!logs(Class::Infrastructure, 59), "which of the two it is may change every moment");
        assert!(!logs(Class::Configuration, 118));
        assert!(logs(Class::Configuration, 119));
        state.record_failure(Class::Configuration, &Failure::NoReplicaSet);
        state.record_success();
        assert!(logs(Class::Configuration, 120), "after it has worked");
    }

    #[test]
    fn only_failures_of_infrastructure_count() {
        let state = TenantState::new("faster", LIMITS);
        let failures = |class| {
            state.record_failure(class, &Failure::TimedOut(Duration::ZERO));
            state.breaker().seen().failures
        };
        assert_eq!(failures(Class::Infrastructure), 1);
        assert_eq!((failures(Class::Conflict), state.conflicts()), (1, 1));
        assert_eq!(failures(Class::Infrastructure), 2);
        assert_eq!(failures(Class::Data), 0, "MongoDB has answered");
    }

    #[test]
    fn what_is_in_hand_is_counted_over_all_queues_until_it_is_dropped() {
        let state = TenantState::new("faster", LIMITS);
        let (one, large) = (state.queue(WorkQueue::Partition(1)), state.queue(WorkQueue::Large));
        let (first, second) = (one.hold(5, Duration::ZERO), large.hold(7, Duration::ZERO));
        assert_eq!((state.in_flight(), state.bytes_in_flight()), (2, 12));
        drop(first);
        assert_eq!((state.status().in_flight, state.bytes_in_flight()), (1, 7));
        drop(second);
        assert_eq!((state.in_flight(), state.bytes_in_flight()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_of_all_queues_counts() {
        let state = TenantState::new("faster", LIMITS);
        let seconds =
            |state: &TenantState| [state.oldest_in_hand(), state.oldest_waiting()].map(|it| it.as_secs());
        let waiting = |before| Some(Waiting { since: Instant::now(), before: Duration::from_secs(before) });
        assert_eq!(seconds(&state), [0, 0]);
        state.queue(WorkQueue::Partition(0)).set_oldest(waiting(1));
        tokio::time::advance(Duration::from_secs(2)).await;
        state.queue(WorkQueue::Large).set_oldest(waiting(60));
        assert_eq!(seconds(&state), [2, 60]);
        state.queue(WorkQueue::Partition(0)).set_oldest(None);
        assert_eq!(seconds(&state), [0, 60]);
    }
}
