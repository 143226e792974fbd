//! Dead letters.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use shared::publisher::{DELIVERY_MODE_PERSISTENT, Message, PublishError, Publisher};
use shared::telemetry::{self, chain};
use shared::topology;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// Longest wait for the confirm of a dead letter.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a dead letter is published again.
const PUBLISH_PAUSE: Duration = Duration::from_secs(1);
/// Longest text in the header `error`, in characters.
const MAX_ERROR_LENGTH: usize = 1000;

/// Why an event is a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dead {
    /// The body is no event. ingest lets no such body pass, so somebody else has published it.
    NoEvent,
    /// MongoDB refuses the documents that come of it.
    RefusedByMongodb,
    /// The worker panicked over it, which is a defect of ours.
    Defect,
}

impl Dead {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::NoEvent, Self::RefusedByMongodb, Self::Defect];

    /// The value of the header `reason` and of the metrics label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoEvent => "no_event",
            Self::RefusedByMongodb => "refused_by_mongodb",
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
    pub reason: Dead,
    /// What went wrong, in words.
    pub error: String,
    /// As it was received.
    pub properties: &'a BasicProperties,
    /// As it was received.
    pub body: &'a [u8],
}

/// Publishes a dead letter until it is confirmed; false if `lost` came first.
pub async fn bury(publisher: &Publisher, letter: &DeadLetter<'_>, lost: &CancellationToken) -> bool {
    let key = letter.properties.message_id().as_ref().map(ToString::to_string);
    let (tenant, reason, trace_id) = (letter.tenant, letter.reason.name(), trace_id(letter.properties));
    while !lost.is_cancelled() {
        match publish(publisher, letter).await {
            Ok(()) => {
                warn!(
                    tenant,
                    event_key = key,
                    trace_id,
                    reason,
                    error = letter.error,
                    "an event went to the dead letters"
                );
                return true;
            }
            Err(error) => {
                error!(
                    tenant,
                    event_key = key,
                    trace_id,
                    error = chain(&error),
                    "can't publish a dead letter"
                );
            }
        }
        tokio::select! {
            () = sleep(PUBLISH_PAUSE) => {}
            () = lost.cancelled() => {}
        }
    }
    false
}

#[derive(Debug, thiserror::Error)]
enum BuryError {
    #[error("a name is too long for AMQP")]
    Name(#[from] lapin::types::ShortStringError),
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

/// How often it was delivered: RabbitMQ counts the deliveries of a quorum queue's messages before this one.
fn attempts(properties: &BasicProperties) -> i64 {
    let headers = properties.headers().as_ref();
    let before = match headers.and_then(|headers| headers.inner().get("x-delivery-count")) {
        Some(AMQPValue::LongLongInt(count)) => *count,
        Some(AMQPValue::LongInt(count)) => i64::from(*count),
        _ => 0,
    };
    before.saturating_add(1)
}

async fn publish(publisher: &Publisher, letter: &DeadLetter<'_>) -> Result<(), BuryError> {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let error: String = letter.error.chars().take(MAX_ERROR_LENGTH).collect();
    let failed_at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let added = topology::table(&[
        (topology::REASON_HEADER, text(letter.reason.name())),
        ("error", text(&error)),
        ("failed_at_ms", AMQPValue::LongLongInt(i64::try_from(failed_at_ms).unwrap_or(i64::MAX))),
        ("attempts", AMQPValue::LongLongInt(attempts(letter.properties))),
    ])?;
    let mut headers = letter.properties.headers().clone().unwrap_or_default();
    for (name, value) in added.inner() {
        headers.insert(name.clone(), value.clone());
    }
    let properties =
        letter.properties.clone().with_headers(headers).with_delivery_mode(DELIVERY_MODE_PERSISTENT);
    let message = Message::new(
        topology::ASIDE_EXCHANGE,
        topology::dead_queue(letter.tenant),
        properties,
        letter.body.to_vec(),
    )?;
    publisher.publish(message, CONFIRM_TIMEOUT).await?;
    Ok(())
}
