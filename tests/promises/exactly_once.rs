//! Each event's effects happen once, whatever dies when.

use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::poll;
use penstock_tests::process::{Worker, until_idle};
use penstock_tests::stack::Place;
use serde_json::json;

const EVENTS: u64 = 4000;
const CHATS: u64 = 20;

fn body(n: u64) -> Vec<u8> {
    let contact = json!({"id": n % CHATS, "phone": format!("+155501{}", n % CHATS)});
    let event = match n % 10 {
        0 => {
            json!({"event_id": n.to_string(), "event_type": "comment.created", "contact": contact, "text": "note"})
        }
        1 => {
            json!({"event_id": n.to_string(), "event_type": "contact.lifecycle.updated", "contact": contact, "lifecycle": n})
        }
        _ => json!({"event_id": n.to_string(), "event_type": "message.received", "contact": contact,
            "message": {"messageId": n, "timestamp": 1_700_000_000 + n, "message": {"type": "image"}}}),
    };
    event.to_string().into_bytes()
}

async fn publish_each_twice(broker: &Broker) {
    let mut numbers: Vec<u64> = (0..EVENTS).chain(0..EVENTS).collect();
    fastrand::shuffle(&mut numbers);
    for some in numbers.chunks(500) {
        let bodies: Vec<_> = some.iter().map(|n| body(*n)).collect();
        let publishes =
            bodies.iter().map(|body| broker.publish_event("faster", "any", 1_792_000_000_000, body));
        futures_util::future::join_all(publishes).await;
    }
}

async fn assert_counted_once(broker: &Broker, database: &Database) {
    let (notes, changes) = (EVENTS / 10, EVENTS / 10);
    let messages = EVENTS - notes - changes;
    assert_eq!(database.count("webhook_events").await, EVENTS);
    assert_eq!(database.count("messages").await, messages);
    assert_eq!(database.count("internal_notes").await, notes);
    assert_eq!(database.count("conversations").await, CHATS);
    let signed = |number: u64| i64::try_from(number).unwrap();
    assert_eq!(database.sum("conversations", "message_count").await, signed(messages));
    assert_eq!(database.sum("conversations", "internal_note_count").await, signed(notes));
    let mut in_history = 0;
    for contact in database.all("contacts").await.values() {
        in_history += contact.get_array("lifecycle_history").unwrap().len();
    }
    assert_eq!(in_history, usize::try_from(changes).unwrap());
    for conversation in database.all("conversations").await.values() {
        let images = conversation.get_document("media_counts").unwrap().get_i32("image").unwrap_or(0);
        assert_eq!(images, conversation.get_i32("message_count").unwrap());
    }
    assert_eq!((broker.waiting("faster").await, broker.depth("dead.faster").await), (Some(0), Some(0)));
}

#[tokio::test]
async fn a_worker_killed_in_mid_batch_again_and_again_leaves_exact_counts() {
    let place = Place::new().await;
    let settings = [("BATCH_SIZE", "50")];
    let mut worker = Worker::start(&place, &settings).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    publish_each_twice(&broker).await;
    for crash in 1..=6 {
        // It is writing batch after batch when it dies.
        let reached = (EVENTS / 10 * crash).min(database.count("webhook_events").await + EVENTS / 20);
        poll::until("it writes", true, async || database.count("webhook_events").await >= reached).await;
        worker.process.crash().await;
        worker = Worker::start(&place, &settings).await;
    }
    database.until_stored(EVENTS).await;
    until_idle(&broker, &[&worker]).await;
    worker.process.stop().await;
    assert_counted_once(&broker, &database).await;
    place.remove().await;
}

#[tokio::test]
async fn three_workers_on_the_same_conversations_count_exactly() {
    let place = Place::new().await;
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(Worker::start(&place, &[("WEBHOOK_WORKERS", "2")]).await);
    }
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    publish_each_twice(&broker).await;
    database.until_stored(EVENTS).await;
    until_idle(&broker, &workers.iter().collect::<Vec<_>>()).await;
    for worker in workers {
        worker.process.stop().await;
    }
    assert_counted_once(&broker, &database).await;
    place.remove().await;
}
