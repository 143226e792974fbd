//! What else is in a conversation whose counts are computed anew. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::counted::Counted;
use super::record::Record;
use super::stamp::MERGE_FIELD;
use super::{bridge, note};

/// Fields of a message by which it counts in its conversation.
pub const MESSAGES_COUNTED_BY: [&str; 9] = [
    "chat_id",
    "ts",
    "channel_name",
    "channel_source",
    "type",
    "attachment.type",
    "raw_message.type",
    "raw_message.attachment.type",
    MERGE_FIELD,
];
/// Fields of a note by which it counts in its conversation.
pub const NOTES_COUNTED_BY: [&str; 3] = ["chat_id", "created_at", MERGE_FIELD];

/// What else is in conversations: messages and notes of which no event is at hand.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    chats: BTreeMap<String, Seen>,
}

/// What they add to their conversation.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// What events have brought.
    pub ours: Tally,
    /// What the bridge stored.
    pub bridges: Tally,
}

/// Messages and notes of a conversation.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Messages, by kind of medium.
    pub messages: BTreeMap<Option<String>, i64>,
    /// Times of the first and the last message, in milliseconds since 1970.
    pub span: Option<(i64, i64)>,
    /// Names of channels.
    pub channels: BTreeSet<String>,
    /// Notes.
    pub notes: i64,
    /// Time of the last note, in milliseconds since 1970.
    pub last_note: Option<i64>,
}

impl Neighbours {
    /// Adds a message, of which the fields [`MESSAGES_COUNTED_BY`] are known.
    pub fn add_message(&mut self, message: &Record) {
        let is_the_bridges = bridge::wrote(message);
        let counted = Counted::of(message).or_else(|| Counted::by_the_bridge(message));
        let Some(Counted { chat_id: Some(chat_id), media }) = counted else { return };
        let tally = self.tally(chat_id, is_the_bridges);
        *tally.messages.entry(media).or_default() += 1;
        if let Some(at) = message.millis("ts") {
            let (first, last) = tally.span.unwrap_or((at, at));
            tally.span = Some((first.min(at), last.max(at)));
        }
        let text = |name: &str| message.text(name).filter(|text| !text.is_empty());
        tally.channels.extend(text("channel_name").or_else(|| text("channel_source")).map(str::to_owned));
    }

    /// Adds a note, of which the fields [`NOTES_COUNTED_BY`] are known.
    pub fn add_note(&mut self, note: &Record) {
        let counted = note::counted_in(note).or_else(|| bridge::counted_in(note).map(str::to_owned));
        let Some(chat_id) = counted else { return };
        let tally = self.tally(chat_id, bridge::wrote(note));
        tally.notes += 1;
        tally.last_note = tally.last_note.max(note.millis("created_at"));
    }

    fn tally(&mut self, chat_id: String, is_the_bridges: bool) -> &mut Tally {
        let seen = self.chats.entry(chat_id).or_default();
        if is_the_bridges { &mut seen.bridges } else { &mut seen.ours }
    }

    /// By conversation.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Seen)> {
        self.chats.iter()
    }
}
