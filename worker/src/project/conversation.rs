//! `conversations`: one document per `chat_id`.

use std::borrow::Cow;

use mongodb::bson::{DateTime, RawArrayBuf, RawBson, RawBsonRef, RawDocumentBuf};

use super::counted::Counted;
use super::record::Record;
use super::stamp::{MERGE_FIELD, Stamp};
use super::table::Table;
use super::{bridge, contact};
use crate::decode::moment;
use crate::decode::{self, Event, Kind};
use crate::json::Json;
use crate::project::convert::{self, or_null};

/// Whether events of this kind create the conversation, and change it.
#[must_use]
pub fn is_concerned(kind: Kind) -> bool {
    matches!(kind, Kind::Message(_) | Kind::Note | Kind::Opened | Kind::Closed | Kind::Lifecycle)
}

/// Applies any event to its conversation, and creates the conversation if it is missing.
pub fn touch(conversations: &mut Table, chat_id: &str, event: &Event, now: DateTime) {
    let conversation = conversations.get_or_insert(chat_id, || new(now));
    if bridge::is_untouched(conversation) {
        adopt(conversation);
    }
    let stamp = Stamp::of(event);
    if conversation.document("contact").is_none() {
        conversation.set("contact", no_contact());
    }
    if event.contact().is_some() && !event.is_backfilled() {
        forget_backfilled_contact(conversation);
    }
    let may_tell = !event.is_backfilled() || !is_told_by_webhooks(conversation);
    let lifecycle = contact::lifecycle(event).filter(|_| may_tell);
    let lifecycle = lifecycle.filter(|_| stamp.claim_as_latest(conversation, "lifecycle"));
    let sent = event.contact().filter(|_| may_tell);
    if let Some(sent) = sent.filter(|_| stamp.claim_as_latest(conversation, "contact")) {
        let mut contact = contact::nine_fields(Some(sent));
        let known = || Some(conversation.document("contact")?.get("lifecycle").ok()??.into());
        contact.set("lifecycle", or_null(lifecycle.or_else(known)));
        conversation.set("contact", contact);
    } else if let Some(lifecycle) = lifecycle {
        conversation.edit("contact", |contact| contact.set("lifecycle", lifecycle));
    }
    if let Some(assignee) = sent.and_then(contact::assignee)
        && stamp.claim_as_latest(conversation, "assignee")
    {
        conversation.set("assignee", assignee);
    }
    match event.kind {
        Kind::Opened => opened(conversation, event, &stamp),
        Kind::Closed => closed(conversation, event, &stamp),
        _ => {}
    }
}

/// A conversation without messages, its fields in the bridge's order.
#[must_use]
pub fn new(now: DateTime) -> Record {
    Record::from([
        ("created_at", now.into()),
        ("first_message_ts", RawBson::Null),
        ("last_message_ts", RawBson::Null),
        ("message_count", 0.into()),
        ("media_counts", RawDocumentBuf::new().into()),
        ("updated_at", now.into()),
        ("channel", RawArrayBuf::new().into()),
        ("contact", no_contact().into()),
        ("channel_info", RawDocumentBuf::new().into()),
        ("assignee", RawBson::Null),
        ("internal_note_count", 0.into()),
        ("last_internal_note_at", RawBson::Null),
        // Even if no event claims a part of it, it must not look like one of the bridge's.
        (MERGE_FIELD, RawDocumentBuf::new().into()),
    ])
}

/// Remembers what the bridge had counted. The `channel_info` that it wrote is of an earlier message than any
/// event's.
pub fn adopt(conversation: &mut Record) {
    if conversation.document("media_counts").is_some() {
        // As after every count.
        conversation.edit("media_counts", Record::sort);
    }
    let counts = COUNTS.into_iter().filter_map(|name| Some((name, conversation.get(name)?.into())));
    let share: Record = counts.collect();
    let has_channel = conversation.document("channel_info").is_some_and(|info| !info.is_empty());
    bridge::remember(conversation, &share.into());
    if has_channel {
        conversation.set_in(MERGE_FIELD, "channel_info", &Stamp::EARLIEST.text().into());
    }
}

/// Whether webhooks have told who the contact is: to us, or to the bridge.
fn is_told_by_webhooks(conversation: &Record) -> bool {
    bridge::wrote(conversation) || Stamp::is_a_webhooks(conversation, "contact")
}

/// Removes what backfilled events have set of the contact: a webhook has the whole contact, so a field that it
/// lacks is empty.
fn forget_backfilled_contact(conversation: &mut Record) {
    if Stamp::is_a_backfills(conversation, "assignee") {
        conversation.set("assignee", RawBson::Null);
    }
    for (part, is_of_it) in [("contact", false), ("lifecycle", true)] {
        if Stamp::is_a_backfills(conversation, part) {
            conversation.edit("contact", |contact| {
                contact.retain(|name, _| (name == "lifecycle") != is_of_it);
                let stays = std::mem::replace(contact, no_contact());
                contact.extend(stays);
            });
        }
    }
    Stamp::remove_backfilled(conversation, &["assignee", "contact", "lifecycle"]);
}

fn no_contact() -> Record {
    let mut contact = contact::nine_fields(None);
    contact.set("lifecycle", RawBson::Null);
    contact
}

/// Parts of a conversation, with their fields. The contact and its lifecycle share one.
const PARTS: [(&str, &[&str]); 5] = [
    ("assignee", &["assignee"]),
    ("status", &["status"]),
    ("channel_info", &["channel_info"]),
    ("opened", &["opened_source", "first_incoming_message", "first_incoming_message_channel_id"]),
    (
        "closed",
        &[
            "closed_at",
            "category",
            "summary",
            "opened_by_source",
            "closed_by",
            "closed_by_source",
            "first_response_time",
            "resolution_time",
            "incoming_message_count",
            "outgoing_message_count",
            "assignee_team",
            "last_assignment_at",
        ],
    ),
];
/// Fields that events move or add to.
const GROWING: [&str; 5] =
    ["first_message_ts", "last_message_ts", "channel", "last_internal_note_at", "opened_at"];
/// Fields that count.
pub const COUNTS: [&str; 3] = ["message_count", "media_counts", "internal_note_count"];

/// Removes what events have set and added, if all of them are at hand. Parts with a stamp stay.
pub fn forget(conversation: &mut Record) {
    let new = new(DateTime::MIN);
    for (part, fields) in PARTS {
        if !Stamp::is_on(conversation, part) {
            conversation.reset(fields, &new);
        }
    }
    let is_on = |part| Stamp::is_on(conversation, part);
    let (contact_stays, lifecycle_stays) = (is_on("contact"), is_on("lifecycle"));
    conversation.edit("contact", |contact| {
        contact.retain(|name, _| if name == "lifecycle" { lifecycle_stays } else { contact_stays });
        let stays = std::mem::replace(contact, no_contact());
        contact.extend(stays);
    });
    conversation.reset(&GROWING, &new);
}

/// Applies a delivery of a message to its conversation, except for the counts.
pub fn saw_message(conversations: &mut Table, chat_id: &str, event: &Event) {
    let Some(conversation) = conversations.get_mut(chat_id) else { return };
    move_date(conversation, "first_message_ts", event.at_ms, i64::min);
    move_date(conversation, "last_message_ts", event.at_ms, i64::max);
    let Some((channel, sent)) =
        event.member("channel").and_then(|channel| Some((channel, channel.object()?)))
    else {
        return;
    };
    if let Some(name) = channel_name(channel) {
        conversation.add_sorted("channel", &name);
    }
    if Stamp::of_its_own_time(event).claim_as_earliest(conversation, "channel_info") {
        conversation.set("channel_info", channel_info(channel).with_others(sent));
    }
}

fn channel_info(channel: &Json) -> Record {
    let member = |name: &str| convert::member(Some(channel), name);
    Record::from([
        ("id", convert::id(Some(channel), "id")),
        ("name", member("name")),
        ("source", member("source")),
        ("lastMessageTime", member("lastMessageTime")),
        ("lastIncomingMessageTime", member("lastIncomingMessageTime")),
    ])
}

fn channel_name(channel: &Json) -> Option<String> {
    let text = |name: &str| channel.get(name).and_then(Json::text).filter(|text| !text.is_empty());
    text("name").or_else(|| text("source")).map(str::to_owned).or_else(|| channel.get("id")?.id())
}

/// Counts a message in its conversation, or no longer.
pub fn count_message(conversations: &mut Table, counted: &Counted, by: i64) {
    let conversation = counted.chat_id.as_deref().and_then(|chat_id| conversations.get_mut(chat_id));
    let Some(conversation) = conversation else { return };
    add(conversation, "message_count", by);
    if let Some(media) = &counted.media {
        conversation.edit("media_counts", |counts| {
            let kind = media.replace('\0', "\u{fffd}");
            add(counts, kind.clone(), by);
            if whole(counts.get(&kind)) == 0 {
                counts.remove(&kind);
            }
            counts.sort();
        });
    }
}

/// Counts an internal note in its conversation, or no longer.
pub fn count_note(conversations: &mut Table, chat_id: Option<&str>, by: i64) {
    if let Some(conversation) = chat_id.and_then(|chat_id| conversations.get_mut(chat_id)) {
        add(conversation, "internal_note_count", by);
    }
}

/// Moves the time of the last internal note.
pub fn saw_note(conversations: &mut Table, chat_id: &str, at_ms: i64) {
    if let Some(conversation) = conversations.get_mut(chat_id) {
        move_date(conversation, "last_internal_note_at", at_ms, i64::max);
    }
}

fn opened(conversation: &mut Record, event: &Event, stamp: &Stamp) {
    move_date(conversation, "opened_at", event.at_ms, i64::max);
    if stamp.claim_as_latest(conversation, "status") {
        conversation.set("status", "open");
    }
    if stamp.claim_as_latest(conversation, "opened") {
        let said = event.member("conversation");
        conversation.extend(Record::from([
            ("opened_source", convert::member(said, "source")),
            ("first_incoming_message", convert::member(said, "firstIncomingMessage")),
            ("first_incoming_message_channel_id", convert::id(said, "firstIncomingMessageChannelId")),
        ]));
    }
}

fn closed(conversation: &mut Record, event: &Event, stamp: &Stamp) {
    let said = event.member("conversation");
    let moment = |name: &str| said.and_then(|said| said.get(name)).and_then(moment::read);
    if let Some(opened_at) = moment("openedTime").filter(|at| *at <= event.at_ms) {
        move_date(conversation, "opened_at", opened_at, i64::max);
    }
    if stamp.claim_as_latest(conversation, "status") {
        conversation.set("status", "closed");
    }
    if stamp.claim_as_latest(conversation, "closed") {
        let closed_by = said.and_then(|said| decode::given(said.get("closedBy")?));
        conversation.extend(Record::from([
            ("closed_at", convert::date(event.at_ms)),
            ("category", convert::member(said, "category")),
            ("summary", convert::member(said, "summary")),
            ("opened_by_source", convert::member(said, "openedBySource")),
            ("closed_by", or_null(closed_by.map(convert::with_id))),
            ("closed_by_source", convert::member(said, "closedBySource")),
            // Epochs or durations, nobody knows: as sent.
            ("first_response_time", convert::member(said, "firstResponseTime")),
            ("resolution_time", convert::member(said, "resolutionTime")),
            ("incoming_message_count", convert::member(said, "incomingMessageCount")),
            ("outgoing_message_count", convert::member(said, "outgoingMessageCount")),
            ("assignee_team", convert::member(said, "assigneeTeam")),
            ("last_assignment_at", or_null(moment("lastAssignmentTime").map(convert::date))),
        ]));
    }
}

/// Moves a date to this one, if it is chosen.
pub(super) fn move_date(
    record: &mut Record,
    name: &'static str,
    at_ms: i64,
    choose: impl Fn(i64, i64) -> i64,
) {
    let chosen = record.millis(name).map_or(at_ms, |stored| choose(stored, at_ms));
    record.set(name, convert::date(chosen));
}

fn add(record: &mut Record, name: impl Into<Cow<'static, str>>, by: i64) {
    let name = name.into();
    let sum = whole(record.get(&name)) + by;
    record.set(name, i32::try_from(sum).map_or(RawBson::Int64(sum), RawBson::Int32));
}

/// A count; none is 0.
pub(super) fn whole(number: Option<RawBsonRef<'_>>) -> i64 {
    match number {
        Some(RawBsonRef::Int32(number)) => i64::from(number),
        Some(RawBsonRef::Int64(number)) => number,
        #[expect(clippy::cast_possible_truncation, reason = "a count that a shell has written as a double")]
        Some(RawBsonRef::Double(number)) => number as i64,
        _ => 0,
    }
}
