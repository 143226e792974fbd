//! `internal_notes`: one document per event key.

use mongodb::bson::{Bson, DateTime, Document, doc};
use shared::json::Json;

use super::{Documents, Stamp, contact, conversation};
use crate::convert;
use crate::decode::Event;

/// Applies an internal note.
pub fn apply(documents: &mut Documents, event: &Event) {
    let chat_of = |note: &Document| note.get_str("chat_id").ok().map(str::to_owned);
    let before = documents.notes.get(&event.key).map(chat_of);
    let note = documents.notes.get_or_insert(&event.key, Document::new);
    let is_latest = Stamp::of(event).claim_as_latest(note, "note");
    if is_latest {
        note.extend(document(event));
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

fn document(event: &Event) -> Document {
    doc! {
        "chat_id": event.chat_id.clone(),
        "contact_id": event.contact_id(),
        "contact": contact::nine_fields(event.contact().unwrap_or(&Json::Null)),
        "text": event.member("text").map(convert::value),
        "mentioned_user_ids": list(event, "mentionedUserIds", |id| id.id().map(Bson::String)),
        "mentioned_user_emails": list(event, "mentionedUserEmails", |email| Some(convert::value(email))),
        "attachments": list(event, "attachments", |attachment| Some(convert::value(attachment))),
        "event_type": event.event_type.clone(),
        "created_at": DateTime::from_millis(event.at_ms),
    }
}

fn list(event: &Event, name: &str, element: impl Fn(&Json) -> Option<Bson>) -> Bson {
    let sent = event.member(name).and_then(Json::list).unwrap_or_default();
    Bson::Array(sent.iter().filter_map(element).collect())
}
