//! What the handlers share, and what ingest reports of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use actix_web::HttpResponse;
use shared::amqp::Link;
use shared::pipeline::Pipeline;
use shared::status::{Announcement, Role, SpoolStatus};
use shared::telemetry::chain;
use shared::traces::Traces;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::allowance::{Allowance, Decision};
use crate::body::BodyBudget;
use crate::connections::Connections;
use crate::durable::{Durable, NotDurable};
use crate::health::{self, Seen};
use crate::judge::Reason;
use crate::metrics::Metrics;
use crate::refusals::Refusals;
use crate::reply;
use crate::settings::Settings;
use crate::webhook::Metadata;

/// What the handlers share.
#[derive(Debug)]
pub struct Gateway {
    /// The settings.
    pub settings: Settings,
    /// Makes webhooks durable.
    pub durable: Arc<Durable>,
    /// The name under which this process announces itself.
    pub name: String,
    /// The connection that receives the announcements of other processes.
    pub status_link: Link,
    /// The state of queues and workers.
    pub pipeline: Arc<Pipeline>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// For spans of webhooks.
    pub traces: Traces,
    /// Refusals within the window.
    pub refusals: Mutex<Refusals>,
    /// The connections of the public port.
    pub connections: Arc<Connections>,
    /// Memory for bodies.
    pub body_budget: BodyBudget,
    /// How much evidence is kept of each tenant.
    pub allowances: BTreeMap<String, Mutex<Allowance>>,
    /// Cancelled when this process was told to stop.
    pub stop: CancellationToken,
}

impl Gateway {
    /// The answer to `/health`.
    #[must_use]
    pub fn health(&self) -> serde_json::Value {
        let tenants: Vec<String> = self.settings.tenants.keys().cloned().collect();
        let unchecked: Vec<String> = self.settings.unchecked().cloned().collect();
        let spool = self.durable.spool();
        health::report(&Seen {
            tenants: &tenants,
            unchecked: &unchecked,
            test_mode: self.settings.test_mode,
            lengths: &self.pipeline.lengths(Instant::now()),
            peers: &self.pipeline.peers(Instant::now()),
            partitions: self.pipeline.partitions(self.settings.partitions, Instant::now()),
            breaker_threshold: self.settings.breaker_threshold,
            routes: &self.durable.states(),
            spool: spool.size(),
            spool_room: spool.room(),
            spool_oldest_age: spool.oldest_age(),
            spool_writable: spool.is_writable(),
            spool_left_to_copy: spool.left_to_copy(),
            refusals: (self.settings.refusal_budget, self.refusals().left(Instant::now())),
        })
    }

    /// What other processes are told.
    #[must_use]
    pub fn announcement(&self, leaving: bool) -> Announcement {
        let spool = self.durable.spool();
        let (size, oldest) = (spool.size(), spool.oldest_age());
        let spool = SpoolStatus {
            records: size.records,
            bytes: size.bytes,
            oldest_age_seconds: oldest.as_secs(),
            writable: spool.is_writable(),
        };
        let refusals_left = u32::try_from(self.refusals().left(Instant::now())).unwrap_or(u32::MAX);
        let role = Role::Ingest { spool, refusals_left };
        Announcement { name: self.name.clone(), partitions: self.settings.partitions, leaving, role }
    }

    /// Why this process shouldn't get webhooks, if there is a reason: only that it stops. If all were unready
    /// because RabbitMQ and the spools take nothing, the load balancer would refuse every webhook, and no
    /// budget would hold.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        self.stop.is_cancelled().then(|| "stopping".to_owned())
    }

    /// Sets the gauges that are measured on demand.
    pub fn refresh_metrics(&self) {
        let (routes, spool, metrics) = (self.durable.states(), self.durable.spool(), &self.metrics);
        let up = routes.values().all(|route| route.connected) && self.status_link.is_up();
        metrics.connections.set(gauge(self.connections.count()));
        metrics.connections_max.set(gauge(self.connections.most()));
        metrics.amqp_up.set(i64::from(up));
        metrics.amqp_blocked.set(i64::from(routes.values().any(|route| route.blocked)));
        metrics.publishes_in_flight.set(gauge(routes.values().map(|route| route.in_flight).sum::<usize>()));
        for (tenant, route) in &routes {
            metrics.suspect(tenant, route.suspect);
        }
        metrics.refusal_budget_left.set(gauge(self.refusals().left(Instant::now())));
        metrics.spool_records.set(gauge(spool.size().records));
        metrics.spool_bytes.set(gauge(spool.size().bytes));
        metrics.spool_bytes_max.set(gauge(self.settings.spool_max_bytes));
        metrics.spool_oldest_age.set(gauge(spool.oldest_age().as_secs()));
        metrics.spool_waiting.set(gauge(spool.waiting()));
        metrics.spool_writable.set(i64::from(spool.is_writable()));
        metrics.spool_corruptions.set(gauge(spool.corruptions()));
        metrics.spool_left_to_copy.set(gauge(spool.left_to_copy()));
        metrics.spool_busy.set(gauge(spool.works_for().as_secs()));
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for this much evidence of a tenant, or for a line about it in the log.
    #[must_use]
    pub fn may_keep(&self, tenant: &str, bytes: usize) -> bool {
        let Some(allowance) = self.allowances.get(tenant) else { return true };
        let mut allowance = allowance.lock().unwrap_or_else(PoisonError::into_inner);
        match allowance.spend(bytes, Instant::now()) {
            Decision::Keep => true,
            Decision::Drop(dropped) => {
                if let Some(dropped) = dropped {
                    warn!(
                        tenant,
                        dropped, "too many unusable webhooks: some were neither quarantined nor logged"
                    );
                }
                false
            }
        }
    }

    /// Neither RabbitMQ nor the spool has this evidence. It isn't worth a refusal, of which there are few.
    pub fn drop_evidence(&self, metadata: &Metadata, reason: Reason, why: &NotDurable) {
        self.metrics.evidence_dropped(&metadata.tenant, reason);
        error!(
            tenant = metadata.tenant,
            event_key = metadata.key,
            trace_id = metadata.trace_id(),
            reason = reason.name(),
            error = chain(why),
            "evidence is lost"
        );
    }

    /// Neither RabbitMQ nor the spool has this webhook. After a refusal respond.io sends it again, but too
    /// many refusals disable the webhook. Beyond the budget ingest gives this one up, so that the others
    /// still come.
    #[must_use]
    pub fn refuse_or_lose(&self, metadata: &Metadata, why: &NotDurable) -> HttpResponse {
        let Metadata { tenant, key: event_key, event_type, .. } = metadata;
        let (trace_id, error) = (metadata.trace_id(), chain(why));
        if self.refusals().spend(Instant::now()) {
            self.metrics.refused.inc();
            error!(tenant, event_key, event_type, trace_id, error, "refused a webhook");
            return reply::refused();
        }
        self.metrics.lost.inc();
        error!(tenant, event_key, event_type, trace_id, error, "LOST a webhook: no refusal is left");
        reply::lost()
    }
}

/// A number as metrics and messages have it.
#[must_use]
pub fn gauge(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
