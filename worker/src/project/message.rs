//! `messages`: one document per messageId, from the latest delivery of it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use mongodb::bson::{Bson, DateTime, RawArrayBuf, RawBson, RawBsonRef};

use super::counted::{COUNTED_PARTS, Counted};
use super::documents::Documents;
use super::record::Record;
use super::returned::{self, Returned};
use super::stamp::Stamp;
use super::table::Table;
use super::{content, conversation};
use crate::decode::moment;
use crate::decode::{Event, Kind};
use crate::json::Json;
use crate::project::convert;

/// The parts of a message's document that its deliveries claim: with content, without, and with statuses alone. A part has
/// the say over those behind it, whatever their times.
const PARTS: [&str; 3] = [COUNTED_PARTS[0], COUNTED_PARTS[1], "status_only"];
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
    let Documents { messages, conversations, .. } = documents;
    let (id, part, chat_id) = (id(event), part(event), event.chat_id.as_deref());
    let stored = messages.get(&id);
    let is_new = stored.is_none();
    let before = stored.and_then(Counted::of);
    let bridges = Returned::find(stored, conversations, chat_id, returned::MESSAGES, &id);

    let message = messages.get_or_insert(&id, || Record::from([("created_at", now.into())]));
    let told = event.member("message").and_then(|message| message.get("status"));
    message.set("status", union_of_status(message.get("status"), told));
    // The bridge's messages have content.
    let may_claim = part == CONTENT || !bridges.as_ref().is_some_and(|bridges| bridges.is_there);
    if may_claim && claim(message, &Stamp::of(event), part) {
        if let Some(bridges) = bridges {
            bridges.came_again(message, conversations, &id);
        }
        for name in content::OPTIONAL {
            message.remove(name);
        }
        message.extend(content::fields(event, part == CONTENT));
    }
    if is_new {
        message.sort();
    }
    if let Some(chat_id) = chat_id.filter(|_| part != STATUS_ONLY) {
        conversation::saw_message(conversations, chat_id, event);
    }
    move_count(conversations, before, Counted::of(message));
}

fn move_count(conversations: &mut Table, before: Option<Counted>, after: Option<Counted>) {
    if before == after {
        return;
    }
    for (counted, by) in [(before, -1), (after, 1)] {
        if let Some(counted) = counted {
            conversation::count_message(conversations, &counted, by);
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
