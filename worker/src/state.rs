//! What others see of a tenant's worker: its MongoDB, its breaker, what it has in hand.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::status::TenantStatus;
use shared::telemetry::chain;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use crate::breaker::{Breaker, Limits};
use crate::failure::{Class, Failure};

/// A failure that lasts is logged again after this time.
const REMINDER: Duration = Duration::from_mins(1);

/// The state of one tenant.
#[derive(Debug)]
pub struct TenantState {
    breaker: Breaker,
    successes: watch::Sender<u64>,
    connected: AtomicBool,
    in_flight: AtomicUsize,
    bytes_in_flight: AtomicUsize,
    failing_since: Mutex<Option<Instant>>,
    logged: Mutex<BTreeMap<Class, Instant>>,
}

impl TenantState {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(tenant: &str, limits: Limits) -> Self {
        Self {
            breaker: Breaker::new(tenant, limits),
            successes: watch::Sender::new(0),
            connected: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            bytes_in_flight: AtomicUsize::new(0),
            failing_since: Mutex::new(None),
            logged: Mutex::default(),
        }
    }

    /// The circuit breaker in front of MongoDB.
    #[must_use]
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// An operation on MongoDB reached it.
    pub fn mongodb_works(&self, tenant: &str) {
        self.successes.send_modify(|successes| *successes += 1);
        let failures = self.breaker.seen().failures;
        self.breaker.worked();
        *lock(&self.failing_since) = None;
        if !self.connected.swap(true, Ordering::Relaxed) {
            info!(tenant, failures, "MongoDB works");
            lock(&self.logged).clear();
        }
    }

    /// An operation on MongoDB failed. Logged when that is news, and now and then while it lasts.
    pub fn mongodb_fails(&self, tenant: &str, class: Class, failure: &Failure) {
        match class {
            Class::Infrastructure => self.breaker.failed(),
            // It has answered.
            _ => self.breaker.worked(),
        }
        let failures = self.breaker.seen().failures;
        lock(&self.failing_since).get_or_insert_with(Instant::now);
        self.connected.store(false, Ordering::Relaxed);
        if !self.is_news(class, Instant::now()) {
            return;
        }
        let error = chain(failure);
        if class == Class::Configuration {
            error!(tenant, error, failures, "MongoDB refuses us, holding events until that is mended");
        } else {
            warn!(tenant, error, failures, "MongoDB fails, holding events");
        }
    }

    /// How often MongoDB was reached, for telling whether it works for others meanwhile.
    #[must_use]
    pub fn successes(&self) -> u64 {
        *self.successes.borrow()
    }

    /// Done when MongoDB is reached the next time.
    pub async fn next_success(&self) {
        // It can't be closed as long as this exists.
        let _ = self.successes.subscribe().changed().await;
    }

    /// Whether a failure deserves a line in the log; then it counts as logged.
    fn is_news(&self, class: Class, now: Instant) -> bool {
        let mut logged = lock(&self.logged);
        let known = logged.get(&class).is_some_and(|at| now.duration_since(*at) < REMINDER);
        if !known {
            logged.insert(class, now);
        }
        !known
    }

    /// Whether MongoDB has failed for so long without a success.
    #[must_use]
    pub fn has_failed_for(&self, limit: Duration) -> bool {
        lock(&self.failing_since).is_some_and(|since| since.elapsed() >= limit)
    }

    /// Done when MongoDB has failed for so long without a success.
    pub async fn failing_for(&self, limit: Duration) {
        loop {
            let since = *lock(&self.failing_since);
            let until = since.unwrap_or_else(Instant::now) + limit;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// Counts an event, and the bytes of its body, as received until what is returned is dropped: settled, or given up because its channel is
    /// gone.
    #[must_use]
    pub fn in_hand(self: &Arc<Self>, bytes: usize) -> InHand {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.bytes_in_flight.fetch_add(bytes, Ordering::Relaxed);
        InHand { state: self.clone(), bytes }
    }

    /// Events received and not settled yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Bytes of the bodies of these.
    #[must_use]
    pub fn bytes_in_flight(&self) -> usize {
        self.bytes_in_flight.load(Ordering::Relaxed)
    }

    /// What ingest is told.
    #[must_use]
    pub fn status(&self) -> TenantStatus {
        let seen = self.breaker.seen();
        TenantStatus {
            breaker: seen.state,
            failures: seen.failures,
            threshold: self.breaker.limits().failures,
            seconds_in_state: seen.since.elapsed().as_secs(),
            mongodb_connected: self.connected.load(Ordering::Relaxed),
            success_age_ms: None,
            in_flight: self.in_flight(),
            half_open_successes: seen.successes,
            seconds_since_failure: seen.failed_at.map(|at| at.elapsed().as_secs()),
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An event in hand.
#[derive(Debug)]
pub struct InHand {
    state: Arc<TenantState>,
    bytes: usize,
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.state.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.state.bytes_in_flight.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { failures: 10, open: Duration::from_mins(1), successes: 3 };

    #[test]
    fn a_failure_is_logged_once_a_minute_for_each_class() {
        let (state, start) = (TenantState::new("faster", LIMITS), Instant::now());
        let is_news = |class, seconds| state.is_news(class, start + Duration::from_secs(seconds));
        assert!(is_news(Class::Infrastructure, 0));
        assert!(!is_news(Class::Infrastructure, 59));
        assert!(is_news(Class::Configuration, 59));
        assert!(!is_news(Class::Infrastructure, 59), "which of the two it is may change every moment");
        assert!(!is_news(Class::Configuration, 118));
        assert!(is_news(Class::Configuration, 119));
        state.mongodb_fails("t", Class::Configuration, &Failure::NoReplicaSet);
        state.mongodb_works("t");
        assert!(is_news(Class::Configuration, 120), "after it has worked");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_lasts_from_the_first_failure_to_the_next_success() {
        let (state, limit) = (TenantState::new("faster", LIMITS), Duration::from_mins(15));
        let fails = || state.mongodb_fails("faster", Class::Configuration, &Failure::NoReplicaSet);
        let (start, minutes) = (Instant::now(), |n| Duration::from_mins(n));
        let news = async {
            tokio::time::sleep(minutes(10)).await;
            fails();
            tokio::time::sleep(minutes(10)).await;
            state.mongodb_works("faster");
            tokio::time::sleep(minutes(10)).await;
            fails();
            tokio::time::sleep(minutes(1)).await;
            fails();
        };
        tokio::join!(news, state.failing_for(limit));
        assert_eq!(start.elapsed(), minutes(45));
    }

    #[test]
    fn what_is_in_hand_is_counted_until_it_is_dropped() {
        let state = Arc::new(TenantState::new("faster", LIMITS));
        let (first, second) = (state.in_hand(5), state.in_hand(7));
        assert_eq!((state.in_flight(), state.bytes_in_flight()), (2, 12));
        drop(first);
        assert_eq!((state.status().in_flight, state.bytes_in_flight()), (1, 7));
        drop(second);
        assert_eq!((state.in_flight(), state.bytes_in_flight()), (0, 0));
    }
}
