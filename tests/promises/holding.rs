//! While MongoDB fails, a worker holds the events in hand: that costs no delivery.

use std::time::Duration;

use penstock_tests::broker::{Broker, header};
use penstock_tests::database::Database;
use penstock_tests::http::metric;
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, until_idle};
use penstock_tests::relay::Fault;
use penstock_tests::replica_set::ReplicaSet;
use penstock_tests::stack::Place;
use serde_json::json;

/// Fewer than a worker takes in hand of one queue.
const EVENTS: u64 = 60;

/// Asserts that all are stored once, each with its first delivery.
async fn assert_stored_at_first_delivery(broker: &Broker, database: &Database, worker: Worker) {
    database.until_stored(EVENTS).await;
    until_idle(broker, &[&worker]).await;
    let redelivered = metric(&worker.admin, "worker_redelivered_total", &[("tenant", "faster")]).await;
    assert_eq!(redelivered, Some(0.0));
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    worker.process.stop().await;
    assert_eq!(database.count("webhook_events").await, EVENTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_outage_of_mongodb_costs_no_delivery() {
    let (place, mongo) = (Place::new().await, ReplicaSet::start(1).await);
    let (uri, member) = (mongo.uri(), &mongo.members[0].server);
    let settings = [
        ("MONGO_URI", uri.as_str()),
        ("MONGO_TIMEOUT", "500ms"),
        ("CIRCUIT_BREAKER_THRESHOLD", "2"),
        ("CIRCUIT_BREAKER_TIMEOUT", "1"),
    ];
    let worker = Worker::start(&place, &settings).await;
    let (broker, database) =
        (Broker::connect(&place.amqp_url).await, Database::on(&uri, &place, "faster").await);
    let publish = async |n: u64| {
        let body = json!({"event_id": n.to_string(), "event_type": "message.sent", "message": {"messageId": n}, "contact": {"id": 1}});
        broker.publish_event("faster", "any", 1_700_000_000_000, body.to_string().as_bytes()).await;
    };
    publish(0).await;
    database.until_stored(1).await;

    member.signal("STOP");
    for n in 1..EVENTS {
        publish(n).await;
    }
    let tries = async || worker.process.log_text().matches("trying MongoDB").count() >= 5;
    poll::until("MongoDB is tried again and again", true, tries).await;
    let in_hand = metric(&worker.admin, "worker_in_flight", &[]).await;
    assert_eq!((in_hand, broker.waiting("faster").await), (Some(59.0), Some(0)));
    let oldest = metric(&worker.admin, "worker_oldest_in_hand_seconds", &[("tenant", "faster")]).await;
    assert!(oldest > Some(1.0), "{oldest:?}");
    let received = metric(&worker.admin, "worker_oldest_waiting_seconds", &[("tenant", "faster")]).await;
    assert!(received > Some(1e6), "ingest received them in 2023: {received:?}");

    member.signal("CONT");
    assert_stored_at_first_delivery(&broker, &database, worker).await;
    assert_eq!(database.sum("conversations", "message_count").await, 60);
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mongodb_that_only_looks_well_costs_no_delivery_either() {
    let place = Place::new().await;
    let (relay, slow) = place.mongo_relay().await;
    let settings = [("MONGO_URI", slow.as_str()), ("MONGO_TIMEOUT", "2s")];
    let worker = Worker::start(&place, &settings).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    let publish = async |n: u64| {
        let body = json!({"event_id": n.to_string(), "event_type": "call.ended"});
        broker.publish_event("faster", "any", 1_700_000_000_000, body.to_string().as_bytes()).await;
    };
    publish(0).await;
    database.until_stored(1).await;
    // A small write passes, a transaction with its many steps doesn't: batches are suspected, and halved.
    relay.set(Fault::Delay(Duration::from_millis(550)));
    for n in 1..EVENTS {
        publish(n).await;
    }
    let often = async || metric(&worker.admin, "worker_retries_total", &[]).await >= Some(20.0);
    poll::until("they are tried again and again", true, often).await;
    relay.set(Fault::None);
    assert_stored_at_first_delivery(&broker, &database, worker).await;
    place.remove().await;
}

#[tokio::test]
async fn what_rabbitmq_sets_aside_itself_has_a_reason_too() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    penstock_tests::http::post_received(&ingest.path("/webhook/faster"), r#"{"event_id":"deadly"}"#).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let queue = broker.queue_of("faster", br#"{"event_id":"deadly"}"#).await;
    // As if a worker had died of it each time.
    poll::until("the limit is reached", Some(1), async || {
        broker.return_message(&queue.name("faster"), 0, 1).await;
        broker.depth("dead.faster").await
    })
    .await;
    let letter = broker.next("dead.faster").await;
    assert_eq!(header(&letter.properties, "reason").as_deref(), Some("delivery_limit"));
    assert_eq!(letter.data, br#"{"event_id":"deadly"}"#);
    assert_eq!(broker.waiting("faster").await, Some(0));
    place.remove().await;
}
