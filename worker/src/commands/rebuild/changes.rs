//! What a dry run shows of a document that would change: the names of the fields, or each field before and
//! after. Pure.

use std::collections::BTreeSet;

use mongodb::bson::{RawBsonRef, RawDocument};
use serde_json::{Value, json};

use crate::commands::rfc3339;
use crate::project::table::Change;

/// Characters of a phone that are shown, and at least as many are not.
const SHOWN: usize = 4;

/// As one object, for programs. `before` is null if the document is new.
#[must_use]
pub fn as_json(collection: &str, change: &Change) -> Value {
    let document = |document: &RawDocument| readable(RawBsonRef::Document(document));
    json!({
        "collection": collection,
        "_id": readable(change.id.as_raw_bson_ref()),
        "before": change.before.as_deref().map(document),
        "after": document(&change.after),
    })
}

/// As lines, for people: the document, then its fields.
#[must_use]
pub fn as_lines(collection: &str, change: &Change) -> Vec<String> {
    let shown = as_json(collection, change);
    let nothing = serde_json::Map::new();
    let fields = |name: &str| shown[name].as_object().unwrap_or(&nothing);
    let (before, after) = (fields("before"), fields("after"));
    let is_new = if change.before.is_none() { " (new)" } else { "" };
    let id = shown["_id"].as_str().map_or_else(|| shown["_id"].to_string(), str::to_owned);
    let mut lines = vec![format!("{collection} {id}{is_new}")];
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    for name in after.keys().chain(gone) {
        let value =
            |of: &serde_json::Map<String, Value>| of.get(name).map_or("-".to_owned(), Value::to_string);
        lines.push(format!("  {name}: {} → {}", value(before), value(after)));
    }
    lines
}

/// Without values, as one object, for programs.
#[must_use]
pub fn names_as_json(collection: &str, change: &Change) -> Value {
    let (id, fields) = (id(collection, change), fields(change));
    json!({"collection": collection, "_id": id, "is_new": change.before.is_none(), "fields": fields})
}

/// Without values, as one line, for people.
#[must_use]
pub fn names_as_line(collection: &str, change: &Change) -> String {
    let is_new = if change.before.is_none() { " (new)" } else { "" };
    let fields: Vec<&str> = fields(change).into_iter().collect();
    format!("{collection} {}{is_new}: {}", id(collection, change), fields.join(", "))
}

/// The fields that would change, in any order of the documents.
fn fields(change: &Change) -> BTreeSet<&str> {
    let documents = change.before.iter().chain([&change.after]);
    documents.flat_map(|document| document.iter().flatten()).map(|(name, _)| name.as_str()).collect()
}

/// The `_id`; of a conversation, whose `_id` is a phone, no more than the end, to know it by.
fn id(collection: &str, change: &Change) -> String {
    let id = readable(change.id.as_raw_bson_ref());
    let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
    if !collection.ends_with("conversations") {
        return id;
    }
    let shown = id.chars().count().saturating_sub(SHOWN).min(SHOWN);
    format!("…{}", id.chars().skip(id.chars().count() - shown).collect::<String>())
}

/// As JSON, with dates as people read them.
fn readable(value: RawBsonRef<'_>) -> Value {
    match value {
        RawBsonRef::Document(document) => {
            let fields = document.iter().flatten();
            fields.map(|(name, value)| (name.as_str().to_owned(), readable(value))).collect()
        }
        RawBsonRef::Array(list) => list.into_iter().flatten().map(readable).collect(),
        RawBsonRef::DateTime(at) => rfc3339(at.timestamp_millis()).into(),
        RawBsonRef::ObjectId(id) => json!({"$oid": id.to_hex()}),
        RawBsonRef::String(text) => text.into(),
        RawBsonRef::Boolean(flag) => flag.into(),
        RawBsonRef::Int32(number) => number.into(),
        RawBsonRef::Int64(number) => number.into(),
        RawBsonRef::Double(number) => number.into(),
        RawBsonRef::Null => Value::Null,
        other => format!("{other:?}").into(),
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{oid::ObjectId, rawdoc};

    use super::*;

    #[test]
    fn each_field_is_shown_before_and_after() {
        let change = Change {
            id: "+1555".into(),
            before: Some(rawdoc! {"message_count": 999, "status": "open"}),
            after: rawdoc! {"message_count": 3_i64, "assignee": null},
        };
        let lines = [
            "conversations +1555",
            "  assignee: - → null",
            "  message_count: 999 → 3",
            "  status: \"open\" → -",
        ];
        assert_eq!(as_lines("conversations", &change), lines);
        let expected = json!({
            "collection": "conversations", "_id": "+1555", "before": {"message_count": 999, "status": "open"},
            "after": {"message_count": 3, "assignee": null},
        });
        assert_eq!(as_json("conversations", &change), expected);
    }

    #[test]
    fn without_values_a_document_is_known_by_its_id_and_a_phone_by_its_end() {
        let changed = |id: &str| Change {
            id: id.into(),
            before: Some(rawdoc! {"text": "a secret", "status": "open"}),
            after: rawdoc! {"text": "another secret"},
        };
        for (collection, id, line) in [
            ("test_conversations", "+15550101188", "test_conversations …1188: status, text"),
            ("conversations", "+15551", "conversations …51: status, text"),
            ("conversations", "7", "conversations …: status, text"),
            ("messages", "1122334455", "messages 1122334455: status, text"),
        ] {
            assert_eq!(names_as_line(collection, &changed(id)), line);
        }
        let expected =
            json!({"collection": "contacts", "_id": "7", "is_new": false, "fields": ["status", "text"]});
        assert_eq!(names_as_json("contacts", &changed("7")), expected);
    }

    #[test]
    fn a_new_document_is_shown_whole() {
        let id = ObjectId::from_bytes([7; 12]);
        let change = Change { id: id.into(), before: None, after: rawdoc! {"text": "x"} };
        let lines = as_lines("messages", &change);
        assert_eq!(lines, ["messages {\"$oid\":\"070707070707070707070707\"} (new)", "  text: - → \"x\""]);
        assert_eq!(as_json("messages", &change)["before"], Value::Null);
    }
}
