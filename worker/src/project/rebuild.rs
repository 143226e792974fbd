//! Documents computed anew from the events that the ledger has of them. Pure.
//!
//! The ledger deletes events (`EVENT_RETENTION`), and workers may have applied events that weren't read. So
//! the effects of events that aren't at hand stay: their own documents, parts that have their stamp, and, in
//! documents that are older than the ledger, also values that only grow. Everything else is computed from
//! nothing.

use std::collections::BTreeSet;

use mongodb::bson::DateTime;

use super::documents::Documents;
use super::neighbours::Neighbours;
use super::record::Record;
use super::stamp::Stamp;
use super::table::Table;
use super::wanted::Wanted;
use super::{bridge, contact, conversation, message, recount, tags};
use crate::decode::Event;

impl Documents {
    /// Computes the documents that these events concern anew.
    ///
    /// `events` must be all that were read from the ledger of any of these documents. The documents in
    /// [`Wanted`] and the conversations in [`Documents::previous_conversations`] must have been loaded;
    /// `neighbours` are what else is in all these conversations. The ledger has every event stored since
    /// `horizon`.
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

/// Of many events that concern the same conversations: what is needed to compute these and the contacts anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// What tells each of the events from others, see [`Stamp::event`].
    pub told_by: BTreeSet<(String, String)>,
    /// The conversations whose messages and notes are counted anew.
    pub conversations: BTreeSet<String>,
}

impl Documents {
    /// Computes the messages, notes and calls that these events concern anew. What they say of conversations
    /// and contacts is applied, but nothing of these is forgotten, and conversations keep their counts.
    ///
    /// `events` must be all that were read from the ledger of any of these messages, notes and calls.
    pub fn rebuild_own(&mut self, events: &[Event], horizon: DateTime, now: DateTime) {
        let wanted = Wanted::by(events);
        let told_by = events.iter().map(|event| Stamp::of(event).event()).collect();
        let forgetting = Forgetting { told_by, horizon };
        forgetting.all(&mut self.messages, &wanted.messages, message::forget);
        forgetting.all(&mut self.notes, &wanted.notes, |_| {});
        forgetting.all(&mut self.calls, &wanted.calls, |_| {});
        for event in events {
            self.effects(event, now);
        }
        for (_, stored, conversation) in self.conversations.iter_mut_with_stored() {
            recount::leave_uncounted(conversation, stored);
        }
    }

    /// Computes the conversations and contacts anew, once all messages, notes and calls are. `events` suffice
    /// for them, see [`super::essential`]; `neighbours` are all that is in the conversations.
    pub fn rebuild_shared(
        &mut self,
        events: &[Event],
        shared: &Shared,
        neighbours: &Neighbours,
        horizon: DateTime,
        now: DateTime,
    ) {
        let wanted = Wanted::by(events);
        let told_by = shared.told_by.iter().map(|(key, body)| (key.as_str(), body.as_str())).collect();
        let forgetting = Forgetting { told_by, horizon };
        let known_whole = self.conversations.iter().filter(|known| forgetting.is_known_whole(known));
        let known_whole = known_whole.filter_map(|known| known.text("_id").map(str::to_owned)).collect();
        forgetting.all(&mut self.contacts, &wanted.contacts, contact::forget);
        forgetting.all(&mut self.conversations, &wanted.conversations, conversation::forget);
        for event in events {
            self.effects(event, now);
        }
        // They are among the neighbours.
        self.let_go_of_own();
        recount::recount(self, neighbours, &known_whole);
    }
}

/// Which effects are forgotten.
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
        // A contact's `created_at` may be the sender's word, which says nothing about when it was first
        // stored.
        let first_stored = record.millis("created_at").filter(|_| !Stamp::is_on(record, "created_at"));
        !bridge::wrote(record) && first_stored.is_some_and(|at| at >= self.horizon.timestamp_millis())
    }
}
