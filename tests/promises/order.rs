//! The same stamped events give the same documents in any order, any batching, any duplication.

use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::process::{Worker, until_idle};
use penstock_tests::stack::Place;
use serde_json::json;

use crate::documents::{RECEIVED_AT_MS, sample, samples};

/// The samples, and events that quarrel with each other over the same documents.
fn events() -> Vec<(i64, Vec<u8>)> {
    let mut events: Vec<_> =
        (0..).zip(samples()).map(|(n, name)| (RECEIVED_AT_MS + n * 1000, sample(&name))).collect();
    for n in 0..120_i64 {
        let contact = json!({
            "id": n % 4, "phone": if n % 7 == 0 { None } else { Some(format!("+1555010{}", n % 4)) },
            "firstName": format!("name {n}"), "assignee": if n % 3 == 0 { json!(null) } else { json!({"id": n}) },
            "tags": [n], "lifecycle": format!("stage {}", n % 5), "custom": n,
        });
        let body = match n % 6 {
            0 => {
                json!({"event_id": format!("m{}", n % 10), "event_type": "message.received", "contact": contact,
                "message": {"messageId": n % 9, "timestamp": 1_792_000_000 + n % 11, "status": [{"value": "sent", "timestamp": n}],
                    "message": {"type": if n % 4 == 0 { "image" } else { "video" }}}, "channel": {"id": n, "name": format!("c{}", n % 3)}})
            }
            1 => {
                json!({"event_id": format!("n{}", n % 8), "event_type": "comment.created", "contact": contact, "text": n})
            }
            2 => {
                json!({"event_id": format!("l{}", n % 8), "event_type": "contact.lifecycle.updated", "contact": contact,
                "lifecycle": format!("to {n}"), "oldLifecycle": "from"})
            }
            3 => json!({"event_type": "contact.updated", "contact": contact}),
            4 => {
                json!({"event_type": "conversation.closed", "contact": contact, "conversation": {"closedTime": 1_792_000_000 + n % 5, "category": n}})
            }
            _ => {
                json!({"event_type": "conversation.opened", "contact": contact, "conversation": {"conversationOpenedAt": 1_792_000_000 + n % 5}})
            }
        };
        events.push((RECEIVED_AT_MS + n % 13, body.to_string().into_bytes()));
    }
    events
}

#[tokio::test]
async fn order_batching_and_duplication_leave_no_trace() {
    let distinct = u64::try_from(events().len()).unwrap();
    let mut dumps = Vec::new();
    for settings in [
        &[("BATCH_SIZE", "1"), ("WEBHOOK_WORKERS", "1"), ("CIRCUIT_BREAKER_THRESHOLD", "10")],
        &[("BATCH_SIZE", "7"), ("WEBHOOK_WORKERS", "3"), ("BATCH_LINGER", "1ms")],
        &[("BATCH_SIZE", "200"), ("WEBHOOK_WORKERS", "4"), ("BATCH_LINGER", "50ms")],
    ] {
        let place = Place::new().await;
        // Two workers at once, which get into each other's way.
        let workers = [Worker::start(&place, settings).await, Worker::start(&place, settings).await];
        let (broker, database) =
            (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
        let mut events = events();
        if !dumps.is_empty() {
            let again: Vec<_> = events.iter().filter(|_| fastrand::bool()).cloned().collect();
            events.extend(again);
            fastrand::shuffle(&mut events);
        }
        for (received_at_ms, body) in &events {
            broker.publish_event("faster", "any", *received_at_ms, body).await;
        }
        database.until_stored(distinct).await;
        until_idle(&broker, &[&workers[0], &workers[1]]).await;
        for worker in workers {
            worker.process.stop().await;
        }
        assert_eq!(broker.waiting("faster").await, Some(0));
        assert_eq!(broker.depth("dead.faster").await, Some(0));
        dumps.push(database.dump().await);
        place.remove().await;
    }
    for other in &dumps[1..] {
        for (collection, documents) in &dumps[0] {
            for (id, document) in documents {
                assert_eq!(other[collection].get(id), Some(document), "{collection} {id}");
            }
        }
        assert_eq!(*other, dumps[0]);
    }
}
