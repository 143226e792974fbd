//! What a dry run shows of a document that would change: each field, before and after. Pure.

use mongodb::bson::{RawBsonRef, RawDocument};
use serde_json::{Value, json};

use crate::commands::rfc3339;
use crate::project::table::Change;

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
    fn a_new_document_is_shown_whole() {
        let id = ObjectId::from_bytes([7; 12]);
        let change = Change { id: id.into(), before: None, after: rawdoc! {"text": "x"} };
        let lines = as_lines("messages", &change);
        assert_eq!(lines, ["messages {\"$oid\":\"070707070707070707070707\"} (new)", "  text: - → \"x\""]);
        assert_eq!(as_json("messages", &change)["before"], Value::Null);
    }
}
