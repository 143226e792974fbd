//! What a worker has in its memory is bounded for the whole process, whatever tenants, queues and documents
//! there are.

use std::time::Instant;

use futures_util::future::try_join_all;
use mongodb::bson::{DateTime, Document, doc};
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::feed::burst;
use penstock_tests::http::post_received;
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, operate_with, until_idle};
use penstock_tests::replica_set::ReplicaSet;
use penstock_tests::stack::{Place, is_long_run};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shared::partition::{self, LARGE_BODY, WorkQueue};

/// Partitions of each tenant, as ingest was told.
const PARTITIONS: u16 = 64;
/// Most bytes that may be in hand from all partitions together.
const MAX_IN_HAND: u64 = 256 << 20;

/// How many deliveries RabbitMQ may send ahead to the consumers of partitions, each.
async fn prefetch_counts(place: &Place) -> Vec<u64> {
    let url = format!("{}/api/consumers/{}", place.management_url, place.name);
    let consumers: Vec<Value> = reqwest::get(url).await.unwrap().json().await.unwrap();
    let is_partition = |consumer: &&Value| {
        let name = consumer["queue"]["name"].as_str().unwrap_or_default();
        name.starts_with("webhooks.") && !name.ends_with(".large")
    };
    consumers
        .iter()
        .filter(is_partition)
        .map(|consumer| consumer["prefetch_count"].as_u64().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_worker_has_in_hand_is_bounded_for_all_its_queues_together() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[("WEBHOOK_WORKERS", &PARTITIONS.to_string())]).await;
    let worker = Worker::start(&place, &[("WEBHOOK_WORKERS", "1")]).await;
    // The first delivery of a queue is taken alone, so each gets one.
    for tenant in ["faster", "vip"] {
        let body =
            |contact: u32| json!({"event_id": contact.to_string(), "contact": {"id": contact}}).to_string();
        for n in 0..PARTITIONS {
            let is_for_it = |body: &String| {
                partition::queue_of_body(tenant, body.as_bytes(), PARTITIONS) == WorkQueue::Partition(n)
            };
            let body = (0..).map(body).find(is_for_it).unwrap();
            post_received(&ingest.path(&format!("/webhook/{tenant}")), body).await;
        }
    }
    let consumed_alone = async || {
        let counts = prefetch_counts(&place).await;
        (counts.len(), counts.contains(&1))
    };
    poll::until("each queue is consumed", (2 * usize::from(PARTITIONS), false), consumed_alone).await;
    let counts = prefetch_counts(&place).await;
    let bytes = counts.iter().sum::<u64>() * LARGE_BODY as u64;
    assert!(bytes <= MAX_IN_HAND, "{bytes}: {counts:?}");
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_documents_are_too_large_together_is_written_in_parts() {
    const LARGE: u64 = 60;
    let place = Place::new().await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    let conversations = database.0.collection("conversations");
    for n in 0..LARGE {
        let large =
            doc! {"_id": n.to_string(), "chat_id": n.to_string(), "added_by_hand": "x".repeat(4 << 20)};
        conversations.insert_one(large).await.unwrap();
    }
    let settings = [("WEBHOOK_WORKERS", "1"), ("MONGO_TIMEOUT", "60s"), ("BATCH_LINGER", "1s")];
    let worker = Worker::start(&place, &settings).await;
    burst(&broker, "faster", 0..2 * LARGE, LARGE).await;
    database.until_stored(2 * LARGE).await;
    until_idle(&broker, &[&worker]).await;
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    assert_eq!(database.sum("conversations", "message_count").await, 120);
    let memory = worker.process.peak_memory() >> 20;
    println!("{memory} MiB");
    assert!(memory < 300, "{memory} MiB");
    worker.process.stop().await;
    place.remove().await;
}

/// An entry of the ledger, as a worker makes it: a message of the one conversation.
fn entry(n: u64) -> Document {
    let at = 1_700_000_000 + n;
    let message = json!({"messageId": n, "timestamp": at, "message": {"type": "text", "text": "a text of usual length"}});
    let body = json!({"event_id": n.to_string(), "event_type": "message.received", "message": message,
        "contact": {"id": 1, "firstName": format!("name {n}")}, "channel": {"id": 1, "name": "whatsapp"}});
    let (body, now) = (body.to_string(), DateTime::now());
    doc! {
        "_id": n.to_string(), "event_type": "message.received", "stream": "any", "received_at": now, "stored_at": now,
        "signature": "unsigned", "body_sha256": hex::encode(Sha256::digest(&body)), "body": body,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_with_very_many_messages_is_rebuilt_in_parts() {
    // Beyond 2,000 it is done in parts; 200,000 take minutes.
    let messages: u64 = if is_long_run() { 200_000 } else { 2_500 };
    let (place, set) = (Place::new().await, ReplicaSet::start(1).await);
    let (uri, database) = (set.uri(), Database::on(&set.uri(), &place, "faster").await);
    let ledger = database.0.collection::<Document>("webhook_events");
    for first in (0..messages).step_by(10_000) {
        let some = |from: u64| ledger.insert_many((from..messages.min(from + 1000)).map(entry)).into_future();
        try_join_all((first..messages.min(first + 10_000)).step_by(1000).map(some)).await.unwrap();
    }
    let rebuild = || {
        let started = Instant::now();
        let settings = [("MONGO_URI", uri.as_str())];
        let answer = operate_with(&place, &["rebuild", "--tenant", "faster"], &settings);
        println!("{} in {:.1?}", answer.out.trim(), started.elapsed());
        assert_eq!(answer.status, 0, "{}", answer.errors);
    };
    rebuild();
    let check = async || {
        assert_eq!(database.count("messages").await, messages);
        let conversation = database.get("conversations", "1").await;
        let last = 1_700_000_000 + messages - 1;
        let of = |name: &str| conversation.get_datetime(name).unwrap().timestamp_millis().unsigned_abs();
        assert_eq!((of("first_message_ts"), of("last_message_ts")), (1_700_000_000_000, last * 1000));
        assert_eq!(i64::from(conversation.get_i32("message_count").unwrap()).unsigned_abs(), messages);
        let name = conversation.get_document("contact").unwrap().get_str("firstName").unwrap();
        assert_eq!(name, format!("name {}", messages - 1));
    };
    check().await;
    // Lost and changed by hand.
    let some: Vec<String> = (0..messages).step_by(50).map(|n| n.to_string()).collect();
    let collection = |name: &str| database.0.collection::<Document>(name);
    collection("messages").delete_many(doc! {"_id": {"$in": some}}).await.unwrap();
    let wrong = doc! {"$set": {"message_count": 7, "contact.firstName": "wrong", "first_message_ts": null}};
    collection("conversations").update_one(doc! {"_id": "1"}, wrong).await.unwrap();
    rebuild();
    check().await;
    place.remove().await;
}
