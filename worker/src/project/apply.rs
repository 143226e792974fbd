//! Applies events to documents.

use mongodb::bson::DateTime;

use super::documents::Documents;
use super::ledger::{self, Outcome};
use super::{call, contact, conversation, message, note};
use crate::decode::{Event, Kind};

impl Documents {
    /// Applies an event. The documents in [`super::Wanted`] and [`Documents::previous_conversations`], and
    /// those that [`ledger::variants`] names, must have been loaded; or of those in the ledger, the messages,
    /// notes and calls none, if they are all inserted in the end, so that one that is there makes that fail.
    /// `now` goes into `created_at`, `updated_at` and `stored_at` only.
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
