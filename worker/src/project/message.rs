//! `messages`: one document per messageId, from the latest delivery of it.

use mongodb::bson::DateTime;

use super::counted::{COUNTED_PARTS, Counted};
use super::documents::Documents;
use super::record::Record;
use super::returned::{self, Returned};
use super::stamp::Stamp;
use super::table::Table;
use super::{bridge, content, conversation, status};
use crate::decode::{Event, Kind};

/// The parts of a message's document that its deliveries claim: with content, without, and with statuses
/// alone. An earlier part in this list wins over the later ones, whatever their times.
const PARTS: [&str; 3] = [COUNTED_PARTS[0], COUNTED_PARTS[1], "status_only"];
const CONTENT: usize = 0;
const BARE: usize = 1;
const STATUS_ONLY: usize = 2;

/// The `_id` of a message.
#[must_use]
pub fn id(event: &Event) -> String {
    named(event).unwrap_or_else(|| event.key.clone())
}

/// The event id by which a message without messageId is known, if it has one.
#[must_use]
pub fn event_id_of_unnamed(event: &Event) -> Option<String> {
    let event_id = event.members.get("event_id")?.text().filter(|event_id| *event_id == event.key)?;
    named(event).is_none().then(|| event_id.to_owned())
}

/// The messageId that an event has, as text.
pub(super) fn named(event: &Event) -> Option<String> {
    event.member("message").and_then(|message| message.get("messageId")?.id())
}

/// Applies a delivery of a message.
pub fn apply(documents: &mut Documents, event: &Event, now: DateTime) {
    let Documents { messages, conversations, .. } = documents;
    let (id, part, chat_id) = (id(event), part(event), event.chat_id.as_deref());
    let stored = messages.get(&id);
    if event.is_backfilled() && stored.is_some_and(bridge::wrote) {
        return;
    }
    let is_new = stored.is_none();
    let before = stored.and_then(Counted::of);
    let bridges = Returned::find(stored, conversations, chat_id, returned::MESSAGES, &id);

    let message = messages.get_or_insert(&id, || Record::from([("created_at", now.into())]));
    status::tell(message, event);
    // The bridge's messages have content.
    let may_claim = part == CONTENT || !bridges.as_ref().is_some_and(|bridges| bridges.is_there);
    if may_claim && claim(message, &Stamp::of(event), part) {
        if let Some(bridges) = bridges {
            bridges.came_again(message, conversations, &id);
        }
        for name in content::OPTIONAL {
            message.remove(name);
        }
        message.extend(content::fields(event, part == CONTENT));
    }
    if is_new {
        message.sort();
    }
    if let Some(chat_id) = chat_id.filter(|_| part != STATUS_ONLY) {
        conversation::saw_message(conversations, chat_id, event);
    }
    move_count(conversations, before, Counted::of(message));
}

fn move_count(conversations: &mut Table, before: Option<Counted>, after: Option<Counted>) {
    if before == after {
        return;
    }
    for (counted, by) in [(before, -1), (after, 1)] {
        if let Some(counted) = counted {
            conversation::count_message(conversations, &counted, by);
        }
    }
}

fn part(event: &Event) -> usize {
    match event.kind {
        Kind::Status(_) => STATUS_ONLY,
        _ if event.content().is_some() => CONTENT,
        _ => BARE,
    }
}

/// Claims a part of a message, unless another delivery has more content, or is later.
fn claim(message: &mut Record, stamp: &Stamp<'_>, part: usize) -> bool {
    let (more, less) = PARTS.split_at(part);
    let is_told = more.iter().any(|more| Stamp::is_on(message, more));
    if is_told || !stamp.claim_as_latest(message, PARTS[part]) {
        return false;
    }
    Stamp::remove(message, &less[1..]);
    true
}

/// Removes what deliveries have added, if all of them are at hand.
pub fn forget(message: &mut Record) {
    status::forget(message);
}

/// Whether the content of a stored message is known.
#[must_use]
pub fn has_content(message: &Record) -> bool {
    bridge::wrote(message) || Stamp::is_on(message, PARTS[CONTENT])
}
