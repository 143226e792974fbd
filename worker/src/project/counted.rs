//! What a message adds to its conversation's counts.

use mongodb::bson::RawDocument;

use super::bridge;
use super::record::Record;
use super::stamp::Stamp;

/// The parts of a message's document that deliveries with content and without claim. One with neither is
/// known by its statuses alone, and doesn't count.
pub const COUNTED_PARTS: [&str; 2] = ["message", "bare"];

/// What a message adds to its conversation's counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The conversation.
    pub chat_id: Option<String>,
    /// The kind of medium, if it is one.
    pub media: Option<String>,
}

impl Counted {
    /// What a stored message adds; nothing, if only statuses of it are known, or if the bridge has counted
    /// it.
    #[must_use]
    pub fn of(message: &Record) -> Option<Self> {
        let is_counted = COUNTED_PARTS.iter().any(|part| Stamp::is_on(message, part));
        (is_counted && !bridge::wrote(message)).then(|| Self::by_looks_of(message))
    }

    /// What a message has added if the bridge wrote it, as far as that can be told.
    #[must_use]
    pub fn by_the_bridge(message: &Record) -> Option<Self> {
        let chat_id = bridge::counted_in(message)?.to_owned();
        Some(Self { chat_id: Some(chat_id), ..Self::by_looks_of(message) })
    }

    fn by_looks_of(message: &Record) -> Self {
        let media = match message.document("raw_message") {
            Some(raw) => media_kind(raw.get_str("type").ok(), raw.get_document("attachment").ok()),
            // The bridge's oldest messages have none.
            None => media_kind(message.text("type"), message.document("attachment")),
        };
        Self { chat_id: message.text("chat_id").map(str::to_owned), media }
    }
}

fn media_kind(kind: Option<&str>, attachment: Option<&RawDocument>) -> Option<String> {
    match kind? {
        "attachment" => {
            let kind = attachment.and_then(|attachment| attachment.get_str("type").ok());
            Some(kind.unwrap_or("file").to_owned())
        }
        kind @ ("image" | "video" | "document" | "audio" | "file" | "media") => Some(kind.to_owned()),
        _ => None,
    }
}
