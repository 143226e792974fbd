//! What `worker backfill` brings: it fills what webhooks have left out, and a webhook always has the say over
//! it.

use crate::json::{self, Json};
use proptest::collection::vec;
use proptest::prelude::*;

use super::order::{after, arrivals};
use super::*;
use crate::decode::{BACKFILLED, Kind};

/// An event that was made of what the API told, when it was read at that time.
fn backfilled(read_at_ms: i64, body: &str) -> Event {
    let envelope =
        Envelope { tenant: "t", stream: Stream::Any, received_at_ms: read_at_ms, signature: BACKFILLED };
    Event::decode(body.as_bytes(), envelope).unwrap()
}

const LATER: i64 = RECEIVED + 1_000_000;

#[test]
fn it_brings_a_message_its_conversation_and_its_contact() {
    let message = r#"{"event_id":"backfill-7","event_type":"message.received",
        "contact":{"id":1,"phone":"+1","firstName":"A","lifecycle":"Lead","assignee":{"id":9}},"channel":{"id":2,"name":"c"},
        "message":{"messageId":7,"timestamp":1799000000500,"message":{"type":"image","url":"u"},"status":[{"value":"read"}]}}"#;
    let contact = r#"{"event_id":"backfill-contact-1","event_type":"contact.created",
        "contact":{"id":1,"phone":"+1","firstName":"A","tags":["t"],"custom_fields":[{"name":"x","value":1}]}}"#;
    let database = stored(&[backfilled(LATER, message), backfilled(LATER, contact)]);
    assert_eq!(database.messages.at("7", "ts"), date(1_799_000_000_500));
    assert_eq!(database.messages.at("7", "status.0.value"), "read".into());
    let conversation = |path| database.conversations.at("+1", path);
    assert_eq!((conversation("message_count"), conversation("media_counts.image")), (1.into(), 1.into()));
    assert_eq!(
        (conversation("contact.firstName"), conversation("contact.lifecycle")),
        ("A".into(), "Lead".into())
    );
    assert_eq!((conversation("channel_info.id"), conversation("assignee.id")), (2.into(), 9.into()));
    assert_eq!(database.contacts.at("1", "tags.0"), "t".into());
    assert_eq!(database.ledger.at("backfill-7", "signature"), BACKFILLED.into());
}

#[test]
fn a_webhook_has_the_say_whenever_either_came() {
    let webhook = r#"{"event_id":"w","event_type":"message.received","contact":{"id":1,"phone":"+1","firstName":"W"},
        "channel":{"id":2,"name":"c"},"source":"W","sender":{"type":"contact"},
        "message":{"messageId":7,"timestamp":1799000000,"message":{"type":"text","text":"W"},
        "status":[{"value":"sent","timestamp":1799000001}]}}"#;
    let api = r#"{"event_id":"backfill-7","event_type":"message.received",
        "contact":{"id":1,"phone":"+1","firstName":"B","lifecycle":"Lead","assignee":{"id":9}},
        "channel":{"id":2,"name":"c","created_at":1},
        "message":{"messageId":7,"timestamp":1798999999500,"message":{"type":"text","text":"B"},"replyTo":{"id":5},
        "status":[{"value":"sent","timestamp":1799000001999},{"value":"read","timestamp":1799000009}]}}"#;
    // Read later than the webhook was received.
    let database = stored(&[sent(webhook), backfilled(LATER, api)]);
    let alone = stored(&[sent(webhook)]);
    let mut expected = alone.messages.0["7"].clone();
    let statuses = [
        doc! {"value": "sent", "timestamp": 1_799_000_001},
        doc! {"value": "read", "timestamp": 1_799_000_009},
    ];
    assert_eq!(database.messages.0["7"].get_array("status").unwrap(), &statuses.map(Bson::from).to_vec());
    let mut message = database.messages.0["7"].clone();
    for document in [&mut message, &mut expected] {
        for name in ["created_at", "status", "_merge"] {
            document.remove(name);
        }
    }
    assert_eq!(message, expected);
    for path in ["contact", "assignee", "channel", "channel_info", "message_count"] {
        assert_eq!(database.conversations.at("+1", path), alone.conversations.at("+1", path), "{path}");
    }
}

#[test]
fn what_was_read_last_counts_among_backfills() {
    let at = |n: i64, read_at: i64| {
        let body = format!(
            r#"{{"event_id":"backfill-{n}","event_type":"message.received","contact":{{"id":1,"firstName":"{read_at}"}},
            "channel":{{"id":{n}}},"message":{{"messageId":{n},"timestamp":{},"message":{{"type":"text"}}}}}}"#,
            1_799_000_000 + n
        );
        backfilled(RECEIVED + read_at, &body)
    };
    let database = stored(&[at(1, 20), at(2, 10)]);
    assert_eq!(database.conversations.at("1", "contact.firstName"), "20".into());
    assert_eq!(database.conversations.at("1", "channel_info.id"), 1.into(), "of the earliest message");
}

#[test]
fn what_the_bridge_wrote_stays() {
    let api = r#"{"event_id":"backfill-7","event_type":"message.received","contact":{"id":1,"phone":"+1","firstName":"B"},
        "message":{"messageId":7,"message":{"type":"text"},"status":[{"value":"read"}]}}"#;
    let contact = r#"{"event_id":"backfill-contact-1","event_type":"contact.created","contact":{"id":1,"firstName":"B"}}"#;
    let mut database = Database::default();
    let message = doc! {"_id": "7", "chat_id": "+1", "type": "image", "status": []};
    let conversation =
        doc! {"_id": "+1", "message_count": 5, "contact": {"firstName": "A"}, "channel_info": {"id": 1}};
    database.messages.0.insert("7".into(), message.clone());
    database.conversations.0.insert("+1".into(), conversation);
    database.contacts.0.insert("1".into(), doc! {"_id": "1", "firstName": "A"});
    database.write(&[backfilled(LATER, api), backfilled(LATER, contact)]);
    assert_eq!(database.messages.0["7"], message);
    assert_eq!(database.conversations.at("+1", "contact.firstName"), "A".into());
    assert_eq!(database.conversations.at("+1", "message_count"), 5.into());
    assert_eq!(database.contacts.0["1"], doc! {"_id": "1", "firstName": "A"});
}

/// What the API may tell of the message of a delivery: its time differs by up to 645 ms, what else isn't told
/// by all webhooks is made up.
fn of_the_api(delivery: &Event, shift: i64, read_after: i64) -> Event {
    let members = &delivery.members;
    let mut message = members["message"].object().unwrap().clone();
    let number = |n: i64| Json::Number(n.to_string().into());
    let object = |body: &str| Json::Object(Box::new(json::parse(body.as_bytes()).unwrap()));
    let values = message.get("status").and_then(Json::list).unwrap_or_default().iter();
    let values = values.filter_map(|status| status.get("value")?.text());
    let statuses =
        values.map(|value| object(&format!(r#"{{"value":"{value}","timestamp":{read_after}}}"#))).collect();
    message.insert("status".into(), Json::List(statuses));
    message.insert("timestamp".into(), number(delivery.at_ms + shift));
    message.insert("message".into(), object(r#"{"type":"image","text":"API"}"#));
    message.insert("extra".into(), number(shift));
    let mut body =
        json::parse(br#"{"event_id":"backfill-x","event_type":"message.sent","user":{"id":3}}"#).unwrap();
    body.extend(members.get("channel").map(|channel| ("channel".into(), channel.clone())));
    if let Some(contact) = delivery.contact() {
        let mut read = json::parse(br#"{"firstName":"API","lifecycle":"API","assignee":{"id":7}}"#).unwrap();
        let ids =
            ["id", "phone"].into_iter().filter_map(|name| Some((name.into(), contact.get(name)?.clone())));
        read.extend(ids);
        body.insert("contact".into(), Json::Object(Box::new(read)));
    }
    body.insert("message".into(), Json::Object(Box::new(message)));
    backfilled(RECEIVED + read_after, &json::compact(&body))
}

/// What the API may tell of the contact of an event.
fn contact_of_the_api(event: &Event, read_after: i64) -> Event {
    let id = &event.contact().unwrap().object().unwrap()["id"];
    let contact = r#""firstName":"API","tags":["API"],"assignee":{"id":7},"lifecycle":"API","created_at":5,"color":"API""#;
    let body = format!(
        r#"{{"event_id":"backfill-contact","event_type":"contact.created","contact":{{"id":{id},{contact}}}}}"#
    );
    backfilled(RECEIVED + read_after, &body)
}

/// Webhooks alone, and the same amid what the API tells of the same messages and contacts, in any order and
/// batches.
fn disturbed() -> impl Strategy<Value = (Vec<Event>, Vec<Vec<Event>>)> {
    let chosen = vec((any::<bool>(), -645..645_i64, -1000..1_000_000_i64), 16);
    (arrivals(), chosen).prop_flat_map(|((webhooks, _), chosen)| {
        let mut all = webhooks.clone();
        for (event, (is_told, shift, read_after)) in webhooks.iter().zip(chosen) {
            // The API's messages have ids.
            let is_named = || event.members["message"].get("messageId").and_then(Json::id).is_some();
            match event.kind {
                _ if !is_told => {}
                Kind::Message(_) if event.content().is_some() && is_named() => {
                    all.push(of_the_api(event, shift, read_after));
                }
                Kind::Contact if event.contact_id().is_some() => {
                    all.push(contact_of_the_api(event, read_after));
                }
                _ => {}
            }
        }
        let again = vec(0..all.len(), 0..all.len());
        let arriving = again.prop_map(move |again| {
            all.iter().cloned().chain(again.into_iter().map(|n| all[n].clone())).collect::<Vec<_>>()
        });
        let batches = (arriving.prop_shuffle(), 1..9_usize)
            .prop_map(|(arriving, size)| arriving.chunks(size).map(<[Event]>::to_vec).collect());
        (Just(webhooks), batches)
    })
}

/// Takes out what may differ by a backfill: its entries in the ledger, and first and last message by a
/// second.
fn undisturbed(mut database: Database, by: &Database) -> Database {
    database.ledger.0.retain(|_, entry| entry.get_str("signature").unwrap() != BACKFILLED);
    for (id, conversation) in &mut database.conversations.0 {
        for name in ["first_message_ts", "last_message_ts"] {
            let times = (conversation.get_datetime(name), by.conversations.0[id].get_datetime(name));
            if let (Ok(here), Ok(there)) = times {
                let difference = here.timestamp_millis().abs_diff(there.timestamp_millis());
                assert!(difference <= 1000, "{id} {name}: {difference} ms");
                let there = *there;
                conversation.insert(name, there);
            }
        }
    }
    database
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn amid_a_backfill_webhooks_make_the_documents_that_they_make_alone((webhooks, batches) in disturbed()) {
        let alone = one_by_one(webhooks.iter()).timeless();
        let amid = after(&batches).timeless();
        prop_assert_eq!(undisturbed(amid, &alone), alone);
    }

    #[test]
    fn neither_order_nor_batches_show_of_what_only_the_api_has((events, batches) in arrivals()) {
        let is_api = |event: &Event| {
            let is_brought = ["message.received", "message.sent", "contact.created", "contact.updated"];
            let is_brought = event.event_type.as_deref().is_some_and(|kind| is_brought.contains(&kind));
            is_brought && event.digest.starts_with(['0', '1', '2', '3', '4', '5', '6', '7'])
        };
        let marked = |events: &[Event]| -> Vec<Event> {
            let mut events = events.to_vec();
            events.iter_mut().filter(|event| is_api(event)).for_each(|event| event.signature = BACKFILLED.into());
            events
        };
        let batches: Vec<_> = batches.iter().map(|batch| marked(batch)).collect();
        prop_assert_eq!(after(&batches).timeless(), one_by_one(marked(&events).iter()).timeless());
    }
}
