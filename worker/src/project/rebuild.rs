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
use super::{Documents, Stamp, Wanted, bridge, contact, conversation, message, note, recount, tags};
use crate::decode::Event;

/// Fields of a message by which it counts in its conversation.
pub const MESSAGES_COUNTED_BY: [&str; 9] = [
    "chat_id",
    "ts",
    "channel_name",
    "channel_source",
    "type",
    "attachment.type",
    "raw_message.type",
    "raw_message.attachment.type",
    MERGE_FIELD,
];
/// Fields of a note by which it counts in its conversation.
pub const NOTES_COUNTED_BY: [&str; 3] = ["chat_id", "created_at", MERGE_FIELD];

/// What else is in conversations: messages and notes of which no event is at hand.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    chats: BTreeMap<String, Seen>,
}

/// What they add to their conversation.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// What events have brought.
    pub ours: Tally,
    /// What the bridge stored.
    pub bridges: Tally,
}

/// Messages and notes of a conversation.
#[derive(Clone, Debug, Default)]
pub struct Tally {
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
        let is_the_bridges = bridge::wrote(message);
        let counted = Counted::of(message).or_else(|| Counted::by_the_bridge(message));
        let Some(Counted { chat_id: Some(chat_id), media }) = counted else { return };
        let tally = self.tally(chat_id, is_the_bridges);
        *tally.messages.entry(media).or_default() += 1;
        if let Some(at) = message.millis("ts") {
            let (first, last) = tally.span.unwrap_or((at, at));
            tally.span = Some((first.min(at), last.max(at)));
        }
        let text = |name: &str| message.text(name).filter(|text| !text.is_empty());
        tally.channels.extend(text("channel_name").or_else(|| text("channel_source")).map(str::to_owned));
    }

    /// Adds a note, of which the fields [`NOTES_COUNTED_BY`] are known.
    pub fn add_note(&mut self, note: &Record) {
        let counted = note::counted_in(note).or_else(|| bridge::counted_in(note).map(str::to_owned));
        let Some(chat_id) = counted else { return };
        let tally = self.tally(chat_id, bridge::wrote(note));
        tally.notes += 1;
        tally.last_note = tally.last_note.max(note.millis("created_at"));
    }

    fn tally(&mut self, chat_id: String, is_the_bridges: bool) -> &mut Tally {
        let seen = self.chats.entry(chat_id).or_default();
        if is_the_bridges { &mut seen.bridges } else { &mut seen.ours }
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

        let known_whole = self.conversations.iter().filter(|known| forgetting.is_known_whole(known));
        let known_whole = known_whole.filter_map(|known| known.text("_id").map(str::to_owned)).collect();
        forgetting.all(&mut self.messages, &wanted.messages, message::forget);
        forgetting.all(&mut self.notes, &wanted.notes, |_| {});
        forgetting.all(&mut self.calls, &wanted.calls, |_| {});
        forgetting.all(&mut self.contacts, &wanted.contacts, contact::forget);
        forgetting.all(&mut self.conversations, &wanted.conversations, conversation::forget);
        for event in events {
            self.effects(event, now);
        }
        recount::recount(self, neighbours, &known_whole);
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
            let is_known_whole = self.is_known_whole(record);
            Stamp::forget(record, &self.told_by);
            tags::forget_changes(record, &self.told_by);
            if is_known_whole {
                forget(record);
            }
        }
    }
    /// Whether the ledger has every event that has changed this document.
    fn is_known_whole(&self, record: &Record) -> bool {
        // A contact's `created_at` may be the sender's word, which says nothing about when it was first stored.
        let first_stored = record.millis("created_at").filter(|_| !Stamp::is_on(record, "created_at"));
        !bridge::wrote(record) && first_stored.is_some_and(|at| at >= self.horizon.timestamp_millis())
    }
}
