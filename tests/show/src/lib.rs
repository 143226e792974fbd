//! A tenant's documents as people read them.

use mongodb::bson::{Bson, Document};
pub use worker::console::pretty::readable;

/// The collections of the contract.
pub const COLLECTIONS: [&str; 6] =
    ["webhook_events", "messages", "conversations", "contacts", "internal_notes", "calls"];

/// What a document of a collection is, in a few words.
#[must_use]
pub fn summary(collection: &str, document: &Document) -> String {
    let path = |names: &[&str]| {
        let (last, parents) = names.split_last()?;
        let parent = parents.iter().try_fold(document, |document, name| document.get_document(name).ok())?;
        Some(word(parent.get(last)?))
    };
    let field = |name: &str| path(&[name]).unwrap_or_default();
    let text = match collection {
        "messages" => format!("{} {}: {}", field("message_type"), field("type"), content(&path)),
        "conversations" => format!(
            "messages: {}, notes: {}, {}",
            field("message_count"),
            field("internal_note_count"),
            field("status")
        ),
        "contacts" => format!("{} {}, {}", field("firstName"), field("lastName"), field("lifecycle")),
        "internal_notes" => field("text"),
        "calls" => format!("{} {}, {} s", field("direction"), field("status"), field("duration_seconds")),
        _ => field("event_type"),
    };
    text.trim_end_matches([' ', ',', ':']).to_owned()
}

fn content(path: &impl Fn(&[&str]) -> Option<String>) -> String {
    path(&["raw_message", "text"]).or_else(|| path(&["attachment", "fileName"])).unwrap_or_default()
}

/// Longest text shown of a field, in characters.
const MAX_WORD: usize = 40;

fn word(value: &Bson) -> String {
    let text = match value {
        Bson::Null => String::new(),
        Bson::String(text) => text.replace('\n', " "),
        other => other.to_string(),
    };
    if text.chars().count() <= MAX_WORD {
        return text;
    }
    text.chars().take(MAX_WORD).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn a_document_is_told_in_a_few_words() {
        let message =
            doc! {"message_type": "incoming", "type": "text", "raw_message": {"text": "two\nlines"}};
        assert_eq!(summary("messages", &message), "incoming text: two lines");
        assert_eq!(summary("messages", &doc! {"type": Bson::Null}), "");
        let long = doc! {"text": "é".repeat(50)};
        assert_eq!(summary("internal_notes", &long), format!("{}…", "é".repeat(40)));
        assert_eq!(
            summary("conversations", &doc! {"message_count": 2, "internal_note_count": 1}),
            "messages: 2, notes: 1"
        );
    }
}
