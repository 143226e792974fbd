//! Every series of the worker. All label sets exist from the start: zero, not absent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use shared::event::{KNOWN_TYPES, UNKNOWN};
use shared::series::{counters, gauges, histogram};
use shared::status::BreakerState;

use crate::dead::Reason;
use crate::state::TenantState;

/// Seconds, for a transaction.
const COMMIT_BUCKETS: [f64; 15] =
    [0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0];
/// Seconds, from milliseconds in normal operation to a day after an outage.
const AGE_BUCKETS: [f64; 16] =
    [0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 14400.0, 86400.0];
/// Events.
const SIZE_BUCKETS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
/// The outcomes of an event.
const OUTCOMES: [&str; 5] = [STORED, BACKFILLED, DUPLICATE, ERASED, DEAD];

/// Outcome: its effects are in MongoDB.
pub const STORED: &str = "stored";
/// Outcome: its effects are in MongoDB, and `worker backfill` has brought it.
pub const BACKFILLED: &str = "backfilled";
/// Outcome: its effects were in MongoDB before.
pub const DUPLICATE: &str = "duplicate";
/// Outcome: nothing of it is stored, since it was received before its person was erased.
pub const ERASED: &str = "erased";
/// Outcome: it is a dead letter.
pub const DEAD: &str = "dead";

/// The metrics of the worker.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    events: IntCounterVec,
    batch_size: Histogram,
    commit_duration: Histogram,
    event_age: HistogramVec,
    breaker: IntGaugeVec,
    dead_lettered: IntCounterVec,
    redelivered: IntCounterVec,
    /// Attempts after the first.
    pub retries: IntCounter,
    conflicts: IntGaugeVec,
    abandoned: IntCounterVec,
    oldest_in_hand: GaugeVec,
    oldest_waiting: GaugeVec,
    refusing_queues: IntGaugeVec,
    up: IntGaugeVec,
    in_flight: IntGauge,
    bytes_in_flight: IntGauge,
    /// 1 while RabbitMQ can be reached.
    pub amqp_up: IntGauge,
    /// 1 while RabbitMQ blocks publishing.
    pub amqp_blocked: IntGauge,
    /// Queues whose messages a policy may delete.
    pub losing_queues: IntGauge,
}

impl Metrics {
    /// All series at zero, for these tenants.
    pub fn new<'a>(tenants: impl Iterator<Item = &'a str>) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let metrics = Self {
            events: counters(
                "worker_events_total",
                "Events by outcome",
                &["tenant", "event_type", "outcome"],
            )?,
            batch_size: Histogram::with_opts(histogram(
                "worker_batch_size",
                "Events in a written batch",
                &SIZE_BUCKETS,
            ))?,
            commit_duration: Histogram::with_opts(histogram(
                "worker_commit_duration_seconds",
                "Time to write a batch in one transaction",
                &COMMIT_BUCKETS,
            ))?,
            event_age: HistogramVec::new(
                histogram("worker_event_age_seconds", "Time from received to stored", &AGE_BUCKETS),
                &["tenant"],
            )?,
            breaker: IntGaugeVec::new(
                Opts::new("worker_breaker_state", "1 for the state of the tenant's circuit breaker"),
                &["tenant", "state"],
            )?,
            dead_lettered: counters(
                "worker_dead_lettered_total",
                "Events published to the dead letters",
                &["tenant", "reason"],
            )?,
            redelivered: counters(
                "worker_redelivered_total",
                "Deliveries of events that RabbitMQ had delivered before",
                &["tenant"],
            )?,
            retries: IntCounter::new("worker_retries_total", "Attempts to write a batch after the first")?,
            conflicts: gauges(
                "worker_conflicts_total",
                "Conflicts with other writers of the same documents",
            )?,
            abandoned: counters(
                "worker_abandoned_transactions_total",
                "Transactions that killed workers have left open, and that were ended",
                &["tenant"],
            )?,
            oldest_in_hand: GaugeVec::new(
                Opts::new("worker_oldest_in_hand_seconds", "How long the oldest event has been in hand"),
                &["tenant"],
            )?,
            oldest_waiting: GaugeVec::new(
                Opts::new(
                    "worker_oldest_waiting_seconds",
                    "How long ago ingest received the oldest event in hand",
                ),
                &["tenant"],
            )?,
            refusing_queues: gauges(
                "worker_refusing_queues",
                "Queues that hold, since MongoDB refuses one event after the other",
            )?,
            up: gauges("worker_tenant_up", "1 while the tenant's queues are consumed")?,
            in_flight: IntGauge::new("worker_in_flight", "Events received and not settled yet")?,
            bytes_in_flight: IntGauge::new("worker_in_flight_bytes", "Bytes of the bodies in flight")?,
            amqp_up: IntGauge::new("amqp_connection_up", "1 while RabbitMQ can be reached")?,
            amqp_blocked: IntGauge::new("amqp_connection_blocked", "1 while RabbitMQ blocks publishing")?,
            losing_queues: IntGauge::new(
                "worker_queues_losing_messages",
                "Queues of which a policy of RabbitMQ lets messages vanish, as far as AMQP_MANAGEMENT_URL tells",
            )?,
            registry,
        };
        metrics.register()?;
        for tenant in tenants {
            metrics.start_at_zero(tenant);
        }
        Ok(metrics)
    }

    fn register(&self) -> prometheus::Result<()> {
        let register = |collector| self.registry.register(collector);
        register(Box::new(self.events.clone()))?;
        register(Box::new(self.batch_size.clone()))?;
        register(Box::new(self.commit_duration.clone()))?;
        register(Box::new(self.event_age.clone()))?;
        register(Box::new(self.breaker.clone()))?;
        register(Box::new(self.dead_lettered.clone()))?;
        register(Box::new(self.redelivered.clone()))?;
        register(Box::new(self.retries.clone()))?;
        register(Box::new(self.conflicts.clone()))?;
        register(Box::new(self.abandoned.clone()))?;
        register(Box::new(self.oldest_in_hand.clone()))?;
        register(Box::new(self.oldest_waiting.clone()))?;
        register(Box::new(self.refusing_queues.clone()))?;
        register(Box::new(self.up.clone()))?;
        register(Box::new(self.in_flight.clone()))?;
        register(Box::new(self.bytes_in_flight.clone()))?;
        register(Box::new(self.amqp_up.clone()))?;
        register(Box::new(self.amqp_blocked.clone()))?;
        register(Box::new(self.losing_queues.clone()))?;
        register(Box::new(ProcessCollector::for_self()))
    }

    fn start_at_zero(&self, tenant: &str) {
        for event_type in KNOWN_TYPES.into_iter().chain([UNKNOWN]) {
            for outcome in OUTCOMES {
                self.events.with_label_values(&[tenant, event_type, outcome]);
            }
        }
        for reason in Reason::ALL {
            self.dead_lettered.with_label_values(&[tenant, reason.name()]);
        }
        self.event_age.with_label_values(&[tenant]);
        self.redelivered.with_label_values(&[tenant]);
        self.conflicts.with_label_values(&[tenant]);
        self.abandoned.with_label_values(&[tenant]);
        self.oldest_in_hand.with_label_values(&[tenant]);
        self.oldest_waiting.with_label_values(&[tenant]);
        self.refusing_queues.with_label_values(&[tenant]);
        self.up.with_label_values(&[tenant]);
        self.breaker(tenant, BreakerState::Closed);
    }

    /// Where the series are gathered.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A batch was written.
    pub fn committed(&self, events: usize, after: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "batches are small")]
        self.batch_size.observe(events as f64);
        self.commit_duration.observe(after.as_secs_f64());
    }

    /// An event is settled.
    pub fn settled(&self, tenant: &str, event_type: &str, outcome: &str) {
        self.events.with_label_values(&[tenant, event_type, outcome]).inc();
    }

    /// An event is in MongoDB, so long after it was received.
    pub fn stored(&self, tenant: &str, age: Duration) {
        self.event_age.with_label_values(&[tenant]).observe(age.as_secs_f64());
    }

    /// An event went to the dead letters.
    pub fn dead_lettered(&self, tenant: &str, event_type: &str, reason: Reason) {
        self.dead_lettered.with_label_values(&[tenant, reason.name()]).inc();
        self.settled(tenant, event_type, DEAD);
    }

    /// This many transactions of killed workers were ended.
    pub fn ended_abandoned(&self, tenant: &str, transactions: usize) {
        self.abandoned.with_label_values(&[tenant]).inc_by(transactions as u64);
    }

    /// RabbitMQ has delivered an event once more.
    pub fn redelivered(&self, tenant: &str) {
        self.redelivered.with_label_values(&[tenant]).inc();
    }

    /// Sets the gauges that are measured on demand.
    pub fn update(&self, tenants: &BTreeMap<String, Arc<TenantState>>) {
        let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.in_flight.set(tenants.values().map(|state| whole(state.in_flight())).sum());
        self.bytes_in_flight.set(tenants.values().map(|state| whole(state.bytes_in_flight())).sum());
        for (tenant, state) in tenants {
            let of_tenant = &[tenant.as_str()];
            self.breaker(tenant, state.breaker().seen().state);
            self.conflicts.with_label_values(of_tenant).set(state.conflicts().try_into().unwrap_or(i64::MAX));
            self.oldest_in_hand.with_label_values(of_tenant).set(state.oldest_in_hand().as_secs_f64());
            self.oldest_waiting.with_label_values(of_tenant).set(state.oldest_waiting().as_secs_f64());
            self.refusing_queues.with_label_values(of_tenant).set(whole(state.refusing_queues()));
            self.up.with_label_values(of_tenant).set(i64::from(state.down().is_none()));
        }
    }

    fn breaker(&self, tenant: &str, state: BreakerState) {
        for each in BreakerState::ALL {
            self.breaker.with_label_values(&[tenant, each.label()]).set(i64::from(each == state));
        }
    }
}
