//! The circuit breaker between a tenant's lanes and its MongoDB.
//!
//! CLOSED: batches are written; so many consecutive failures open it. OPEN: MongoDB is left alone for a while.
//! `HALF_OPEN`: it is tried, one small write of our own after the other; so many successes close it, one failure opens it
//! again. Batches wait while it isn't closed, so no delivery is spent on trying.

use std::time::Duration;

use shared::status::BreakerState;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// When the breaker changes its state.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// So many consecutive failures open it.
    pub failures: u32,
    /// How long it stays open, give or take a tenth.
    pub open: Duration,
    /// So many successes in a row close it again.
    pub successes: u32,
}

/// What is known at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The state.
    pub state: BreakerState,
    /// Consecutive failures.
    pub failures: u32,
    /// Since when it is in this state.
    pub since: Instant,
    /// Successes while half-open.
    pub successes: u32,
    /// When MongoDB failed last.
    pub failed_at: Option<Instant>,
}

/// The breaker of one tenant.
#[derive(Debug)]
pub struct Breaker {
    tenant: String,
    limits: Limits,
    seen: watch::Sender<Seen>,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(tenant: &str, limits: Limits) -> Self {
        let seen = Seen {
            state: BreakerState::Closed,
            failures: 0,
            since: Instant::now(),
            successes: 0,
            failed_at: None,
        };
        Self { tenant: tenant.to_owned(), limits, seen: watch::Sender::new(seen) }
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What is known now.
    #[must_use]
    pub fn seen(&self) -> Seen {
        *self.seen.borrow()
    }

    /// Waits until it is closed.
    pub async fn closed(&self) {
        self.until(BreakerState::Closed).await;
    }

    /// Waits until it isn't closed.
    pub async fn not_closed(&self) {
        // As below.
        let _ = self.seen.subscribe().wait_for(|seen| seen.state != BreakerState::Closed).await;
    }

    async fn until(&self, state: BreakerState) {
        // The sender lives as long as `self`.
        let _ = self.seen.subscribe().wait_for(|seen| seen.state == state).await;
    }

    /// MongoDB has answered. Says nothing while the breaker isn't closed: it may be late news.
    pub fn worked(&self) {
        self.seen.send_if_modified(|seen| {
            let news = seen.state == BreakerState::Closed && seen.failures > 0;
            if news {
                seen.failures = 0;
            }
            news
        });
    }

    /// MongoDB has failed. Says nothing while the breaker isn't closed: it may be late news.
    pub fn failed(&self) {
        let mut opens = false;
        self.seen.send_if_modified(|seen| {
            if seen.state != BreakerState::Closed {
                return false;
            }
            seen.failures += 1;
            seen.failed_at = Some(Instant::now());
            opens = seen.failures >= self.limits.failures;
            true
        });
        if opens {
            self.change(BreakerState::Open);
        }
    }

    fn change(&self, state: BreakerState) {
        let mut before = self.seen();
        self.seen.send_modify(|seen| {
            before = *seen;
            *seen = Seen { state, since: Instant::now(), successes: 0, ..before };
            match state {
                BreakerState::Closed => seen.failures = 0,
                BreakerState::HalfOpen => {}
                // A probe may have failed.
                BreakerState::Open => seen.failed_at = Some(seen.since),
            }
        });
        let (tenant, failures, after) = (&self.tenant, before.failures, before.since.elapsed());
        match state {
            BreakerState::Open => warn!(tenant, failures, ?after, "circuit breaker OPEN, holding events"),
            BreakerState::HalfOpen => info!(tenant, ?after, "circuit breaker HALF_OPEN, trying MongoDB"),
            BreakerState::Closed => info!(tenant, ?after, "circuit breaker CLOSED, storing events"),
        }
    }

    /// MongoDB has been found working by more than a probe, so there is nothing to wait for.
    pub fn close(&self) {
        if self.seen().state != BreakerState::Closed {
            self.change(BreakerState::Closed);
        }
    }

    /// Leads the breaker from OPEN back to CLOSED, whenever it has opened. `probe` tries MongoDB once.
    pub async fn tend<F: Future<Output = bool>>(&self, probe: impl Fn() -> F) {
        loop {
            self.until(BreakerState::Open).await;
            // Many workers should not come back at the same moment.
            sleep(self.limits.open.mul_f64(0.9 + fastrand::f64() / 5.0)).await;
            self.change(BreakerState::HalfOpen);
            self.change(if self.probe(&probe).await { BreakerState::Closed } else { BreakerState::Open });
        }
    }

    async fn probe<F: Future<Output = bool>>(&self, probe: &impl Fn() -> F) -> bool {
        for _ in 0..self.limits.successes {
            if !probe().await {
                return false;
            }
            self.seen.send_modify(|seen| seen.successes += 1);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    const OPEN: Duration = Duration::from_mins(1);

    fn breaker() -> Breaker {
        Breaker::new("faster", Limits { failures: 3, open: OPEN, successes: 2 })
    }

    fn fail(breaker: &Breaker, times: u32) {
        for _ in 0..times {
            breaker.failed();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_consecutive_failures_open_it() {
        let breaker = breaker();
        fail(&breaker, 2);
        breaker.worked();
        fail(&breaker, 2);
        assert_eq!((breaker.seen().state, breaker.seen().failures), (BreakerState::Closed, 2));
        breaker.failed();
        assert_eq!(breaker.seen().state, BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn late_news_decide_nothing() {
        let breaker = breaker();
        fail(&breaker, 3);
        breaker.worked();
        breaker.failed();
        assert_eq!((breaker.seen().state, breaker.seen().failures), (BreakerState::Open, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn it_closes_after_so_many_probes_one_at_a_time() {
        let (breaker, states) = (breaker(), RefCell::new(Vec::new()));
        fail(&breaker, 3);
        assert_eq!(breaker.seen().failed_at, Some(Instant::now()));
        let (started, breaker, states) = (Instant::now(), &breaker, &states);
        let probe = || async move {
            states.borrow_mut().push((breaker.seen().state, breaker.seen().successes));
            sleep(Duration::from_secs(1)).await;
            // A result of an earlier call comes in meanwhile.
            breaker.failed();
            true
        };
        tokio::select! {
            () = breaker.tend(probe) => {}
            () = breaker.closed() => {}
        }
        assert_eq!(*states.borrow(), [(BreakerState::HalfOpen, 0), (BreakerState::HalfOpen, 1)]);
        assert_eq!((breaker.seen().failures, breaker.seen().successes), (0, 0));
        let waited = started.elapsed().saturating_sub(Duration::from_secs(2));
        assert!(waited >= OPEN.mul_f64(0.9) && waited <= OPEN.mul_f64(1.1), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_fails_opens_it_again() {
        let (breaker, probes) = (breaker(), Cell::new(0));
        fail(&breaker, 3);
        let (started, probes) = (Instant::now(), &probes);
        // The second probe of the first attempt fails, all others succeed.
        let probe = || async move {
            probes.set(probes.get() + 1);
            probes.get() != 2
        };
        tokio::select! {
            () = breaker.tend(probe) => {}
            () = breaker.closed() => {}
        }
        assert_eq!(probes.get(), 4);
        assert!(started.elapsed() >= OPEN.mul_f64(1.8), "it was open twice");
    }
}
