//! Documents computed anew from the events that the ledger has of them. Pure.
//!
//! The ledger forgets (`EVENT_RETENTION`), and workers may have applied events that weren't read. So what comes of
//! events that aren't at hand stays: documents of their own, parts that carry their stamp, and, of documents that
//! are older than the ledger, also what only ever grows. Everything else is computed from nothing.

use std::collections::{BTreeMap, BTreeSet};

use mongodb::bson::DateTime;

use super::message::Counted;
use super::record::Record;
use super::stamp::MERGE_FIELD;
use super::table::Table;
use super::{Documents, Stamp, Wanted, contact, conversation, message};
use crate::decode::Event;

/// Fields of a message by which it counts in its conversation.
pub const MESSAGES_COUNTED_BY: [&str; 6] =
    ["chat_id", "ts", "channel_name", "channel_source", "raw_message.type", "raw_message.attachment.type"];
/// Fields of a note by which it counts in its conversation.
pub const NOTES_COUNTED_BY: [&str; 2] = ["chat_id", "created_at"];

/// What else is in conversations: messages and notes of which no event is at hand.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    chats: BTreeMap<String, Seen>,
}

/// What they add to their conversation.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Messages, by kind of medium.
    pub messages: BTreeMap<Option<String>, i64>,
    /// Times of the first and the last message, in milliseconds since 1970.
    pub span: Option<(i64, i64)>,
    /// Names of channels.
    pub channels: BTreeSet<String>,
    /// Notes.
    pub notes: i64,
    /// Time of the last note, in milliseconds since 1970.
    pub last_note: Option<i64>,
}

impl Neighbours {
    /// Adds a message, of which the fields [`MESSAGES_COUNTED_BY`] are known.
    pub fn add_message(&mut self, message: &Record) {
        let Counted { chat_id: Some(chat_id), media } = Counted::of(message) else { return };
        let seen = self.chats.entry(chat_id).or_default();
        *seen.messages.entry(media).or_default() += 1;
        if let Some(at) = message.millis("ts") {
            let (first, last) = seen.span.unwrap_or((at, at));
            seen.span = Some((first.min(at), last.max(at)));
        }
        let text = |name: &str| message.text(name).filter(|text| !text.is_empty());
        seen.channels.extend(text("channel_name").or_else(|| text("channel_source")).map(str::to_owned));
    }

    /// Adds a note, of which the fields [`NOTES_COUNTED_BY`] are known.
    pub fn add_note(&mut self, note: &Record) {
        let Some(chat_id) = note.text("chat_id") else { return };
        let seen = self.chats.entry(chat_id.to_owned()).or_default();
        seen.notes += 1;
        seen.last_note = seen.last_note.max(note.millis("created_at"));
    }

    /// By conversation.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Seen)> {
        self.chats.iter()
    }
}

impl Documents {
    /// Computes the documents that these events concern anew.
    ///
    /// `events` must be all that were read from the ledger of any of these documents. The documents in [`Wanted`] and the
    /// conversations in [`Documents::conversations_left`] must have been loaded; `neighbours` are what else is in all these
    /// conversations. The ledger has every event stored since `horizon`.
    pub fn rebuild(&mut self, events: &[Event], neighbours: &Neighbours, horizon: DateTime, now: DateTime) {
        let wanted = Wanted::by(events);
        let forgetting =
            Forgetting { told_by: events.iter().map(|event| Stamp::of(event).event()).collect(), horizon };

        forgetting.all(&mut self.messages, &wanted.messages, message::forget);
        forgetting.all(&mut self.notes, &wanted.notes, |_| {});
        forgetting.all(&mut self.calls, &wanted.calls, |_| {});
        forgetting.all(&mut self.contacts, &wanted.contacts, contact::forget);
        forgetting.all(&mut self.conversations, &wanted.conversations, conversation::forget);
        for event in events {
            self.effects(event, now);
        }
        conversation::recount(self, neighbours);
    }
}

/// Gives fields the values that they have in a new document, or none.
pub(super) fn reset(record: &mut Record, fields: &[&'static str], new: &Record) {
    for name in fields {
        match new.get(name) {
            Some(value) => record.set(*name, value),
            None => record.remove(name),
        }
    }
}

/// Which effects are to be forgotten.
struct Forgetting<'a> {
    told_by: BTreeSet<(&'a str, &'a str)>,
    horizon: DateTime,
}

impl Forgetting<'_> {
    fn all(&self, table: &mut Table, ids: &BTreeSet<String>, forget: impl Fn(&mut Record)) {
        for id in ids {
            let Some(record) = table.get_mut(id) else { continue };
            // A contact's `created_at` may be the sender's word, which says nothing about when it was first stored.
            let first_stored = record.millis("created_at").filter(|_| !Stamp::is_on(record, "created_at"));
            // Without stamps it is the bridge's.
            let is_known_whole = record.get(MERGE_FIELD).is_some()
                && first_stored.is_some_and(|at| at >= self.horizon.timestamp_millis());
            Stamp::forget(record, &self.told_by);
            if is_known_whole {
                forget(record);
            }
        }
    }
}
