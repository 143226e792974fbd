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
/// Where a conversation remembers which of the bridge's messages and notes came again.
pub const MESSAGES: &str = "messages";
/// Likewise.
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

/// Writes down that the bridge wrote a message or a note, and in which conversation it has counted it.
pub fn remember_chat(record: &mut Record, chat_id: Option<&str>) {
    remember(record, &rawdoc! {"chat_id": or_null(chat_id)}.into());
}

/// The conversation in which the bridge has counted a message or a note that it wrote.
#[must_use]
pub fn counted_in(record: &Record) -> Option<&str> {
    match share(record) {
        Some(share) => share.get_str("chat_id").ok(),
        None => record.text("chat_id").filter(|_| wrote(record)),
    }
}

/// Writes down in a conversation that a message or a note of the bridge's came again: should it be deleted, and made anew from
/// the ledger, it is still counted.
pub fn came_again(conversations: &mut Table, chat_id: Option<&str>, kind: &'static str, id: &str) {
    let Some(conversation) = chat_id.and_then(|chat_id| conversations.get_mut(chat_id)) else { return };
    if is_untouched(conversation) {
        conversation::adopt(conversation);
    }
    let Some(Ok(mut share)) = share(conversation).map(Record::read) else { return };
    share.add_sorted(kind, id);
    remember(conversation, &share.into());
}

/// Whether a message or a note of a conversation is one of the bridge's that came again.
#[must_use]
pub fn has_come_again(conversations: &Table, chat_id: Option<&str>, kind: &str, id: &str) -> bool {
    let conversation = chat_id.and_then(|chat_id| conversations.get(chat_id));
    let known = conversation.and_then(share).and_then(|share| share.get_array(kind).ok());
    known.into_iter().flatten().flatten().any(|known| known.as_str() == Some(id))
}

/// What is remembered of the bridge's document.
#[must_use]
pub fn share(record: &Record) -> Option<&RawDocument> {
    record.document(MERGE_FIELD)?.get_document(PART).ok()
}
