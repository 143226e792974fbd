//! What documents become when events are applied to them. Pure: no I/O, no clock.
//!
//! The result depends neither on the order of the events nor on how they are cut into batches. Each part
//! of a document belongs to the latest event that speaks of it ([`Stamp`]), counts follow from which
//! documents exist, and an event that is in the ledger already changes nothing.

use std::collections::BTreeSet;

use mongodb::bson::DateTime;

use crate::decode::{Event, Kind};

pub mod bridge;
pub mod call;
pub mod contact;
pub mod content;
pub mod conversation;
pub mod ledger;
pub mod message;
pub mod note;
pub mod rebuild;
pub mod record;
pub mod recount;
pub mod stamp;
pub mod table;
pub mod tags;

pub use stamp::Stamp;
use table::Table;

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is new.
    Stored,
    /// It was there already.
    Duplicate,
}

/// A part of a tenant's database: the documents that a batch concerns.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    /// `webhook_events`
    pub ledger: Table,
    /// `messages`
    pub messages: Table,
    /// `conversations`
    pub conversations: Table,
    /// `contacts`
    pub contacts: Table,
    /// `internal_notes`
    pub notes: Table,
    /// `calls`
    pub calls: Table,
}

/// Ids of the documents that a batch concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// `webhook_events`
    pub ledger: BTreeSet<String>,
    /// `messages`
    pub messages: BTreeSet<String>,
    /// Those of `messages` without a messageId: MongoDB has given them an `_id` of its own if the bridge stored them, and
    /// they are known by their `event_id`.
    pub unnamed_messages: BTreeSet<String>,
    /// `conversations`
    pub conversations: BTreeSet<String>,
    /// `contacts`
    pub contacts: BTreeSet<String>,
    /// `internal_notes`
    pub notes: BTreeSet<String>,
    /// `calls`
    pub calls: BTreeSet<String>,
}

impl Wanted {
    /// What has to be known to apply these events.
    #[must_use]
    pub fn by(events: &[Event]) -> Self {
        let mut wanted = Self::default();
        for event in events {
            wanted.ledger.insert(event.key.clone());
            match event.kind {
                Kind::Message(_) | Kind::Status(_) => {
                    wanted.messages.insert(message::id(event));
                    wanted.unnamed_messages.extend(message::event_id_of_unnamed(event));
                }
                Kind::Note => drop(wanted.notes.insert(event.key.clone())),
                Kind::Call => drop(wanted.calls.insert(call::id(event))),
                Kind::Contact | Kind::Lifecycle => wanted.contacts.extend(event.contact_id()),
                Kind::Opened | Kind::Closed | Kind::Other => {}
            }
            if conversation::is_concerned(event.kind) {
                wanted.conversations.extend(event.chat_id.clone());
            }
        }
        wanted
    }
}

impl Wanted {
    /// Whether documents other than the ledger are concerned.
    #[must_use]
    pub fn concerns_documents(&self) -> bool {
        let Self { ledger: _, messages, unnamed_messages: _, conversations, contacts, notes, calls } = self;
        [messages, conversations, contacts, notes, calls].into_iter().any(|ids| !ids.is_empty())
    }
}

impl Documents {
    /// Conversations from which a message or note may move away because a later delivery names another.
    #[must_use]
    pub fn conversations_left(&self) -> BTreeSet<String> {
        let chats = self.messages.iter().chain(self.notes.iter()).filter_map(|row| row.text("chat_id"));
        chats.map(str::to_owned).collect()
    }

    /// Whether there are documents that belong to an event alone: it or its like has been applied before.
    #[must_use]
    pub fn have_own(&self) -> bool {
        let Self { ledger, messages, conversations: _, contacts: _, notes, calls } = self;
        [ledger, messages, notes, calls].into_iter().any(|table| table.iter().next().is_some())
    }

    /// Applies an event. The documents in [`Wanted`] and [`Documents::conversations_left`], and those that
    /// [`ledger::variants`] names, must have been loaded; or of those in the ledger, the messages, notes
    /// and calls none, if they are all inserted in the end, so that one that is there makes that fail. `now` goes into
    /// `created_at`, `updated_at` and `stored_at` only.
    pub fn apply(&mut self, event: &Event, now: DateTime) -> Outcome {
        if ledger::enter(&mut self.ledger, event, now) == Outcome::Duplicate {
            return Outcome::Duplicate;
        }
        self.effects(event, now);
        Outcome::Stored
    }

    /// What an event does to documents other than the ledger. To do it again changes nothing.
    pub fn effects(&mut self, event: &Event, now: DateTime) {
        if conversation::is_concerned(event.kind)
            && let Some(chat_id) = &event.chat_id
        {
            conversation::touch(&mut self.conversations, chat_id, event, now);
        }
        match event.kind {
            Kind::Message(_) | Kind::Status(_) => message::apply(self, event, now),
            Kind::Note => note::apply(self, event),
            Kind::Contact | Kind::Lifecycle => contact::apply(&mut self.contacts, event, now),
            Kind::Call => call::apply(&mut self.calls, event, now),
            Kind::Opened | Kind::Closed | Kind::Other => {}
        }
    }
}

#[cfg(test)]
mod tests;
