//! Documents that the Flask bridge wrote, before there were events.
//!
//! They have no `_merge`: everything in them is older than any event, and the bridge has counted them. The
//! first event that changes one records this in `_merge`, with the bridge's counts, so that `rebuild` can
//! distinguish them from the ledger's.

use mongodb::bson::{RawBson, RawDocument};

use super::record::Record;
use super::stamp::MERGE_FIELD;

/// The field that records it.
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

/// Records that the bridge wrote this document, with its share of the counts.
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
