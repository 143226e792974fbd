//! `webhook_events`: every accepted event with its raw body. Makes effects happen once.

use std::collections::{BTreeMap, BTreeSet};

use mongodb::bson::{DateTime, Document, doc};
use shared::event::Stream;

use super::message;
use super::record::Record;
use super::stamp::VARIANT_DIGITS;
use super::table::Table;
use crate::decode::{Envelope, Event, Kind};
use crate::project::convert::{self, or_null};

/// The outcome of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is new.
    Stored,
    /// It was there already.
    Duplicate,
    /// It was received before its person was erased: nothing of it is stored.
    Erased,
}

/// Fields by which duplicates are known; the body itself isn't read for that.
pub const KNOWN_BY: [&str; 4] = ["body_sha256", "message_id", "received_at", "stream"];

fn variant(key: &str, digest: &str) -> String {
    format!("{key}~{}", digest.get(..VARIANT_DIGITS).unwrap_or(digest))
}

/// Ids of entries to be loaded as well, in full, because an event comes with a key that is taken by another
/// body: those under the key, and those beside it.
#[must_use]
pub fn variants(ledger: &Table, events: &[Event]) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    // Bodies of the same batch can meet each other too.
    let mut digests: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for event in events {
        digests.entry(&event.key).or_default().insert(&event.digest);
    }
    for (key, mut digests) in digests {
        let stored = ledger.get(key).and_then(|entry| entry.text("body_sha256"));
        digests.extend(stored);
        if digests.len() > 1 {
            ids.insert(key.to_owned());
            ids.extend(digests.into_iter().map(|digest| variant(key, digest)));
        }
    }
    ids
}

/// Enters an event, unless it is there.
///
/// Of several bodies with the same key, the one received first has the plain key, the others stand beside
/// it: which one that is must not depend on the order in which they are stored.
pub fn enter(ledger: &mut Table, event: &Event, now: DateTime) -> Outcome {
    let beside = variant(&event.key, &event.digest);
    for id in [&event.key, &beside] {
        if let Some(known) = ledger.get_mut(id).filter(|entry| is_of(entry, event)) {
            return again(known, event, now);
        }
    }
    let Some(holder) = ledger.get_mut(&event.key) else {
        ledger.get_or_insert(&event.key, || entry(event, now));
        return Outcome::Stored;
    };
    if order(holder) < (Some(event.received_at_ms), Some(&event.digest)) {
        ledger.get_or_insert(&beside, || entry(event, now));
        return Outcome::Stored;
    }
    let mut moved = std::mem::replace(holder, entry(event, now));
    holder.identify(&event.key);
    // It counts as stored now, so that a reader who follows the ledger by this time sees it again under its
    // new name.
    moved.set("stored_at", now);
    let moved_to = variant(&event.key, moved.text("body_sha256").unwrap_or_default());
    ledger.get_or_insert(&moved_to, || moved);
    Outcome::Stored
}

fn entry(event: &Event, now: DateTime) -> Record {
    let mut entry = Record::from([
        ("event_type", or_null(event.event_type.as_deref())),
        ("stream", event.stream.name().into()),
        ("received_at", convert::date(event.received_at_ms)),
        ("stored_at", now.into()),
        ("signature", event.signature.as_str().into()),
        ("body_sha256", event.digest.as_str().into()),
        ("body", event.body.as_str().into()),
    ]);
    // For searches by conversation and by message, and to see how long an event took.
    let message_id = message_id(event);
    for (name, value) in
        [("chat_id", &event.chat_id), ("message_id", &message_id), ("trace_id", &event.trace_id)]
    {
        if let Some(value) = value {
            entry.set(name, value.as_str());
        }
    }
    entry
}

/// The id of the message that an event makes or changes, if the event names it.
fn message_id(event: &Event) -> Option<String> {
    let is_of_message = matches!(event.kind, Kind::Message(_) | Kind::Status(_));
    is_of_message.then(|| message::named(event)).flatten()
}

/// The fields of an entry that [`event`] reads.
#[must_use]
pub fn fields_of_events() -> Document {
    doc! {"stream": 1, "received_at": 1, "signature": 1, "body": 1}
}

/// The event of an entry; none if somebody has changed the entry so that it can't be read.
#[must_use]
pub fn event(tenant: &str, entry: &Document) -> Option<Event> {
    let envelope = Envelope {
        tenant,
        stream: Stream::from_name(entry.get_str("stream").ok()?),
        received_at_ms: entry.get_datetime("received_at").ok()?.timestamp_millis(),
        signature: entry.get_str("signature").unwrap_or_default(),
    };
    Event::decode(entry.get_str("body").ok()?.as_bytes(), envelope).ok()
}

/// The same body once more: the entry tells when it was received first, and which stream made something of
/// it.
fn again(entry: &mut Record, event: &Event, now: DateTime) -> Outcome {
    if entry.millis("received_at").is_some_and(|stored| event.received_at_ms < stored) {
        entry.set("received_at", convert::date(event.received_at_ms));
    }
    let stream = entry.text("stream").map_or(event.stream, Stream::from_name);
    if !event.kind.has_more_effects_than(event.kind_on(stream)) {
        return Outcome::Duplicate;
    }
    entry.set("stream", event.stream.name());
    entry.set("stored_at", now);
    match message_id(event) {
        Some(message_id) => entry.set("message_id", message_id),
        None => entry.remove("message_id"),
    }
    Outcome::Stored
}

fn is_of(entry: &Record, event: &Event) -> bool {
    entry.text("body_sha256") == Some(&event.digest)
}

fn order(entry: &Record) -> (Option<i64>, Option<&str>) {
    (entry.millis("received_at"), entry.text("body_sha256"))
}
