//! The documents of a batch.

use std::collections::BTreeSet;

use super::table::Table;

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

impl Documents {
    /// Conversations from which a message or note may move away because a later delivery names another.
    #[must_use]
    pub fn previous_conversations(&self) -> BTreeSet<String> {
        let chats = self.messages.iter().chain(self.notes.iter()).filter_map(|row| row.text("chat_id"));
        chats.map(str::to_owned).collect()
    }

    /// Whether there are documents that belong to an event alone: it or its like has been applied before.
    #[must_use]
    pub fn have_own(&self) -> bool {
        let Self { ledger, messages, conversations: _, contacts: _, notes, calls } = self;
        [ledger, messages, notes, calls].into_iter().any(|table| table.iter().next().is_some())
    }

    /// Forgets the documents that belong to single events.
    pub fn let_go_of_own(&mut self) {
        (self.messages, self.notes, self.calls) = (Table::default(), Table::default(), Table::default());
    }
}
