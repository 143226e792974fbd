//! Documents that the Flask bridge wrote, before there were events.
//!
//! They have no `_merge`: all that is in them is older than any event, and they are counted already, by the
//! bridge's lights. The first event that changes one writes this down in `_merge`, with what the bridge had
//! counted, so that `rebuild` can tell it from what the ledger accounts for.

use mongodb::bson::{RawBson, RawDocument};

use super::record::Record;
use super::stamp::MERGE_FIELD;

/// Where it is written down.
const PART: &str = "bridge";

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

/// Writes down that the bridge wrote this document, and what of it has to be remembered.
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

/// What is remembered of the bridge's document.
#[must_use]
pub fn share(record: &Record) -> Option<&RawDocument> {
    record.document(MERGE_FIELD)?.get_document(PART).ok()
}
