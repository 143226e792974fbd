//! `contacts`, and what conversations know of them.

use mongodb::bson::{Bson, bson, doc};
use shared::event::Stream;

use super::*;

/// A contact event received this many milliseconds after the first.
fn updated(after: i64, contact: &str) -> Event {
    sent_at(RECEIVED + after, &format!(r#"{{"event_type":"contact.updated","contact":{contact}}}"#))
}

fn lifecycle(event_id: &str, after: i64, rest: &str) -> Event {
    let body = format!(r#"{{"event_id":"{event_id}","event_type":"contact.lifecycle.updated",{rest}}}"#);
    sent_at(RECEIVED + after, &body)
}

#[test]
fn a_contact_has_every_field_of_its_shape() {
    let contacts = stored(&[updated(0, r#"{"id":1.0}"#)]).contacts;
    let mut document = contacts.0["1"].clone();
    for name in ["created_at", "updated_at", "_merge"] {
        assert!(document.remove(name).is_some(), "{name}");
    }
    let mut expected = nine(doc! {"_id": "1", "id": 1});
    expected.extend(doc! {
        "tags": [], "lifecycle": null, "assignee": null, "custom_fields": [], "lifecycle_history": [],
    });
    assert_eq!(document, expected);
}

#[test]
fn a_later_snapshot_is_never_overwritten_by_an_earlier_one() {
    let events = [
        updated(2, r#"{"id":1,"firstName":"New","email":"new@example.com","status":"open"}"#),
        updated(1, r#"{"id":1,"firstName":"Old","lastName":"Name","email":"old@example.com"}"#),
    ];
    let contacts = stored(&events).contacts;
    assert_eq!(contacts.at("1", "firstName"), bson!("New"));
    assert_eq!(contacts.at("1", "email"), bson!("new@example.com"));
    // A snapshot is whole.
    assert_eq!(contacts.at("1", "lastName"), Bson::Null);
}

#[test]
fn a_conversation_knows_its_contact_as_of_the_latest_event() {
    let message = |id: u32, at: i64, contact: &str| {
        sent(&format!(
            r#"{{"event_id":"e{id}","event_type":"message.received","contact":{contact},
                "message":{{"messageId":{id},"contactId":1,"timestamp":{at}}}}}"#
        ))
    };
    let conversations = stored(&[
        message(1, 1_799_000_000, r#"{"id":1,"firstName":"Old","lifecycle":"Lead","assignee":{"id":2}}"#),
        message(2, 1_799_000_001, r#"{"id":1,"firstName":"New","lifecycle":null}"#),
        message(3, 1_799_000_002, "null"),
        message(4, 1_799_000_003, r#"{"id":null,"firstName":null}"#),
    ])
    .conversations;
    assert_eq!(conversations.at("1", "contact.firstName"), bson!("New"));
    assert_eq!(conversations.at("1", "contact.lifecycle"), bson!("Lead"));
    assert_eq!(conversations.at("1", "assignee"), bson!({"id": 2}));
    assert_eq!(conversations.at("1", "message_count"), bson!(4));
}

#[test]
fn an_object_of_nulls_is_nobody() {
    for nobody in ["null", "{}", r#"{"id":null,"firstName":null,"lastName":null,"email":null}"#] {
        let contacts = stored(&[
            updated(0, r#"{"id":1,"assignee":{"id":5,"email":null}}"#),
            updated(1, &format!(r#"{{"id":1,"assignee":{nobody}}}"#)),
        ])
        .contacts;
        assert_eq!(contacts.at("1", "assignee"), Bson::Null, "{nobody}");
    }
}

#[test]
fn an_event_silent_on_assignee_tags_and_fields_leaves_them() {
    let contacts = stored(&[
        updated(
            0,
            r#"{"id":1,"assignee":{"id":5,"email":null},"tags":["a"],"color":"red","lifecycle":"Lead"}"#,
        ),
        updated(1, r#"{"id":1,"lifecycle":null}"#),
    ])
    .contacts;
    assert_eq!(contacts.at("1", "assignee"), bson!({"id": 5, "email": null}));
    assert_eq!(contacts.at("1", "tags"), bson!(["a"]));
    assert_eq!(contacts.at("1", "custom_fields"), bson!([{"name": "color", "value": "red"}]));
    assert_eq!(contacts.at("1", "lifecycle"), bson!("Lead"));
}

#[test]
fn tags_are_those_of_the_latest_event_that_has_them() {
    let contacts = stored(&[
        updated(0, r#"{"id":1,"tags":["a","b"]}"#),
        updated(1, r#"{"id":1,"tags":["$b"]}"#),
        updated(2, r#"{"id":1}"#),
    ])
    .contacts;
    assert_eq!(contacts.at("1", "tags"), bson!(["$b"]));
    let contacts = stored(&[updated(0, r#"{"id":1,"tags":["a"]}"#), updated(1, r#"{"id":1,"tags":[]}"#)]);
    assert_eq!(contacts.contacts.at("1", "tags"), bson!([]));
}

/// An event that adds or removes a tag, received this many milliseconds after the first.
fn tag(after: i64, action: &str, tag: &str) -> Event {
    let body = format!(
        r#"{{"event_type":"contact.tag.updated","contact":{{"id":1}},"tag":"{tag}","action":"{action}"}}"#
    );
    sent_at(RECEIVED + after, &body)
}

#[test]
fn a_tag_is_added_and_removed_without_the_others() {
    let before = sent_at(RECEIVED, include_str!("../../../../tests/cases/tag-before.json"));
    let without_tags = sent_at(RECEIVED + 1, include_str!("../../../../tests/cases/tag-without-tags.json"));
    assert_eq!(stored(&[before, without_tags]).contacts.at("512009", "tags"), bson!(["vip", "x"]));
    let events = [
        updated(0, r#"{"id":1,"tags":["z","b"]}"#),
        tag(1, "add", "y"),
        tag(2, "remove", "b"),
        tag(3, "add", "a"),
        tag(4, "remove", "y"),
        tag(5, "flip", "c"),
        tag(6, "add", "z"),
    ];
    assert_eq!(stored(&events).contacts.at("1", "tags"), bson!(["a", "z"]));
}

#[test]
fn a_snapshot_with_tags_replaces_all_that_is_older_and_nothing_that_is_later() {
    let events = [
        tag(0, "add", "old"),
        tag(1, "remove", "b"),
        updated(2, r#"{"id":1,"tags":["c","b"]}"#),
        updated(3, r#"{"id":1}"#),
        tag(4, "remove", "c"),
        tag(5, "add", "new"),
    ];
    assert_eq!(stored(&events).contacts.at("1", "tags"), bson!(["b", "new"]));
    let later = updated(6, r#"{"id":1,"tags":["z","a"]}"#);
    let contacts = stored(&[&events[..], &[later]].concat()).contacts;
    assert_eq!(contacts.at("1", "tags"), bson!(["z", "a"]), "as sent");
    assert_eq!(contacts.at("1", "_merge.tag_changes"), Bson::Undefined);
}

#[test]
fn tags_beside_a_single_tag_have_the_say() {
    let body =
        r#"{"event_type":"contact.tag.updated","contact":{"id":1,"tags":["a"]},"tag":"b","action":"add"}"#;
    assert_eq!(stored(&[sent(body)]).contacts.at("1", "tags"), bson!(["a"]));
    let without =
        r#"{"event_type":"contact.tag.updated","contact":{"id":1,"tags":null},"tag":"b","action":"add"}"#;
    assert_eq!(stored(&[sent(without)]).contacts.at("1", "tags"), bson!(["b"]));
}

#[test]
fn everything_else_is_a_custom_field_sorted_by_name() {
    let contacts = stored(&[updated(
        0,
        r#"{"id":1,"zip":"0042","a.b":{"$c":1},"$set":[1.50],"":null,"_id":"x","_merge":{"contact":null},
            "lifecycle_history":[1],"updated_at":"never","nul\u0000":true}"#,
    )])
    .contacts;
    let expected = bson!([
        {"name": "", "value": null},
        {"name": "$set", "value": [1.5]},
        {"name": "_id", "value": "x"},
        {"name": "_merge", "value": {"contact": null}},
        {"name": "a.b", "value": {"$c": 1}},
        {"name": "lifecycle_history", "value": [1]},
        {"name": "nul\0", "value": true},
        {"name": "updated_at", "value": "never"},
        {"name": "zip", "value": "0042"},
    ]);
    assert_eq!(contacts.at("1", "custom_fields"), expected);
    assert_eq!(contacts.at("1", "lifecycle_history"), bson!([]));
}

#[test]
fn listed_custom_fields_are_like_flat_ones() {
    let contacts = stored(&[
        updated(0, r#"{"id":1,"order_count":3,"tier":"silver"}"#),
        updated(
            1,
            r#"{"id":1,"custom_fields":[{"name":"tier","value":"gold"},{"name":"order_count","value":"4"},
                {"name":"none","value":null},{"name":"missing"},"odd",null]}"#,
        ),
    ])
    .contacts;
    let expected = bson!([
        {"name": "missing", "value": null},
        {"name": "none", "value": null},
        {"name": "order_count", "value": "4"},
        {"name": "tier", "value": "gold"},
    ]);
    assert_eq!(contacts.at("1", "custom_fields"), expected);
}

#[test]
fn a_contact_was_created_when_its_events_say() {
    let contacts = stored(&[
        updated(0, r#"{"id":1,"created_at":1791792891}"#),
        updated(1, r#"{"id":1,"created_at":1e300}"#),
    ]);
    assert_eq!(contacts.contacts.at("1", "created_at"), date(1_791_792_891_000));
}

#[test]
fn a_contact_without_id_is_not_stored() {
    for contact in ["null", "{}", r#"{"id":null,"phone":"+1555"}"#, r#"{"id":""}"#, r#""1""#, "[1]"] {
        let database = stored(&[updated(0, contact)]);
        assert_eq!(database.contacts.ids(), [""; 0], "{contact}");
        assert_eq!(database.ledger.ids().len(), 1, "{contact}");
    }
}

#[test]
fn a_lifecycle_event_changes_the_lifecycle_and_null_removes_it() {
    let database = stored(&[
        lifecycle("a", 0, r#""contact":{"id":1,"lifecycle":"Lead"},"lifecycle":"Lead","oldLifecycle":null"#),
        lifecycle("b", 1, r#""contact":{"id":1,"lifecycle":"Lead"},"lifecycle":null,"oldLifecycle":"Lead""#),
    ]);
    assert_eq!(database.contacts.at("1", "lifecycle"), Bson::Null);
    assert_eq!(database.conversations.at("1", "contact.lifecycle"), Bson::Null);
    let history = bson!([
        {"from": null, "to": "Lead", "timestamp": date(RECEIVED), "event_id": "a"},
        {"from": "Lead", "to": null, "timestamp": date(RECEIVED + 1), "event_id": "b"},
    ]);
    assert_eq!(database.contacts.at("1", "lifecycle_history"), history);
}

#[test]
fn a_snapshot_brings_a_lifecycle_but_never_takes_it_away() {
    let contacts = stored(&[
        lifecycle("a", 0, r#""contact":{"id":1},"lifecycle":"Lead","oldLifecycle":null"#),
        updated(1, r#"{"id":1,"lifecycle":"Customer"}"#),
        updated(2, r#"{"id":1,"lifecycle":null}"#),
        updated(3, r#"{"id":1}"#),
    ])
    .contacts;
    assert_eq!(contacts.at("1", "lifecycle"), bson!("Customer"));
    assert_eq!(contacts.at("1", "lifecycle_history.1"), Bson::Undefined);
}

#[test]
fn lifecycle_history_counts_an_event_id_once_and_is_in_order() {
    let contacts = stored(&[
        lifecycle("b", 5, r#""contact":{"id":1},"lifecycle":"Second","oldLifecycle":"First""#),
        lifecycle("a", 5, r#""contact":{"id":1},"lifecycle":"Tie","oldLifecycle":"First""#),
        lifecycle("z", 0, r#""contact":{"id":1},"lifecycle":"First","oldLifecycle":null"#),
        lifecycle("z", 9, r#""contact":{"id":1},"lifecycle":"Other body","oldLifecycle":null"#),
    ])
    .contacts;
    for (position, event_id) in ["z", "a", "b"].into_iter().enumerate() {
        let path = format!("lifecycle_history.{position}.event_id");
        assert_eq!(contacts.at("1", &path), bson!(event_id));
    }
    assert_eq!(contacts.at("1", "lifecycle_history.3"), Bson::Undefined);
    assert_eq!(contacts.at("1", "lifecycle_history.0.to"), bson!("First"));
    assert_eq!(contacts.at("1", "lifecycle"), bson!("Other body"));
}

#[test]
fn a_lifecycle_on_its_path_needs_no_type() {
    let body = r#"{"event_id":"e","contact":{"id":1,"phone":"+1555"},"lifecycle":"Lead"}"#;
    let database = stored(&[sent_to(Stream::Lifecycle, body)]);
    assert_eq!(database.contacts.at("1", "lifecycle"), bson!("Lead"));
    assert_eq!(database.contacts.at("1", "lifecycle_history.0.from"), Bson::Null);
    assert_eq!(database.conversations.at("+1555", "contact.lifecycle"), bson!("Lead"));
}

#[test]
fn texts_that_look_like_operators_are_texts() {
    let events = [
        updated(0, r#"{"id":"$id","firstName":"$firstName","phone":"$phone","assignee":"$x"}"#),
        updated(1, r#"{"id":"$id","firstName":"$$ROOT","phone":null,"assignee":{"$gt":""}}"#),
    ];
    let contacts = stored(&events).contacts;
    assert_eq!(contacts.at("$id", "firstName"), bson!("$$ROOT"));
    assert_eq!(contacts.at("$id", "assignee"), bson!({"$gt": ""}));
}
