//! An event that can't be stored delays no other, and an event that can't be stored for now isn't given up.

use mongodb::bson::doc;
use penstock_tests::broker::{self, Broker, header};
use penstock_tests::database::Database;
use penstock_tests::feed::burst;
use penstock_tests::http::{get, metric, post_received};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, operate_well, until_idle};
use penstock_tests::relay::{Fault, Relay};
use penstock_tests::replica_set::ReplicaSet;
use penstock_tests::stack::Place;
use reqwest::Method;
use serde_json::{Value, json};

fn case(name: &str) -> String {
    let path = format!("{}/cases/{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

async fn of_worker(worker: &Worker, name: &str) -> Option<f64> {
    metric(&worker.admin, name, &[("tenant", "faster")]).await
}

/// A message event of the conversation `contact`, over a channel of this name.
fn message(n: u64, contact: u64, channel: &str) -> String {
    json!({"event_id": n.to_string(), "event_type": "message.received", "contact": {"id": contact},
        "message": {"messageId": n}, "channel": {"name": channel}})
    .to_string()
}

#[tokio::test]
async fn what_an_index_of_the_customers_own_refuses_is_a_dead_letter_and_nothing_else_is() {
    const CASES: [(&str, &str); 4] = [
        ("language-ar", "17262"),
        ("language-region", "17262"),
        ("language-number", "17261"),
        ("location-beyond", "16755"),
    ];
    let place = Place::new().await;
    let database = Database::of(&place, "faster").await;
    let text = doc! {"name": "words", "key": {"firstName": "text", "email": "text"}};
    let places = doc! {"name": "places", "key": {"location": "2dsphere"}};
    for (collection, index) in [("contacts", text), ("messages", places)] {
        let create = doc! {"createIndexes": collection, "indexes": [index]};
        database.0.run_command(create).await.unwrap();
    }
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    for (name, _) in CASES {
        post_received(&ingest.path("/webhook/faster"), case(name)).await;
    }
    for n in 0..40 {
        post_received(&ingest.path("/webhook/faster"), message(n, n, "c")).await;
    }
    database.until_stored(40).await;
    let broker = Broker::connect(&place.amqp_url).await;
    poll::until("dead letters", Some(4), async || broker.depth("dead.faster").await).await;
    until_idle(&broker, &[&worker]).await;
    let log = worker.process.log_text();
    while let Some(letter) = broker.take("dead.faster").await {
        let body: Value = serde_json::from_slice(&letter.data).unwrap();
        let is_it = |(name, _): &&(&str, &str)| serde_json::from_str::<Value>(&case(name)).unwrap() == body;
        let (name, code) = CASES.iter().find(is_it).unwrap_or_else(|| panic!("{body}"));
        assert_eq!(header(&letter.properties, "reason").as_deref(), Some("refused_by_mongodb"), "{name}");
        let error = header(&letter.properties, "error").unwrap();
        println!("{name}: {error}");
        let (told, words) = error.split_once(&format!(" ({code}): ")).expect("the server's words");
        assert!(log.contains(&format!("{told} ({code})")), "{name}: {error}");
        assert!(!log.contains(words), "{name}: {error}");
    }
    assert_eq!(of_worker(&worker, "worker_oldest_in_hand_seconds").await, Some(0.0));
    assert_eq!(of_worker(&worker, "worker_redelivered_total").await, Some(0.0));
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn a_queue_of_which_mongodb_refuses_one_event_after_the_other_holds_until_the_cause_is_gone() {
    const REFUSED: u64 = 40;
    let place = Place::new().await;
    let database = Database::of(&place, "faster").await;
    let rule = |rule| doc! {"collMod": "messages", "validator": rule};
    database.0.create_collection("messages").await.unwrap();
    database.0.run_command(rule(doc! {"channel_name": {"$ne": "forbidden"}})).await.unwrap();
    let (ingest, broker) = (Ingest::start(&place, &[]).await, Broker::connect(&place.amqp_url).await);
    let publish = async |body: String| post_received(&ingest.path("/webhook/faster"), body).await;
    for n in 0..REFUSED {
        publish(message(n, 1, "forbidden")).await;
    }
    let worker = Worker::start(&place, &[]).await;
    let refusing = async || of_worker(&worker, "worker_refusing_queues").await;
    poll::until("the queue holds", Some(1.0), refusing).await;
    let dead = broker.depth("dead.faster").await.unwrap();
    assert!(dead <= 9, "{dead}");

    let queue_of = |contact: u64| broker::queue_of("faster", message(0, contact, "").as_bytes(), 4);
    let others: Vec<_> = (2..).filter(|contact| queue_of(*contact) != queue_of(1)).take(20).collect();
    for (n, contact) in (REFUSED..).zip(others) {
        publish(message(n, contact, "allowed")).await;
    }
    database.until_stored(20).await;
    assert_eq!(refusing().await, Some(1.0));
    assert!(worker.process.log_text().contains("MongoDB refuses one event after the other"));

    database.0.run_command(rule(doc! {})).await.unwrap();
    database.until_stored(REFUSED - u64::from(dead) + 20).await;
    until_idle(&broker, &[&worker]).await;
    assert_eq!(refusing().await, Some(0.0));
    assert_eq!(broker.depth("dead.faster").await, Some(dead), "none is given up while the queue holds");
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_conversation_is_locked_waits_while_the_others_of_its_batch_are_stored() {
    let (place, mongo) = (Place::new().await, ReplicaSet::patient().await);
    let relay = Relay::start(mongo.members[0].address).await;
    let uri = format!("mongodb://{}/?directConnection=true", relay.address);
    let worker = Worker::start(&place, &[("MONGO_URI", &uri), ("WEBHOOK_WORKERS", "1")]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let database = Database::on(&mongo.uri(), &place, "faster").await;
    burst(&broker, "faster", 0..41, 41).await;
    database.until_stored(41).await;
    until_idle(&broker, &[&worker]).await;

    let mut locked = database.lock("conversations", "0").await;
    let in_hand = async || metric(&worker.admin, "worker_in_flight", &[]).await;
    // While the first one is being written, the others become a batch.
    relay.set(Fault::Stall);
    burst(&broker, "faster", 42..43, 41).await;
    poll::until("the first one is in hand", Some(1.0), in_hand).await;
    burst(&broker, "faster", 43..82, 41).await;
    burst(&broker, "faster", 41..42, 41).await;
    poll::until("all are in hand", Some(41.0), in_hand).await;
    relay.set(Fault::None);
    database.until_stored(81).await;
    poll::until("they are acknowledged", Some(1.0), in_hand).await;
    assert_eq!(database.find("webhook_events", "41").await, None);
    let closed = [("tenant", "faster"), ("state", "closed")];
    assert_eq!(metric(&worker.admin, "worker_breaker_state", &closed).await, Some(1.0));
    let has_met = async || of_worker(&worker, "worker_conflicts_total").await > Some(0.0);
    poll::until("it is tried, and conflicts", true, has_met).await;

    locked.abort_transaction().await.unwrap();
    database.until_stored(82).await;
    until_idle(&broker, &[&worker]).await;
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    assert_eq!(database.sum("conversations", "message_count").await, 82);
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_a_killed_worker_left_open_is_ended_by_the_next_owner_of_the_queue() {
    let (place, mongo) = (Place::new().await, ReplicaSet::patient().await);
    let uri = mongo.uri();
    // Each burst is one batch, however long it takes to arrive: a batch waits for the one before it.
    let one_batch = [("BATCH_SIZE", "41"), ("BATCH_LINGER", "1s")];
    let settings = [&[("MONGO_URI", &*uri), ("WEBHOOK_WORKERS", "1")][..], &one_batch].concat();
    let worker = Worker::start(&place, &settings).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let database = Database::on(&uri, &place, "faster").await;
    burst(&broker, "faster", 0..41, 41).await;
    database.until_stored(41).await;
    until_idle(&broker, &[&worker]).await;

    // To MongoDB it is a worker's, of which nothing more is heard; and one of somebody else's, which is left
    // alone.
    let gone = Database::on(&format!("{uri}&appName=penstock-worker"), &place, "faster").await;
    let mut left = gone.lock("conversations", "0").await;
    let mut others = database.lock("conversations", "1").await;
    burst(&broker, "faster", 41..82, 41).await;
    database.until_stored(81).await;
    assert_eq!(database.find("webhook_events", "42").await, None);
    others.abort_transaction().await.unwrap();
    database.until_stored(82).await;
    until_idle(&broker, &[&worker]).await;
    assert_eq!(of_worker(&worker, "worker_abandoned_transactions_total").await, Some(1.0));
    let said = worker.process.log_text().matches("a worker that is gone had left documents locked").count();
    assert_eq!(said, 1, "{}", worker.process.log_text());
    let health = get(&format!("{}/health", worker.admin)).await.body["tenants"]["faster"].clone();
    assert_eq!((&health["breaker"], &health["failures"]), (&json!("CLOSED"), &json!(0)));
    assert_eq!(health["seconds_since_failure"], json!(null), "it doesn't count for the breaker");
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    assert_eq!(of_worker(&worker, "worker_redelivered_total").await, Some(0.0));
    assert!(left.commit_transaction().await.is_err());
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_is_not_confirmed_is_made_by_rabbitmq_itself() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[("BATCH_LINGER", "500ms")]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    // Neither the queue nor what catches messages without a queue takes a dead letter of a worker's.
    broker.unbind("dead.faster", "webhooks.aside", "dead.faster").await;
    let full = json!({"pattern": "^unroutable$", "definition": {"max-length": 1, "overflow": "reject-publish"},
        "apply-to": "queues"});
    place.manage(Method::PUT, &format!("policies/{}/full", place.name), Some(full)).await;
    let refused = async || broker.is_refused("webhooks.aside", "dead.faster").await;
    poll::until("dead letters are refused", true, refused).await;

    burst(&broker, "faster", 0..20, 20).await;
    broker.publish_event("faster", "any", 1, b"[not an event").await;
    burst(&broker, "faster", 20..40, 20).await;
    database.until_stored(40).await;
    poll::until("RabbitMQ's own", Some(1), async || broker.depth("dead.faster").await).await;
    until_idle(&broker, &[&worker]).await;
    assert!(worker.process.log_text().contains("RabbitMQ dead-letters the event itself"));
    let listed = operate_well(&place, &["dead", "list", "--tenant", "faster", "--json"]).json();
    assert_eq!((listed.len(), &listed[0]["reason"]), (1, &json!("rejected")));
    let letter = broker.next("dead.faster").await;
    assert_eq!(header(&letter.properties, "x-first-death-reason").as_deref(), Some("rejected"));
    assert_eq!(letter.data, b"[not an event");
    worker.process.stop().await;
    assert_eq!(broker.waiting("faster").await, Some(0));
    place.remove().await;
}
