//! Messages and notes of the bridge that events bring again: the bridge has counted them.

use mongodb::bson::rawdoc;

use super::record::Record;
use super::table::Table;
use super::{bridge, conversation};
use crate::project::convert::or_null;

/// Where a conversation remembers which of the bridge's messages came again.
pub const MESSAGES: &str = "messages";
/// Where a conversation remembers which of the bridge's notes came again.
pub const NOTES: &str = "notes";

/// A message or a note that the bridge stored.
#[derive(Debug)]
pub struct Returned {
    /// Whether it is still there. Otherwise it came again before it was deleted.
    pub is_there: bool,
    /// The conversation in which the bridge has counted it.
    counted_in: Option<String>,
    /// Where a conversation remembers those that came again: [`MESSAGES`] or [`NOTES`].
    kind: &'static str,
}

impl Returned {
    /// Looks whether the bridge stored the message or the note of this id, which an event of this chat
    /// brings.
    #[must_use]
    pub fn find(
        document: Option<&Record>,
        conversations: &Table,
        chat_id: Option<&str>,
        kind: &'static str,
        id: &str,
    ) -> Option<Self> {
        let of_the_bridge = match document {
            Some(document) => bridge::wrote(document),
            None => has_come_again(conversations.get(chat_id?)?, kind, id),
        };
        let counted_in = document.map_or(chat_id, bridge::counted_in).map(str::to_owned);
        of_the_bridge.then_some(Self { is_there: document.is_some(), counted_in, kind })
    }

    /// Records in the document that the bridge has counted it, and where; and in that conversation, that it
    /// came again: so it still counts if it is deleted and made again from the ledger.
    pub fn came_again(self, document: &mut Record, conversations: &mut Table, id: &str) {
        let Self { counted_in, kind, .. } = self;
        bridge::remember(document, &rawdoc! {"chat_id": or_null(counted_in.as_deref())}.into());
        let conversation = counted_in.and_then(|chat_id| conversations.get_mut(&chat_id));
        let Some(conversation) = conversation else { return };
        if bridge::is_untouched(conversation) {
            conversation::adopt(conversation);
        }
        if let Some(Ok(mut share)) = bridge::share(conversation).map(Record::read) {
            share.add_sorted(kind, id);
            bridge::remember(conversation, &share.into());
        }
    }
}

fn has_come_again(conversation: &Record, kind: &str, id: &str) -> bool {
    let known = bridge::share(conversation).and_then(|share| share.get_array(kind).ok());
    known.into_iter().flatten().flatten().any(|known| known.as_str() == Some(id))
}
