//! The counts of conversations, from the messages and notes that are there. Pure.

use std::collections::BTreeSet;

use mongodb::bson::{DateTime, RawDocument};

use super::conversation::{self, COUNTS, count_message, count_note, move_date, whole};
use super::counted::Counted;
use super::documents::Documents;
use super::neighbours::{Neighbours, Tally};
use super::record::Record;
use super::table::Table;
use super::{bridge, note};

/// Counts the messages and notes that are there: those of these documents, and their neighbours. What the
/// bridge had counted is taken from its share, if that is remembered.
pub fn recount(documents: &mut Documents, neighbours: &Neighbours, known_whole: &BTreeSet<String>) {
    let Documents { messages, notes, conversations, .. } = documents;
    conversations.iter_mut().for_each(start_counting);
    for message in messages.iter() {
        let unremembered = || {
            let counted = Counted::by_the_bridge(message)?;
            (!is_the_bridges(conversations, counted.chat_id.as_deref())).then_some(counted)
        };
        if let Some(counted) = Counted::of(message).or_else(unremembered) {
            count_message(conversations, &counted, 1);
        }
    }
    for note in notes.iter() {
        let unremembered =
            bridge::counted_in(note).filter(|chat_id| !is_the_bridges(conversations, Some(chat_id)));
        count_note(conversations, note::counted_in(note).as_deref().or(unremembered), 1);
    }
    for (chat_id, seen) in neighbours.iter() {
        add_seen(conversations, chat_id, &seen.ours);
        if !is_the_bridges(conversations, Some(chat_id)) {
            add_seen(conversations, chat_id, &seen.bridges);
        }
    }
    for (id, stored, conversation) in conversations.iter_mut_with_stored() {
        if !known_whole.contains(id) {
            keep_highest(conversation, stored);
        }
    }
}

/// Gives a conversation the counts that it has as it is stored.
pub fn leave_uncounted(conversation: &mut Record, stored: &RawDocument) {
    for name in COUNTS {
        match stored.get(name).ok().flatten() {
            Some(count) => conversation.set(name, count),
            None => conversation.remove(name),
        }
    }
}

/// Starts from what the bridge had counted, or from nothing.
fn start_counting(conversation: &mut Record) {
    if bridge::is_untouched(conversation) {
        return;
    }
    let share = bridge::share(conversation).and_then(|share| Record::read(share).ok());
    conversation.reset(&COUNTS, &share.unwrap_or_else(|| conversation::new(DateTime::MIN)));
}

/// Whether the bridge wrote the conversation, so that what it stored is counted there.
fn is_the_bridges(conversations: &Table, chat_id: Option<&str>) -> bool {
    chat_id.and_then(|chat_id| conversations.get(chat_id)).is_some_and(bridge::wrote)
}

fn add_seen(conversations: &mut Table, chat_id: &str, seen: &Tally) {
    for (media, count) in &seen.messages {
        let counted = Counted { chat_id: Some(chat_id.to_owned()), media: media.clone() };
        count_message(conversations, &counted, *count);
    }
    count_note(conversations, Some(chat_id), seen.notes);
    let Some(conversation) = conversations.get_mut(chat_id) else { return };
    if let Some((first, last)) = seen.span {
        move_date(conversation, "first_message_ts", first, i64::min);
        move_date(conversation, "last_message_ts", last, i64::max);
    }
    if let Some(at) = seen.last_note {
        move_date(conversation, "last_internal_note_at", at, i64::max);
    }
    for name in &seen.channels {
        conversation.add_sorted("channel", name);
    }
}

/// What is missing may have been deleted by its owner after the ledger had forgotten it: it stays counted.
fn keep_highest(conversation: &mut Record, stored: &RawDocument) {
    for name in ["message_count", "internal_note_count"] {
        let counted = stored.get(name).ok().flatten();
        if let Some(counted) = counted.filter(|_| whole(counted) > whole(conversation.get(name))) {
            conversation.set(name, counted);
        }
    }
    for (kind, counted) in stored.get_document("media_counts").into_iter().flatten().flatten() {
        let kind = kind.as_str();
        let now = conversation.document("media_counts").and_then(|counts| counts.get(kind).ok().flatten());
        if whole(Some(counted)) > whole(now) {
            conversation.edit("media_counts", |counts| {
                counts.set(kind.to_owned(), counted);
                counts.sort();
            });
        }
    }
}
