//! Receives a webhook, step by step: `Arrival::of` → read → judge → make a webhook of it → keep → reply.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix_web::http::header::CONTENT_LENGTH;
use actix_web::{HttpRequest, HttpResponse, web};
use shared::event::Stream;
use shared::partition;
use shared::traces::{Span, SpanKind};
use shared::verify;
use tracing::{debug, warn};

use crate::body::{self, Announced, Body};
use crate::connections::{Connection, END_OF_HEAD};
use crate::durable::{NotDurable, Via};
use crate::gateway::{Gateway, gauge};
use crate::judge::{self, Identity, Reason, Verdict};
use crate::reply;
use crate::settings::Signing;
use crate::webhook::{self, Evidence, Metadata, Webhook};

/// Longest signature that is kept as evidence; a good one has 44 characters.
const MAX_SIGNATURE_LENGTH: usize = 200;
/// Longer than a connection takes to be closed after a reply.
const CLOSING_TIME: Duration = Duration::from_secs(5);
/// Operators use this name in `RUST_LOG` to get a log line for each webhook; the README says so.
const LOG_TARGET: &str = "ingest::routes";

/// A webhook: answered 200 once it is durable.
pub async fn webhook(
    gateway: web::Data<Gateway>,
    request: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    receive(&gateway, &request, payload).await.unwrap_or_else(End::reply)
}

/// The steps.
async fn receive(
    gateway: &Gateway,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, End> {
    let arrival = Arrival::of(gateway, request)?;
    let body = arrival.read(payload).await?;
    let (identity, reason) = arrival.judge(&body)?;
    let (key, chat_id) = (identity.key.as_str(), identity.chat_id.as_deref());
    let queue = partition::queue_of(chat_id, key, body.bytes.len(), gateway.settings.partitions);
    let span = arrival.span();
    let webhook = arrival.webhook(identity, reason, &body, span.as_ref());
    let kept = gateway.durable.keep(&webhook, queue).await;
    let is_durable = kept.is_ok();
    let reply = arrival.reply(&webhook, reason, kept);
    if let Some(span) = span {
        finish(span, &webhook.metadata, &reply, is_durable);
    }
    Ok(reply)
}

/// Why nothing is kept of a request.
enum End {
    Unknown(&'static str),
    Incomplete,
    Dropped(Reason),
    Rejected(Reason),
}

impl End {
    fn reply(self) -> HttpResponse {
        match self {
            Self::Unknown(what) => reply::not_found(what),
            Self::Incomplete => reply::incomplete(),
            Self::Dropped(reason) => reply::quarantined(reason),
            Self::Rejected(reason) => reply::rejected(reason),
        }
    }
}

/// A request for a known tenant.
struct Arrival<'a> {
    gateway: &'a Gateway,
    request: &'a HttpRequest,
    tenant: &'a str,
    signing: &'a Signing,
    stream: Stream,
    received_at_ms: i64,
}

impl<'a> Arrival<'a> {
    /// Stamps a request with the time, and looks up for whom it is.
    fn of(gateway: &'a Gateway, request: &'a HttpRequest) -> Result<Self, End> {
        let received_at_ms =
            gauge(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis());
        let (tenant, stream) = (request.match_info().query("tenant"), request.match_info().get("stream"));
        let signing = gateway.settings.tenants.get(tenant).ok_or(End::Unknown("tenant"))?;
        let stream = stream_of(stream).ok_or(End::Unknown("stream"))?;
        Ok(Self { gateway, request, tenant, signing, stream, received_at_ms })
    }

    async fn read(&self, mut payload: web::Payload) -> Result<Body, End> {
        let (limit, budget) = (self.gateway.settings.max_body_bytes, &self.gateway.body_budget);
        let length = self.request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let length = length.and_then(|text| text.parse().ok());
        let announced = Announced { length, ends: self.request.head().upgrade() };
        if let Some(body) = body::read(&mut payload, announced, limit, budget).await {
            if let Some(connection) = self.request.conn_data::<Arc<Connection>>() {
                let is_chunked = announced.length.is_none();
                connection.is_read(if is_chunked { END_OF_HEAD } else { &body.end });
            }
            return Ok(body);
        }
        if self.gateway.may_keep(self.tenant, 0) {
            warn!(tenant = self.tenant, "a sender did not finish its body");
        }
        keep_until_closed(payload);
        Err(End::Incomplete)
    }

    /// Decides what the request is. Evidence has a reason; it is kept only if there is room for more.
    fn judge(&self, body: &Body) -> Result<(Identity, Option<Reason>), End> {
        let Self { gateway, tenant, .. } = self;
        let limit = gateway.settings.max_body_bytes;
        match judge::judge(tenant, self.signing, self.request.headers(), body, limit) {
            Verdict::Accept(identity) => Ok((identity, None)),
            Verdict::Quarantine(identity, reason) if gateway.may_keep(tenant, body.bytes.len()) => {
                Ok((identity, Some(reason)))
            }
            Verdict::Quarantine(_, reason) => {
                gateway.metrics.quarantined(tenant, reason);
                gateway.metrics.evidence_dropped(tenant, reason);
                Err(End::Dropped(reason))
            }
            Verdict::Reject(reason) => {
                if gateway.may_keep(tenant, 0) {
                    warn!(tenant, reason = reason.name(), "rejected");
                }
                Err(End::Rejected(reason))
            }
        }
    }

    fn webhook(
        &self,
        identity: Identity,
        reason: Option<Reason>,
        body: &Body,
        span: Option<&Span>,
    ) -> Webhook {
        let traceparent = span.map(Span::traceparent).or_else(|| self.caller().map(str::to_owned));
        let metadata = Metadata {
            tenant: self.tenant.to_owned(),
            stream: self.stream.name().to_owned(),
            received_at_ms: self.received_at_ms,
            key: identity.key,
            event_type: identity.event_type,
            signature: identity.signature.to_owned(),
            traceparent: traceparent.unwrap_or_else(webhook::new_traceparent),
            evidence: reason.map(|reason| self.evidence(reason, body)),
        };
        Webhook { metadata, body: body.bytes.clone() }
    }

    fn evidence(&self, reason: Reason, body: &Body) -> Evidence {
        let signature = self.request.headers().get(verify::HEADER).and_then(|sent| sent.to_str().ok());
        let fits = |sent: &&str| (1..=MAX_SIGNATURE_LENGTH).contains(&sent.len());
        Evidence {
            reason: reason.name().to_owned(),
            body_bytes: gauge(body.sent),
            body_sha256: body.digest.clone(),
            sent_signature: signature.map(str::trim).filter(fits).map(str::to_owned),
        }
    }

    fn reply(
        &self,
        webhook: &Webhook,
        reason: Option<Reason>,
        kept: Result<Via, NotDurable>,
    ) -> HttpResponse {
        let Metadata { tenant, key: event_key, signature, .. } = &webhook.metadata;
        let trace_id = webhook.metadata.trace_id();
        match (kept, reason) {
            (Ok(via), None) => {
                self.gateway.metrics.accepted(tenant, via, signature);
                debug!(target: LOG_TARGET, tenant, event_key, trace_id, via = via.name(), "received");
                reply::received()
            }
            (kept, Some(reason)) => {
                self.gateway.metrics.quarantined(tenant, reason);
                match kept {
                    Ok(_) => warn!(tenant, event_key, trace_id, reason = reason.name(), "quarantined"),
                    Err(why) => self.gateway.drop_evidence(&webhook.metadata, reason, &why),
                }
                reply::quarantined(reason)
            }
            (Err(why), None) => self.gateway.refuse_or_lose(&webhook.metadata, &why),
        }
    }

    /// A span from the moment when the webhook came, within its caller's trace.
    fn span(&self) -> Option<Span> {
        let route = || self.request.match_pattern().unwrap_or_default();
        let name = || format!("POST {}", route());
        let since_1970 = Duration::from_millis(u64::try_from(self.received_at_ms).unwrap_or_default());
        let traces = &self.gateway.traces;
        let mut span = traces.span(name, SpanKind::Server, UNIX_EPOCH + since_1970, self.caller())?;
        span.set("http.request.method", "POST");
        span.set("http.route", route());
        Some(span)
    }

    /// The trace context that the caller has sent.
    fn caller(&self) -> Option<&'a str> {
        let sent = self.request.headers().get("traceparent").and_then(|value| value.to_str().ok());
        sent.filter(|text| webhook::is_traceparent(text))
    }
}

fn finish(mut span: Span, metadata: &Metadata, reply: &HttpResponse, is_durable: bool) {
    span.set("http.response.status_code", i64::from(reply.status().as_u16()));
    span.set("messaging.message.id", metadata.key.clone());
    span.set("penstock.tenant", metadata.tenant.clone());
    if !is_durable {
        span.fail("neither RabbitMQ nor the spool can take it");
    }
}

/// The stream that a path's last segment names; none if there is no such stream.
fn stream_of(segment: Option<&str>) -> Option<Stream> {
    segment.map_or(Some(Stream::Any), Stream::from_path)
}

/// When the unread rest of a chunked body is dropped, actix-web waits for it without end; while it is held,
/// actix-web closes the connection instead.
fn keep_until_closed(payload: web::Payload) {
    actix_web::rt::spawn(async move {
        tokio::time::sleep(CLOSING_TIME).await;
        drop(payload);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_optional_but_must_exist() {
        assert_eq!(stream_of(None), Some(Stream::Any));
        assert_eq!(stream_of(Some("outgoing")), Some(Stream::Outgoing));
        assert_eq!(stream_of(Some("")), None);
        assert_eq!(stream_of(Some("any")), None);
    }
}
