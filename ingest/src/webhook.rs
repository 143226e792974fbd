//! A webhook as it is kept: the sender's bytes and their metadata. It becomes the same message for RabbitMQ,
//! whether it is published at once or from the spool.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortStringError};
use serde::{Deserialize, Serialize};
use shared::partition::WorkQueue;
use shared::publisher::{DELIVERY_MODE_PERSISTENT, Message};
use shared::telemetry::trace_id;
use shared::topology;

/// Everything about a webhook but its body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The tenant it is for.
    pub tenant: String,
    /// The stream it came on.
    pub stream: String,
    /// When ingest received it, in milliseconds since 1970.
    pub received_at_ms: i64,
    /// The event key.
    pub key: String,
    /// The event type for routing.
    pub event_type: String,
    /// How its signature was found good.
    pub signature: String,
    /// The W3C trace context.
    pub traceparent: String,
    /// Why it can't be used; none for an event.
    pub evidence: Option<Evidence>,
}

/// Why a webhook goes to the quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The reason.
    pub reason: String,
    /// Bytes that were sent, of which not all may have been kept.
    pub body_bytes: i64,
    /// SHA-256 of what was sent, if not all was kept.
    #[serde(default)]
    pub body_sha256: Option<String>,
    /// The signature that was sent, so that it can be checked again with other keys.
    #[serde(default)]
    pub sent_signature: Option<String>,
}

/// A webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// What is known of it.
    pub metadata: Metadata,
    /// The sender's bytes.
    pub body: Bytes,
}

impl Webhook {
    /// The message for RabbitMQ, to this work queue if it is an event. Fails if a name is too long for AMQP,
    /// which bounded names never are.
    pub fn message(&self, queue: WorkQueue) -> Result<Message, ShortStringError> {
        let (properties, body) = (self.metadata.properties()?, self.body.clone());
        if self.metadata.evidence.is_some() {
            return Message::new(
                topology::ASIDE_EXCHANGE,
                topology::quarantine_queue(&self.metadata.tenant),
                properties,
                body,
            );
        }
        let routing_key = queue.routing_key(&self.metadata.tenant, &self.metadata.event_type);
        Message::new(topology::WEBHOOKS_EXCHANGE, routing_key, properties, body)
    }
}

impl Metadata {
    /// The id of its trace.
    #[must_use]
    pub fn trace_id(&self) -> Option<&str> {
        trace_id(&self.traceparent)
    }

    fn properties(&self) -> Result<BasicProperties, ShortStringError> {
        let text = |value: &str| AMQPValue::LongString(value.into());
        let mut headers = vec![
            ("tenant", text(&self.tenant)),
            ("stream", text(&self.stream)),
            ("received_at_ms", AMQPValue::LongLongInt(self.received_at_ms)),
            ("signature", text(&self.signature)),
            ("traceparent", text(&self.traceparent)),
        ];
        let reason = self.evidence.as_ref().map(|evidence| evidence.reason.as_str());
        headers.push((topology::REASON_HEADER, text(reason.unwrap_or(topology::DELIVERY_LIMIT_REASON))));
        if let Some(evidence) = &self.evidence {
            headers.push((topology::BODY_BYTES_HEADER, AMQPValue::LongLongInt(evidence.body_bytes)));
            let texts = [
                (topology::BODY_SHA256_HEADER, &evidence.body_sha256),
                (topology::SENT_SIGNATURE_HEADER, &evidence.sent_signature),
            ];
            headers.extend(texts.into_iter().filter_map(|(name, value)| Some((name, text(value.as_ref()?)))));
        }
        Ok(BasicProperties::default()
            .with_delivery_mode(DELIVERY_MODE_PERSISTENT)
            .with_content_type(topology::short("application/json")?)
            .with_message_id(topology::short(&self.key)?)
            .with_type(topology::short(&self.event_type)?)
            .with_timestamp(u64::try_from(self.received_at_ms / 1000).unwrap_or_default())
            .with_headers(topology::table(&headers)?))
    }
}

/// A header `traceparent` that can be passed on: version 00 of the W3C's Trace Context.
#[must_use]
pub fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let named = |part: &str| part.bytes().any(|b| b != b'0');
    matches!(parts[..], ["00", trace, span, flags]
        if hex(trace, 32) && named(trace) && hex(span, 16) && named(span) && hex(flags, 2))
}

/// A trace context for a request that came without.
#[must_use]
pub fn new_traceparent() -> String {
    let (trace, span) = (fastrand::u128(1..), fastrand::u64(1..));
    format!("00-{trace:032x}-{span:016x}-01")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_proper_traceparent_is_passed_on() {
        assert!(is_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert!(is_traceparent(&new_traceparent()));
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }
}
