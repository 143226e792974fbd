//! The circuit breaker in front of a tenant's MongoDB, and the only outage state that a tenant has.
//!
//! - CLOSED: batches are written. `failures` consecutive failures of infrastructure open the breaker.
//! - OPEN: MongoDB isn't called, for a second at first, and twice as long after each failed try, up to a limit.
//! - `HALF_OPEN`: the worker tries MongoDB, one small write after the other. `successes` successes close the
//!   breaker, one failure opens it again.
//!
//! While it isn't closed, nothing is dropped and no delivery is spent: the queues' tasks hold their events.

use std::time::Duration;

use shared::status::BreakerState;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// How long it stays open the first time: MongoDB elects a primary within some seconds.
const FIRST_OPEN: Duration = Duration::from_secs(1);

/// When the breaker changes its state.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// This many consecutive failures open it.
    pub failures: u32,
    /// Longest time that it stays open, plus or minus a tenth.
    pub longest_open: Duration,
    /// This many successes in a row close it again.
    pub successes: u32,
}

/// The breaker's present state.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The state.
    pub state: BreakerState,
    /// Since when it is in this state.
    pub since: Instant,
    /// Consecutive failures.
    pub failures: u32,
    /// Successes while half-open.
    pub successes: u32,
    /// When MongoDB last answered a batch or a probe.
    pub succeeded_at: Option<Instant>,
    /// When MongoDB failed last.
    pub failed_at: Option<Instant>,
    /// The first failure since MongoDB last answered.
    pub failing_since: Option<Instant>,
    /// When the last probe that failed began.
    pub probed_in_vain_at: Option<Instant>,
    /// How long it stays open the next time.
    next_open: Duration,
}

impl Seen {
    fn succeed(&mut self) {
        (self.failures, self.failing_since, self.succeeded_at) = (0, None, Some(Instant::now()));
    }

    fn fail(&mut self) {
        let now = Instant::now();
        self.failed_at = Some(now);
        self.failing_since.get_or_insert(now);
    }

    fn enter(&mut self, state: BreakerState) {
        (self.state, self.since, self.successes) = (state, Instant::now(), 0);
    }
}

/// The breaker of one tenant.
#[derive(Debug)]
pub struct Breaker {
    tenant: String,
    limits: Limits,
    seen: watch::Sender<Seen>,
    // Ends the present time in OPEN.
    try_now: Notify,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(tenant: &str, limits: Limits) -> Self {
        let seen = Seen {
            state: BreakerState::Closed,
            since: Instant::now(),
            failures: 0,
            successes: 0,
            succeeded_at: None,
            failed_at: None,
            failing_since: None,
            probed_in_vain_at: None,
            next_open: FIRST_OPEN.min(limits.longest_open),
        };
        Self { tenant: tenant.to_owned(), limits, seen: watch::Sender::new(seen), try_now: Notify::new() }
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The present state.
    #[must_use]
    pub fn seen(&self) -> Seen {
        *self.seen.borrow()
    }

    /// Whether it is closed now.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.seen().state == BreakerState::Closed
    }

    /// Waits until it is closed.
    pub async fn closed(&self) {
        self.until(|state| state == BreakerState::Closed).await;
    }

    /// Waits until it isn't closed.
    pub async fn not_closed(&self) {
        self.until(|state| state != BreakerState::Closed).await;
    }

    async fn until(&self, wanted: impl Fn(BreakerState) -> bool) {
        // The sender lives as long as `self`.
        let _ = self.seen.subscribe().wait_for(|seen| wanted(seen.state)).await;
    }

    /// MongoDB has answered a batch. Ignored unless the breaker is closed: the operation may have begun
    /// before it opened.
    pub fn record_success(&self) {
        self.seen.send_if_modified(|seen| {
            if seen.state == BreakerState::Closed {
                seen.succeed();
                seen.next_open = FIRST_OPEN.min(self.limits.longest_open);
            }
            // No waiter needs to know this.
            false
        });
    }

    /// MongoDB has answered with an error: that is neither a failure of infrastructure nor a success.
    pub fn record_answer(&self) {
        self.seen.send_if_modified(|seen| {
            if seen.state == BreakerState::Closed {
                seen.failures = 0;
            }
            false
        });
    }

    /// MongoDB has failed. Ignored unless the breaker is closed: the operation may have begun before it
    /// opened.
    pub fn record_failure(&self) {
        let mut opens = false;
        self.seen.send_if_modified(|seen| {
            if seen.state == BreakerState::Closed {
                seen.fail();
                seen.failures += 1;
                opens = seen.failures >= self.limits.failures;
            }
            false
        });
        if opens {
            self.enter(BreakerState::Open);
        }
    }

    /// There is reason to believe that MongoDB works again: tries it soon, if the breaker is open.
    pub fn try_now(&self) {
        // Kept until it is open, if it is half-open now.
        self.try_now.notify_one();
    }

    fn enter(&self, state: BreakerState) {
        let before = self.seen();
        self.seen.send_modify(|seen| seen.enter(state));
        let (tenant, failures, was) = (&self.tenant, before.failures, before.state.label());
        let was_for_ms = u64::try_from(before.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        match state {
            BreakerState::Open => {
                warn!(tenant, failures, was, was_for_ms, "circuit breaker OPEN, holding events");
            }
            BreakerState::HalfOpen => {
                info!(tenant, was, was_for_ms, "circuit breaker HALF_OPEN, trying MongoDB");
            }
            BreakerState::Closed => info!(tenant, was, was_for_ms, "circuit breaker CLOSED, storing events"),
        }
    }

    /// Closes the breaker again, whenever it has opened. `probe` tries MongoDB once.
    pub async fn tend<F: Future<Output = bool>>(&self, probe: impl Fn() -> F) {
        loop {
            // Also half-open, if an earlier call of this ended early.
            self.not_closed().await;
            let open = self.seen().next_open;
            tokio::select! {
                // Many workers should not try at the same moment.
                () = sleep(open.mul_f64(0.9 + fastrand::f64() / 5.0)) => {}
                () = self.try_now.notified() => {}
            }
            self.enter(BreakerState::HalfOpen);
            // Only a stored batch resets the doubling: probes may pass while batches still fail.
            let longest = self.limits.longest_open;
            self.seen.send_modify(|seen| seen.next_open = (open * 2).min(longest));
            let state = if self.passes(&probe).await { BreakerState::Closed } else { BreakerState::Open };
            self.enter(state);
        }
    }

    async fn passes<F: Future<Output = bool>>(&self, probe: &impl Fn() -> F) -> bool {
        for _ in 0..self.limits.successes {
            let began = Instant::now();
            let passed = probe().await;
            self.seen.send_modify(|seen| if passed { seen.succeed() } else { seen.fail() });
            if !passed {
                self.seen.send_modify(|seen| seen.probed_in_vain_at = Some(began));
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

    const LONGEST: Duration = Duration::from_mins(1);

    fn breaker() -> Breaker {
        Breaker::new("faster", Limits { failures: 3, longest_open: LONGEST, successes: 2 })
    }

    fn fail(breaker: &Breaker, times: u32) {
        for _ in 0..times {
            breaker.record_failure();
        }
    }

    async fn tended_until_closed(breaker: &Breaker, probe: impl AsyncFn() -> bool) {
        tokio::select! {
            () = breaker.tend(|| probe()) => {}
            () = breaker.closed() => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_consecutive_failures_open_it() {
        let breaker = breaker();
        fail(&breaker, 2);
        breaker.record_success();
        fail(&breaker, 2);
        assert_eq!((breaker.seen().state, breaker.seen().failures), (BreakerState::Closed, 2));
        breaker.record_failure();
        assert_eq!(breaker.seen().state, BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn late_results_decide_nothing() {
        let breaker = breaker();
        fail(&breaker, 3);
        breaker.record_success();
        breaker.record_failure();
        assert_eq!((breaker.seen().state, breaker.seen().failures), (BreakerState::Open, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn it_closes_after_so_many_probes_one_at_a_time() {
        let (breaker, states) = (breaker(), RefCell::new(Vec::new()));
        fail(&breaker, 3);
        let started = Instant::now();
        tended_until_closed(&breaker, async || {
            states.borrow_mut().push((breaker.seen().state, breaker.seen().successes));
            sleep(Duration::from_secs(1)).await;
            // A result of an earlier call comes in meanwhile.
            breaker.record_failure();
            true
        })
        .await;
        assert_eq!(*states.borrow(), [(BreakerState::HalfOpen, 0), (BreakerState::HalfOpen, 1)]);
        assert_eq!((breaker.seen().failures, breaker.seen().failing_since), (0, None));
        let waited = started.elapsed().saturating_sub(Duration::from_secs(2));
        assert!(waited >= FIRST_OPEN.mul_f64(0.9) && waited <= FIRST_OPEN.mul_f64(1.1), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_stays_open_twice_as_long_each_time_up_to_a_limit() {
        let (breaker, probed) = (breaker(), RefCell::new(vec![Instant::now()]));
        fail(&breaker, 3);
        tended_until_closed(&breaker, async || {
            probed.borrow_mut().push(Instant::now());
            probed.borrow().len() > 9
        })
        .await;
        let gaps: Vec<f64> =
            probed.borrow().windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        for (gap, expected) in gaps.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]) {
            assert!((gap / expected - 1.0).abs() <= 0.11, "{gaps:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_batch_ends_the_doubling() {
        let breaker = breaker();
        let opened_for = async || {
            fail(&breaker, 3);
            let started = Instant::now();
            tended_until_closed(&breaker, async || true).await;
            started.elapsed().as_secs_f64()
        };
        for expected in [1.0, 2.0, 4.0] {
            let open = opened_for().await;
            assert!((open / expected - 1.0).abs() <= 0.11, "{open}, not {expected}");
        }
        breaker.record_success();
        assert!(opened_for().await < 1.5);
    }

    #[tokio::test(start_paused = true)]
    async fn it_closes_although_its_task_once_ended_during_a_probe() {
        let breaker = breaker();
        fail(&breaker, 3);
        let hangs = breaker.tend(std::future::pending::<bool>);
        assert!(tokio::time::timeout(Duration::from_secs(5), hangs).await.is_err());
        assert_eq!(breaker.seen().state, BreakerState::HalfOpen);
        tended_until_closed(&breaker, async || true).await;
        assert!(breaker.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn it_tries_at_once_when_there_is_reason_to() {
        let (breaker, started, told) = (breaker(), Instant::now(), Cell::new(false));
        fail(&breaker, 3);
        let tell = async {
            sleep(Duration::from_millis(100)).await;
            told.set(true);
            breaker.try_now();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = tended_until_closed(&breaker, async || told.get()) => {}
            () = tell => {}
        }
        assert!(started.elapsed() < Duration::from_millis(200), "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_fails_opens_it_again() {
        let (breaker, probes) = (breaker(), Cell::new(0));
        fail(&breaker, 3);
        // The second probe of the first attempt fails, all others succeed.
        tended_until_closed(&breaker, async || {
            probes.set(probes.get() + 1);
            probes.get() != 2
        })
        .await;
        assert_eq!(probes.get(), 4);
    }
}
