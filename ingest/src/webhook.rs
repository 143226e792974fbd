//! Turns what was received into a message, and gets RabbitMQ's word for it.

use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortStringError};
use shared::event::Stream;
use shared::publisher::{DELIVERY_MODE_PERSISTENT, Message, PublishError, Publisher};
use shared::topology;

use crate::metrics::Metrics;
use crate::receive::{Named, Reason};

/// Where and when a webhook came in.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The tenant it is for.
    pub tenant: &'a str,
    /// The stream it came on.
    pub stream: Stream,
    /// When it came, in milliseconds since 1970.
    pub received_at_ms: u64,
    /// The W3C trace context it came with.
    pub traceparent: Option<&'a str>,
}

/// The message of an accepted event.
pub fn event(origin: Origin<'_>, named: Named, body: Vec<u8>) -> Result<Message, ShortStringError> {
    let routing_key = format!("{}.{}", origin.tenant, named.event_type);
    let properties = properties(origin, named, &[])?;
    Message::new(topology::WEBHOOKS_EXCHANGE, routing_key, properties, body)
}

/// The message of evidence for the quarantine; `sent` is the length of the whole body in bytes.
pub fn evidence(
    origin: Origin<'_>,
    named: Named,
    reason: Reason,
    body: Vec<u8>,
    sent: usize,
) -> Result<Message, ShortStringError> {
    let sent = i64::try_from(sent).unwrap_or(i64::MAX);
    let more = [
        (topology::REASON_HEADER, AMQPValue::LongString(reason.name().into())),
        ("body_bytes", AMQPValue::LongLongInt(sent)),
    ];
    let properties = properties(origin, named, &more)?;
    Message::new("", topology::quarantine_queue(origin.tenant), properties, body)
}

fn properties(
    origin: Origin<'_>,
    named: Named,
    more: &[(&str, AMQPValue)],
) -> Result<BasicProperties, ShortStringError> {
    let text = |value: &str| AMQPValue::LongString(value.into());
    let received_at_ms = i64::try_from(origin.received_at_ms).unwrap_or(i64::MAX);
    let traceparent = origin.traceparent.map_or_else(new_traceparent, str::to_owned);
    let mut headers = vec![
        ("tenant", text(origin.tenant)),
        ("stream", text(origin.stream.name())),
        ("received_at_ms", AMQPValue::LongLongInt(received_at_ms)),
        ("signature", text(named.signature)),
        ("traceparent", text(&traceparent)),
    ];
    headers.extend_from_slice(more);
    Ok(BasicProperties::default()
        .with_delivery_mode(DELIVERY_MODE_PERSISTENT)
        .with_content_type(topology::short("application/json")?)
        .with_message_id(topology::short(named.key)?)
        .with_type(topology::short(named.event_type)?)
        .with_timestamp(origin.received_at_ms / 1000)
        .with_headers(topology::table(&headers)?))
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

fn new_traceparent() -> String {
    let (trace, span) = (fastrand::u128(1..), fastrand::u64(1..));
    format!("00-{trace:032x}-{span:016x}-01")
}

/// Publishes, waits for the confirm at most for `patience`, and counts how it went.
pub async fn confirmed(
    publisher: &Publisher,
    metrics: &Metrics,
    message: Message,
    patience: Duration,
) -> Result<(), PublishError> {
    let started = Instant::now();
    let outcome = publisher.publish(message, patience).await;
    metrics
        .published(outcome.as_ref().map_or_else(PublishError::outcome, |()| "confirmed"), started.elapsed());
    outcome
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
