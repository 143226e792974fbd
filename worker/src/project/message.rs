//! `messages`: one document per messageId, from the latest delivery of it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use mongodb::bson::{Bson, DateTime, RawArrayBuf, RawBson, RawBsonRef, RawDocument, RawDocumentBuf};
use shared::json::Json;

use super::record::Record;
use super::{Documents, Stamp, bridge, conversation};
use crate::convert::{self, or_null};
use crate::decode::{self, Direction, Event, Kind};
use crate::moment;

/// Fields that only some messages have. A later delivery without one takes it away.
const OPTIONAL: [&str; 10] = [
    "attachment",
    "audio_url",
    "document_url",
    "extra",
    "filename",
    "image_url",
    "location",
    "message_tag",
    "sender_detail",
    "video_url",
];

/// Members of the outer object that have a place of their own. What else there is goes into `extra`.
const OWN_PLACE: [&str; 8] =
    ["messageId", "channelMessageId", "contactId", "channelId", "traffic", "timestamp", "message", "status"];

/// The parts of a message's document that its deliveries claim: with content, without, and with statuses alone. A part has
/// the say over those behind it, whatever their times.
const PARTS: [&str; 3] = ["message", "bare", "status_only"];
const CONTENT: usize = 0;
const BARE: usize = 1;
const STATUS_ONLY: usize = 2;

/// The `_id` of a message.
#[must_use]
pub fn id(event: &Event) -> String {
    named(event).unwrap_or_else(|| event.key.clone())
}

/// The event id by which a message without messageId is known, if it has one.
#[must_use]
pub fn event_id_of_unnamed(event: &Event) -> Option<String> {
    let event_id = event.members.get("event_id")?.text().filter(|event_id| *event_id == event.key)?;
    named(event).is_none().then(|| event_id.to_owned())
}

fn named(event: &Event) -> Option<String> {
    event.member("message").and_then(|message| message.get("messageId")?.id())
}

/// Applies a delivery of a message.
pub fn apply(documents: &mut Documents, event: &Event, now: DateTime) {
    let (id, part) = (id(event), part(event));
    let stored = documents.messages.get(&id);
    let (is_new, was_the_bridges) = (stored.is_none(), stored.is_some_and(bridge::wrote));
    let before = stored.and_then(Counted::of);
    let chat_id = event.chat_id.as_deref();
    let came_again =
        is_new && bridge::has_come_again(&documents.conversations, chat_id, bridge::MESSAGES, &id);
    let bridges_chat = stored.map_or(chat_id, bridge::counted_in).map(str::to_owned);

    let message = documents.messages.get_or_insert(&id, || Record::from([("created_at", now.into())]));
    let told = event.member("message").and_then(|message| message.get("status"));
    message.set("status", union_of_status(message.get("status"), told));
    // The bridge's messages have content.
    let may_claim = part == CONTENT || !was_the_bridges;
    if may_claim && claim(message, &Stamp::of(event), part) {
        if was_the_bridges || came_again {
            let bridges_chat = bridges_chat.as_deref();
            bridge::remember_chat(message, bridges_chat);
            bridge::came_again(&mut documents.conversations, bridges_chat, bridge::MESSAGES, &id);
        }
        for name in OPTIONAL {
            message.remove(name);
        }
        message.extend(record(event, part));
    }
    if is_new {
        message.sort();
    }
    let after = Counted::of(message);
    if let Some(chat_id) = chat_id.filter(|_| part != STATUS_ONLY) {
        conversation::saw_message(&mut documents.conversations, chat_id, event);
    }
    if before != after {
        for (counted, by) in [(before, -1), (after, 1)] {
            if let Some(counted) = counted {
                conversation::count_message(&mut documents.conversations, &counted, by);
            }
        }
    }
}

fn part(event: &Event) -> usize {
    match event.kind {
        Kind::Status(_) => STATUS_ONLY,
        _ if event.content().is_some() => CONTENT,
        _ => BARE,
    }
}

/// Claims a part of a message, unless another delivery has told more, or told it later.
fn claim(message: &mut Record, stamp: &Stamp<'_>, part: usize) -> bool {
    let (more, less) = PARTS.split_at(part);
    let is_told = more.iter().any(|more| Stamp::is_on(message, more));
    if is_told || !stamp.claim_as_latest(message, PARTS[part]) {
        return false;
    }
    Stamp::remove(message, &less[1..]);
    true
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
    /// What a stored message adds; nothing, if only statuses of it are known, or if the bridge has counted it.
    #[must_use]
    pub fn of(message: &Record) -> Option<Self> {
        let is_counted = PARTS[..STATUS_ONLY].iter().any(|part| Stamp::is_on(message, part));
        (is_counted && !bridge::wrote(message)).then(|| Self::by_looks_of(message))
    }

    /// What a message has added if the bridge wrote it, as far as that can be told.
    #[must_use]
    pub fn by_the_bridge(message: &Record) -> Option<Self> {
        let chat_id = bridge::counted_in(message)?.to_owned();
        Some(Self { chat_id: Some(chat_id), ..Self::by_looks_of(message) })
    }

    fn by_looks_of(message: &Record) -> Self {
        let media = match message.document("raw_message") {
            Some(raw) => media_kind(raw.get_str("type").ok(), raw.get_document("attachment").ok()),
            // The bridge's oldest messages have none.
            None => media_kind(message.text("type"), message.document("attachment")),
        };
        Self { chat_id: message.text("chat_id").map(str::to_owned), media }
    }
}

fn media_kind(kind: Option<&str>, attachment: Option<&RawDocument>) -> Option<String> {
    match kind? {
        "attachment" => {
            let kind = attachment.and_then(|attachment| attachment.get_str("type").ok());
            Some(kind.unwrap_or("file").to_owned())
        }
        kind @ ("image" | "video" | "document" | "audio" | "file" | "media") => Some(kind.to_owned()),
        _ => None,
    }
}

/// The fields of a message in the bridge's order.
fn record(event: &Event, part: usize) -> Record {
    let direction = match event.kind {
        Kind::Message(direction) => Some(direction),
        Kind::Status(direction) => direction,
        _ => None,
    };
    let (message, channel) = (event.member("message"), event.member("channel"));
    let empty = message.and_then(|message| message.get("message")).filter(|inner| inner.object().is_some());
    let content = event.content();
    let mut record = Record::from([
        ("channel_id", first_id(&[(channel, "id"), (message, "channelId")])),
        ("channel_message_id", convert::id(message, "channelMessageId")),
        ("channel_name", convert::member(channel, "name")),
        ("channel_source", convert::member(channel, "source")),
        ("chat_id", or_null(event.chat_id.as_deref())),
        ("contact_id", first_id(&[(event.contact(), "id"), (message, "contactId")])),
        ("event_id", or_null(event.members.get("event_id").map(convert::value))),
        ("event_type", or_null(event.event_type.as_deref())),
        ("message_type", or_null(direction.map(Direction::name))),
        ("raw_message", RawBson::Null),
        ("sender", RawBson::Null),
        ("sender_info", RawBson::Null),
        ("source", or_null(event.members.get("source").map(convert::value))),
        ("ts", RawBson::Null),
        ("type", RawBson::Null),
    ]);
    if part != STATUS_ONLY {
        let sender = sender(event, direction);
        let kind = content.and_then(|content| decode::given(content.get("type")?));
        record.set("raw_message", or_null(content.or(empty).map(convert::value)));
        record.set("sender_info", sender_info(event, direction, &sender));
        record.set("sender", sender);
        record.set("ts", convert::date(event.at_ms));
        record.set("type", kind.map_or("text".into(), convert::value));
    }
    if let Some(content) = content.filter(|_| part == CONTENT) {
        add_content(&mut record, content);
    }
    if let Some(sender) = event.members.get("sender").filter(|sender| sender.object().is_some()) {
        record.set("sender_detail", convert::value(sender));
    }
    if let Some(extra) = message.and_then(|message| extra(message, content)) {
        record.set("extra", extra);
    }
    record
}

fn first_id(places: &[(Option<&Json>, &str)]) -> RawBson {
    let mut ids = places.iter().map(|(of, name)| convert::id(*of, name));
    ids.find(|id| *id != RawBson::Null).unwrap_or(RawBson::Null)
}

/// The fields that depend on the type of message.
fn add_content(record: &mut Record, content: &Json) {
    let member = |name: &str| convert::member(Some(content), name);
    let given = |name: &str| content.get(name).and_then(decode::given);
    if let Some(tag) = given("messageTag") {
        record.set("message_tag", convert::value(tag));
    }
    match content.get("type").and_then(Json::text) {
        Some("attachment") => record.set("attachment", attachment(content.get("attachment"))),
        Some("image") => record.set("image_url", member("url")),
        Some("video") => record.set("video_url", member("url")),
        Some("audio") => record.set("audio_url", member("url")),
        Some("document" | "file") => {
            record.set("document_url", member("url"));
            let name = given("filename").or_else(|| given("fileName"));
            record.set("filename", or_null(name.map(convert::value)));
        }
        Some("location") => {
            let place = ["latitude", "longitude", "address"].map(|name| (name, member(name)));
            record.set("location", Record::from(place));
        }
        _ => {}
    }
}

fn attachment(sent: Option<&Json>) -> Record {
    let member = |name: &str| convert::member(sent, name);
    let known = Record::from([
        (
            "type",
            sent.and_then(|sent| decode::given(sent.get("type")?)).map_or("file".into(), convert::value),
        ),
        ("url", member("url")),
        ("fileName", member("fileName")),
        ("mimeType", member("mimeType")),
        ("size", member("size")),
        ("ext", member("ext")),
        ("description", sent.and_then(|sent| sent.get("description")).map_or("".into(), convert::value)),
    ]);
    match sent.and_then(Json::object) {
        Some(sent) => known.with_others(sent),
        None => known,
    }
}

/// What the outer object has besides. If it is the content itself, it is kept as that.
fn extra(message: &Json, content: Option<&Json>) -> Option<RawDocumentBuf> {
    let members =
        message.object().filter(|_| !content.is_some_and(|content| std::ptr::eq(content, message)))?;
    let is_extra = |name: &str| !OWN_PLACE.contains(&name);
    if !members.keys().any(|name| is_extra(name)) {
        return None;
    }
    let sent = convert::object(members);
    Some(sent.iter().flatten().filter(|(name, _)| is_extra(name.as_str())).collect())
}

fn sender(event: &Event, direction: Option<Direction>) -> RawBson {
    if direction == Some(Direction::Incoming) {
        return or_null(event.chat_id.as_deref());
    }
    let given = |json: &&Json| **json != Json::Null && json.text() != Some("");
    match user(event) {
        Some(user) => {
            user.get("email").and_then(Json::text).filter(|email| !email.is_empty()).map(RawBson::from)
        }
        None => event.members.get("source").filter(given).map(convert::value),
    }
    .unwrap_or("system".into())
}

fn sender_info(event: &Event, direction: Option<Direction>, sender: &RawBson) -> Record {
    if direction == Some(Direction::Incoming) {
        let contact = event.contact();
        return Record::from([
            ("phone", convert::member(contact, "phone")),
            ("contact_id", convert::id(contact, "id")),
            ("name", full_name(contact).into()),
        ]);
    }
    let Some(user) = user(event) else { return Record::from([("source", sender.clone())]) };
    let member = |name: &str| convert::member(Some(user), name);
    Record::from([
        ("id", convert::id(Some(user), "id")),
        ("email", member("email")),
        ("firstName", member("firstName")),
        ("lastName", member("lastName")),
        ("role", member("role")),
    ])
}

fn user(event: &Event) -> Option<&Json> {
    event.members.get("user").filter(|user| user.object().is_some_and(|members| !members.is_empty()))
}

/// First and last name, of those that are there.
fn full_name(contact: Option<&Json>) -> String {
    let names = ["firstName", "lastName"].into_iter().filter_map(|name| contact?.get(name)?.id());
    names.collect::<Vec<_>>().join(" ").trim().to_owned()
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
