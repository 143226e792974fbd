//! A set-aside message: its metadata, the filter for it, and the message that replaces it in a replay. Pure.

use std::slice;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde::Serialize;
use shared::event;
use shared::json::{Scan, Unusable};
use shared::table::Column;
use shared::topology::{
    self, BODY_BYTES_HEADER, BODY_SHA256_HEADER, DELIVERY_LIMIT_REASON, REASON_HEADER, SENT_SIGNATURE_HEADER,
};
use shared::verify::Keys;

use crate::commands::backfill::parse_moment;
use crate::commands::{parse_duration, rfc3339};
use crate::consume::delivery::envelope;
use crate::decode::Event;
use crate::person::{self, Name};
use crate::project::Wanted;

/// Headers that were added when a message was set aside, by a worker or by ingest.
const ADDED: [&str; 6] =
    ["error", "failed_at_ms", "attempts", BODY_BYTES_HEADER, BODY_SHA256_HEADER, SENT_SIGNATURE_HEADER];

/// RabbitMQ's word for why it has dead-lettered a message, such as `rejected`.
const FIRST_DEATH_HEADER: &str = "x-first-death-reason";

/// What is known of a message.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SetAside {
    /// The tenant.
    pub tenant: String,
    /// The event key.
    pub key: Option<String>,
    /// The event type.
    pub event_type: Option<String>,
    /// Why it was set aside.
    pub reason: String,
    /// What went wrong, in words.
    pub error: Option<String>,
    /// When it was set aside.
    pub set_aside_at: Option<String>,
    /// When ingest received it.
    pub received_at: Option<String>,
    /// How often it was delivered to workers.
    pub attempts: Option<i64>,
    /// Bytes of its body that were kept.
    pub bytes: usize,
    /// Bytes that were sent, where that may be more.
    pub body_bytes: Option<i64>,
    /// When it was set aside, in milliseconds since 1970.
    #[serde(skip)]
    pub set_aside_at_ms: Option<i64>,
}

impl SetAside {
    /// Reads a message's properties.
    #[must_use]
    pub fn of(tenant: &str, properties: &BasicProperties, body: &[u8]) -> Self {
        let headers = properties.headers().clone().unwrap_or_default();
        let number = |name: &str| number(headers.inner().get(name)?);
        let text = |name: &str| text(headers.inner().get(name)?);
        let death = first_death(&headers);
        let sent_at = || i64::try_from((*properties.timestamp())?).ok()?.checked_mul(1000);
        let received_at_ms = number("received_at_ms").or_else(sent_at);
        let set_aside_at_ms =
            number("failed_at_ms").or(death.as_ref().and_then(|death| death.at_ms)).or(received_at_ms);
        // RabbitMQ's word for it, where it has set the message aside itself.
        let told = text(REASON_HEADER).filter(|reason| reason != DELIVERY_LIMIT_REASON);
        let told = told.or_else(|| text(FIRST_DEATH_HEADER));
        let reason = told.or_else(|| Some(death?.reason)).or_else(|| text(REASON_HEADER));
        Self {
            tenant: tenant.to_owned(),
            key: properties.message_id().as_ref().map(ToString::to_string),
            event_type: properties.kind().as_ref().map(ToString::to_string),
            reason: reason.unwrap_or_else(|| "unknown".to_owned()),
            error: text("error"),
            set_aside_at: set_aside_at_ms.map(rfc3339),
            received_at: received_at_ms.map(rfc3339),
            attempts: number("attempts"),
            bytes: body.len(),
            body_bytes: number(BODY_BYTES_HEADER),
            set_aside_at_ms,
        }
    }

    /// What a list shows of it, in [`COLUMNS`].
    #[must_use]
    pub fn cells(&self) -> [String; 7] {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        [
            or_dash(&self.set_aside_at),
            self.tenant.clone(),
            self.reason.clone(),
            or_dash(&self.event_type),
            or_dash(&self.key),
            self.bytes.to_string(),
            self.error.clone().unwrap_or_default(),
        ]
    }
}

/// The columns of a list.
pub const COLUMNS: [Column; 7] = [
    Column::text("SET ASIDE AT", 24),
    Column::text("TENANT", 10),
    Column::text("REASON", 18),
    Column::text("EVENT TYPE", 25),
    Column::text("EVENT KEY", 36),
    Column::number("BYTES", 7),
    Column::text("ERROR", 0),
];

/// A message's headers as text, for people and JSON.
#[must_use]
pub fn headers(properties: &BasicProperties) -> serde_json::Map<String, serde_json::Value> {
    let table = properties.headers().clone().unwrap_or_default();
    let plain = |value: &AMQPValue| match value {
        AMQPValue::Boolean(flag) => Some((*flag).into()),
        value => number(value).map(Into::into).or_else(|| text(value).map(Into::into)),
    };
    table.inner().iter().filter_map(|(name, value)| Some((name.to_string(), plain(value)?))).collect()
}

struct Death {
    reason: String,
    at_ms: Option<i64>,
}

/// RabbitMQ's header about a message that it has dead-lettered.
fn first_death(headers: &FieldTable) -> Option<Death> {
    let AMQPValue::FieldArray(deaths) = headers.inner().get("x-death")? else { return None };
    let AMQPValue::FieldTable(death) = deaths.as_slice().first()? else { return None };
    let at_ms = match death.inner().get("time") {
        Some(AMQPValue::Timestamp(seconds)) => {
            i64::try_from(*seconds).ok().and_then(|at| at.checked_mul(1000))
        }
        _ => None,
    };
    Some(Death { reason: text(death.inner().get("reason")?)?, at_ms })
}

fn text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

fn number(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::LongLongInt(number) => Some(*number),
        AMQPValue::LongInt(number) => Some((*number).into()),
        AMQPValue::LongUInt(number) => Some((*number).into()),
        AMQPValue::ShortInt(number) => Some((*number).into()),
        _ => None,
    }
}

/// Which messages are meant: those that fit all that is given.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Filter {
    /// Only this event key; several may be given
    #[arg(long, value_name = "KEY")]
    pub key: Vec<String>,
    /// Only this reason, such as `refused_by_mongodb` or `invalid_signature`; several may be given
    #[arg(long, value_name = "REASON", value_delimiter = ',')]
    pub reason: Vec<String>,
    /// Only this event type, such as message.received or unknown; several may be given
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    pub event_type: Vec<String>,
    /// Only events of this message, as far as their bodies tell
    #[arg(long, value_name = "ID")]
    pub message: Option<String>,
    /// Only events of this contact, by its id or phone, as far as their bodies tell
    #[arg(long, value_name = "ID|PHONE", allow_hyphen_values = true)]
    pub contact: Option<String>,
    /// Only what was set aside from this moment on, such as 2026-11-20T08:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub since: Option<i64>,
    /// Only what was set aside before this moment
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub until: Option<i64>,
    /// Only what was set aside longer ago than this, such as 90s, 30m, 12h or 30d
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    pub older_than: Option<Duration>,
    /// Only what was set aside more recently than this
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    pub newer_than: Option<Duration>,
    /// At most this many per tenant, the oldest first
    #[arg(long, value_name = "NUMBER")]
    pub limit: Option<u64>,
}

impl Filter {
    /// Whether a message is meant; its body and the limit apart.
    #[must_use]
    pub fn takes(&self, letter: &SetAside, now_ms: i64) -> bool {
        let fits = |wanted: &[String], is: Option<&String>| {
            wanted.is_empty() || is.is_some_and(|is| wanted.contains(is))
        };
        let age = letter
            .set_aside_at_ms
            .map(|at| Duration::from_millis(u64::try_from(now_ms.saturating_sub(at)).unwrap_or(0)));
        fits(&self.key, letter.key.as_ref())
            && fits(&self.reason, Some(&letter.reason))
            && fits(&self.event_type, letter.event_type.as_ref())
            && self.since.is_none_or(|since| letter.set_aside_at_ms.is_some_and(|at| at >= since))
            && self.until.is_none_or(|until| letter.set_aside_at_ms.is_some_and(|at| at < until))
            && self.older_than.is_none_or(|limit| age.is_some_and(|age| age >= limit))
            && self.newer_than.is_none_or(|limit| age.is_some_and(|age| age < limit))
    }

    /// Whether a message's body is about the message and the contact that are meant.
    #[must_use]
    pub fn is_about(&self, tenant: &str, properties: &BasicProperties, body: &[u8]) -> bool {
        if self.message.is_none() && self.contact.is_none() {
            return true;
        }
        let Ok(event) = Event::decode(body, envelope(tenant, properties)) else { return false };
        let names = person::names(&event);
        let is_of = |meant: &String| {
            let phone = Name::phone(meant);
            names.contains(&Name::Contact(meant.clone())) || phone.is_some_and(|phone| names.contains(&phone))
        };
        self.message.as_ref().is_none_or(|id| Wanted::by(slice::from_ref(&event)).messages.contains(id))
            && self.contact.as_ref().is_none_or(is_of)
    }
}

/// Why a message can't be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It was too large to be kept whole.
    #[error("only the beginning of its body was kept")]
    Cut,
    /// It would become a dead letter again.
    #[error("its body is no event ({0})")]
    NoEvent(Unusable),
    /// It is not well signed.
    #[error("no signing key of the tenant makes its signature")]
    Untrusted,
    /// A name is too long for AMQP.
    #[error("its event type is too long")]
    Name,
}

/// What a message is published as, when it is replayed.
#[derive(Debug, PartialEq)]
pub struct Replay {
    /// The event type for routing.
    pub event_type: String,
    /// As they were when it was received. The event key is the same, so that the event still counts once.
    pub properties: BasicProperties,
}

/// What a dead letter is replayed as.
pub fn of_dead_letter(properties: &BasicProperties) -> Result<Replay, Unfit> {
    let event_type = properties.kind().as_ref().map(ToString::to_string);
    replay(event::routable_type(event_type.as_deref()), properties.clone())
}

/// What a quarantined webhook is replayed as, if its body is an event after all; and if these keys find it
/// well signed.
pub fn of_quarantined(
    tenant: &str,
    properties: &BasicProperties,
    body: &[u8],
    keys: Option<&Keys>,
) -> Result<Replay, Unfit> {
    let sent = SetAside::of(tenant, properties, body).body_bytes;
    if sent.is_some_and(|sent| usize::try_from(sent) != Ok(body.len())) {
        return Err(Unfit::Cut);
    }
    let scan = Scan::of(body).map_err(Unfit::NoEvent)?;
    let mut headers = properties.headers().clone().unwrap_or_default();
    if let Some(keys) = keys {
        let signature = headers.inner().get(SENT_SIGNATURE_HEADER).and_then(text);
        let good = keys.verify(signature.as_deref().map(str::as_bytes), body);
        let form = good.map_err(|_| Unfit::Untrusted)?.form;
        headers.insert("signature".into(), AMQPValue::LongString(form.name().into()));
    }
    let signature = headers.inner().get("signature").and_then(text).unwrap_or_default();
    let key = event::event_key(tenant, scan.event_id().as_deref(), body, &signature);
    let sent_type = scan.event_type();
    let event_type = event::routable_type(sent_type.as_deref());
    let short = |name: &str| topology::short(name).map_err(|_| Unfit::Name);
    let properties = properties.clone().with_headers(headers);
    let properties = properties.with_message_id(short(&key)?).with_type(short(event_type)?);
    replay(event_type, properties)
}

fn replay(event_type: &str, properties: BasicProperties) -> Result<Replay, Unfit> {
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().clone().unwrap_or_default().inner() {
        // Headers with x- are RabbitMQ's, about earlier deaths and deliveries.
        if !name.as_str().starts_with("x-") && !ADDED.contains(&name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    let reason = topology::short(REASON_HEADER).map_err(|_| Unfit::Name)?;
    headers.insert(reason, AMQPValue::LongString(DELIVERY_LIMIT_REASON.into()));
    let properties =
        properties.with_headers(headers).with_delivery_mode(shared::publisher::DELIVERY_MODE_PERSISTENT);
    Ok(Replay { event_type: event_type.to_owned(), properties })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(headers: &[(&str, AMQPValue)]) -> BasicProperties {
        let (key, kind) = ("evt-1".into(), "message.sent".into());
        BasicProperties::default()
            .with_message_id(key)
            .with_type(kind)
            .with_headers(topology::table(headers).unwrap())
    }

    fn long(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    #[test]
    fn rabbitmqs_own_dead_letters_have_its_reason_and_time() {
        let death = topology::table(&[("reason", long("delivery_limit")), ("time", AMQPValue::Timestamp(2))])
            .unwrap();
        let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into());
        let letter = SetAside::of(
            "t",
            &properties(&[("x-death", deaths.clone()), ("received_at_ms", 1000_i64.into())]),
            b"{}",
        );
        assert_eq!((letter.reason.as_str(), letter.set_aside_at_ms), ("delivery_limit", Some(2000)));
        let expired = topology::table(&[("reason", long("expired"))]).unwrap();
        let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(expired)].into());
        let both = [("x-death", deaths), (REASON_HEADER, long(DELIVERY_LIMIT_REASON))];
        assert_eq!(SetAside::of("t", &properties(&both), b"{}").reason, "expired");
        let rejected = [(FIRST_DEATH_HEADER, long("rejected")), (REASON_HEADER, long(DELIVERY_LIMIT_REASON))];
        assert_eq!(SetAside::of("t", &properties(&rejected), b"{}").reason, "rejected");
        let ours = [(REASON_HEADER, long("refused_by_mongodb")), ("failed_at_ms", 3000_i64.into())];
        let letter = SetAside::of("t", &properties(&ours), b"{}");
        assert_eq!((letter.reason.as_str(), letter.set_aside_at_ms), ("refused_by_mongodb", Some(3000)));
        assert_eq!(SetAside::of("t", &BasicProperties::default(), b"").reason, "unknown");
    }

    #[test]
    fn a_filter_wants_all_that_is_given() {
        let letter = SetAside {
            key: Some("k".into()),
            event_type: Some("call.ended".into()),
            reason: "r".into(),
            set_aside_at_ms: Some(10_000),
            ..SetAside::default()
        };
        let takes = |filter: Filter| filter.takes(&letter, 70_000);
        let (words, minute) = (|word: &str| vec!["x".to_owned(), word.to_owned()], Duration::from_mins(1));
        assert!(takes(Filter::default()));
        assert!(takes(Filter {
            reason: words("r"),
            event_type: words("call.ended"),
            key: words("k"),
            ..Filter::default()
        }));
        assert!(!takes(Filter { reason: words("r"), event_type: words("call.begun"), ..Filter::default() }));
        assert!(takes(Filter { older_than: Some(minute), ..Filter::default() }));
        assert!(!takes(Filter { newer_than: Some(minute), ..Filter::default() }));
        assert!(takes(Filter { since: Some(10_000), until: Some(10_001), ..Filter::default() }));
        assert!(!takes(Filter { since: Some(10_001), ..Filter::default() }));
        assert!(!takes(Filter { until: Some(10_000), ..Filter::default() }));
        assert!(
            !Filter { newer_than: Some(minute), ..Filter::default() }.takes(&SetAside::default(), 0),
            "no time at all"
        );
    }

    #[test]
    fn a_filter_looks_into_bodies_if_it_has_to() {
        let body = br#"{"event_type":"message.sent","contact":{"id":7,"phone":"+1 555"},"message":{"messageId":9,"message":{"type":"text"}}}"#;
        let takes = |filter: &Filter, body: &[u8]| filter.is_about("t", &BasicProperties::default(), body);
        let message = |id: &str| Filter { message: Some(id.into()), ..Filter::default() };
        let contact = |id: &str| Filter { contact: Some(id.into()), ..Filter::default() };
        assert!(takes(&message("9"), body) && takes(&contact("7"), body) && takes(&contact("1555"), body));
        assert!(!takes(&message("7"), body) && !takes(&contact("9"), body));
        assert!(!takes(&Filter { contact: Some("8".into()), ..message("9") }, body));
        assert!(takes(&Filter::default(), b"no event") && !takes(&contact("7"), b"no event"));
    }

    #[test]
    fn a_replayed_dead_letter_is_what_it_was_when_it_was_received() {
        let before = [("stream", long("incoming")), (REASON_HEADER, long(DELIVERY_LIMIT_REASON))];
        let added = [
            (REASON_HEADER, long("worker_defect")),
            ("error", long("e")),
            ("attempts", 1_i64.into()),
            ("x-delivery-count", 3_i64.into()),
        ];
        let dead = properties(&[&before[..], &added[..]].concat());
        let replay = of_dead_letter(&dead).unwrap();
        assert_eq!(replay.event_type, "message.sent");
        assert_eq!(replay.properties, properties(&before).with_delivery_mode(2));
        let strange = of_dead_letter(&BasicProperties::default().with_type("a b".into()));
        assert_eq!(strange.unwrap().event_type, "unknown");
    }

    #[test]
    fn a_quarantined_webhook_is_replayed_only_if_it_is_a_whole_event() {
        let sent = |bytes: i64| {
            properties(&[("body_bytes", bytes.into()), (REASON_HEADER, long("invalid_signature"))])
        };
        let body = br#"{"event_id":"e","event_type":"call.ended"}"#;
        let replay = of_quarantined("vip", &sent(42), body, None).unwrap();
        assert_eq!(replay.event_type, "call.ended");
        assert_eq!(replay.properties.message_id().as_ref().unwrap().as_str(), "e");
        assert_eq!(of_quarantined("vip", &sent(43), body, None), Err(Unfit::Cut));
        assert_eq!(of_quarantined("vip", &sent(2), b"[]", None), Err(Unfit::NoEvent(Unusable::NotAnObject)));
    }
}
