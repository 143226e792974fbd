//! In which fields two documents differ. Pure.

use std::collections::{BTreeMap, BTreeSet};

use mongodb::bson::{RawArray, RawBsonRef, RawDocument};

use super::documented::is_documented;
use crate::project::conversation::COUNTS;
use crate::project::stamp::MERGE_FIELD;

/// A document's fields by name; those within `OPENED` as `contact.phone`.
pub type Fields<'a> = BTreeMap<String, RawBsonRef<'a>>;

/// Documents within a document whose fields are compared one by one.
const OPENED: [&str; 5] = ["attachment", "channel_info", "contact", "location", "sender_info"];
/// Fields that tell when something was processed, or by which event: they differ between any two databases.
const OF_PROCESSING: [&str; 5] = ["_id", MERGE_FIELD, "created_at", "last_internal_note_at", "updated_at"];
/// Fields beside [`COUNTS`] that depend on all events since the document began.
const GROWING: [&str; 3] = ["channel", "first_message_ts", "lifecycle_history"];

/// Which of the two the bridge wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bridge {
    /// The first.
    First,
    /// The second.
    Second,
    /// Both, or neither.
    None,
}

/// The fields in which two documents differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Those that should not.
    pub unexpected: Vec<String>,
    /// Those in which Penstock differs from the bridge on purpose.
    pub documented: Vec<String>,
}

/// Compares two documents. What depends on all events since a document began is only compared if both
/// databases got these.
#[must_use]
pub fn compare(first: &RawDocument, second: &RawDocument, bridge: Bridge, is_whole: bool) -> Differences {
    let (first, second) = (fields(first), fields(second));
    let mut differences = Differences::default();
    for name in first.keys().chain(second.keys()).collect::<BTreeSet<_>>() {
        if !is_compared(name, is_whole) || is_same(name, first.get(name), second.get(name)) {
            continue;
        }
        let is_documented = match bridge {
            Bridge::First => is_documented(name, &first, &second),
            Bridge::Second => is_documented(name, &second, &first),
            Bridge::None => false,
        };
        let list = if is_documented { &mut differences.documented } else { &mut differences.unexpected };
        list.push(name.clone());
    }
    differences
}

/// A document's fields. What is no BSON is left out.
pub(super) fn fields(document: &RawDocument) -> Fields<'_> {
    let mut fields = Fields::new();
    for (name, value) in document.iter().flatten() {
        match value {
            RawBsonRef::Document(inner) if OPENED.contains(&name.as_str()) => {
                let inner = inner.iter().flatten();
                fields.extend(
                    inner.map(|(inner, value)| (format!("{}.{}", name.as_str(), inner.as_str()), value)),
                );
            }
            _ => drop(fields.insert(name.as_str().to_owned(), value)),
        }
    }
    fields
}

fn is_compared(name: &str, is_whole: bool) -> bool {
    let depends_on_all =
        COUNTS.contains(&name) || GROWING.contains(&name) || name.starts_with("channel_info.");
    !OF_PROCESSING.contains(&name) && (is_whole || !depends_on_all)
}

fn is_same(name: &str, first: Option<&RawBsonRef<'_>>, second: Option<&RawBsonRef<'_>>) -> bool {
    match (name, first, second) {
        // A set, which the bridge has in the order of arrival.
        ("channel", Some(RawBsonRef::Array(first)), Some(RawBsonRef::Array(second))) => {
            texts(first) == texts(second)
        }
        ("lifecycle_history", Some(RawBsonRef::Array(first)), Some(RawBsonRef::Array(second))) => {
            changes(first) == changes(second)
        }
        _ => first == second,
    }
}

fn texts(list: &RawArray) -> BTreeSet<Option<&str>> {
    list.into_iter().flatten().map(RawBsonRef::as_str).collect()
}

/// Changes of lifecycle without their times, which are those of processing.
fn changes(list: &RawArray) -> Vec<[Option<RawBsonRef<'_>>; 3]> {
    let entries = list.into_iter().flatten().filter_map(RawBsonRef::as_document);
    entries.map(|entry| ["event_id", "from", "to"].map(|name| entry.get(name).ok().flatten())).collect()
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{DateTime, RawDocumentBuf, rawdoc};

    use super::*;

    fn unexpected(first: &RawDocumentBuf, second: &RawDocumentBuf) -> Vec<String> {
        compare(first, second, Bridge::None, true).unexpected
    }

    #[test]
    fn fields_that_differ_are_named() {
        let first = rawdoc! {"_id": "1", "type": "text", "contact": {"id": 7, "phone": "+1"}, "status": []};
        let second = rawdoc! {"_id": "1", "type": "image", "contact": {"id": "7", "phone": "+1"}, "ts": null};
        assert_eq!(unexpected(&first, &second), ["contact.id", "status", "ts", "type"]);
        assert!(unexpected(&first, &first).is_empty());
    }

    #[test]
    fn the_order_of_fields_and_times_of_processing_mean_nothing() {
        let (early, late) = (DateTime::from_millis(1), DateTime::from_millis(2));
        let history = |at| rawdoc! {"from": "a", "to": "b", "timestamp": at, "event_id": "e"};
        let first = rawdoc! {"a": 1, "b": 2, "channel": ["y", "x"], "created_at": early, "lifecycle_history": [history(early)]};
        let second = rawdoc! {
            "b": 2, "a": 1, "channel": ["x", "y"], "created_at": late, "lifecycle_history": [history(late)], "_merge": {}, "updated_at": late
        };
        assert!(unexpected(&first, &second).is_empty());
        let other = rawdoc! {"lifecycle_history": [{"from": "a", "to": "c", "event_id": "e"}]};
        assert_eq!(
            unexpected(&rawdoc! {"lifecycle_history": [history(early)]}, &other),
            ["lifecycle_history"]
        );
    }

    #[test]
    fn what_one_of_them_got_no_events_for_is_not_compared() {
        let first = rawdoc! {"message_count": 40, "channel_info": {"id": 1}, "last_message_ts": 1};
        let second = rawdoc! {"message_count": 2, "channel_info": {"id": 2}, "last_message_ts": 2};
        let names = |is_whole| compare(&first, &second, Bridge::None, is_whole).unexpected;
        assert_eq!(names(false), ["last_message_ts"]);
        assert_eq!(names(true), ["channel_info.id", "last_message_ts", "message_count"]);
    }

    #[test]
    fn what_is_documented_of_the_bridge_is_told_apart() {
        let bridges = rawdoc! {"sender": null, "type": "text"};
        let ours = rawdoc! {"sender": "system", "type": "image"};
        let expected =
            Differences { unexpected: vec!["type".to_owned()], documented: vec!["sender".to_owned()] };
        assert_eq!(compare(&ours, &bridges, Bridge::Second, true), expected);
        assert_eq!(compare(&bridges, &ours, Bridge::First, true), expected);
        assert_eq!(compare(&bridges, &ours, Bridge::Second, true).documented, Vec::<String>::new());
    }
}
