//! Documents that the bridge wrote, in several shapes, and what events make of them.

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, bson, doc};
use proptest::prelude::*;

use super::order::arrivals;
use super::*;

/// When the bridge stored what it did, in milliseconds since 1970.
const BEFORE: i64 = 1_790_000_000_000;

/// A conversation, messages, a contact and a note of contact 1 at +1 as the bridge left them.
fn old() -> Database {
    let mut old = Database::default();
    let conversation = doc! {
        "_id": "+1", "created_at": date(BEFORE), "first_message_ts": date(BEFORE), "last_message_ts": date(BEFORE + 9),
        "message_count": 5, "media_counts": {"image": 2, "audio": 1}, "updated_at": date(BEFORE + 9),
        "channel": ["Shop", "Mail"], "contact": {"id": 1, "firstName": "Old"},
        "channel_info": {"id": 9, "name": "Shop", "source": "w"}, "assignee": {"id": 3}, "internal_note_count": 2,
        "last_internal_note_at": date(BEFORE + 8),
    };
    old.conversations.0.insert("+1".into(), conversation);
    let message = doc! {
        "_id": "1", "channel_name": "Shop", "chat_id": "+1", "created_at": date(BEFORE), "event_id": "old-1",
        "message_type": "incoming", "raw_message": {"type": "image", "url": "u"}, "sender": "+1",
        "status": [{"value": "sent", "timestamp": 1_790_000_000}], "ts": date(BEFORE), "type": "image",
    };
    old.messages.0.insert("1".into(), message);
    let oldest = doc! {"_id": "2", "chat_id": "+1", "ts": date(BEFORE + 1), "type": "attachment", "attachment": {"type": "audio"}};
    old.messages.0.insert("2".into(), oldest);
    let id = ObjectId::from_bytes([7; 12]);
    let unnamed = doc! {"_id": id, "chat_id": "+1", "event_id": "a", "ts": date(BEFORE + 2), "raw_message": {"type": "text"}};
    old.messages.0.insert(id.to_string(), unnamed);
    let contact = doc! {
        "_id": "1", "firstName": "Old", "email": "old@example.com", "tags": ["z", "a"], "lifecycle": "Lead",
        "lifecycle_history": [{"from": null, "to": "Lead", "timestamp": date(BEFORE), "event_id": "old-2"}],
        "updated_at": date(BEFORE),
    };
    old.contacts.0.insert("1".into(), contact);
    let note =
        doc! {"_id": "b", "chat_id": "+1", "contact_id": "1", "text": "old", "created_at": date(BEFORE + 8)};
    old.notes.0.insert("b".into(), note);
    old
}

fn message(event_id: &str, rest: &str) -> Event {
    sent(&format!(
        r#"{{"event_id":"{event_id}","event_type":"message.received","contact":{{"id":1,"phone":"+1"}},
            "channel":{{"id":5,"name":"Bot","source":"t"}},"message":{{"timestamp":1799000000,{rest}}}}}"#
    ))
}

fn after(events: &[Event]) -> Database {
    let mut database = old();
    database.write(events);
    database
}

#[test]
fn counts_dates_and_channels_continue() {
    let database = after(&[message("m", r#""messageId":3,"message":{"type":"image","url":"u"}"#)]);
    let conversation = |path| database.conversations.at("+1", path);
    assert_eq!(conversation("message_count"), bson!(6));
    assert_eq!(conversation("media_counts"), bson!({"audio": 1, "image": 3}));
    assert_eq!(conversation("first_message_ts"), date(BEFORE));
    assert_eq!(conversation("last_message_ts"), date(1_799_000_000_000));
    assert_eq!(conversation("created_at"), date(BEFORE));
    assert_eq!(conversation("channel"), bson!(["Bot", "Mail", "Shop"]));
    assert_eq!(conversation("channel_info"), bson!({"id": 9, "name": "Shop", "source": "w"}));
    assert_eq!(conversation("contact.phone"), bson!("+1"));
    assert_eq!(conversation("assignee"), bson!({"id": 3}));
    assert_eq!(conversation("internal_note_count"), bson!(2));
}

#[test]
fn a_conversation_without_a_channel_takes_the_first_that_comes() {
    for info in [bson!({}), Bson::Null] {
        let mut database = old();
        database.conversations.0.get_mut("+1").unwrap().extend(doc! {"channel_info": info, "channel": null});
        database.write(&[message("m", r#""messageId":3,"message":{"type":"text"}"#)]);
        assert_eq!(database.conversations.at("+1", "channel_info.name"), bson!("Bot"));
        assert_eq!(database.conversations.at("+1", "channel"), bson!(["Bot"]));
    }
}

#[test]
fn a_message_of_the_bridge_is_not_counted_again() {
    let database = after(&[
        message(
            "x",
            r#""messageId":1,"message":{"type":"image","url":"new"},"status":[{"value":"read","timestamp":1790000009}]"#,
        ),
        message("y", r#""messageId":"2","message":{"type":"video","url":"u"}"#),
    ]);
    assert_eq!(database.conversations.at("+1", "message_count"), bson!(5));
    assert_eq!(database.conversations.at("+1", "media_counts"), bson!({"image": 2, "audio": 1}));
    assert_eq!(database.messages.at("1", "image_url"), bson!("new"));
    assert_eq!(database.messages.at("1", "created_at"), date(BEFORE));
    let statuses =
        bson!([{"value": "sent", "timestamp": 1_790_000_000}, {"value": "read", "timestamp": 1_790_000_009}]);
    assert_eq!(database.messages.at("1", "status"), statuses);
}

#[test]
fn a_message_of_the_bridge_keeps_its_content_when_a_status_comes() {
    let status = r#""messageId":2,"status":[{"value":"read","timestamp":1790000009}]"#;
    let database = after(&[message("x", status)]);
    let mut expected = old().messages.0["2"].clone();
    expected.insert("status", bson!([{"value": "read", "timestamp": 1_790_000_009}]));
    assert_eq!(database.messages.0["2"], expected);
    assert_eq!(database.conversations, old().conversations);
}

#[test]
fn a_message_to_which_mongodb_gave_its_id_is_found_by_its_event() {
    let database = after(&[message("a", r#""message":{"type":"text","text":"again"}"#)]);
    let id = ObjectId::from_bytes([7; 12]).to_string();
    assert_eq!(database.messages.ids(), [&id, "1", "2"]);
    assert_eq!(database.messages.at(&id, "raw_message.text"), bson!("again"));
    assert_eq!(database.conversations.at("+1", "message_count"), bson!(5));
    let mut database = old();
    database.write(&[message("other", r#""message":{"type":"text","text":"new"}"#)]);
    assert_eq!(database.messages.ids(), [&id, "1", "2", "other"]);
    assert_eq!(database.conversations.at("+1", "message_count"), bson!(6));
}

#[test]
fn a_note_of_the_bridge_is_not_counted_again() {
    let note = |id: &str| {
        sent(&format!(
            r#"{{"event_id":"{id}","event_type":"comment.created","contact":{{"id":1,"phone":"+1"}},"text":"new"}}"#
        ))
    };
    let database = after(&[note("b"), note("c")]);
    assert_eq!(database.conversations.at("+1", "internal_note_count"), bson!(3));
    assert_eq!(database.notes.at("b", "text"), bson!("new"));
}

#[test]
fn tags_and_history_of_a_contact_continue() {
    let event = |rest: &str| sent(&format!(r#"{{"contact":{{"id":"1"}},{rest}}}"#));
    let database = after(&[
        event(r#""event_type":"contact.tag.updated","tag":"vip","action":"add""#),
        event(r#""event_type":"contact.tag.updated","tag":"z","action":"remove""#),
        event(r#""event_id":"l","event_type":"contact.lifecycle.updated","lifecycle":"Hot""#),
        event(r#""event_id":"old-2","event_type":"contact.lifecycle.updated","lifecycle":"Lead""#),
    ]);
    assert_eq!(database.contacts.at("1", "tags"), bson!(["a", "vip"]));
    assert_eq!(database.contacts.at("1", "lifecycle_history.0.event_id"), bson!("old-2"));
    assert_eq!(database.contacts.at("1", "lifecycle_history.0.timestamp"), date(BEFORE));
    assert_eq!(database.contacts.at("1", "lifecycle_history.1.event_id"), bson!("l"));
    assert_eq!(database.contacts.at("1", "lifecycle_history.2"), Bson::Undefined);
}

#[test]
fn rebuild_keeps_what_the_bridge_had_counted_though_its_messages_are_gone() {
    let events = [
        message("x", r#""messageId":1,"message":{"type":"image","url":"u"}"#),
        message("y", r#""messageId":3,"message":{"type":"image","url":"u"}"#),
    ];
    let mut database = after(&events);
    let expected = database.clone();
    database.messages.0.remove("2");
    database.notes.0.clear();
    for garbage in [doc! {"message_count": 1, "media_counts": {}, "internal_note_count": 0}, doc! {}] {
        database.conversations.0.get_mut("+1").unwrap().extend(garbage);
        database.rebuild(&events, 0);
        assert_eq!(database.timeless().conversations, expected.timeless().conversations);
    }
}

#[test]
fn what_came_again_and_was_deleted_then_is_made_anew_and_not_counted_again() {
    let note =
        r#"{"event_id":"b","event_type":"comment.created","contact":{"id":1,"phone":"+1"},"text":"new"}"#;
    let events = [message("x", r#""messageId":1,"message":{"type":"image","url":"u"}"#), sent(note)];
    let before = after(&events);
    let mut database = before.clone();
    database.messages.0.remove("1");
    database.notes.0.clear();
    database.rebuild(&events, 0);
    assert_eq!(database.timeless().conversations, before.timeless().conversations);
    assert_eq!(database.messages.at("1", "image_url"), bson!("u"));
    database.ledger.0.clear();
    database.messages.0.remove("1");
    database.write(&[message("z", r#""messageId":1,"message":{"type":"image","url":"v"}"#)]);
    assert_eq!(database.conversations.at("+1", "message_count"), bson!(5));
}

#[test]
fn rebuild_never_lowers_what_the_ledger_has_forgotten() {
    let mut database = Database::default();
    database.write(&[message("x", r#""messageId":1,"message":{"type":"image","url":"u"}"#)]);
    let last = [message("y", r#""messageId":2,"message":{"type":"text","text":"t"}"#)];
    database.write(&last);
    let expected = database.clone();
    database.messages.0.remove("1");
    database.rebuild(&last, RECEIVED + 2);
    assert_eq!(database.conversations.at("+1", "message_count"), bson!(2));
    assert_eq!(database.timeless().conversations, expected.timeless().conversations);
}

#[test]
fn a_conversation_that_was_deleted_counts_what_is_there() {
    let events = [message("x", r#""messageId":3,"message":{"type":"image","url":"u"}"#)];
    let mut database = after(&events);
    database.conversations.0.clear();
    database.rebuild(&events, 0);
    assert_eq!(database.conversations.at("+1", "message_count"), bson!(4));
    assert_eq!(database.conversations.at("+1", "media_counts"), bson!({"audio": 1, "image": 2}));
    assert_eq!(database.conversations.at("+1", "internal_note_count"), bson!(1));
    assert_eq!(database.conversations.at("+1", "first_message_ts"), date(BEFORE));
}

/// The bridge's documents, or some of them.
fn leftovers() -> impl Strategy<Value = Database> {
    prop::collection::vec(any::<bool>(), 3).prop_map(|kept| {
        let mut old = old();
        if !kept[0] {
            old.messages.0.remove("1");
        }
        if !kept[1] {
            old.contacts.0.clear();
        }
        if !kept[2] {
            old.notes.0.clear();
        }
        old
    })
}

fn continued(mut database: Database, batches: &[Vec<Event>]) -> Database {
    for batch in batches {
        database.write(batch);
    }
    database
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn neither_order_nor_batches_nor_repetition_show((events, batches) in arrivals(), old in leftovers()) {
        let one_by_one: Vec<_> = events.iter().map(|event| vec![event.clone()]).collect();
        prop_assert_eq!(
            continued(old.clone(), &batches).timeless(),
            continued(old, &one_by_one).timeless()
        );
    }

    #[test]
    fn rebuilt_documents_are_the_same((_, batches) in arrivals(), old in leftovers(), horizon in select_horizon()) {
        let before = continued(old, &batches);
        let mut after = before.clone();
        after.rebuild(&before.events(), horizon);
        let (mut before, mut after) = (before, after);
        for (before, after) in before.collections().into_iter().zip(after.collections()) {
            prop_assert_eq!(before.ids(), after.ids());
            for (id, document) in &before.0 {
                prop_assert_eq!(document, &after.0[id]);
            }
        }
    }

    #[test]
    fn what_the_bridge_stored_may_be_deleted((_, batches) in arrivals(), horizon in select_horizon()) {
        let before = continued(old(), &batches);
        let mut after = before.clone();
        let is_the_bridges = |document: &Document| crate::project::bridge::wrote(&record(document));
        after.messages.0.retain(|_, message| !is_the_bridges(message));
        after.notes.0.retain(|_, note| !is_the_bridges(note));
        after.rebuild(&before.events(), horizon);
        let counts = ["message_count", "internal_note_count"];
        for id in before.conversations.ids() {
            for name in counts {
                let count = |database: &Database| database.conversations.at(id, name).as_i32();
                prop_assert!(count(&after) >= count(&before), "{} of {}", name, id);
            }
        }
    }
}

/// The ledger has all that ever happened, or what came after the first batches.
fn select_horizon() -> impl Strategy<Value = i64> {
    prop::sample::select(vec![0, RECEIVED, RECEIVED + 4])
}
