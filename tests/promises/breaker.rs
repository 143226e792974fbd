//! A MongoDB that fails costs no event, and no other tenant anything.

use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::{get, metric};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, until_idle};
use penstock_tests::stack::{OwnMongo, Place};
use serde_json::json;

const EVENTS: u64 = 300;

async fn publish(broker: &Broker, tenant: &str, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let body = json!({"event_id": n.to_string(), "event_type": "message.received", "contact": {"id": n % 7}, "message": {"messageId": n}});
        broker.publish_event(tenant, "any", 1_700_000_000_000, body.to_string().as_bytes()).await;
    }
}

async fn state(worker: &Worker, tenant: &str, state: &str) -> Option<f64> {
    metric(&worker.admin, "worker_breaker_state", &[("tenant", tenant), ("state", state)]).await
}

async fn outage(begin: impl Fn(&OwnMongo), end: impl Fn(&OwnMongo)) {
    let (place, mongo) = (Place::new().await, OwnMongo::start());
    let settings = [
        ("MONGO_URI", mongo.uri.as_str()),
        ("MONGO_TIMEOUT", "500ms"),
        ("CIRCUIT_BREAKER_THRESHOLD", "2"),
        ("CIRCUIT_BREAKER_TIMEOUT", "1"),
    ];
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &settings).await);
    let broker = Broker::connect(&place.amqp_url).await;
    let (ill, well) = (Database::on(&mongo.uri, &place, "faster").await, Database::of(&place, "vip").await);
    publish(&broker, "faster", 0..EVENTS).await;
    ill.until_stored(EVENTS).await;

    begin(&mongo);
    publish(&broker, "faster", EVENTS..2 * EVENTS).await;
    poll::until("the breaker opens", Some(1.0), async || state(&worker, "faster", "open").await).await;
    let health = async || get(&ingest.path("/health")).await.body;
    poll::until("it shows", json!("degraded"), async || health().await["status"].clone()).await;
    poll::until("MongoDB's state shows", json!("disconnected"), async || {
        health().await["mongodb"]["faster"].clone()
    })
    .await;
    // The neighbour doesn't notice.
    publish(&broker, "vip", 0..EVENTS).await;
    well.until_stored(EVENTS).await;
    assert_eq!(state(&worker, "vip", "closed").await, Some(1.0));

    end(&mongo);
    poll::until("the breaker closes", Some(1.0), async || state(&worker, "faster", "closed").await).await;
    ill.until_stored(2 * EVENTS).await;
    poll::until("all is well", json!("healthy"), async || health().await["status"].clone()).await;
    until_idle(&broker, &[&worker]).await;
    worker.process.stop().await;
    assert_eq!(ill.count("messages").await, 2 * EVENTS);
    assert_eq!(ill.sum("conversations", "message_count").await.unsigned_abs(), 2 * EVENTS);
    for queue in ["webhooks.faster", "dead.faster"] {
        assert_eq!(broker.depth(queue).await, Some(0), "{queue}");
    }
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_frozen_opens_the_breaker_and_nothing_is_lost() {
    outage(|mongo| mongo.signal("STOP"), |mongo| mongo.signal("CONT")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_killed_opens_the_breaker_and_nothing_is_lost() {
    outage(|mongo| mongo.signal("KILL"), OwnMongo::restart).await;
}
