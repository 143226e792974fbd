//! What others see of a tenant's worker: its MongoDB, its breaker, what it has in hand.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use shared::status::{BreakerState, TenantStatus};
use shared::telemetry::chain;
use tracing::{error, info, warn};

use crate::failure::{Class, Failure};

/// The state of one tenant.
#[derive(Debug)]
pub struct TenantState {
    threshold: u32,
    failures: AtomicU32,
    connected: AtomicBool,
    in_flight: AtomicUsize,
}

impl TenantState {
    /// Nothing is known yet. `threshold` is that of the circuit breaker.
    #[must_use]
    pub fn new(threshold: u32) -> Self {
        Self {
            threshold,
            failures: AtomicU32::new(0),
            connected: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
        }
    }

    /// An operation on MongoDB reached it.
    pub fn mongodb_works(&self, tenant: &str) {
        let failures = self.failures.swap(0, Ordering::Relaxed);
        if !self.connected.swap(true, Ordering::Relaxed) {
            info!(tenant, failures, "MongoDB works");
        }
    }

    /// An operation on MongoDB failed. Logged when that is news.
    pub fn mongodb_fails(&self, tenant: &str, class: Class, failure: &Failure) {
        let first = self.failures.fetch_add(1, Ordering::Relaxed) == 0;
        self.connected.store(false, Ordering::Relaxed);
        let error = chain(failure);
        if first && class == Class::Configuration {
            error!(tenant, error, "MongoDB refuses us, holding events until that is mended");
        } else if first {
            warn!(tenant, error, "MongoDB fails, holding events");
        }
    }

    /// Events were received.
    pub fn received(&self, events: usize) {
        self.in_flight.fetch_add(events, Ordering::Relaxed);
    }

    /// Events were settled, or given up because their channel is gone.
    pub fn settled(&self, events: usize) {
        self.in_flight.fetch_sub(events, Ordering::Relaxed);
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
