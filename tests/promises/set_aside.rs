//! Commands list and change set-aside messages as operators expect: in one order, and nothing by mistake.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use penstock_tests::broker::Broker;
use penstock_tests::process::{Worker, operate, operate_well, operate_with};
use penstock_tests::stack::Place;
use serde_json::{Value, json};
use sha2::Sha256;

/// Puts messages into a queue of set-aside ones, with these keys and headers.
async fn set_aside(broker: &Broker, queue: &str, numbers: std::ops::Range<u32>, reason: &str) {
    for n in numbers {
        let mut headers = FieldTable::default();
        headers.insert("reason".into(), AMQPValue::LongString(reason.into()));
        headers.insert("failed_at_ms".into(), AMQPValue::LongLongInt(1_792_000_000_000));
        let properties =
            BasicProperties::default().with_message_id(n.to_string().into()).with_headers(headers);
        broker.publish_as("", queue, properties, format!(r#"{{"event_id":"{n}"}}"#).as_bytes()).await;
    }
}

fn keys(place: &Place, arguments: &[&str]) -> Vec<u32> {
    let listed = operate_well(place, &[arguments, &["--tenant", "faster", "--json"]].concat()).json();
    listed.iter().map(|message| message["key"].as_str().unwrap().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_has_one_order_whoever_looks_and_what_was_shown_is_dropped() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    set_aside(&broker, "dead.faster", 0..150, "stuck").await;
    let all: Vec<u32> = (0..150).collect();
    for limit in ["3", "70", "1"] {
        let limited = keys(&place, &["dead", "list", "--limit", limit]);
        assert_eq!(limited, all[..limit.parse().unwrap()]);
        assert_eq!(keys(&place, &["dead", "list"]), all, "after a look at {limit}");
    }
    assert_eq!(keys(&place, &["dead", "show", "--limit", "4"]), all[..4]);
    let dry = operate_well(&place, &["dead", "drop", "--limit", "4", "--dry-run"]).out;
    assert!(dry.contains("faster: 4 of 150 would be dropped"), "{dry}");
    operate_well(&place, &["dead", "drop", "--limit", "4"]);
    assert_eq!(keys(&place, &["dead", "list"]), all[4..]);
    let skipping = keys(&place, &["dead", "list", "--key", "77", "--key", "140"]);
    assert_eq!(skipping, [77, 140]);
    assert_eq!(keys(&place, &["dead", "list"]), all[4..]);
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_dropped_without_saying_what() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    set_aside(&broker, "dead.faster", 0..3, "stuck").await;
    for arguments in [&["dead", "drop"][..], &["dead", "drop", "--tenant", "faster"], &["quarantine", "drop"]]
    {
        let refused = operate(&place, arguments);
        assert!(refused.status == 2 && refused.errors.contains("--all"), "{arguments:?}: {}", refused.errors);
    }
    assert_eq!(broker.depth("dead.faster").await, Some(3));
    operate_well(&place, &["dead", "drop", "--dry-run"]);
    operate_well(&place, &["dead", "drop", "--reason", "no_event"]);
    assert_eq!(broker.depth("dead.faster").await, Some(3));
    operate_well(&place, &["dead", "drop", "--all"]);
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_verifies_leaves_the_quarantine_unless_somebody_says_otherwise() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let mut mac = Hmac::<Sha256>::new_from_slice(b"key").unwrap();
    mac.update(br#"{"event_id":"signed"}"#);
    let good = STANDARD.encode(mac.finalize().into_bytes());
    for (id, signature) in [("signed", good.as_str()), ("forged", "bad")] {
        let mut headers = FieldTable::default();
        headers.insert("reason".into(), AMQPValue::LongString("invalid_signature".into()));
        headers.insert("sent_signature".into(), AMQPValue::LongString(signature.into()));
        let properties = BasicProperties::default().with_message_id(id.into()).with_headers(headers);
        let body = format!(r#"{{"event_id":"{id}"}}"#);
        broker.publish_as("", "quarantine.faster", properties, body.as_bytes()).await;
    }
    let replay = |more: &[&str], settings: &[(&str, &str)]| {
        let arguments = [&["quarantine", "replay", "--tenant", "faster", "--json"], more].concat();
        operate_with(&place, &arguments, settings)
    };
    let done = |answer: &penstock_tests::process::Answer| -> (Value, usize) {
        let told = &answer.json()[0];
        (told["done"].clone(), told["skipped"].as_array().unwrap().len())
    };
    for flags in [&[][..], &["--reverify"]] {
        let without = replay(flags, &[]);
        assert!(without.status == 64 && without.errors.contains("--unverified"), "{}", without.errors);
    }
    assert_eq!(replay(&["--reverify", "--unverified"], &[]).status, 2);
    let verified = replay(&[], &[("SIGNING_KEYS", "key")]);
    assert_eq!(done(&verified), (json!(1), 1), "{}", verified.out);
    assert_eq!(broker.depth("quarantine.faster").await, Some(1));
    let unverified = replay(&["--unverified"], &[]);
    assert_eq!(done(&unverified), (json!(1), 0), "{}", unverified.out);
    assert_eq!(broker.depth("quarantine.faster").await, Some(0));
    worker.process.stop().await;
    place.remove().await;
}
