//! Each event type and message variant becomes its documents.

use penstock_tests::broker::Broker;
use penstock_tests::database::{Database, readable};
use penstock_tests::http::post_received;
use penstock_tests::process::{Ingest, Worker};
use penstock_tests::stack::Place;
use serde_json::{Value, json};

/// A moment after every time that the samples tell, in milliseconds.
pub const RECEIVED_AT_MS: i64 = 1_792_180_000_000;

/// The bytes of a sample.
pub fn sample(name: &str) -> Vec<u8> {
    let path = format!("{}/payloads/{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names of the samples, those of the one conversation first and in their order.
pub fn samples() -> Vec<String> {
    let conversation = [
        "contact.created",
        "conversation.opened",
        "message.received.text",
        "contact.assignee.updated",
        "message.sent.user",
        "comment.created",
        "contact.tag.updated.add",
        "contact.tag.updated.remove",
        "contact.lifecycle.updated",
        "contact.updated",
        "call.ended",
        "conversation.closed",
    ];
    let files = std::fs::read_dir(format!("{}/payloads", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut others: Vec<String> = files
        .filter_map(|file| Some(file.unwrap().file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .filter(|name| {
            !conversation.contains(&name.as_str()) && !["signature", "expected"].contains(&name.as_str())
        })
        .collect();
    others.sort();
    conversation.into_iter().map(str::to_owned).chain(others).collect()
}

/// What is written in `payloads/expected.json` was read against the contract line by line. After a change
/// that is meant, `PENSTOCK_BLESS=1` writes it anew, to be read again.
#[tokio::test]
async fn every_sample_becomes_its_documents() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    let names = samples();
    assert_eq!(names.len(), 41);
    for (second, name) in (0..).zip(&names) {
        broker.publish_event("faster", "any", RECEIVED_AT_MS + second * 1000, &sample(name)).await;
    }
    database.until_stored(41).await;
    let mut dump = database.dump().await;
    for entry in dump.get_mut("webhook_events").unwrap().values_mut() {
        let body = entry.remove("body").unwrap();
        assert!(names.iter().any(|name| sample(name) == body.as_str().unwrap().as_bytes()));
    }
    let dump: serde_json::Map<String, Value> = dump
        .into_iter()
        .map(|(name, documents)| (name, documents.into_values().map(|d| readable(d.into())).collect()))
        .collect();
    let path = format!("{}/payloads/expected.json", env!("CARGO_MANIFEST_DIR"));
    if std::env::var("PENSTOCK_BLESS").is_ok() {
        std::fs::write(&path, serde_json::to_string_pretty(&dump).unwrap() + "\n").unwrap();
    }
    let expected: serde_json::Map<String, Value> =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for (collection, documents) in &expected {
        for (found, wanted) in dump[collection].as_array().unwrap().iter().zip(documents.as_array().unwrap())
        {
            assert_eq!(found, wanted, "in {collection}");
        }
    }
    assert_eq!(dump, expected);
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn the_flask_bridges_samples_become_a_message_and_a_conversation() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    let incoming = r#"{"contact":{"id":"123","phone":"+1234567890"},"message":{"messageId":"msg_123","timestamp":1234567890000},"channel":{"id":"ch_123","name":"WhatsApp"}}"#;
    let outgoing = r#"{"contact":{"id":"123","phone":"+1234567890"},"message":{"messageId":"msg_124","timestamp":1234567891000},"channel":{"id":"ch_123","name":"WhatsApp"},"user":{"email":"agent@example.com"}}"#;
    post_received(&ingest.path("/webhook/faster/incoming"), incoming).await;
    post_received(&ingest.path("/webhook/faster/outgoing"), outgoing).await;
    let database = Database::of(&place, "faster").await;
    database.until_stored(2).await;
    let message = readable(database.get("messages", "msg_123").await.into());
    for (field, value) in [
        ("chat_id", json!("+1234567890")),
        ("sender", json!("+1234567890")),
        ("message_type", json!("incoming")),
        ("contact_id", json!("123")),
        ("channel_id", json!("ch_123")),
        ("channel_name", json!("WhatsApp")),
        ("ts", json!("2009-02-13T23:31:30Z")),
        ("event_type", Value::Null),
        ("event_id", Value::Null),
        ("status", json!([])),
    ] {
        assert_eq!(message[field], value, "{field}");
    }
    let reply = readable(database.get("messages", "msg_124").await.into());
    assert_eq!((&reply["sender"], &reply["message_type"]), (&json!("agent@example.com"), &json!("outgoing")));
    let conversation = readable(database.get("conversations", "+1234567890").await.into());
    assert_eq!(conversation["message_count"], 2);
    assert_eq!(conversation["last_message_ts"], "2009-02-13T23:31:31Z");
    assert_eq!(conversation["contact"]["id"], "123");
    assert_eq!(database.count("contacts").await, 0);
    worker.process.stop().await;
    place.remove().await;
}
