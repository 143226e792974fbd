//! What a worker holds while MongoDB fails is given back once, and taken again when it works.

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

/// No more than a worker takes before it knows how large they are.
const EVENTS: u64 = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_outage_of_mongodb_costs_one_delivery() {
    let (place, mongo) = (Place::new().await, ReplicaSet::start(1).await);
    let (uri, member) = (mongo.uri(), &mongo.members[0].server);
    let settings = [
        ("MONGO_URI", uri.as_str()),
        ("MONGO_TIMEOUT", "500ms"),
        ("HOLD_TIMEOUT", "2s"),
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
    let gave_back = || worker.process.log_text().matches("gave events back").count();
    poll::until("it gives back", 1, async || gave_back()).await;
    poll::until("all are in the queue", Some(59), async || broker.waiting("faster").await).await;
    // The breaker opens and tries again, and nothing more is taken meanwhile.
    let tries = || worker.process.log_text().matches("trying MongoDB").count();
    let tried = tries();
    poll::until("it tries again", true, async || tries() > tried + 1).await;
    assert_eq!((broker.waiting("faster").await, gave_back()), (Some(59), 1));

    member.signal("CONT");
    database.until_stored(EVENTS).await;
    until_idle(&broker, &[&worker]).await;
    let redelivered = metric(&worker.admin, "worker_redelivered_total", &[("tenant", "faster")]).await;
    assert_eq!(redelivered, Some(59.0), "each once");
    worker.process.stop().await;
    assert_eq!(database.sum("conversations", "message_count").await, 60);
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mongodb_that_only_looks_well_costs_one_event_deliveries_and_the_others_none() {
    let place = Place::new().await;
    let (relay, slow) = place.mongo_relay().await;
    let settings = [("MONGO_URI", slow.as_str()), ("MONGO_TIMEOUT", "2s"), ("HOLD_TIMEOUT", "2s")];
    let worker = Worker::start(&place, &settings).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    let publish = async |n: u64| {
        let body = json!({"event_id": n.to_string(), "event_type": "call.ended"});
        broker.publish_event("faster", "any", 1_700_000_000_000, body.to_string().as_bytes()).await;
    };
    publish(0).await;
    database.until_stored(1).await;
    // A small write passes, a transaction with its many steps doesn't.
    relay.set(Fault::Delay(Duration::from_millis(400)));
    for n in 1..50 {
        publish(n).await;
    }
    let gave_back = || worker.process.log_text().matches("gave events back").count();
    let often = async || gave_back() >= 3;
    poll::until_within("it gives back again and again", true, Duration::from_secs(60), often).await;
    relay.set(Fault::None);
    database.until_stored(50).await;
    until_idle(&broker, &[&worker]).await;
    let redelivered = metric(&worker.admin, "worker_redelivered_total", &[("tenant", "faster")]).await;
    let rounds = f64::from(u32::try_from(gave_back()).unwrap());
    assert!(redelivered.is_some_and(|count| count < 50.0 + rounds), "{redelivered:?} in {rounds} rounds");
    worker.process.stop().await;
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
        broker.take_and_return(&queue.name("faster")).await;
        broker.depth("dead.faster").await
    })
    .await;
    let letter = broker.take("dead.faster").await.unwrap();
    assert_eq!(header(&letter.properties, "reason").as_deref(), Some("delivery_limit"));
    assert_eq!(letter.data, br#"{"event_id":"deadly"}"#);
    assert_eq!(broker.waiting("faster").await, Some(0));
    place.remove().await;
}
