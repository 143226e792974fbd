//! A delivery, decoded as far as its body allows.

use std::panic::catch_unwind;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use shared::event::Stream;
use shared::traces::{Span, SpanKind};

use super::QueueContext;
use crate::dead::{self, Reason};
use crate::decode::{Envelope, Event};
use crate::state::InHand;

/// A delivery in hand.
#[derive(Debug)]
pub struct Taken {
    /// Its content.
    pub content: Content,
    /// To settle it with.
    pub receipt: Receipt,
}

/// The content of a delivery.
#[derive(Debug)]
pub enum Content {
    /// An event.
    Event(Box<Event>),
    /// Something that can't be read as one, and why.
    Undecodable(Undecodable),
}

/// A body that can't be read as an event.
#[derive(Debug)]
pub struct Undecodable {
    /// As it was received.
    pub body: Vec<u8>,
    /// Why it is a dead letter.
    pub reason: Reason,
    /// What is wrong with it.
    pub error: String,
}

/// What is left of a delivery without its body.
#[derive(Debug)]
pub struct Receipt {
    /// Its number on the channel.
    pub tag: u64,
    /// As they were received.
    pub properties: BasicProperties,
    /// Whether RabbitMQ has delivered it before.
    pub redelivered: bool,
    /// Counts it as in hand.
    pub in_hand: InHand,
    /// Ends when it is settled.
    pub span: Option<Span>,
}

impl Receipt {
    /// How often RabbitMQ has delivered it before, and got it back.
    #[must_use]
    pub fn returns(&self) -> i64 {
        dead::returns(&self.properties)
    }
}

impl Taken {
    /// Takes a delivery in hand.
    #[must_use]
    pub fn of(context: &QueueContext, delivery: Delivery) -> Self {
        let Delivery { data, properties, redelivered, delivery_tag: tag, .. } = delivery;
        if redelivered {
            context.tenant.metrics.redelivered(&context.tenant.name);
        }
        let span = span(context, &properties);
        let envelope = envelope(&context.tenant.name, &properties);
        let age_ms = u64::try_from(now_ms().saturating_sub(envelope.received_at_ms)).unwrap_or_default();
        let in_hand = context.state.hold(data.len(), Duration::from_millis(age_ms));
        // If one body makes the decoder panic, the other events in hand must not suffer.
        let content = match catch_unwind(|| Event::decode(&data, envelope)) {
            Ok(Ok(mut event)) => {
                event.trace_id = span.as_ref().and_then(Span::trace_id);
                if event.is_large() {
                    event.shed_members();
                }
                Content::Event(Box::new(event))
            }
            Ok(Err(unusable)) => undecodable(data, Reason::NoEvent, unusable.to_string()),
            Err(_) => undecodable(data, Reason::Defect, "reading it panicked".to_owned()),
        };
        Self { content, receipt: Receipt { tag, properties, redelivered, in_hand, span } }
    }

    /// Bytes of its body.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.content {
            Content::Event(event) => event.body.len(),
            Content::Undecodable(undecodable) => undecodable.body.len(),
        }
    }
}

fn undecodable(body: Vec<u8>, reason: Reason, error: String) -> Content {
    Content::Undecodable(Undecodable { body, reason, error })
}

/// A span for a delivery, from now until it is settled.
fn span(context: &QueueContext, properties: &BasicProperties) -> Option<Span> {
    let (tenant, queue) = (&context.tenant, &context.name);
    let caller = dead::traceparent(properties);
    let name = || format!("process {queue}");
    let mut span = tenant.traces.span(name, SpanKind::Consumer, SystemTime::now(), caller)?;
    span.set("messaging.system", "rabbitmq");
    span.set("messaging.destination.name", queue.clone());
    let key = properties.message_id().as_ref().map(ToString::to_string);
    span.set("messaging.message.id", key.unwrap_or_default());
    span.set("penstock.tenant", tenant.name.clone());
    Some(span)
}

/// What ingest wrote into the headers; with defaults where somebody else has published.
pub(crate) fn envelope<'a>(tenant: &'a str, properties: &'a BasicProperties) -> Envelope<'a> {
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    let header = |name: &str| headers.and_then(|headers| headers.get(name));
    let text = |name: &str| match header(name) {
        Some(AMQPValue::LongString(text)) => std::str::from_utf8(text.as_bytes()).ok(),
        Some(AMQPValue::ShortString(text)) => Some(text.as_str()),
        _ => None,
    };
    let sent_at = || i64::try_from((*properties.timestamp())?).ok()?.checked_mul(1000);
    let received_at_ms = match header("received_at_ms") {
        Some(AMQPValue::LongLongInt(ms)) => Some(*ms),
        Some(AMQPValue::Timestamp(ms)) => i64::try_from(*ms).ok(),
        _ => None,
    };
    Envelope {
        tenant,
        stream: text("stream").map_or(Stream::Any, Stream::from_name),
        received_at_ms: received_at_ms.or_else(sent_at).unwrap_or_else(now_ms),
        signature: text("signature").unwrap_or("unknown"),
    }
}

fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}
