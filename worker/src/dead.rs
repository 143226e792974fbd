//! Dead letters.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use shared::publisher::{DELIVERY_MODE_PERSISTENT, Message, PublishError, Publisher};
use shared::{telemetry, topology};

/// Longest wait for the confirm of a dead letter.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest text in the header `error`, in characters.
const MAX_ERROR_LENGTH: usize = 1000;

/// Why an event is a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The body isn't an event. ingest publishes no such body, so another program has published it.
    NoEvent,
    /// MongoDB refuses its documents.
    RefusedByMongodb,
    /// It can't be written, though MongoDB works.
    Stuck,
    /// It makes the worker panic, which is a defect of ours.
    Defect,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::NoEvent, Self::RefusedByMongodb, Self::Stuck, Self::Defect];

    /// The value of the header `reason` and of the metrics label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoEvent => "no_event",
            Self::RefusedByMongodb => "refused_by_mongodb",
            Self::Stuck => "stuck",
            Self::Defect => "worker_defect",
        }
    }
}

/// A dead letter.
#[derive(Debug)]
pub struct DeadLetter<'a> {
    /// The tenant.
    pub tenant: &'a str,
    /// Why it is one.
    pub reason: Reason,
    /// What went wrong, in full.
    pub error: &'a str,
    /// As it was received.
    pub properties: &'a BasicProperties,
    /// As it was received.
    pub body: &'a [u8],
}

/// Why a dead letter wasn't published.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// A name is too long for AMQP.
    #[error("a name is too long for AMQP")]
    Name(#[from] lapin::types::ShortStringError),
    /// It wasn't confirmed.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// The id of the trace that a message belongs to.
#[must_use]
pub fn trace_id(properties: &BasicProperties) -> Option<&str> {
    telemetry::trace_id(traceparent(properties)?)
}

/// The W3C trace context of a message.
#[must_use]
pub fn traceparent(properties: &BasicProperties) -> Option<&str> {
    match properties.headers().as_ref()?.inner().get("traceparent")? {
        AMQPValue::LongString(text) => str::from_utf8(text.as_bytes()).ok(),
        _ => None,
    }
}

/// How often RabbitMQ has delivered a message before and got it back: it counts that for quorum queues.
#[must_use]
pub fn returns(properties: &BasicProperties) -> i64 {
    let headers = properties.headers().as_ref();
    match headers.and_then(|headers| headers.inner().get("x-delivery-count")) {
        Some(AMQPValue::LongLongInt(count)) => *count,
        Some(AMQPValue::LongInt(count)) => i64::from(*count),
        _ => 0,
    }
}

/// Publishes a dead letter, and waits five seconds for the confirm at most.
pub async fn publish(publisher: &Publisher, letter: &DeadLetter<'_>) -> Result<(), DeadLetterError> {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let error: String = letter.error.chars().take(MAX_ERROR_LENGTH).collect();
    let failed_at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let added = topology::table(&[
        (topology::REASON_HEADER, text(letter.reason.name())),
        ("error", text(&error)),
        ("failed_at_ms", AMQPValue::LongLongInt(i64::try_from(failed_at_ms).unwrap_or(i64::MAX))),
        ("attempts", AMQPValue::LongLongInt(returns(letter.properties).saturating_add(1))),
    ])?;
    let mut headers = letter.properties.headers().clone().unwrap_or_default();
    for (name, value) in added.inner() {
        headers.insert(name.clone(), value.clone());
    }
    let properties =
        letter.properties.clone().with_headers(headers).with_delivery_mode(DELIVERY_MODE_PERSISTENT);
    let queue = topology::dead_queue(letter.tenant);
    let message = Message::new(topology::ASIDE_EXCHANGE, queue, properties, letter.body.to_vec())?;
    Ok(publisher.publish(message, CONFIRM_TIMEOUT).await?)
}
