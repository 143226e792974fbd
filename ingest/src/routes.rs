//! The public port: which path leads where.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::middleware::Next;
use actix_web::{Error, HttpRequest, HttpResponse, web};
use serde_json::json;
use shared::amqp::Link;
use shared::publisher::Publisher;
use shared::telemetry::chain;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::health::{self, Seen};
use crate::metrics::{self, Metrics};
use crate::pipeline::Pipeline;
use crate::publish::{self, Origin};
use crate::receive::{self, Verdict};
use crate::refusals::Refusals;
use crate::reply;
use crate::settings::Settings;

/// What the handlers share.
#[derive(Debug)]
pub struct Gateway {
    /// The settings.
    pub settings: Settings,
    /// The way into RabbitMQ.
    pub publisher: Publisher,
    /// The connection on which workers are listened to.
    pub status_link: Link,
    /// What is behind RabbitMQ.
    pub pipeline: Arc<Pipeline>,
    /// The metrics.
    pub metrics: Metrics,
    /// Refusals of late.
    pub refusals: Mutex<Refusals>,
    /// Cancelled when this process was told to stop.
    pub stop: CancellationToken,
}

impl Gateway {
    /// The answer to `/health`.
    #[must_use]
    pub fn health(&self) -> serde_json::Value {
        let tenants: Vec<String> = self.settings.tenants.keys().cloned().collect();
        let link = self.publisher.link();
        health::report(&Seen {
            tenants: &tenants,
            test_mode: self.settings.test_mode,
            waiting: self.pipeline.waiting(),
            workers: &self.pipeline.workers(Instant::now()),
            breaker_threshold: self.settings.breaker_threshold,
            broker_up: link.is_up(),
            broker_blocked: link.is_blocked(),
            publishing: self.publisher.in_flight(),
            refusals: (self.settings.refusal_budget, self.refusals_left()),
        })
    }

    /// Sets the gauges that are measured on demand.
    pub fn refresh_metrics(&self) {
        let (link, metrics) = (self.publisher.link(), &self.metrics);
        metrics.amqp_up.set(i64::from(link.is_up() && self.status_link.is_up()));
        metrics.amqp_blocked.set(i64::from(link.is_blocked()));
        metrics.refusal_budget_left.set(i64::try_from(self.refusals_left()).unwrap_or(i64::MAX));
        metrics.publishes_in_flight.set(i64::try_from(self.publisher.in_flight()).unwrap_or(i64::MAX));
    }

    fn refusals_left(&self) -> usize {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).left(Instant::now())
    }

    fn note_refusal(&self) {
        self.metrics.refused.inc();
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).note(Instant::now());
    }
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

async fn webhook(gateway: web::Data<Gateway>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let received_at_ms = now_ms();
    let tenant = request.match_info().query("tenant");
    let Some(signing) = gateway.settings.tenants.get(tenant) else { return reply::not_found("tenant") };
    let Some(stream) = receive::stream(request.match_info().get("stream")) else {
        return reply::not_found("stream");
    };
    let limit = gateway.settings.max_body_bytes;
    let Some(body) = receive::read_body(payload, limit).await else { return reply::incomplete() };

    let traceparent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    let traceparent = traceparent.filter(|text| publish::is_traceparent(text));
    let origin = Origin { tenant, stream, received_at_ms, traceparent };
    let (message, key, answer) = match receive::judge(tenant, signing, request.headers(), &body, limit) {
        Verdict::Reject(reason) => return reply::rejected(reason),
        Verdict::Accept(named) => {
            let key = named.key.clone();
            (publish::event(origin, named, body.bytes), key, None)
        }
        Verdict::Quarantine(named, reason) => {
            let key = named.key.clone();
            (publish::evidence(origin, named, reason, body.bytes, body.sent), key, Some(reason))
        }
    };
    let message = match message {
        Ok(message) => message,
        Err(error) => {
            // Every name is bounded well below AMQP's 255 bytes, so this is a defect of ours.
            error!(tenant, event_key = key, error = chain(&error), "can't name the message");
            gateway.note_refusal();
            return reply::refused();
        }
    };
    let patience = gateway.settings.publish_timeout;
    match (publish::confirmed(&gateway.publisher, &gateway.metrics, message, patience).await, answer) {
        (Ok(()), None) => {
            gateway.metrics.accepted(tenant);
            debug!(tenant, event_key = key, "received");
            reply::received()
        }
        (Ok(()), Some(reason)) => {
            gateway.metrics.quarantined(tenant, reason);
            warn!(tenant, event_key = key, reason = reason.name(), "quarantined");
            reply::quarantined(reason)
        }
        (Err(error), _) => {
            gateway.note_refusal();
            error!(tenant, event_key = key, error = chain(&error), "refused a webhook");
            reply::refused()
        }
    }
}

async fn service() -> HttpResponse {
    HttpResponse::Ok().json(json!({
        "service": "penstock",
        "version": env!("CARGO_PKG_VERSION"),
        "endpoints": [
            "POST /webhook/{tenant}",
            "POST /webhook/{tenant}/incoming",
            "POST /webhook/{tenant}/outgoing",
            "POST /webhook/{tenant}/lifecycle",
            "POST /webhook/{tenant}/internal-note",
            "GET /health",
            "GET /",
        ],
    }))
}

async fn health(gateway: web::Data<Gateway>) -> HttpResponse {
    HttpResponse::Ok().json(gateway.health())
}

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
    if gateway.stop.is_cancelled() {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    Ok(response)
}

fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
