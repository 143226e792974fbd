//! The public port: which path leads where.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::middleware::Next;
use actix_web::{Error, HttpRequest, HttpResponse, web};
use serde_json::json;
use shared::amqp::Link;
use shared::partition;
use shared::status::{Announcement, Role, SpoolStatus};
use shared::telemetry::chain;
use shared::traces::{Span, SpanKind, Traces};
use shared::verify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::allowance::{Allowance, Decision};
use crate::durable::{Durable, Nowhere};
use crate::health::{self, Seen};
use crate::metrics::{self, Metrics};
use crate::pipeline::Pipeline;
use crate::receive::{self, Memory, Reason, Verdict};
use crate::refusals::Refusals;
use crate::reply;
use crate::settings::Settings;
use crate::webhook::{self, Evidence, Facts, Webhook};

/// Longest signature that is kept as evidence; a good one has 44 characters.
const MAX_SIGNATURE_LENGTH: usize = 200;
/// A connection is closed after so many requests, so that load spreads again when ingests come and go.
const REQUESTS_PER_CONNECTION: u32 = 10_000;
/// Longer than a connection takes to be closed after a reply.
const CLOSING_TIME: Duration = Duration::from_secs(5);

/// What the handlers share.
#[derive(Debug)]
pub struct Gateway {
    /// The settings.
    pub settings: Settings,
    /// Makes webhooks durable.
    pub durable: Arc<Durable>,
    /// The name under which this process announces itself.
    pub name: String,
    /// The connection on which others are listened to.
    pub status_link: Link,
    /// What is behind RabbitMQ.
    pub pipeline: Arc<Pipeline>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// For spans of webhooks.
    pub traces: Traces,
    /// Refusals of late.
    pub refusals: Mutex<Refusals>,
    /// For bodies that are being read.
    pub memory: Memory,
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
        let (publisher, spool) = (self.durable.publisher(), self.durable.spool());
        health::report(&Seen {
            tenants: &tenants,
            unchecked: &unchecked,
            test_mode: self.settings.test_mode,
            waiting: &self.pipeline.waiting(),
            peers: &self.pipeline.peers(Instant::now()),
            partitions: self.pipeline.partitions(self.settings.partitions, Instant::now()),
            breaker_threshold: self.settings.breaker_threshold,
            broker_up: publisher.link().is_up(),
            broker_blocked: publisher.link().is_blocked(),
            broker_suspect: self.durable.is_suspect(),
            publishing: publisher.in_flight(),
            spool: spool.size(),
            spool_room: spool.room(),
            spool_oldest_age: spool.oldest_age(),
            spool_writable: spool.is_writable(),
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

    /// Why this process shouldn't get webhooks, if there is a reason. RabbitMQ's absence is none.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if self.stop.is_cancelled() {
            return Some("stopping".to_owned());
        }
        (!self.durable.spool().is_writable()).then(|| "the spool can't be written".to_owned())
    }

    /// Sets the gauges that are measured on demand.
    pub fn refresh_metrics(&self) {
        let (publisher, spool, metrics) = (self.durable.publisher(), self.durable.spool(), &self.metrics);
        let up = publisher.link().is_up() && self.status_link.is_up();
        metrics.amqp_up.set(i64::from(up));
        metrics.amqp_blocked.set(i64::from(publisher.link().is_blocked()));
        metrics.publishes_in_flight.set(gauge(publisher.in_flight()));
        metrics.refusal_budget_left.set(gauge(self.refusals().left(Instant::now())));
        metrics.spool_records.set(gauge(spool.size().records));
        metrics.spool_bytes.set(gauge(spool.size().bytes));
        metrics.spool_bytes_max.set(gauge(self.settings.spool_max_bytes));
        metrics.spool_oldest_age.set(gauge(spool.oldest_age().as_secs()));
        metrics.spool_waiting.set(gauge(spool.waiting()));
        metrics.spool_writable.set(i64::from(spool.is_writable()));
        metrics.spool_corruptions.set(gauge(spool.corruptions()));
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for this much evidence of a tenant, or for a line about it in the log.
    fn may_keep(&self, tenant: &str, bytes: usize) -> bool {
        let Some(allowance) = self.allowances.get(tenant) else { return true };
        let mut allowance = allowance.lock().unwrap_or_else(PoisonError::into_inner);
        match allowance.spend(bytes, Instant::now()) {
            Decision::Keep => true,
            Decision::Drop(dropped) => {
                if let Some(dropped) = dropped {
                    warn!(tenant, dropped, "too much to be quarantined or logged, left some out");
                }
                false
            }
        }
    }

    /// Neither RabbitMQ nor the spool has it. A refusal makes respond.io send it again, but only so many
    /// refusals are harmless; beyond them one webhook is given up to keep the others coming.
    fn refuse_or_lose(&self, facts: &Facts, why: &Nowhere) -> HttpResponse {
        let Facts { tenant, key: event_key, event_type, .. } = facts;
        let (trace_id, error) = (facts.trace_id(), chain(why));
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

fn gauge(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// All routes of the public port.
pub fn configure(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/webhook/{tenant}")
                .route(web::post().to(webhook))
                .default_service(web::to(async || reply::wrong_method("POST"))),
        )
        .service(
            web::resource("/webhook/{tenant}/{stream}")
                .route(web::post().to(webhook))
                .default_service(web::to(async || reply::wrong_method("POST"))),
        )
        .service(read_only("/").route(web::get().to(service)).route(web::head().to(service)))
        .service(read_only("/health").route(web::get().to(health)).route(web::head().to(health)))
        .default_service(web::to(async || reply::not_found("path")));
}

fn read_only(path: &str) -> actix_web::Resource {
    web::resource(path).default_service(web::to(async || reply::wrong_method("GET, HEAD")))
}

async fn webhook(
    gateway: web::Data<Gateway>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> HttpResponse {
    let received_at_ms = now_ms();
    let tenant = request.match_info().query("tenant");
    let Some(signing) = gateway.settings.tenants.get(tenant) else {
        return reply::not_found("tenant");
    };
    let Some(stream) = receive::stream(request.match_info().get("stream")) else {
        return reply::not_found("stream");
    };
    let limit = gateway.settings.max_body_bytes;
    let Some(body) = receive::read_body(&mut payload, limit, &gateway.memory).await else {
        if gateway.may_keep(tenant, 0) {
            warn!(tenant, "a sender did not finish its body");
        }
        keep_until_closed(payload);
        return reply::incomplete();
    };

    let (named, reason) = match receive::judge(tenant, signing, request.headers(), &body, limit) {
        Verdict::Reject(reason) => {
            if gateway.may_keep(tenant, 0) {
                warn!(tenant, reason = reason.name(), "rejected");
            }
            return reply::rejected(reason);
        }
        Verdict::Accept(named) => (named, None),
        Verdict::Quarantine(_, reason) if !gateway.may_keep(tenant, body.bytes.len()) => {
            gateway.metrics.quarantined(tenant, reason);
            gateway.metrics.evidence_dropped(tenant, reason);
            return reply::quarantined(reason);
        }
        Verdict::Quarantine(named, reason) => (named, Some(reason)),
    };
    let signature = named.signature;
    let partitions = gateway.settings.partitions;
    let queue = partition::queue_of(named.chat_id.as_deref(), &named.key, body.bytes.len(), partitions);
    let caller = caller(&request);
    let span = span(&gateway, &request, received_at_ms, caller);
    let traceparent = span.as_ref().map(Span::traceparent).or_else(|| caller.map(str::to_owned));
    let evidence = |reason: Reason| Evidence {
        reason: reason.name().to_owned(),
        body_bytes: gauge(body.sent),
        body_sha256: body.digest.clone(),
        sent_signature: sent_signature(&request),
    };
    let facts = Facts {
        tenant: tenant.to_owned(),
        stream: stream.name().to_owned(),
        received_at_ms,
        key: named.key,
        event_type: named.event_type,
        signature: named.signature.to_owned(),
        traceparent: traceparent.unwrap_or_else(webhook::new_traceparent),
        evidence: reason.map(evidence),
    };
    let webhook = Webhook { facts, body: body.bytes.into() };
    let (event_key, trace_id) = (&webhook.facts.key, webhook.facts.trace_id());
    let kept = gateway.durable.keep(&webhook, queue).await;
    let is_durable = kept.is_ok();
    let reply = match (kept, reason) {
        (Ok(via), None) => {
            gateway.metrics.accepted(tenant, via, signature);
            debug!(tenant, event_key, trace_id, via = via.name(), "received");
            reply::received()
        }
        (Ok(_), Some(reason)) => {
            gateway.metrics.quarantined(tenant, reason);
            warn!(tenant, event_key, trace_id, reason = reason.name(), "quarantined");
            reply::quarantined(reason)
        }
        (Err(why), _) => gateway.refuse_or_lose(&webhook.facts, &why),
    };
    if let Some(span) = span {
        finish(span, &webhook.facts, &reply, is_durable);
    }
    reply
}

/// A span from the moment when a webhook came, within its caller's trace.
fn span(gateway: &Gateway, request: &HttpRequest, received_at_ms: i64, caller: Option<&str>) -> Option<Span> {
    let route = || request.match_pattern().unwrap_or_default();
    let received_at = UNIX_EPOCH + Duration::from_millis(u64::try_from(received_at_ms).unwrap_or_default());
    let name = || format!("POST {}", route());
    let mut span = gateway.traces.span(name, SpanKind::Server, received_at, caller)?;
    span.set("http.request.method", "POST");
    span.set("http.route", route());
    Some(span)
}

fn finish(mut span: Span, facts: &Facts, reply: &HttpResponse, is_durable: bool) {
    span.set("http.response.status_code", i64::from(reply.status().as_u16()));
    span.set("messaging.message.id", facts.key.clone());
    span.set("penstock.tenant", facts.tenant.clone());
    if !is_durable {
        span.fail("neither RabbitMQ nor the spool can take it");
    }
}

fn sent_signature(request: &HttpRequest) -> Option<String> {
    let sent = request.headers().get(verify::HEADER)?.to_str().ok()?.trim();
    (1..=MAX_SIGNATURE_LENGTH).contains(&sent.len()).then(|| sent.to_owned())
}

/// When the unread rest of a chunked body is dropped, actix-web waits for it without end; as long as somebody
/// has it, it closes the connection instead.
fn keep_until_closed(payload: web::Payload) {
    actix_web::rt::spawn(async move {
        tokio::time::sleep(CLOSING_TIME).await;
        drop(payload);
    });
}

/// The trace context that a caller has sent.
fn caller(request: &HttpRequest) -> Option<&str> {
    let sent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    sent.filter(|text| webhook::is_traceparent(text))
}

async fn service() -> HttpResponse {
    HttpResponse::Ok().json(json!({
        "service": "penstock",
        "version": env!("CARGO_PKG_VERSION"),
        "endpoints": health::ENDPOINTS,
    }))
}

async fn health(gateway: web::Data<Gateway>) -> HttpResponse {
    HttpResponse::Ok().json(gateway.health())
}

/// Requests on a connection so far.
#[derive(Debug, Default)]
pub struct Requests(AtomicU32);

/// Times every request, and asks callers to connect anew once this process is about to stop.
pub async fn observe(
    gateway: web::Data<Gateway>,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let mut response = next.call(request).await?;
    let route = response.request().match_pattern();
    let route = route.as_deref().unwrap_or(metrics::UNMATCHED);
    gateway.metrics.replied(route, response.status().as_u16(), started.elapsed());
    let requests = response.request().conn_data::<Requests>();
    let is_last = requests
        .is_some_and(|so_far| so_far.0.fetch_add(1, Ordering::Relaxed) + 1 >= REQUESTS_PER_CONNECTION);
    if gateway.stop.is_cancelled() || is_last {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    Ok(response)
}

fn now_ms() -> i64 {
    gauge(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis())
}
