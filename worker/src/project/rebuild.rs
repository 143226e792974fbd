//! Documents computed anew from the events that the ledger has of them. Pure.
//!
//! The ledger forgets (`EVENT_RETENTION`), and workers may have applied events that weren't read. So what comes of
//! events that aren't at hand stays: documents of their own, parts that carry their stamp, and, of documents that
//! are older than the ledger, also what only ever grows. Everything else is computed from nothing.

use std::collections::BTreeSet;

use mongodb::bson::{DateTime, Document};

use super::table::Table;
use super::{Documents, Stamp, Wanted, contact, conversation, ledger, message};
use crate::decode::Event;

/// Fields of a message by which it counts in its conversation.
pub const MESSAGES_COUNTED_BY: [&str; 7] = [
    "chat_id",
    "ts",
    "channel_id",
    "channel_name",
    "channel_source",
    "raw_message.type",
    "raw_message.attachment.type",
];
/// Fields of a note by which it counts in its conversation.
pub const NOTES_COUNTED_BY: [&str; 2] = ["chat_id", "created_at"];

impl Documents {
    /// Computes the documents that these events concern anew.
    ///
    /// `events` must be all that were read from the ledger of any of these documents. The documents in [`Wanted`], the
    /// conversations in [`Documents::conversations_left`], and what else is in all these conversations must have been
    /// loaded. The ledger has every event stored since `horizon`.
    pub fn rebuild(&mut self, events: &[Event], horizon: DateTime, now: DateTime) {
        let wanted = Wanted::by(events);
        let digests: Vec<String> =
            events.iter().map(|event| event.digest.chars().take(ledger::VARIANT_DIGITS).collect()).collect();
        let told_by = events
            .iter()
            .zip(&digests)
            .map(|(event, digest)| (event.key.as_str(), digest.as_str()))
            .collect();
        let forgetting = Forgetting { told_by, horizon };

        forgetting.all(&mut self.messages, &wanted.messages, message::forget);
        forgetting.all(&mut self.notes, &wanted.notes, |_| {});
        forgetting.all(&mut self.calls, &wanted.calls, |_| {});
        forgetting.all(&mut self.contacts, &wanted.contacts, contact::forget);
        forgetting.all(&mut self.conversations, &wanted.conversations, conversation::forget);
        let is_neighbour = |told: &BTreeSet<String>, document: &Document| {
            document.get_str("_id").is_ok_and(|id| !told.contains(id))
        };
        for message in self.messages.iter().filter(|message| is_neighbour(&wanted.messages, message)) {
            conversation::note_stored_message(&mut self.conversations, message);
        }
        for note in self.notes.iter().filter(|note| is_neighbour(&wanted.notes, note)) {
            conversation::note_stored_note(&mut self.conversations, note);
        }
        for event in events {
            self.effects(event, now);
        }
        conversation::recount(self);
    }
}

/// Gives fields the values that they have in a new document, or none.
pub(super) fn reset(document: &mut Document, fields: &[&str], new: &Document) {
    for name in fields {
        match new.get(name) {
            Some(value) => drop(document.insert(*name, value.clone())),
            None => drop(document.remove(name)),
        }
    }
}

/// Which effects are to be forgotten.
struct Forgetting<'a> {
    told_by: BTreeSet<(&'a str, &'a str)>,
    horizon: DateTime,
}

impl Forgetting<'_> {
    fn all(&self, table: &mut Table, ids: &BTreeSet<String>, forget: impl Fn(&mut Document)) {
        for id in ids {
            let Some(document) = table.get_mut(id) else { continue };
            // A contact's `created_at` may be the sender's word, which says nothing about when it was first stored.
            let first_stored =
                document.get_datetime("created_at").ok().filter(|_| !Stamp::is_on(document, "created_at"));
            let is_known_whole = first_stored.is_some_and(|at| *at >= self.horizon);
            Stamp::forget(document, &self.told_by);
            if is_known_whole {
                forget(document);
            }
        }
    }
}
