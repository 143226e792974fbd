//! `messages`

use mongodb::bson::{Bson, bson, doc};
use shared::event::Stream;

use super::*;

fn message(body: &str) -> Collection {
    stored(&[sent(body)]).messages
}

/// A message of contact 1 with this inner message.
fn with_inner(inner: &str) -> Database {
    stored(&[sent(&format!(
        r#"{{"event_type":"message.received","contact":{{"id":1}},"message":{{"messageId":7,"message":{inner}}}}}"#
    ))])
}

#[test]
fn a_message_has_every_field_of_its_shape_even_if_nothing_is_known() {
    let database = stored(&[sent(r#"{"event_id":"e","event_type":"message.received","message":{}}"#)]);
    let mut document = database.messages.0["e"].clone();
    document.remove("created_at");
    document.remove("_merge");
    let expected = doc! {
        "_id": "e", "chat_id": null, "ts": date(RECEIVED), "sender": null,
        "sender_info": {"phone": null, "contact_id": null, "name": ""}, "type": "text",
        "message_type": "incoming", "channel_message_id": null, "contact_id": null, "channel_id": null,
        "channel_name": null, "channel_source": null, "status": [], "event_type": "message.received",
        "event_id": "e", "source": null, "raw_message": null,
    };
    assert_eq!(document, expected);
    assert_eq!(database.conversations.ids(), [""; 0]);
}

#[test]
fn ids_keep_their_digits_beyond_2_to_the_63() {
    let messages = message(
        r#"{"event_type":"message.received","contact":{"id":98765432109876543210,"phone":null},
            "channel":{"id":18446744073709551617},
            "message":{"messageId":12345678901234567890123,"channelMessageId":9223372036854775808}}"#,
    );
    let id = "12345678901234567890123";
    assert_eq!(messages.ids(), [id]);
    assert_eq!(messages.at(id, "chat_id"), bson!("98765432109876543210"));
    assert_eq!(messages.at(id, "contact_id"), bson!("98765432109876543210"));
    assert_eq!(messages.at(id, "channel_id"), bson!("18446744073709551617"));
    assert_eq!(messages.at(id, "channel_message_id"), bson!("9223372036854775808"));
}

#[test]
fn an_id_is_the_same_whether_number_text_or_float() {
    for id in ["1791792900104729", "\"1791792900104729\"", "1791792900104729.0", "1.791792900104729e15"] {
        let body = format!(r#"{{"event_type":"message.sent","message":{{"messageId":{id}}}}}"#);
        assert_eq!(message(&body).ids(), ["1791792900104729"], "{id}");
    }
}

#[test]
fn a_message_without_id_has_the_event_key() {
    for id in ["null", "\"\"", "\" \"", "{}", "true"] {
        let body =
            format!(r#"{{"event_id":"e","event_type":"message.sent","message":{{"messageId":{id}}}}}"#);
        assert_eq!(message(&body).ids(), ["e"], "{id}");
    }
}

#[test]
fn a_chat_is_the_phone_then_the_contact_then_what_the_message_says() {
    for (contact, chat_id) in [
        (r#"{"id":5,"phone":" +1555 "}"#, "+1555"),
        (r#"{"id":5,"phone":15550100142}"#, "15550100142"),
        (r#"{"id":5,"phone":"  "}"#, "5"),
        (r#"{"id":5.0,"phone":null}"#, "5"),
        (r#"{"id":null,"phone":null}"#, "9"),
        ("null", "9"),
        (r#""5""#, "9"),
    ] {
        let body = format!(
            r#"{{"event_type":"message.received","contact":{contact},"message":{{"messageId":7,"contactId":9}}}}"#
        );
        let database = stored(&[sent(&body)]);
        assert_eq!(database.messages.at("7", "chat_id"), bson!(chat_id), "{contact}");
        assert_eq!(database.messages.at("7", "sender"), bson!(chat_id), "{contact}");
        assert_eq!(database.conversations.at(chat_id, "message_count"), bson!(1), "{contact}");
    }
}

#[test]
fn the_sender_is_the_users_email_or_without_a_user_the_source() {
    for (who, sender) in [
        (r#""user":{"email":"a@example.com"},"source":"User","sender":{"source":"user"}"#, "a@example.com"),
        (r#""user":null,"source":"Echo Message","sender":{"source":"app"}"#, "Echo Message"),
        (r#""user":{"email":null},"source":"User""#, "system"),
        (r#""user":{"id":7,"email":""}"#, "system"),
        (r#""user":{},"source":"Echo Message""#, "Echo Message"),
        (r#""user":null,"source":null,"sender":{"source":"workflow"}"#, "system"),
        (r#""source":"""#, "system"),
        (r#""contact":{"id":1}"#, "system"),
    ] {
        let body = format!(r#"{{"event_type":"message.sent","message":{{"messageId":7}},{who}}}"#);
        assert_eq!(message(&body).at("7", "sender"), bson!(sender), "{who}");
    }
}

#[test]
fn who_sent_it_has_a_shape_for_each_kind_of_sender() {
    for (event_type, who, info) in [
        (
            "message.sent",
            r#""user":{"role":"agent","id":7.0,"email":"a@example.com","team":1},"source":"User""#,
            bson!({"id": 7, "email": "a@example.com", "firstName": null, "lastName": null, "role": "agent"}),
        ),
        ("message.sent", r#""source":"Echo Message""#, bson!({"source": "Echo Message"})),
        ("message.sent", r#""sender":{"source":"workflow"}"#, bson!({"source": "system"})),
        (
            "message.received",
            r#""contact":{"id":"7","firstName":"Oluwaseun","lastName":null,"phone":"+1"}"#,
            bson!({"phone": "+1", "contact_id": "7", "name": "Oluwaseun"}),
        ),
        (
            "message.received",
            r#""contact":{"id":7,"lastName":"Belhadri "},"user":{"email":"a@example.com"}"#,
            bson!({"phone": null, "contact_id": 7, "name": "Belhadri"}),
        ),
    ] {
        let body = format!(r#"{{"event_type":"{event_type}","message":{{"messageId":7}},{who}}}"#);
        assert_eq!(message(&body).at("7", "sender_info"), info, "{who}");
    }
}

#[test]
fn the_senders_own_words_are_kept() {
    let body = |rest| format!(r#"{{"event_type":"message.sent","message":{{"messageId":7}},{rest}}}"#);
    let messages =
        message(&body(r#""source":"API","sender":{"type":"workflow","workflowId":3,"teamId":null}"#));
    assert_eq!(messages.at("7", "source"), bson!("API"));
    assert_eq!(
        messages.at("7", "sender_detail"),
        bson!({"type": "workflow", "workflowId": 3, "teamId": null})
    );
    let messages = message(&body(r#""sender":null"#));
    assert_eq!(messages.at("7", "source"), Bson::Null);
    assert_eq!(messages.at("7", "sender_detail"), Bson::Undefined);
}

#[test]
fn what_else_the_outer_message_has_is_extra() {
    let messages = message(
        r#"{"event_type":"message.received","message":{"messageId":7,"channelMessageId":1,"contactId":1,"channelId":1,
            "traffic":"incoming","timestamp":1,"message":{"type":"text"},"status":[],
            "replyTo":{"id":1790000000700001},"referral":{"source_id":"1200"},"ack":null}}"#,
    );
    let extra =
        bson!({"replyTo": {"id": 1_790_000_000_700_001_i64}, "referral": {"source_id": "1200"}, "ack": null});
    assert_eq!(messages.at("7", "extra"), extra);
    let body = r#"{"event_type":"message.received","message":{"messageId":7,"message":{"type":"text"}}}"#;
    assert_eq!(message(body).at("7", "extra"), Bson::Undefined);
    let messages = message(include_str!("../../../../tests/cases/referral.json"));
    assert_eq!(messages.at("1790000000800001", "extra.referral.ctwa_clid"), bson!("EXAMPLE"));
    assert_eq!(messages.at("1790000000800001", "extra.replyTo.message"), bson!("flat"));
}

#[test]
fn ids_keep_the_type_they_came_in_and_whose_they_are_does_not_depend_on_it() {
    let body = |event: &str, id: &str, at: u32| {
        sent(&format!(
            r#"{{"event_id":"{event}","event_type":"message.received","contact":{{"id":{id}}},"channel":{{"id":{id}}},
                "message":{{"messageId":{id},"channelMessageId":{id},"timestamp":{at}}}}}"#
        ))
    };
    for (id, typed) in [("7", bson!(7)), ("\"7\"", bson!("7")), ("7.0", bson!(7))] {
        let database = stored(&[
            body("a", "\"7\"", 1_799_000_000),
            body("b", "7", 1_799_000_001),
            body("c", id, 1_799_000_002),
        ]);
        assert_eq!(database.messages.ids(), ["7"]);
        for field in ["contact_id", "channel_id", "channel_message_id", "sender_info.contact_id"] {
            assert_eq!(database.messages.at("7", field), typed, "{field} {id}");
        }
        assert_eq!(database.messages.at("7", "sender"), bson!("7"));
        assert_eq!(database.conversations.ids(), ["7"]);
        assert_eq!(database.conversations.at("7", "message_count"), bson!(1));
        assert_eq!(database.conversations.at("7", "contact.id"), typed);
        assert_eq!(database.conversations.at("7", "channel"), bson!(["7"]));
        assert_eq!(database.conversations.at("7", "channel_info.id"), bson!("7"));
    }
}

#[test]
fn ids_that_the_contact_and_the_channel_lack_are_the_messages() {
    let messages = message(
        r#"{"event_type":"message.received","contact":{"id":null,"phone":"+1"},"channel":null,
            "message":{"messageId":7,"contactId":3000000000,"channelId":"5"}}"#,
    );
    assert_eq!(messages.at("7", "contact_id"), bson!(3_000_000_000_i64));
    assert_eq!(messages.at("7", "channel_id"), bson!("5"));
}

/// The full delivery and the status of it that comes alone.
fn full_and_status() -> [Event; 2] {
    [
        sent(include_str!("../../../../tests/cases/status-full.json")),
        sent(include_str!("../../../../tests/cases/status-only.json")),
    ]
}

#[test]
fn a_status_alone_changes_no_content() {
    let [full, status] = full_and_status();
    let (id, chat_id) = ("1790000000500001", "+15550100905");
    let mut expected = stored(std::slice::from_ref(&full));
    let database = stored(&[full, status]);
    let statuses = bson!([
        {"value": "sent", "timestamp": 1_790_000_000_900_i64},
        {"value": "delivered", "timestamp": 1_790_000_002_000_i64},
    ]);
    assert_eq!(database.messages.at(id, "status"), statuses);
    expected.messages.0.get_mut(id).unwrap().insert("status", statuses);
    assert_eq!(database.timeless().messages, expected.timeless().messages);
    assert_eq!(database.timeless().conversations, expected.timeless().conversations);
    assert_eq!(database.conversations.at(chat_id, "media_counts"), bson!({"image": 1}));
}

#[test]
fn a_status_that_comes_first_makes_a_message_that_is_not_counted_yet() {
    let [_, status] = full_and_status();
    let database = stored(&[status]);
    let mut message = database.messages.0["1790000000500001"].clone();
    for name in ["created_at", "_merge"] {
        message.remove(name);
    }
    let expected = doc! {
        "_id": "1790000000500001", "chat_id": "+15550100905", "contact_id": 512_005, "channel_id": null,
        "channel_message_id": null, "channel_name": null, "channel_source": null, "sender": null, "sender_info": null,
        "event_id": "5b0f6a52-0d0e-4c11-9a4e-1f6a5b1c0006", "event_type": "message.delivered", "message_type": null,
        "raw_message": null, "source": null, "ts": null, "type": null,
        "status": [{"value": "delivered", "timestamp": 1_790_000_002_000_i64}],
    };
    assert_eq!(message, expected);
    assert_eq!(database.conversations.ids(), [""; 0]);
}

#[test]
fn a_status_alone_is_known_on_every_path_and_of_every_type() {
    for event_type in ["message.sent", "message.received", "message.status.updated", ""] {
        for stream in Stream::ALL {
            let body = format!(
                r#"{{"event_type":"{event_type}","contact":{{"id":1}},
                    "message":{{"messageId":"7","timestamp":1799000009,"status":[{{"value":"read","timestamp":1799000005}}]}}}}"#
            );
            let status = sent_to(stream, &body);
            let full = with_image_of_7();
            let mut alone = stored(std::slice::from_ref(&full)).timeless();
            let both = stored(&[full, status]).timeless();
            assert_eq!(both.messages.at("7", "status.0.value"), bson!("read"), "{event_type} {stream:?}");
            alone.messages.0.get_mut("7").unwrap().insert("status", both.messages.at("7", "status"));
            assert_eq!((both.messages, both.conversations), (alone.messages, alone.conversations));
        }
    }
}

/// A delivery with content of message 7 of contact 1.
fn with_image_of_7() -> Event {
    sent(
        r#"{"event_id":"full","event_type":"message.sent","contact":{"id":1},
            "message":{"messageId":7,"timestamp":1799000000,"message":{"type":"image","url":"u"}}}"#,
    )
}

#[test]
fn a_later_delivery_without_content_or_status_leaves_the_content() {
    let bare = sent(
        r#"{"event_id":"bare","event_type":"message.sent","contact":{"id":1},"message":{"messageId":7,"timestamp":1799000009}}"#,
    );
    let database = stored(&[with_image_of_7(), bare]);
    assert_eq!(database.messages.at("7", "image_url"), bson!("u"));
    assert_eq!(database.messages.at("7", "ts"), date(1_799_000_000_000));
    assert_eq!(database.conversations.at("1", "message_count"), bson!(1));
    assert_eq!(database.conversations.at("1", "media_counts"), bson!({"image": 1}));
}

#[test]
fn flat_content_is_content() {
    let flat = include_str!("../../../../tests/cases/flat.json");
    let database = stored(&[sent(flat)]);
    let id = "1790000000700001";
    assert_eq!(database.messages.at(id, "type"), bson!("text"));
    let raw = bson!({"messageId": 1_790_000_000_700_001_i64, "type": "text", "text": "flat"});
    assert_eq!(database.messages.at(id, "raw_message"), raw);
    assert_eq!(database.messages.at(id, "extra"), Bson::Undefined);
    assert_eq!(database.messages.at(id, "ts"), date(1_790_000_000_700));
    let own_time =
        flat.replace(r#""type":"text""#, r#""timestamp":1790000000900,"type":"image","url":"u","replyTo":1"#);
    let database = stored(&[sent(&own_time)]);
    assert_eq!(database.messages.at(id, "ts"), date(1_790_000_000_900));
    assert_eq!(database.messages.at(id, "image_url"), bson!("u"));
    assert_eq!(database.messages.at(id, "extra"), Bson::Undefined);
    assert_eq!(database.conversations.at("+15550100907", "media_counts"), bson!({"image": 1}));
}

#[test]
fn the_type_decides_the_direction_before_the_path_and_traffic() {
    let body = r#"{"event_type":"message.sent","message":{"messageId":7,"traffic":"incoming"}}"#;
    let messages = stored(&[sent_to(Stream::Incoming, body)]).messages;
    assert_eq!(messages.at("7", "message_type"), bson!("outgoing"));
    let body = r#"{"event_type":"message.edited","message":{"messageId":7}}"#;
    let messages = stored(&[sent_to(Stream::Outgoing, body)]).messages;
    assert_eq!(messages.at("7", "message_type"), bson!("outgoing"));
    assert_eq!(messages.at("7", "event_type"), bson!("message.edited"));
}

#[test]
fn the_inner_message_is_kept_as_sent() {
    let database = with_inner(
        r#"{"type":"text","text":"$name","$set":{"a.b":null},"":1.50,"n":[3000000000,98765432109876543210]}"#,
    );
    let raw = bson!({
        "type": "text", "text": "$name", "$set": {"a.b": null}, "": 1.5,
        "n": [3_000_000_000_i64, "98765432109876543210"],
    });
    assert_eq!(database.messages.at("7", "raw_message"), raw);
    assert_eq!(database.messages.at("7", "type"), bson!("text"));
}

#[test]
fn each_type_of_message_has_its_own_fields() {
    let all = [
        "message_tag",
        "attachment",
        "image_url",
        "video_url",
        "document_url",
        "filename",
        "audio_url",
        "location",
    ];
    for (inner, expected) in [
        (
            r#"{"type":"attachment","attachment":{"ext":"png","url":"u","caption":"c","size":"3"}}"#,
            doc! {"attachment": {"type": "file", "url": "u", "fileName": null, "mimeType": null, "size": "3",
            "ext": "png", "description": "", "caption": "c"}},
        ),
        (
            r#"{"type":"attachment"}"#,
            doc! {"attachment": {"type": "file", "url": null, "fileName": null, "mimeType": null, "size": null,
            "ext": null, "description": ""}},
        ),
        (r#"{"type":"image","url":"u"}"#, doc! {"image_url": "u"}),
        (r#"{"type":"video","url":"u"}"#, doc! {"video_url": "u"}),
        (r#"{"type":"audio","url":"u"}"#, doc! {"audio_url": "u"}),
        (r#"{"type":"document","url":"u","filename":"f"}"#, doc! {"document_url": "u", "filename": "f"}),
        (
            r#"{"type":"file","url":"u","filename":null,"fileName":"f"}"#,
            doc! {"document_url": "u", "filename": "f"},
        ),
        (
            r#"{"type":"location","latitude":1.5}"#,
            doc! {"location": {"latitude": 1.5, "longitude": null, "address": null}},
        ),
        (r#"{"type":"text","messageTag":"T","url":"u"}"#, doc! {"message_tag": "T"}),
        (r#"{"type":"image","url":null}"#, doc! {"image_url": null}),
    ] {
        let document = with_inner(inner).messages.0["7"].clone();
        let given: Document = document.into_iter().filter(|(name, _)| all.contains(&name.as_str())).collect();
        assert_eq!(given, expected, "{inner}");
    }
}

#[test]
fn the_medium_is_the_attachments_type_or_the_type_itself() {
    for (inner, counts) in [
        (r#"{"type":"attachment","attachment":{"type":"image"}}"#, bson!({"image": 1})),
        (r#"{"type":"attachment","attachment":{"type":"sticker.v2"}}"#, bson!({"sticker.v2": 1})),
        (r#"{"type":"attachment","attachment":{"type":null}}"#, bson!({"file": 1})),
        (r#"{"type":"attachment","attachment":{}}"#, bson!({"file": 1})),
        (r#"{"type":"attachment","attachment":null}"#, bson!({"file": 1})),
        (r#"{"type":"attachment"}"#, bson!({"file": 1})),
        (r#"{"type":"image"}"#, bson!({"image": 1})),
        (r#"{"type":"video"}"#, bson!({"video": 1})),
        (r#"{"type":"document"}"#, bson!({"document": 1})),
        (r#"{"type":"audio"}"#, bson!({"audio": 1})),
        (r#"{"type":"file"}"#, bson!({"file": 1})),
        (r#"{"type":"media"}"#, bson!({"media": 1})),
    ] {
        assert_eq!(with_inner(inner).conversations.at("1", "media_counts"), counts, "{inner}");
    }
}

#[test]
fn an_unknown_message_type_counts_no_media() {
    for inner in [
        r#"{"type":"text"}"#,
        r#"{"type":"location"}"#,
        r#"{"type":"hologram","attachment":{"type":"image"}}"#,
        r#"{"type":"Image"}"#,
        r#"{"type":null}"#,
        r#"{"type":3}"#,
        "{}",
        "null",
        r#""image""#,
    ] {
        let conversations = with_inner(inner).conversations;
        assert_eq!(conversations.at("1", "media_counts"), bson!({}), "{inner}");
        assert_eq!(conversations.at("1", "message_count"), bson!(1), "{inner}");
    }
}

fn delivery(event_id: &str, at: i64, status: &str) -> Event {
    sent(&format!(
        r#"{{"event_id":"{event_id}","event_type":"message.sent","contact":{{"id":1}},
            "message":{{"messageId":7,"timestamp":{at},"status":{status}}}}}"#
    ))
}

#[test]
fn the_status_is_the_union_over_deliveries_in_the_order_of_time() {
    let messages = stored(&[
        delivery("a", 1_799_000_000, r#"[{"value":"sent","timestamp":1799000001}]"#),
        delivery("b", 1_799_000_000, r#"[{"value":"read","timestamp":1799000009}]"#),
        delivery(
            "c",
            1_799_000_000,
            r#"[{"value":"delivered","timestamp":1799000005},{"value":"sent","timestamp":1799000001}]"#,
        ),
        delivery("d", 1_799_000_000, "null"),
    ])
    .messages;
    let expected = bson!([
        {"value": "sent", "timestamp": 1_799_000_001},
        {"value": "delivered", "timestamp": 1_799_000_005},
        {"value": "read", "timestamp": 1_799_000_009},
    ]);
    assert_eq!(messages.at("7", "status"), expected);
}

#[test]
fn the_same_moment_written_otherwise_is_the_same_status() {
    let messages = stored(&[
        delivery("a", 1_799_000_000, r#"[{"value":"sent","timestamp":1799000001}]"#),
        delivery("b", 1_799_000_000, r#"[{"value":"sent","timestamp":1799000001000}]"#),
        delivery("c", 1_799_000_000, r#"[{"value":"sent","timestamp":"1799000001"}]"#),
        delivery("d", 1_799_000_000, r#"[{"value":"sent","timestamp":1799000001000000,"message":"m"}]"#),
        delivery("e", 1_799_000_000, r#"[{"value":"sent","timestamp":"2027-01-03T18:13:21Z"}]"#),
    ])
    .messages;
    let expected = bson!([{"value": "sent", "timestamp": 1_799_000_001_000_000_i64, "message": "m"}]);
    assert_eq!(messages.at("7", "status"), expected);
}

#[test]
fn a_status_without_time_or_of_another_shape_is_kept_once() {
    let odd =
        r#"[{"value":"sent"},{"value":"sent","timestamp":null},"queued",{"value":"$v","timestamp":"soon"}]"#;
    let messages = stored(&[
        delivery("a", 1_799_000_000, odd),
        delivery("b", 1_799_000_001, odd),
        delivery("c", 1_799_000_000, r#""queued""#),
    ])
    .messages;
    let list = messages.at("7", "status");
    let list = list.as_array().unwrap();
    for status in [bson!("queued"), bson!({"value": "$v", "timestamp": "soon"})] {
        assert_eq!(list.iter().filter(|kept| **kept == status).count(), 1, "{list:?}");
    }
    assert!(list.iter().all(|status| *status != Bson::Null));
}

#[test]
fn a_message_is_what_its_latest_delivery_says() {
    let messages = stored(&[
        sent(
            r#"{"event_id":"a","event_type":"message.received","contact":{"id":1},
                "message":{"messageId":7,"timestamp":1799000000,"message":{"type":"image","url":"u"}}}"#,
        ),
        sent(
            r#"{"event_id":"b","event_type":"message.received","contact":{"id":1},
                "message":{"messageId":"7","timestamp":1799000001,"message":{"type":"text","text":"t"}}}"#,
        ),
    ])
    .messages;
    assert_eq!(messages.at("7", "type"), bson!("text"));
    assert_eq!(messages.at("7", "image_url"), Bson::Undefined);
    assert_eq!(messages.at("7", "ts"), date(1_799_000_001_000));
    assert_eq!(messages.at("7", "event_id"), bson!("b"));
}

#[test]
fn ties_are_decided_by_event_key() {
    let messages =
        stored(&[delivery("b", 1_799_000_000, "[]"), delivery("a", 1_799_000_000_000, "[]")]).messages;
    assert_eq!(messages.at("7", "event_id"), bson!("b"));
}

#[test]
fn a_timestamp_more_than_a_day_ahead_is_the_time_of_receipt() {
    for (told, at) in [
        ((RECEIVED + 86_400_000).to_string(), RECEIVED + 86_400_000),
        ((RECEIVED + 86_400_001).to_string(), RECEIVED),
        ("0".to_owned(), RECEIVED),
        ("-1799000000".to_owned(), RECEIVED),
        ("null".to_owned(), RECEIVED),
        ("\"soon\"".to_owned(), RECEIVED),
        ("\"1799000000\"".to_owned(), 1_799_000_000_000),
        ("1799000000037".to_owned(), 1_799_000_000_037),
        ("1799000000037999".to_owned(), 1_799_000_000_037),
    ] {
        let body = format!(
            r#"{{"event_type":"message.received","contact":{{"id":1}},"message":{{"messageId":7,"timestamp":{told}}}}}"#
        );
        let database = stored(&[sent(&body)]);
        assert_eq!(database.messages.at("7", "ts"), date(at), "{told}");
        assert_eq!(database.conversations.at("1", "last_message_ts"), date(at), "{told}");
    }
}

#[test]
fn a_message_event_without_a_message_goes_to_the_ledger_alone() {
    for message in ["null", "\"hi\"", "[]"] {
        let body = format!(
            r#"{{"event_id":"e","event_type":"message.received","contact":{{"id":1}},"message":{message}}}"#
        );
        let database = stored(&[sent(&body)]);
        let alone =
            Database { ledger: database.ledger.clone(), clock: database.clock, ..Database::default() };
        assert_eq!(database, alone);
        assert_eq!(database.ledger.ids(), ["e"]);
    }
}
