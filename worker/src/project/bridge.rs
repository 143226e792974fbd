//! Documents that the Flask bridge wrote, before there were events.
//!
//! They have no `_merge`: all that is in them is older than any event, and they are counted already, by the bridge's
//! lights. The first event that changes one writes this down in `_merge`, with what the bridge had counted, so that
//! `rebuild` can tell it from what the ledger accounts for.

use mongodb::bson::{RawBson, RawDocument, rawdoc};

use super::conversation;
use super::record::Record;
use super::stamp::MERGE_FIELD;
use super::table::Table;
use crate::convert::or_null;

/// Where it is written down.
const PART: &str = "bridge";
/// Where a conversation remembers which of the bridge's messages came again.
pub const MESSAGES: &str = "messages";
/// Where a conversation remembers which of the bridge's notes came again.
pub const NOTES: &str = "notes";

/// Whether the bridge wrote this document.
#[must_use]
pub fn wrote(record: &Record) -> bool {
    record.document(MERGE_FIELD).is_none_or(|merge| merge.get(PART).is_ok_and(|share| share.is_some()))
}

/// Whether the bridge wrote this document, and no event has changed it yet.
#[must_use]
pub fn is_untouched(record: &Record) -> bool {
    record.document(MERGE_FIELD).is_none()
}

/// Writes down that the bridge wrote this document, and what of it is to be remembered.
pub fn remember(record: &mut Record, share: &RawBson) {
    record.set_in(MERGE_FIELD, PART, share);
}

/// The conversation in which the bridge has counted a message or a note that it wrote.
#[must_use]
pub fn counted_in(record: &Record) -> Option<&str> {
    match share(record) {
        Some(share) => share.get_str("chat_id").ok(),
        None => record.text("chat_id").filter(|_| wrote(record)),
    }
}

/// A message or a note that the bridge stored.
#[derive(Debug)]
pub struct Stored {
    /// Whether it is still there. Otherwise it came again before it was deleted.
    pub is_there: bool,
    /// The conversation in which the bridge has counted it.
    counted_in: Option<String>,
    /// Where a conversation remembers those that came again: [`MESSAGES`] or [`NOTES`].
    kind: &'static str,
}

impl Stored {
    /// Looks whether the bridge stored the message or the note of this id, which an event of this chat brings.
    #[must_use]
    pub fn find(
        document: Option<&Record>,
        conversations: &Table,
        chat_id: Option<&str>,
        kind: &'static str,
        id: &str,
    ) -> Option<Self> {
        let of_the_bridge = match document {
            Some(document) => wrote(document),
            None => has_come_again(conversations.get(chat_id?)?, kind, id),
        };
        let counted_in = document.map_or(chat_id, counted_in).map(str::to_owned);
        of_the_bridge.then_some(Self { is_there: document.is_some(), counted_in, kind })
    }

    /// Writes down in the document that the bridge has counted it, and where; and in that conversation, that it came again:
    /// should it be deleted, and made anew from the ledger, it is still counted.
    pub fn came_again(self, document: &mut Record, conversations: &mut Table, id: &str) {
        let Self { counted_in, kind, .. } = self;
        remember(document, &rawdoc! {"chat_id": or_null(counted_in.as_deref())}.into());
        let conversation = counted_in.and_then(|chat_id| conversations.get_mut(&chat_id));
        let Some(conversation) = conversation else { return };
        if is_untouched(conversation) {
            conversation::adopt(conversation);
        }
        if let Some(Ok(mut share)) = share(conversation).map(Record::read) {
            share.add_sorted(kind, id);
            remember(conversation, &share.into());
        }
    }
}

fn has_come_again(conversation: &Record, kind: &str, id: &str) -> bool {
    let known = share(conversation).and_then(|share| share.get_array(kind).ok());
    known.into_iter().flatten().flatten().any(|known| known.as_str() == Some(id))
}

/// What is remembered of the bridge's document.
#[must_use]
pub fn share(record: &Record) -> Option<&RawDocument> {
    record.document(MERGE_FIELD)?.get_document(PART).ok()
}
