//! `internal_notes`: one document per event key.

use mongodb::bson::RawBson;

use super::documents::Documents;
use super::record::Record;
use super::returned::{self, Returned};
use super::stamp::Stamp;
use super::{bridge, contact, conversation};
use crate::decode::Event;
use crate::json::Json;
use crate::project::convert::{self, or_null};

/// Fields of the contact, in the bridge's order.
const CONTACT: [&str; 9] =
    ["id", "firstName", "lastName", "phone", "email", "language", "profilePic", "countryCode", "status"];

/// Applies an internal note.
pub fn apply(documents: &mut Documents, event: &Event) {
    let Documents { notes, conversations, .. } = documents;
    let (id, chat_id) = (&event.key, event.chat_id.as_deref());
    let stored = notes.get(id);
    let is_new = stored.is_none();
    let before = stored.and_then(counted_in);
    let bridges = Returned::find(stored, conversations, chat_id, returned::NOTES, id);

    let note = notes.get_or_insert(id, Record::default);
    if Stamp::of(event).claim_as_latest(note, "note") {
        if let Some(bridges) = bridges {
            bridges.came_again(note, conversations, id);
        }
        note.extend(record(event));
    }
    if is_new {
        note.sort();
    }
    if let Some(chat_id) = chat_id {
        conversation::saw_note(conversations, chat_id, event.at_ms);
    }
    let after = counted_in(note);
    if before != after {
        conversation::count_note(conversations, before.as_deref(), -1);
        conversation::count_note(conversations, after.as_deref(), 1);
    }
}

/// The conversation that counts a note: none, if it is among what the bridge had counted.
#[must_use]
pub fn counted_in(note: &Record) -> Option<String> {
    note.text("chat_id").filter(|_| !bridge::wrote(note)).map(str::to_owned)
}

fn contact(event: &Event) -> Record {
    let mut contact = contact::fields(event.contact(), &CONTACT);
    if let Some(assignee) = event.contact().and_then(contact::assignee) {
        contact.set("assignee", assignee);
    }
    contact
}

fn record(event: &Event) -> Record {
    Record::from([
        ("chat_id", or_null(event.chat_id.as_deref())),
        ("contact_id", or_null(event.contact_id())),
        ("contact", contact(event).into()),
        ("text", or_null(event.member("text").map(convert::value))),
        (
            "mentioned_user_ids",
            list(event, "mentionedUserIds", |id| convert::id_value(id).unwrap_or_else(|| convert::value(id))),
        ),
        ("mentioned_user_emails", list(event, "mentionedUserEmails", convert::value)),
        ("attachments", list(event, "attachments", convert::value)),
        ("event_type", or_null(event.event_type.as_deref())),
        ("created_at", convert::date(event.at_ms)),
    ])
}

fn list(event: &Event, name: &str, element: impl Fn(&Json) -> RawBson) -> RawBson {
    let sent = event.member(name).and_then(Json::list).unwrap_or_default();
    RawBson::Array(sent.iter().map(element).collect())
}
