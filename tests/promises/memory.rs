//! What a worker has in its memory is bounded for the whole process, whatever tenants, queues and documents there are.

use mongodb::bson::doc;
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::feed::burst;
use penstock_tests::http::post_received;
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, until_idle};
use penstock_tests::stack::Place;
use serde_json::{Value, json};
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
    consumers.iter().filter(is_partition).map(|consumer| consumer["prefetch_count"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_worker_has_in_hand_is_bounded_for_all_its_queues_together() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[("WEBHOOK_WORKERS", &PARTITIONS.to_string())]).await;
    let worker = Worker::start(&place, &[("WEBHOOK_WORKERS", "1")]).await;
    // The first delivery of a queue is taken alone, so each gets one.
    for tenant in ["faster", "vip"] {
        let body = |contact: u32| json!({"event_id": contact.to_string(), "contact": {"id": contact}}).to_string();
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
        let large = doc! {"_id": n.to_string(), "chat_id": n.to_string(), "added_by_hand": "x".repeat(4 << 20)};
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
