//! `messages`: one document per messageId, from the latest delivery of it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use mongodb::bson::{Bson, DateTime, Document, doc};
use shared::json::Json;

use super::{Documents, Stamp, conversation};
use crate::convert;
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
    let fresh = document(event, direction);
    let counted = Counted::of(&fresh);
    let before = documents.messages.get(&id).map(|stored| {
        // What the Flask bridge stored it has counted, by its own lights.
        if Stamp::is_on(stored, PART) { Counted::of(stored) } else { counted.clone() }
    });

    let message = documents.messages.get_or_insert(&id, || doc! {"created_at": now});
    let status =
        union_of_status(message.get("status"), event.member("message").and_then(|m| m.get("status")));
    message.insert("status", status);
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
pub fn forget(message: &mut Document) {
    message.insert("status", Bson::Array(Vec::new()));
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
    pub fn of(message: &Document) -> Self {
        Self {
            chat_id: message.get_str("chat_id").ok().map(str::to_owned),
            media: message.get_document("raw_message").ok().and_then(media_kind),
        }
    }
}

fn media_kind(raw: &Document) -> Option<String> {
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

fn document(event: &Event, direction: Direction) -> Document {
    let message = event.member("message");
    let inner = message.and_then(|message| message.get("message")).filter(|inner| inner.object().is_some());
    let channel = event.member("channel");
    let mut document = doc! {
        "chat_id": event.chat_id.clone(),
        "ts": DateTime::from_millis(event.at_ms),
        "sender": sender(event, direction),
        "sender_info": sender_info(event, direction),
        "type": convert::member(inner, "type"),
        "message_type": direction.name(),
        "channel_message_id": convert::id(message, "channelMessageId"),
        "contact_id": event.contact_id().map_or_else(|| convert::id(message, "contactId"), Bson::String),
        "channel_id": first_id(&[(channel, "id"), (message, "channelId")]),
        "channel_name": convert::member(channel, "name"),
        "channel_source": convert::member(channel, "source"),
        "event_type": event.event_type.clone(),
        "event_id": event.members.get("event_id").map(convert::value),
        "source": source(event).map(convert::value),
        "raw_message": inner.map(convert::value),
    };
    document.extend(content(message, inner));
    document
}

fn first_id(places: &[(Option<&Json>, &str)]) -> Bson {
    places.iter().map(|(of, name)| convert::id(*of, name)).find(|id| *id != Bson::Null).unwrap_or(Bson::Null)
}

/// The fields that depend on the type of message.
fn content(message: Option<&Json>, inner: Option<&Json>) -> Document {
    let mut fields = Document::new();
    let mut take = |name: &str, value: Option<&Json>| {
        if let Some(value) = value.and_then(decode::given) {
            fields.insert(name, convert::value(value));
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
                .filter_map(|name| Some((name.to_owned(), of_inner(name)?.clone())))
                .collect();
            take("location", Some(&Json::Object(Box::new(place))));
        }
        _ => {}
    }
    fields
}

fn sender(event: &Event, direction: Direction) -> Bson {
    match direction {
        Direction::Incoming => event.chat_id.clone().into(),
        Direction::Outgoing => {
            let email = event.member("user").and_then(|user| user.get("email")?.text());
            let name = email.filter(|email| !email.is_empty()).or_else(|| source(event)?.text());
            name.unwrap_or("system").into()
        }
    }
}

fn sender_info(event: &Event, direction: Direction) -> Bson {
    let user = event.member("user").filter(|_| direction == Direction::Outgoing);
    user.or_else(|| event.member("sender")).map_or(Bson::Null, convert::value)
}

fn source(event: &Event) -> Option<&Json> {
    let given = |json: &&Json| json.text().is_some_and(|text| !text.is_empty());
    let sender = || event.member("sender").and_then(|sender| sender.get("source"));
    event.member("source").filter(given).or_else(|| sender().filter(given))
}

/// All statuses that deliveries told, each (value, timestamp) once, in the order of their timestamps.
fn union_of_status(stored: Option<&Bson>, told: Option<&Json>) -> Bson {
    let all =
        [stored.cloned(), told.map(convert::value)].into_iter().flatten().flat_map(|value| match value {
            Bson::Array(list) => list,
            Bson::Null => Vec::new(),
            single => vec![single],
        });
    let mut union: BTreeMap<(Option<i64>, String, String), Bson> = BTreeMap::new();
    for status in all {
        let at = status.as_document().and_then(|status| status.get("timestamp"));
        let value = status.as_document().and_then(|status| status.get("value")).unwrap_or(&status);
        let key = (at.and_then(read_moment), value.to_string(), at.map(unread).unwrap_or_default());
        let entry = union.entry(key).or_insert_with(|| status.clone());
        if said_more(&status, entry) == Ordering::Greater {
            *entry = status;
        }
    }
    Bson::Array(union.into_values().collect())
}

fn read_moment(at: &Bson) -> Option<i64> {
    match at {
        Bson::Int32(number) => moment::read(&Json::Number(number.to_string())),
        Bson::Int64(number) => moment::read(&Json::Number(number.to_string())),
        Bson::Double(number) => moment::read(&Json::Number(number.to_string())),
        Bson::String(text) => moment::read(&Json::Text(text.clone())),
        _ => None,
    }
}

/// Tells timestamps apart that can't be read.
fn unread(at: &Bson) -> String {
    if read_moment(at).is_some() { String::new() } else { at.to_string() }
}

/// Between two tellings of the same status any fixed choice will do; the one that says more is useful.
fn said_more(a: &Bson, b: &Bson) -> Ordering {
    let (a, b) = (a.to_string(), b.to_string());
    a.len().cmp(&b.len()).then(a.cmp(&b))
}
