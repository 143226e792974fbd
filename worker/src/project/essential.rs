//! Chooses, of many events, those that are enough for the conversations and contacts that they share. Pure.
//!
//! A conversation shows the latest, the earliest or the union of what its events say, whatever their order.
//! So an event that changes nothing beside the others can be left out.

use mongodb::bson::{DateTime, RawDocumentBuf};

use super::Documents;
use super::conversation::COUNTS;
use super::table::Table;
use crate::decode::Event;

/// Events that suffice, by their `_id` in the ledger.
#[derive(Debug, Default)]
pub struct Essential(Vec<(String, Event)>);

impl Essential {
    /// Adds events, and leaves out those that make no difference. Counts are none that they make.
    pub fn add(&mut self, events: impl IntoIterator<Item = (String, Event)>) {
        let kept = std::mem::take(&mut self.0);
        let kept = those_that_matter(kept.into_iter().chain(events));
        // What was the latest so far may not be the latest of all.
        self.0 = those_that_matter(kept.into_iter().rev());
    }

    /// Their ids.
    #[must_use]
    pub fn into_ids(self) -> Vec<String> {
        self.0.into_iter().map(|(id, _)| id).collect()
    }
}

/// Those events that change something if they are applied one after the other.
fn those_that_matter(events: impl Iterator<Item = (String, Event)>) -> Vec<(String, Event)> {
    let mut documents = Documents::default();
    events.filter(|(_, event)| changes(&mut documents, event)).collect()
}

fn changes(documents: &mut Documents, event: &Event) -> bool {
    if event.is_large() && event.members.is_empty() {
        let mut whole = event.clone();
        whole.recall_members();
        return changes(documents, &whole);
    }
    let before = shared(documents, event);
    documents.effects(event, DateTime::MIN);
    documents.let_go_of_own();
    shared(documents, event) != before
}

/// The conversation and the contact that an event concerns.
fn shared(documents: &Documents, event: &Event) -> [Option<RawDocumentBuf>; 2] {
    let without_counts = |table: &Table, id: Option<&str>| {
        let mut record = table.get(id?)?.clone();
        for name in COUNTS {
            record.remove(name);
        }
        Some(record.write())
    };
    let contact_id = event.contact_id();
    [
        without_counts(&documents.conversations, event.chat_id.as_deref()),
        without_counts(&documents.contacts, contact_id.as_deref()),
    ]
}
