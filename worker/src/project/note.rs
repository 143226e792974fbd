//! `internal_notes`: one document per event key.

use mongodb::bson::RawBson;
use shared::json::Json;

use super::record::Record;
use super::{Documents, Stamp, contact, conversation};
use crate::convert::{self, or_null};
use crate::decode::Event;

/// Applies an internal note.
pub fn apply(documents: &mut Documents, event: &Event) {
    let chat_of = |note: &Record| note.text("chat_id").map(str::to_owned);
    let before = documents.notes.get(&event.key).map(chat_of);
    let note = documents.notes.get_or_insert(&event.key, Record::default);
    let is_latest = Stamp::of(event).claim_as_latest(note, "note");
    if is_latest {
        note.extend(record(event));
    }
    if let Some(chat_id) = &event.chat_id {
        conversation::note_internal_note(&mut documents.conversations, chat_id, event.at_ms);
    }
    if before.is_none() || is_latest && before.as_ref() != Some(&event.chat_id) {
        if let Some(before) = before {
            conversation::count_note(&mut documents.conversations, before.as_deref(), -1);
        }
        conversation::count_note(&mut documents.conversations, event.chat_id.as_deref(), 1);
    }
}

fn record(event: &Event) -> Record {
    Record::from([
        ("chat_id", or_null(event.chat_id.as_deref())),
        ("contact_id", or_null(event.contact_id())),
        ("contact", contact::nine_fields(event.contact()).into()),
        ("text", or_null(event.member("text").map(convert::value))),
        ("mentioned_user_ids", list(event, "mentionedUserIds", |id| id.id().map(RawBson::String))),
        ("mentioned_user_emails", list(event, "mentionedUserEmails", |email| Some(convert::value(email)))),
        ("attachments", list(event, "attachments", |attachment| Some(convert::value(attachment)))),
        ("event_type", or_null(event.event_type.as_deref())),
        ("created_at", convert::date(event.at_ms)),
    ])
}

fn list(event: &Event, name: &str, element: impl Fn(&Json) -> Option<RawBson>) -> RawBson {
    let sent = event.member(name).and_then(Json::list).unwrap_or_default();
    RawBson::Array(sent.iter().filter_map(element).collect())
}
