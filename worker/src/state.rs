//! What others see of a tenant's worker: its MongoDB, its breaker, what it has in hand.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shared::status::{BreakerState, TenantStatus};
use shared::telemetry::chain;
use tracing::{error, info, warn};

use crate::failure::{Class, Failure};

/// A failure that lasts is logged again after this time.
const REMINDER: Duration = Duration::from_mins(1);

/// The state of one tenant.
#[derive(Debug)]
pub struct TenantState {
    threshold: u32,
    failures: AtomicU32,
    successes: AtomicU64,
    connected: AtomicBool,
    in_flight: AtomicUsize,
    logged: Mutex<Option<(Class, Instant)>>,
}

impl TenantState {
    /// Nothing is known yet. `threshold` is that of the circuit breaker.
    #[must_use]
    pub fn new(threshold: u32) -> Self {
        Self {
            threshold,
            failures: AtomicU32::new(0),
            successes: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            logged: Mutex::new(None),
        }
    }

    /// An operation on MongoDB reached it.
    pub fn mongodb_works(&self, tenant: &str) {
        self.successes.fetch_add(1, Ordering::Relaxed);
        let failures = self.failures.swap(0, Ordering::Relaxed);
        if !self.connected.swap(true, Ordering::Relaxed) {
            info!(tenant, failures, "MongoDB works");
            *self.logged() = None;
        }
    }

    /// An operation on MongoDB failed. Logged when that is news, and now and then while it lasts.
    pub fn mongodb_fails(&self, tenant: &str, class: Class, failure: &Failure) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        self.connected.store(false, Ordering::Relaxed);
        let mut logged = self.logged();
        if logged.is_some_and(|(known, at)| known == class && at.elapsed() < REMINDER) {
            return;
        }
        *logged = Some((class, Instant::now()));
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
        self.successes.load(Ordering::Relaxed)
    }

    fn logged(&self) -> MutexGuard<'_, Option<(Class, Instant)>> {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an event as received until what is returned is dropped: settled, or given up because its channel is
    /// gone.
    #[must_use]
    pub fn in_hand(self: &Arc<Self>) -> InHand {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InHand(self.clone())
    }

    /// Events received and not settled yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What ingest is told.
    #[must_use]
    pub fn status(&self) -> TenantStatus {
        TenantStatus {
            breaker: BreakerState::Closed,
            failures: self.failures.load(Ordering::Relaxed),
            threshold: self.threshold,
            mongodb_connected: self.connected.load(Ordering::Relaxed),
            in_flight: self.in_flight(),
        }
    }
}

/// An event in hand.
#[derive(Debug)]
pub struct InHand(Arc<TenantState>);

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
