//! The fields of `messages` that follow from a delivery. Pure.

use mongodb::bson::{RawBson, RawDocumentBuf};

use super::record::Record;
use crate::decode::{self, Direction, Event, Kind};
use crate::json::Json;
use crate::project::convert::{self, or_null};

/// Fields that only some messages have. A later delivery without such a field removes it.
pub const OPTIONAL: [&str; 10] = [
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

/// Members of the outer object that have their own field. All others go into `extra`.
const OWN_PLACE: [&str; 8] =
    ["messageId", "channelMessageId", "contactId", "channelId", "traffic", "timestamp", "message", "status"];

/// The fields of a message, in the bridge's order. `has_content` says whether those that come of its content
/// are among them.
pub fn fields(event: &Event, has_content: bool) -> Record {
    let direction = match event.kind {
        Kind::Message(direction) => Some(direction),
        Kind::Status(direction) => direction,
        _ => None,
    };
    let (message, channel) = (event.member("message"), event.member("channel"));
    let inner = message.and_then(|message| message.get("message")).filter(|inner| inner.object().is_some());
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
    if matches!(event.kind, Kind::Message(_)) {
        let sender = sender(event, direction);
        let kind = content.and_then(|content| decode::given(content.get("type")?));
        record.set("raw_message", or_null(content.or(inner).map(convert::value)));
        record.set("sender_info", sender_info(event, direction, &sender));
        record.set("sender", sender);
        record.set("ts", convert::date(event.at_ms));
        record.set("type", kind.map_or("text".into(), convert::value));
    }
    if let Some(content) = content.filter(|_| has_content) {
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

/// The other members of the outer object; none if it is the content itself.
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
