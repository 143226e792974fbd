//! Which documents a batch concerns.

use std::collections::BTreeSet;

use super::{call, conversation, message};
use crate::decode::{Event, Kind};

/// Ids of the documents that a batch concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// `webhook_events`
    pub ledger: BTreeSet<String>,
    /// `messages`
    pub messages: BTreeSet<String>,
    /// Those of `messages` without a messageId: MongoDB has given them an `_id` of its own if the bridge
    /// stored them, and they are known by their `event_id`.
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
    /// What has to be loaded to apply these events.
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

    /// The same if these events are new: nobody else has made what each of them makes, such as its message. A
    /// status concerns a message that others make.
    #[must_use]
    pub fn of_new(self, events: &[Event]) -> Self {
        let others = events.iter().filter(|event| matches!(event.kind, Kind::Status(_)));
        let messages = others.map(message::id).collect();
        let (ledger, notes, calls) = Default::default();
        Self { ledger, messages, notes, calls, ..self }
    }

    /// The same without what many events may share.
    #[must_use]
    pub fn own(self) -> Self {
        Self { conversations: BTreeSet::new(), contacts: BTreeSet::new(), ..self }
    }

    /// Whether documents other than the ledger are concerned.
    #[must_use]
    pub fn concerns_documents(&self) -> bool {
        let Self { ledger: _, messages, unnamed_messages: _, conversations, contacts, notes, calls } = self;
        [messages, conversations, contacts, notes, calls].into_iter().any(|ids| !ids.is_empty())
    }
}
