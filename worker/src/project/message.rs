//! `messages`: one document per messageId, from the latest delivery of it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use mongodb::bson::{Bson, DateTime, RawArrayBuf, RawBson, RawBsonRef, RawDocument};
use shared::json::Json;

use super::record::Record;
use super::{Documents, Stamp, conversation};
use crate::convert::{self, or_null};
use crate::decode::{self, Direction, Event};
use crate::moment;

/// Fields that only some messages have. A later delivery without one takes it away.
const OPTIONAL: [&str; 8] = [
    "message_tag",
    "attachment",
    "image_url",
    "video_url",
    "document_url",
    "filename",
    "audio_url",
    "location",
];

/// The part of a message's document that a delivery claims.
const PART: &str = "message";

/// The `_id` of a message.
#[must_use]
pub fn id(event: &Event) -> String {
    let sent = event.member("message").and_then(|message| message.get("messageId")?.id());
    sent.unwrap_or_else(|| event.key.clone())
}

/// Applies a delivery of a message.
pub fn apply(documents: &mut Documents, event: &Event, direction: Direction, now: DateTime) {
    let (id, stamp) = (id(event), Stamp::of(event));
    let fresh = record(event, direction);
    let counted = Counted::of(&fresh);
    let before = documents.messages.get(&id).map(|stored| {
        // What the Flask bridge stored it has counted, by its own lights.
        if Stamp::is_on(stored, PART) { Counted::of(stored) } else { counted.clone() }
    });

    let message = documents.messages.get_or_insert(&id, || Record::from([("created_at", now.into())]));
    let told = event.member("message").and_then(|message| message.get("status"));
    message.set("status", union_of_status(message.get("status"), told));
    let is_latest = stamp.claim_as_latest(message, PART);
    if is_latest {
        for name in OPTIONAL {
            message.remove(name);
        }
        message.extend(fresh);
    }
    if let Some(chat_id) = &event.chat_id {
        conversation::note_message(&mut documents.conversations, chat_id, event);
    }
    if before.is_none() || is_latest && before.as_ref() != Some(&counted) {
        if let Some(before) = before {
            conversation::count_message(&mut documents.conversations, &before, -1);
        }
        conversation::count_message(&mut documents.conversations, &counted, 1);
    }
}

/// Takes away what deliveries have added, if all of them are at hand.
pub fn forget(message: &mut Record) {
    message.set("status", RawArrayBuf::new());
}

/// What a message adds to its conversation's counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The conversation.
    pub chat_id: Option<String>,
    /// The kind of medium, if it is one.
    pub media: Option<String>,
}

impl Counted {
    /// What a stored message adds.
    #[must_use]
    pub fn of(message: &Record) -> Self {
        Self {
            chat_id: message.text("chat_id").map(str::to_owned),
            media: message.document("raw_message").and_then(media_kind),
        }
    }
}

fn media_kind(raw: &RawDocument) -> Option<String> {
    match raw.get_str("type").ok()? {
        "attachment" => {
            let kind =
                raw.get_document("attachment").ok().and_then(|attachment| attachment.get_str("type").ok());
            Some(kind.unwrap_or("file").to_owned())
        }
        kind @ ("image" | "video" | "document" | "audio" | "file" | "media") => Some(kind.to_owned()),
        _ => None,
    }
}

fn record(event: &Event, direction: Direction) -> Record {
    let message = event.member("message");
    let inner = message.and_then(|message| message.get("message")).filter(|inner| inner.object().is_some());
    let channel = event.member("channel");
    let mut record = Record::from([
        ("chat_id", or_null(event.chat_id.as_deref())),
        ("ts", convert::date(event.at_ms)),
        ("sender", sender(event, direction)),
        ("sender_info", sender_info(event, direction)),
        ("type", convert::member(inner, "type")),
        ("message_type", direction.name().into()),
        ("channel_message_id", convert::id(message, "channelMessageId")),
        ("contact_id", event.contact_id().map_or_else(|| convert::id(message, "contactId"), RawBson::String)),
        ("channel_id", first_id(&[(channel, "id"), (message, "channelId")])),
        ("channel_name", convert::member(channel, "name")),
        ("channel_source", convert::member(channel, "source")),
        ("event_type", or_null(event.event_type.as_deref())),
        ("event_id", or_null(event.members.get("event_id").map(convert::value))),
        ("source", or_null(source(event).map(convert::value))),
        ("raw_message", or_null(inner.map(convert::value))),
    ]);
    add_content(&mut record, message, inner);
    record
}

fn first_id(places: &[(Option<&Json>, &str)]) -> RawBson {
    let mut ids = places.iter().map(|(of, name)| convert::id(*of, name));
    ids.find(|id| *id != RawBson::Null).unwrap_or(RawBson::Null)
}

/// The fields that depend on the type of message.
fn add_content(record: &mut Record, message: Option<&Json>, inner: Option<&Json>) {
    let mut take = |name: &'static str, value: Option<&Json>| {
        if let Some(value) = value.and_then(decode::given) {
            record.set(name, convert::value(value));
        }
    };
    let of_inner = |name: &str| inner.and_then(|inner| decode::given(inner.get(name)?));
    take("message_tag", of_inner("messageTag").or_else(|| message?.get("messageTag")));
    match of_inner("type").and_then(Json::text) {
        Some("attachment") => take("attachment", of_inner("attachment")),
        Some("image") => take("image_url", of_inner("url")),
        Some("video") => take("video_url", of_inner("url")),
        Some("audio") => take("audio_url", of_inner("url")),
        Some("document" | "file") => {
            take("document_url", of_inner("url"));
            take("filename", of_inner("filename").or_else(|| of_inner("fileName")));
        }
        Some("location") => {
            let place: shared::json::Object = ["latitude", "longitude", "address"]
                .into_iter()
                .filter_map(|name| Some((name.into(), of_inner(name)?.clone())))
                .collect();
            take("location", Some(&Json::Object(Box::new(place))));
        }
        _ => {}
    }
}

fn sender(event: &Event, direction: Direction) -> RawBson {
    match direction {
        Direction::Incoming => or_null(event.chat_id.as_deref()),
        Direction::Outgoing => {
            let email = event.member("user").and_then(|user| user.get("email")?.text());
            let name = email.filter(|email| !email.is_empty()).or_else(|| source(event)?.text());
            name.unwrap_or("system").into()
        }
    }
}

fn sender_info(event: &Event, direction: Direction) -> RawBson {
    let user = event.member("user").filter(|_| direction == Direction::Outgoing);
    or_null(user.or_else(|| event.member("sender")).map(convert::value))
}

fn source(event: &Event) -> Option<&Json> {
    let given = |json: &&Json| json.text().is_some_and(|text| !text.is_empty());
    let sender = || event.member("sender").and_then(|sender| sender.get("source"));
    event.member("source").filter(given).or_else(|| sender().filter(given))
}

/// All statuses that deliveries told, each (value, timestamp) once, in the order of their timestamps.
fn union_of_status(stored: Option<RawBsonRef<'_>>, told: Option<&Json>) -> RawBson {
    let told = told.map(convert::value);
    let both = [stored, told.as_ref().map(RawBson::as_raw_bson_ref)].into_iter().flatten();
    let all = both.flat_map(|value| match value {
        RawBsonRef::Array(list) => list.into_iter().filter_map(Result::ok).collect(),
        RawBsonRef::Null => Vec::new(),
        single => vec![single],
    });
    let mut union: BTreeMap<(Option<i64>, String, String), RawBsonRef<'_>> = BTreeMap::new();
    for status in all {
        let of = |name| status.as_document().and_then(|status| status.get(name).ok().flatten());
        let at = of("timestamp").map(parsed);
        let value = parsed(of("value").unwrap_or(status)).to_string();
        let key = (at.as_ref().and_then(read_moment), value, at.as_ref().map(unread).unwrap_or_default());
        let entry = union.entry(key).or_insert(status);
        if said_more(status, *entry) == Ordering::Greater {
            *entry = status;
        }
    }
    RawBson::Array(union.into_values().collect())
}

fn parsed(value: RawBsonRef<'_>) -> Bson {
    value.try_into().unwrap_or(Bson::Null)
}

fn read_moment(at: &Bson) -> Option<i64> {
    match at {
        Bson::Int32(number) => moment::read(&Json::Number(number.to_string().into())),
        Bson::Int64(number) => moment::read(&Json::Number(number.to_string().into())),
        Bson::Double(number) => moment::read(&Json::Number(number.to_string().into())),
        Bson::String(text) => moment::read(&Json::Text(text.into())),
        _ => None,
    }
}

/// Tells timestamps apart that can't be read.
fn unread(at: &Bson) -> String {
    if read_moment(at).is_some() { String::new() } else { at.to_string() }
}

/// Between two tellings of the same status any fixed choice will do; the one that says more is useful.
fn said_more(a: RawBsonRef<'_>, b: RawBsonRef<'_>) -> Ordering {
    let (a, b) = (parsed(a).to_string(), parsed(b).to_string());
    a.len().cmp(&b.len()).then(a.cmp(&b))
}
