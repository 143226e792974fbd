//! Every series of ingest. All label sets exist from the start: zero, not absent.

use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use shared::publisher::PublishError;
use shared::series::{counters, histogram};
use shared::verify::Form;

use crate::connections::Closed;
use crate::durable::Via;
use crate::judge::Reason;

/// Seconds. Fine below 10 ms, where replies belong; the last ones are respond.io's deadline, and beyond.
const BUCKETS: [f64; 17] = [
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The routes as they stand in the label `http_route`, with the statuses that each can have.
const ROUTES: [(&str, &[u16]); 5] = [
    ("/webhook/{tenant}", &[200, 204, 401, 404, 405, 408, 503]),
    ("/webhook/{tenant}/{stream}", &[200, 204, 401, 404, 405, 408, 503]),
    ("/", &[200, 204, 405]),
    ("/health", &[200, 204, 405]),
    (UNMATCHED, &[204, 404]),
];

/// The label `http_route` of a request that no route matches.
pub const UNMATCHED: &str = "unmatched";

/// The metrics of ingest.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: HistogramVec,
    accepted: IntCounterVec,
    quarantined: IntCounterVec,
    evidence_dropped: IntCounterVec,
    signatures: IntCounterVec,
    publishes: IntCounterVec,
    publish_duration: Histogram,
    suspects: IntGaugeVec,
    /// Time for a group of webhooks to be written and fsynced.
    pub spool_commit_duration: Histogram,
    /// Webhooks in the spool.
    pub spool_records: IntGauge,
    /// Their bytes.
    pub spool_bytes: IntGauge,
    /// Most bytes that it may hold.
    pub spool_bytes_max: IntGauge,
    /// Seconds since the oldest of them was received.
    pub spool_oldest_age: IntGauge,
    /// Webhooks that wait to be written to the spool.
    pub spool_waiting: IntGauge,
    /// 1 while the spool can be written.
    pub spool_writable: IntGauge,
    /// Damaged files and records set aside since the start.
    pub spool_corruptions: IntGauge,
    /// Records of damaged files that may still have to be copied.
    pub spool_left_to_copy: IntGauge,
    /// Seconds that the spool's thread has been at what it does.
    pub spool_busy: IntGauge,
    /// Webhooks answered 503.
    pub refused: IntCounter,
    /// Webhooks answered 200 although they could be stored nowhere.
    pub lost: IntCounter,
    /// Refusals left before respond.io may disable the webhook.
    pub refusal_budget_left: IntGauge,
    /// Messages published and not confirmed yet.
    pub publishes_in_flight: IntGauge,
    /// Connections of the public port.
    pub connections: IntGauge,
    /// Most connections that there may be.
    pub connections_max: IntGauge,
    /// Connections closed before their senders did so.
    pub connections_closed: IntCounterVec,
    /// 1 while RabbitMQ can be reached.
    pub amqp_up: IntGauge,
    /// 1 while RabbitMQ blocks publishing.
    pub amqp_blocked: IntGauge,
}

impl Metrics {
    /// All series at zero, for these tenants.
    pub fn new<'a>(tenants: impl Iterator<Item = &'a str>) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let metrics = Self {
            requests: HistogramVec::new(
                histogram("http_server_request_duration_seconds", "Time from request to reply", &BUCKETS),
                &["http_route", "http_response_status_code"],
            )?,
            accepted: counters("ingest_accepted_total", "Events answered 200", &["tenant", "via"])?,
            quarantined: counters("ingest_quarantined_total", "Requests set aside", &["tenant", "reason"])?,
            evidence_dropped: counters(
                "ingest_evidence_dropped_total",
                "Requests answered quarantined whose evidence was not kept, for there was too much of it",
                &["tenant", "reason"],
            )?,
            signatures: counters(
                "ingest_signatures_total",
                "Events by how their signature was found good",
                &["tenant", "form"],
            )?,
            publishes: counters("ingest_publish_total", "Publishes by outcome", &["outcome"])?,
            publish_duration: Histogram::with_opts(histogram(
                "ingest_publish_duration_seconds",
                "Time from publish to confirm, or to giving up",
                &BUCKETS,
            ))?,
            suspects: IntGaugeVec::new(
                Opts::new(
                    "ingest_publish_suspect",
                    "1 while a tenant's webhooks are spooled since RabbitMQ didn't confirm in time",
                ),
                &["tenant"],
            )?,
            spool_commit_duration: Histogram::with_opts(histogram(
                "ingest_spool_commit_duration_seconds",
                "Time to write and fsync a group of webhooks",
                &BUCKETS,
            ))?,
            spool_records: IntGauge::new("ingest_spool_records", "Webhooks in the spool")?,
            spool_bytes: IntGauge::new("ingest_spool_bytes", "Bytes of the webhooks in the spool")?,
            spool_bytes_max: IntGauge::new(
                "ingest_spool_bytes_max",
                "Most bytes of webhooks that the spool may hold",
            )?,
            spool_oldest_age: IntGauge::new(
                "ingest_spool_oldest_age_seconds",
                "Time since the oldest webhook in the spool was received",
            )?,
            spool_waiting: IntGauge::new(
                "ingest_spool_waiting",
                "Webhooks that wait to be written to the spool",
            )?,
            spool_writable: IntGauge::new("ingest_spool_writable", "1 while the spool can be written")?,
            spool_corruptions: IntGauge::new(
                "ingest_spool_corruptions",
                "Damaged files and records of the spool set aside since the start",
            )?,
            spool_left_to_copy: IntGauge::new(
                "ingest_spool_left_to_copy",
                "Records of damaged files of the spool that may still have to be copied, at most",
            )?,
            spool_busy: IntGauge::new(
                "ingest_spool_busy_seconds",
                "Time since the thread of the spool began what it does now, 0 while it waits",
            )?,
            refused: IntCounter::new("ingest_refused_total", "Webhooks answered 503")?,
            lost: IntCounter::new("ingest_lost_total", "Webhooks answered 200 that could be stored nowhere")?,
            refusal_budget_left: IntGauge::new(
                "ingest_refusal_budget_left",
                "Refusals left before respond.io may disable the webhook",
            )?,
            publishes_in_flight: IntGauge::new(
                "ingest_publishes_in_flight",
                "Messages published and not confirmed yet",
            )?,
            connections: IntGauge::new("ingest_connections", "Connections of the public port")?,
            connections_max: IntGauge::new("ingest_connections_max", "Most connections that there may be")?,
            connections_closed: counters(
                "ingest_connections_closed_total",
                "Connections closed before their senders did so",
                &["reason"],
            )?,
            amqp_up: IntGauge::new("amqp_connection_up", "1 while RabbitMQ can be reached")?,
            amqp_blocked: IntGauge::new("amqp_connection_blocked", "1 while RabbitMQ blocks publishing")?,
            registry,
        };
        metrics.register()?;
        metrics.start_at_zero(tenants);
        Ok(metrics)
    }

    fn register(&self) -> prometheus::Result<()> {
        let register = |collector| self.registry.register(collector);
        register(Box::new(self.requests.clone()))?;
        register(Box::new(self.accepted.clone()))?;
        register(Box::new(self.quarantined.clone()))?;
        register(Box::new(self.evidence_dropped.clone()))?;
        register(Box::new(self.signatures.clone()))?;
        register(Box::new(self.publishes.clone()))?;
        register(Box::new(self.publish_duration.clone()))?;
        register(Box::new(self.suspects.clone()))?;
        register(Box::new(self.spool_commit_duration.clone()))?;
        register(Box::new(self.spool_records.clone()))?;
        register(Box::new(self.spool_bytes.clone()))?;
        register(Box::new(self.spool_bytes_max.clone()))?;
        register(Box::new(self.spool_oldest_age.clone()))?;
        register(Box::new(self.spool_waiting.clone()))?;
        register(Box::new(self.spool_writable.clone()))?;
        register(Box::new(self.spool_corruptions.clone()))?;
        register(Box::new(self.spool_left_to_copy.clone()))?;
        register(Box::new(self.spool_busy.clone()))?;
        register(Box::new(self.refused.clone()))?;
        register(Box::new(self.lost.clone()))?;
        register(Box::new(self.refusal_budget_left.clone()))?;
        register(Box::new(self.publishes_in_flight.clone()))?;
        register(Box::new(self.connections.clone()))?;
        register(Box::new(self.connections_max.clone()))?;
        register(Box::new(self.connections_closed.clone()))?;
        register(Box::new(self.amqp_up.clone()))?;
        register(Box::new(self.amqp_blocked.clone()))?;
        register(Box::new(ProcessCollector::for_self()))
    }

    fn start_at_zero<'a>(&self, tenants: impl Iterator<Item = &'a str>) {
        for (route, statuses) in ROUTES {
            for status in statuses {
                self.requests.with_label_values(&[route, &status.to_string()]);
            }
        }
        for tenant in tenants {
            self.suspect(tenant, false);
            for via in Via::ALL {
                self.accepted.with_label_values(&[tenant, via.name()]);
            }
            for reason in Reason::ALL {
                self.quarantined.with_label_values(&[tenant, reason.name()]);
                self.evidence_dropped.with_label_values(&[tenant, reason.name()]);
            }
            for form in Form::ALL {
                self.signatures.with_label_values(&[tenant, form.name()]);
            }
        }
        for why in Closed::ALL {
            self.connections_closed.with_label_values(&[why.name()]);
        }
        for outcome in PublishError::OUTCOMES {
            self.publishes.with_label_values(&[outcome]);
        }
    }

    /// Where the series are gathered.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A reply went out.
    pub fn replied(&self, route: &str, status: u16, after: Duration) {
        self.requests.with_label_values(&[route, &status.to_string()]).observe(after.as_secs_f64());
    }

    /// An event was made durable, whose signature was found good in this way.
    pub fn accepted(&self, tenant: &str, via: Via, signature: &str) {
        self.accepted.with_label_values(&[tenant, via.name()]).inc();
        self.signatures.with_label_values(&[tenant, signature]).inc();
    }

    /// A request was set aside.
    pub fn quarantined(&self, tenant: &str, reason: Reason) {
        self.quarantined.with_label_values(&[tenant, reason.name()]).inc();
    }

    /// The evidence of a request was not kept.
    pub fn evidence_dropped(&self, tenant: &str, reason: Reason) {
        self.evidence_dropped.with_label_values(&[tenant, reason.name()]).inc();
    }

    /// Whether a tenant's webhooks are spooled under suspicion.
    pub fn suspect(&self, tenant: &str, is_suspect: bool) {
        self.suspects.with_label_values(&[tenant]).set(i64::from(is_suspect));
    }

    /// A publish ended.
    pub fn published(&self, outcome: &str, after: Duration) {
        self.publishes.with_label_values(&[outcome]).inc();
        self.publish_duration.observe(after.as_secs_f64());
    }
}
