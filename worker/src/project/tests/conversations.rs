//! `conversations`, and what changes them besides messages: `internal_notes`; and `calls`, which don't.

use mongodb::bson::{Bson, bson, doc};

use super::*;

/// A delivery of a message of the contact with this id.
fn delivery(event_id: &str, contact: u32, message: &str, at: i64, inner: &str) -> Event {
    sent(&format!(
        r#"{{"event_id":"{event_id}","event_type":"message.received","contact":{{"id":{contact}}},
            "message":{{"messageId":"{message}","timestamp":{at},"message":{inner}}}}}"#
    ))
}

#[test]
fn a_conversation_has_every_field_of_its_shape() {
    let database = stored(&[sent(r#"{"event_type":"comment.created","contact":{"id":1}}"#)]);
    let mut document = database.conversations.0["1"].clone();
    for name in ["created_at", "updated_at", "_merge"] {
        assert!(document.remove(name).is_some(), "{name}");
    }
    let mut contact = nine(doc! {"id": 1});
    contact.insert("lifecycle", Bson::Null);
    let expected = doc! {
        "_id": "1", "first_message_ts": null, "last_message_ts": null, "message_count": 0, "media_counts": {},
        "channel": [], "channel_info": {}, "contact": contact, "assignee": null, "internal_note_count": 1,
        "last_internal_note_at": date(RECEIVED),
    };
    assert_eq!(document, expected);
}

#[test]
fn messages_notes_openings_closings_and_lifecycles_make_a_conversation_and_nothing_else_does() {
    for (event_type, makes) in [
        ("message.received", true),
        ("message.sent", true),
        ("comment.created", true),
        ("conversation.opened", true),
        ("conversation.closed", true),
        ("contact.lifecycle.updated", true),
        ("contact.created", false),
        ("contact.updated", false),
        ("contact.assignee.updated", false),
        ("contact.tag.updated", false),
        ("call.ended", false),
        ("contact.merged", false),
    ] {
        let body = format!(
            r#"{{"event_type":"{event_type}","contact":{{"id":1}},"message":{{}},"lifecycle":null}}"#
        );
        let database = stored(&[sent(&body)]);
        assert_eq!(!database.conversations.ids().is_empty(), makes, "{event_type}");
        let writes_contact = event_type.starts_with("contact.") && event_type != "contact.merged";
        assert_eq!(!database.contacts.ids().is_empty(), writes_contact, "{event_type}");
    }
}

#[test]
fn a_message_counts_once_however_often_it_is_delivered() {
    let image = r#"{"type":"image","url":"u"}"#;
    let conversations = stored(&[
        delivery("a", 1, "7", 1_799_000_000, image),
        delivery("b", 1, "7", 1_799_000_001, image),
        delivery("c", 1, "7", 1_799_000_002, image),
        delivery("d", 1, "8", 1_799_000_003, r#"{"type":"text"}"#),
    ])
    .conversations;
    assert_eq!(conversations.at("1", "message_count"), bson!(2));
    assert_eq!(conversations.at("1", "media_counts"), bson!({"image": 1}));
    assert_eq!(conversations.at("1", "first_message_ts"), date(1_799_000_000_000));
    assert_eq!(conversations.at("1", "last_message_ts"), date(1_799_000_003_000));
}

#[test]
fn a_message_delivered_later_with_another_chat_moves() {
    let image = r#"{"type":"image","url":"u"}"#;
    let database =
        stored(&[delivery("a", 1, "7", 1_799_000_000, image), delivery("b", 2, "7", 1_799_000_001, image)]);
    assert_eq!(database.messages.at("7", "chat_id"), bson!("2"));
    assert_eq!(database.conversations.at("1", "message_count"), bson!(0));
    assert_eq!(database.conversations.at("1", "media_counts"), bson!({}));
    assert_eq!(database.conversations.at("2", "message_count"), bson!(1));
    assert_eq!(database.conversations.at("2", "media_counts"), bson!({"image": 1}));
    // It never moves back.
    assert_eq!(database.conversations.at("1", "last_message_ts"), date(1_799_000_000_000));
}

#[test]
fn a_message_delivered_later_without_a_chat_leaves_the_count() {
    let database = stored(&[
        delivery("a", 1, "7", 1_799_000_000, r#"{"type":"file"}"#),
        sent(
            r#"{"event_id":"b","event_type":"message.received","contact":null,
                "message":{"messageId":7,"timestamp":1799000001,"message":{"type":"file"}}}"#,
        ),
    ]);
    assert_eq!(database.messages.at("7", "chat_id"), Bson::Null);
    assert_eq!(database.conversations.ids(), ["1"]);
    assert_eq!(database.conversations.at("1", "message_count"), bson!(0));
    assert_eq!(database.conversations.at("1", "media_counts"), bson!({}));
}

#[test]
fn a_message_delivered_later_with_another_medium_counts_as_that() {
    let conversations = stored(&[
        delivery("a", 1, "7", 1_799_000_000, r#"{"type":"attachment","attachment":{"type":"video"}}"#),
        delivery("b", 1, "7", 1_799_000_001, r#"{"type":"image"}"#),
        delivery("c", 1, "8", 1_799_000_002, r#"{"type":"image"}"#),
    ])
    .conversations;
    assert_eq!(conversations.at("1", "message_count"), bson!(2));
    assert_eq!(conversations.at("1", "media_counts"), bson!({"image": 2}));
}

#[test]
fn what_another_program_has_stored_is_counted_already_and_stays() {
    let mut database = Database::default();
    let theirs = doc! {"_id": "1", "message_count": 5.0, "media_counts": {"image": 2_i64}, "notes": "theirs"};
    database.conversations.0.insert("1".into(), theirs);
    let theirs = doc! {"_id": "7", "chat_id": "1", "status": null, "raw_message": {"type": "image"}};
    database.messages.0.insert("7".into(), theirs);
    database.write(&[delivery("a", 1, "7", 1_799_000_000, r#"{"type":"image"}"#)]);
    assert_eq!(database.conversations.at("1", "message_count"), bson!(5.0));
    database.write(&[delivery("b", 1, "8", 1_799_000_001, r#"{"type":"image"}"#)]);
    assert_eq!(database.conversations.at("1", "message_count"), bson!(6));
    assert_eq!(database.conversations.at("1", "media_counts"), bson!({"image": 3}));
    assert_eq!(database.conversations.at("1", "notes"), bson!("theirs"));
    assert_eq!(database.messages.at("7", "status"), bson!([]));
}

#[test]
fn channel_info_comes_from_the_earliest_message_that_has_a_channel() {
    let with_channel = |event_id: &str, message: u32, at: i64, channel: &str| {
        sent(&format!(
            r#"{{"event_id":"{event_id}","event_type":"message.sent","contact":{{"id":1}},"channel":{channel},
                "message":{{"messageId":{message},"timestamp":{at}}}}}"#
        ))
    };
    let conversations = stored(&[
        with_channel("d", 4, 1_799_000_003, r#"{"id":4,"name":"late","source":"x"}"#),
        with_channel("c", 3, 1_799_000_002, r#"{"id":3.0,"name":"$Shop","source":"w","meta":"{}"}"#),
        with_channel("b", 2, 1_799_000_001, r#"{"id":null,"name":null,"source":null}"#),
        with_channel("a", 1, 1_799_000_000, "null"),
    ])
    .conversations;
    let info = bson!({
        "id": 3, "name": "$Shop", "source": "w", "lastMessageTime": null, "lastIncomingMessageTime": null, "meta": "{}",
    });
    assert_eq!(conversations.at("1", "channel_info"), info);
    assert_eq!(conversations.at("1", "channel"), bson!(["$Shop", "late"]));
}

/// A note of contact 1.
fn note(event_id: &str, received_at_ms: i64, more: &str) -> Event {
    let body =
        format!(r#"{{"event_id":"{event_id}","event_type":"comment.created","contact":{{"id":1}},{more}}}"#);
    sent_at(received_at_ms, &body)
}

#[test]
fn a_note_has_every_field_of_its_shape() {
    let notes = stored(&[
        note(
            "e",
            RECEIVED,
            r#""text":"$x","mentionedUserIds":[7.0,"8",98765432109876543210],"mentionedUserEmails":["a@example.com"],
               "attachments":[{"size":"3"}],"timestamp":1799000000"#,
        ),
        note("f", RECEIVED, r#""text":null,"mentionedUserIds":null,"attachments":{}"#),
    ])
    .notes;
    let mut document = notes.0["e"].clone();
    document.remove("_merge");
    let expected = doc! {
        "_id": "e", "chat_id": "1", "contact_id": "1", "contact": nine(doc! {"id": 1}), "text": "$x",
        "mentioned_user_ids": [7, "8", "98765432109876543210"], "mentioned_user_emails": ["a@example.com"],
        "attachments": [{"size": "3"}], "event_type": "comment.created", "created_at": date(RECEIVED),
    };
    assert_eq!(document, expected);
    assert_eq!(notes.at("f", "text"), Bson::Null);
    for list in ["mentioned_user_ids", "mentioned_user_emails", "attachments"] {
        assert_eq!(notes.at("f", list), bson!([]), "{list}");
    }
}

#[test]
fn notes_with_the_same_event_id_and_other_bodies_count_once() {
    let database = stored(&[
        note("e", RECEIVED, r#""text":"first""#),
        note("e", RECEIVED + 5, r#""text":"second""#),
        note("f", RECEIVED + 1, r#""text":"third""#),
    ]);
    assert_eq!(database.conversations.at("1", "internal_note_count"), bson!(2));
    assert_eq!(database.conversations.at("1", "last_internal_note_at"), date(RECEIVED + 5));
    assert_eq!(database.notes.ids(), ["e", "f"]);
    assert_eq!(database.notes.at("e", "text"), bson!("second"));
    assert_eq!(database.ledger.ids().len(), 3);
}

#[test]
fn a_note_whose_later_body_names_another_chat_moves() {
    let elsewhere = r#"{"event_id":"e","event_type":"comment.created","contact":{"id":2}}"#;
    let database = stored(&[note("e", RECEIVED, r#""text":"x""#), sent_at(RECEIVED + 5, elsewhere)]);
    assert_eq!(database.conversations.at("1", "internal_note_count"), bson!(0));
    assert_eq!(database.conversations.at("2", "internal_note_count"), bson!(1));
}

#[test]
fn a_closing_says_what_it_says_and_an_opening_does_not_undo_a_later_closing() {
    let opened = sent(
        r#"{"event_id":"o","event_type":"conversation.opened","contact":{"id":1},"conversation":
            {"source":"contact","conversationOpenedAt":1799000000,"firstIncomingMessage":"$hi","firstIncomingMessageChannelId":5}}"#,
    );
    let closed = sent(
        r#"{"event_id":"c","event_type":"conversation.closed","contact":{"id":1},"conversation":
            {"category":"Sale","summary":null,"openedTime":1799000000,"closedTime":"1799000100",
             "closedBy":{"id":null,"firstName":null,"lastName":null,"email":null},"firstResponseTime":190,
             "resolutionTime":1799000100,"incomingMessageCount":3,"outgoingMessageCount":4}}"#,
    );
    let conversations = stored(&[opened.clone(), closed.clone()]).conversations;
    for (name, value) in doc! {
        "status": "closed", "category": "Sale", "summary": null, "opened_at": date(1_799_000_000_000),
        "closed_at": date(1_799_000_100_000), "closed_by": null, "first_response_time": 190,
        "resolution_time": 1_799_000_100, "incoming_message_count": 3, "outgoing_message_count": 4,
        "opened_source": "contact", "first_incoming_message": "$hi", "first_incoming_message_channel_id": 5,
        "message_count": 0, "assignee": null,
    } {
        assert_eq!(conversations.at("1", &name), value, "{name}");
    }
    let again = sent(
        r#"{"event_id":"a","event_type":"conversation.opened","contact":{"id":1},
            "conversation":{"conversationOpenedAt":1799000200}}"#,
    );
    let conversations = stored(&[opened, closed, again]).conversations;
    assert_eq!(conversations.at("1", "status"), bson!("open"));
    assert_eq!(conversations.at("1", "opened_at"), date(1_799_000_200_000));
    assert_eq!(conversations.at("1", "category"), bson!("Sale"));
}

#[test]
fn events_with_null_for_everything_change_nothing_they_do_not_know() {
    for event_type in ["conversation.opened", "conversation.closed", "comment.created", "call.ended"] {
        let body = format!(
            r#"{{"event_type":"{event_type}","contact":null,"conversation":null,"call":null,"channel":null,"user":null,"text":null}}"#
        );
        let database = stored(&[sent(&body)]);
        assert_eq!(database.conversations.ids(), [""; 0], "{event_type}");
        assert_eq!(database.contacts.ids(), [""; 0], "{event_type}");
    }
}

#[test]
fn a_call_is_what_the_latest_event_about_it_says() {
    let call = |event_id: &str, end: &str, status: &str| {
        sent(&format!(
            r#"{{"event_id":"{event_id}","event_type":"call.ended","contact":{{"id":1}},
                "call":{{"id":98765432109876543210,"status":"{status}","end_time":{end},"start_time":"0"}}}}"#
        ))
    };
    let database = stored(&[call("a", "1799000010", "done"), call("b", "1799000000", "ringing")]);
    let id = "98765432109876543210";
    assert_eq!(database.calls.ids(), [id]);
    assert_eq!(database.calls.at(id, "status"), bson!("done"));
    assert_eq!(database.calls.at(id, "end_time"), date(1_799_000_010_000));
    assert_eq!(database.calls.at(id, "start_time"), Bson::Null);
    assert_eq!(database.conversations.ids(), [""; 0]);
}

#[test]
fn a_call_without_id_has_the_event_key() {
    for call in ["null", "{}", r#"{"id":null}"#, r#"{"id":""}"#, r#""call""#] {
        let body = format!(r#"{{"event_id":"e","event_type":"call.ended","call":{call}}}"#);
        assert_eq!(stored(&[sent(&body)]).calls.ids(), ["e"], "{call}");
    }
}

#[test]
fn no_date_is_one_that_calendars_do_not_have() {
    let body = r#"{"event_id":"e","event_type":"call.ended","contact":{"id":1,"created_at":1e300},
        "call":{"end_time":99999999999999999999,"start_time":-5}}"#;
    let calls = stored(&[sent(body)]).calls;
    assert_eq!(calls.at("e", "end_time"), Bson::Null);
    assert_eq!(calls.at("e", "start_time"), Bson::Null);
    assert_eq!(calls.at("e", "ts"), date(RECEIVED));
}
