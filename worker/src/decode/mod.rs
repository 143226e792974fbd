//! Turns a message into an [`Event`]: what it is, whom it concerns, when it happened. Pure.

use std::sync::Arc;

use shared::event::{self, Stream};
use shared::json::Unusable;
use shared::partition;

use crate::json::{self, Json, Object};

pub mod moment;

/// Replaces the signature in an event that `worker backfill` has made from respond.io's API.
pub const BACKFILLED: &str = "backfill";

/// Larger bodies are parsed again rather than held parsed. In bytes.
const LARGE_BODY: usize = 4 << 10;

/// The metadata of a body.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The tenant whose queue it came from.
    pub tenant: &'a str,
    /// The stream it was posted to.
    pub stream: Stream,
    /// When ingest received it, in milliseconds since 1970.
    pub received_at_ms: i64,
    /// How its signature was found good.
    pub signature: &'a str,
}

/// Which way a message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the contact.
    Incoming,
    /// To the contact.
    Outgoing,
}

impl Direction {
    /// The value of the field `message_type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Incoming => "incoming",
            Self::Outgoing => "outgoing",
        }
    }
}

/// What an event is about, and so which collections it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A message.
    Message(Direction),
    /// Statuses of a message without its content. The direction, if the event's type or path implies one.
    Status(Option<Direction>),
    /// An internal note.
    Note,
    /// A conversation was opened.
    Opened,
    /// A conversation was closed.
    Closed,
    /// A contact changed.
    Contact,
    /// A contact's lifecycle changed.
    Lifecycle,
    /// A call ended.
    Call,
    /// For the ledger alone.
    Other,
}

impl Kind {
    /// Whether an event of this kind has effects that one of the other kind lacks. The same body may be
    /// posted to two paths, which make different kinds of it.
    #[must_use]
    pub fn has_more_effects_than(self, other: Self) -> bool {
        let effects = |kind| match kind {
            Self::Other => 0,
            Self::Status(_) => 1,
            _ => 2,
        };
        effects(self) > effects(other)
    }
}

/// An event, understood.
#[derive(Clone, Debug)]
pub struct Event {
    /// Under this key it counts once.
    pub key: String,
    /// SHA-256 of what was signed, in hexadecimal: distinguishes events that share a key.
    pub digest: String,
    /// The body, as sent.
    pub body: String,
    /// The body's members.
    pub members: Arc<Object>,
    /// The event type, as sent.
    pub event_type: Option<String>,
    /// What it is about.
    pub kind: Kind,
    /// The stream it was posted to.
    pub stream: Stream,
    /// How its signature was found good.
    pub signature: String,
    /// When ingest received it, in milliseconds since 1970.
    pub received_at_ms: i64,
    /// When it happened, in milliseconds since 1970.
    pub at_ms: i64,
    /// The conversation it belongs to, if it names one.
    pub chat_id: Option<String>,
    /// The id of the trace of its way here, if that is recorded.
    pub trace_id: Option<String>,
}

impl Event {
    /// Decodes a body.
    pub fn decode(body: &[u8], envelope: Envelope<'_>) -> Result<Self, Unusable> {
        let members = json::parse(body)?;
        let text = |name: &str| members.get(name).and_then(Json::text);
        let event_type = text("event_type").map(str::to_owned);
        let kind = kind(event_type.as_deref(), envelope.stream, &members);
        Ok(Self {
            key: event::event_key(envelope.tenant, text("event_id"), body, envelope.signature),
            digest: event::body_digest(body, envelope.signature),
            kind,
            stream: envelope.stream,
            signature: envelope.signature.to_owned(),
            received_at_ms: envelope.received_at_ms,
            at_ms: moment::event_time(told_time(kind, &members), envelope.received_at_ms),
            chat_id: chat_id(&members),
            trace_id: None,
            event_type,
            members: Arc::new(members),
            body: str::from_utf8(body).map_err(|_| Unusable::Invalid)?.to_owned(),
        })
    }

    /// Whether it was made from respond.io's API. A webhook about the same always wins.
    #[must_use]
    pub fn is_backfilled(&self) -> bool {
        self.signature == BACKFILLED
    }

    /// Whether to drop its parsed body while the event waits, see [`Event::shed_members`].
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.body.len() > LARGE_BODY
    }

    /// Drops the parsed body, which may take fifty times the memory of the body itself.
    pub fn shed_members(&mut self) {
        self.members = Arc::default();
    }

    /// Parses the body again, if the parsed one was dropped.
    pub fn recall_members(&mut self) {
        if self.members.is_empty() {
            // It was parsed before, so this doesn't fail.
            self.members = Arc::new(json::parse(self.body.as_bytes()).unwrap_or_default());
        }
    }

    /// A member of the body, if it is [`given`].
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Json> {
        self.members.get(name).and_then(given)
    }

    /// The contact, if there is one.
    #[must_use]
    pub fn contact(&self) -> Option<&Json> {
        self.member("contact").filter(|json| json.object().is_some())
    }

    /// The contact's id, as text.
    #[must_use]
    pub fn contact_id(&self) -> Option<String> {
        self.contact()?.get("id")?.id()
    }

    /// The content of its message, if it has a message with content.
    #[must_use]
    pub fn content(&self) -> Option<&Json> {
        content(self.members.get("message")?)
    }

    /// What the event would be about if it had been posted to this stream.
    #[must_use]
    pub fn kind_on(&self, stream: Stream) -> Kind {
        kind(self.event_type.as_deref(), stream, &self.members)
    }

    /// The label of the event type in metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        event::type_label(self.event_type.as_deref())
    }
}

fn chat_id(members: &Object) -> Option<String> {
    let id = |of: &str, name: &str| members.get(of)?.get(name)?.id();
    partition::chat_id(id("contact", "phone"), id("contact", "id"), id("message", "contactId"))
}

/// The value, unless it is null or an object of nulls, by which some senders mean "nobody".
#[must_use]
pub fn given(json: &Json) -> Option<&Json> {
    let is_null = |json: &Json| matches!(json, Json::Null);
    let nobody = json.object().map_or(is_null(json), |members| members.values().all(is_null));
    (!nobody).then_some(json)
}

/// The kind of an event, by its type and path, unless its message says otherwise.
fn kind(event_type: Option<&str>, stream: Stream, members: &Object) -> Kind {
    let message = members.get("message");
    let has_status = message.and_then(|message| message.get("status")).is_some_and(is_status);
    match kind_by_type(event_type, stream, members) {
        Kind::Message(direction) if has_status && message.and_then(content).is_none() => {
            Kind::Status(Some(direction))
        }
        Kind::Other if has_status && message.and_then(|message| message.get("messageId")?.id()).is_some() => {
            Kind::Status(None)
        }
        kind => kind,
    }
}

/// Anything but an empty list and the like.
fn is_status(json: &Json) -> bool {
    given(json).is_some() && json.list().is_none_or(|list| !list.is_empty()) && json.text() != Some("")
}

/// The content of a message: its inner `message`, or itself, if it is flat.
fn content(message: &Json) -> Option<&Json> {
    let inner = message.get("message").filter(|inner| inner.object().is_some()).and_then(given);
    inner.or_else(|| is_flat(message).then_some(message))
}

/// Whether the outer object of a message is its content, as some senders write it.
fn is_flat(message: &Json) -> bool {
    let is_nested = message.get("message").and_then(given).is_some_and(|inner| inner.object().is_some());
    !is_nested && message.get("type").is_some_and(|kind| kind.text().is_some())
}

/// A known event type decides, on any path; otherwise the stream decides.
#[expect(clippy::match_same_arms, reason = "the order of the arms is the rule")]
fn kind_by_type(event_type: Option<&str>, stream: Stream, members: &Object) -> Kind {
    let is_object = |name: &str| members.get(name).is_some_and(|json| json.object().is_some());
    let message = |direction| if is_object("message") { Kind::Message(direction) } else { Kind::Other };
    match (event_type, stream) {
        (Some("comment.created"), _) => Kind::Note,
        (Some("conversation.opened"), _) => Kind::Opened,
        (Some("conversation.closed"), _) => Kind::Closed,
        (
            Some("contact.created" | "contact.updated" | "contact.assignee.updated" | "contact.tag.updated"),
            _,
        ) => Kind::Contact,
        (Some("contact.lifecycle.updated"), _) => Kind::Lifecycle,
        (Some("call.ended"), _) => Kind::Call,
        (Some("message.received"), _) => message(Direction::Incoming),
        (Some("message.sent"), _) => message(Direction::Outgoing),
        (_, Stream::Incoming) => message(Direction::Incoming),
        (_, Stream::Outgoing) => message(Direction::Outgoing),
        (_, Stream::Lifecycle) if members.contains_key("lifecycle") => Kind::Lifecycle,
        (_, Stream::InternalNote) if members.get("text").is_some_and(|json| json.text().is_some()) => {
            Kind::Note
        }
        _ => Kind::Other,
    }
}

/// Where an event of this kind tells its time.
fn told_time(kind: Kind, members: &Object) -> Option<&Json> {
    match kind {
        Kind::Message(_) | Kind::Status(_) => {
            let message = members.get("message")?;
            let beside = || members.get("timestamp").filter(|_| is_flat(message));
            message.get("timestamp").and_then(given).or_else(beside)
        }
        Kind::Opened => members.get("conversation")?.get("conversationOpenedAt"),
        Kind::Closed => members.get("conversation")?.get("closedTime"),
        Kind::Call => members.get("call")?.get("end_time"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(stream: Stream, body: &str) -> Event {
        let envelope =
            Envelope { tenant: "t", stream, received_at_ms: 2_000_000_000_000, signature: "unsigned" };
        Event::decode(body.as_bytes(), envelope).unwrap()
    }

    #[test]
    fn a_known_type_beats_the_path_and_the_path_beats_an_unknown_one() {
        let kind = |stream, body| event(stream, body).kind;
        assert_eq!(kind(Stream::Lifecycle, r#"{"event_type":"comment.created"}"#), Kind::Note);
        let sent = r#"{"event_type":"message.sent","message":{}}"#;
        assert_eq!(kind(Stream::Incoming, sent), Kind::Message(Direction::Outgoing));
        let unknown = r#"{"event_type":"message.edited","message":{},"lifecycle":null,"text":"x"}"#;
        assert_eq!(kind(Stream::Incoming, unknown), Kind::Message(Direction::Incoming));
        assert_eq!(kind(Stream::Outgoing, unknown), Kind::Message(Direction::Outgoing));
        assert_eq!(kind(Stream::Lifecycle, unknown), Kind::Lifecycle);
        assert_eq!(kind(Stream::InternalNote, unknown), Kind::Note);
        assert_eq!(kind(Stream::Any, unknown), Kind::Other);
    }

    #[test]
    fn a_status_without_content_is_known_on_every_path_whatever_the_type() {
        let status = r#""message":{"messageId":7,"status":[{"value":"read"}]}"#;
        for (event_type, stream, kind) in [
            ("message.sent", Stream::Any, Kind::Status(Some(Direction::Outgoing))),
            ("message.delivered", Stream::Incoming, Kind::Status(Some(Direction::Incoming))),
            ("message.delivered", Stream::Any, Kind::Status(None)),
            ("", Stream::Lifecycle, Kind::Status(None)),
            ("contact.updated", Stream::Any, Kind::Contact),
        ] {
            let body = format!(r#"{{"event_type":"{event_type}",{status}}}"#);
            assert_eq!(event(stream, &body).kind, kind, "{event_type} {stream:?}");
        }
        for (message, kind) in [
            (r#"{"messageId":7,"status":[]}"#, Kind::Other),
            (r#"{"messageId":null,"status":[{"value":"read"}]}"#, Kind::Other),
            (r#"{"messageId":7,"message":{"type":"text"},"status":"read"}"#, Kind::Status(None)),
        ] {
            let body = format!(r#"{{"event_type":"message.edited","message":{message}}}"#);
            assert_eq!(event(Stream::Any, &body).kind, kind, "{message}");
        }
    }

    #[test]
    fn content_is_the_inner_message_or_else_the_outer_one() {
        let sent = |message: &str| {
            event(Stream::Any, &format!(r#"{{"event_type":"message.sent","message":{message}}}"#))
        };
        for (message, kind) in [
            (r#"{"type":"image","message":{"type":"text"},"status":"sent"}"#, Some("text")),
            (r#"{"type":"image","message":null,"status":"sent"}"#, Some("image")),
            (r#"{"type":"image","message":{"type":null}}"#, Some("image")),
            (r#"{"type":7,"message":{}}"#, None),
            (r#"{"messageId":7}"#, None),
        ] {
            let event = sent(message);
            assert_eq!(event.kind, Kind::Message(Direction::Outgoing), "{message}");
            assert_eq!(event.content().and_then(|content| content.get("type")?.text()), kind, "{message}");
        }
    }

    #[test]
    fn without_what_makes_it_one_an_event_is_for_the_ledger_alone() {
        for (stream, body) in [
            (Stream::Any, r#"{"event_type":"message.received","message":"hi"}"#),
            (Stream::Incoming, r#"{"message":"Test event","test":true}"#),
            (Stream::Lifecycle, r#"{"message":{}}"#),
            (Stream::InternalNote, r#"{"message":{}}"#),
        ] {
            assert_eq!(event(stream, body).kind, Kind::Other, "{body}");
        }
    }

    #[test]
    fn each_kind_tells_its_time_in_its_own_place() {
        let at = |body| event(Stream::Any, body).at_ms;
        assert_eq!(at(r#"{"event_type":"message.sent","message":{"timestamp":1000}}"#), 1_000_000);
        let flat = r#"{"event_type":"message.sent","timestamp":6,"message":{"type":"text"}}"#;
        assert_eq!(at(flat), 6000);
        assert_eq!(at(r#"{"event_type":"message.sent","timestamp":6,"message":{}}"#), 2_000_000_000_000);
        let opened = r#"{"event_type":"conversation.opened","conversation":{"conversationOpenedAt":2}}"#;
        assert_eq!(at(opened), 2000);
        assert_eq!(at(r#"{"event_type":"conversation.closed","conversation":{"closedTime":3}}"#), 3000);
        assert_eq!(at(r#"{"event_type":"call.ended","call":{"end_time":4}}"#), 4000);
        assert_eq!(at(r#"{"event_type":"contact.updated","timestamp":5}"#), 2_000_000_000_000);
    }
}
