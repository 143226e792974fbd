//! Operators find stored events, and replay them.

use mongodb::bson::{Document, doc};
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::post_received;
use penstock_tests::process::{Ingest, Worker, operate, operate_well, until_idle};
use penstock_tests::stack::Place;
use serde_json::{Value, json};

fn message(n: u64) -> String {
    let event_type = if n.is_multiple_of(2) { "message.received" } else { "message.sent" };
    json!({"event_id": format!("e{n}"), "event_type": event_type, "contact": {"id": n % 3, "phone": format!("+1555{}", n % 3)},
        "message": {"messageId": 100 + n, "timestamp": 1_791_000_000 + n, "message": {"type": "text", "text": "hello"}}})
    .to_string()
}

/// A worker, and 60 events of three conversations that are stored.
async fn with_sixty_events() -> (Place, Database, Worker) {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    for n in 0..60 {
        post_received(&ingest.path("/webhook/faster"), message(n)).await;
    }
    let database = Database::of(&place, "faster").await;
    database.until_stored(60).await;
    ingest.process.stop().await;
    (place, database, worker)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_events_are_listed_and_shown() {
    let (place, database, worker) = with_sixty_events().await;
    let list =
        |filter: &[&str]| operate_well(&place, &[&["events", "list", "--json"], filter].concat()).json();
    for (filter, expected) in [
        (&[][..], 50),
        (&["--limit", "1000"], 60),
        (&["--limit", "2"], 2),
        (&["--key", "e7"], 1),
        (&["--message", "107"], 1),
        (&["--contact", "+15551"], 20),
        (&["--contact", "2", "--event-type", "message.sent"], 10),
        (&["--event-type", "call.ended"], 0),
        (&["--since", "2000-01-01T00:00Z", "--limit", "99"], 60),
        (&["--until", "2000-01-01T00:00Z"], 0),
        (&["--tenant", "vip"], 0),
    ] {
        assert_eq!(list(filter).len(), expected, "{filter:?}");
    }
    // Whoever looks for a message may have lost it.
    database.0.collection::<Document>("messages").delete_one(doc! {"_id": "107"}).await.unwrap();
    assert_eq!(list(&["--message", "107"]).len(), 1);
    let earlier_release = doc! {"$unset": {"message_id": 1}};
    let ledger = database.0.collection::<Document>("webhook_events");
    ledger.update_one(doc! {"_id": "e8"}, earlier_release).await.unwrap();
    assert_eq!(list(&["--message", "108"]).len(), 1);
    assert_eq!(list(&["--message", "108", "--event-type", "call.ended"]).len(), 0);
    let table = operate_well(&place, &["events", "list", "--tenant", "faster", "--limit", "3"]).out;
    assert!(table.starts_with("STORED AT") && table.lines().count() == 4, "{table}");
    assert_eq!(operate_well(&place, &["events", "list", "--tenant", "vip"]).out, "none\n");
    let shown = operate_well(&place, &["events", "show", "--key", "e7", "--json"]).json();
    assert_eq!((&shown[0]["body"], &shown[0]["tenant"]), (&json!(message(7)), &json!("faster")));
    assert!(operate_well(&place, &["events", "show", "--key", "e7"]).out.contains("hello"));

    let unknown = operate(&place, &["events", "list", "--tenant", "fastre"]);
    assert!(unknown.status == 1 && unknown.errors.contains("fastre"), "{}", unknown.errors);
    worker.process.stop().await;
    place.remove().await;
}

/// How many events were chosen and are applied, and how many documents are added and changed.
fn numbers(summary: &Value) -> [u64; 4] {
    ["chosen", "events", "inserted", "updated"].map(|name| summary[name].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replayed_events_bring_their_documents_back_and_leave_others_alone() {
    let (place, database, worker) = with_sixty_events().await;
    until_idle(&Broker::connect(&place.amqp_url).await, &[&worker]).await;
    let well = database.dump().await;
    let collection = |name: &str| database.0.collection::<Document>(name);
    collection("messages").delete_many(doc! {"_id": {"$in": ["107", "108"]}}).await.unwrap();
    collection("conversations").update_many(doc! {}, doc! {"$set": {"message_count": 999}}).await.unwrap();
    let (mut expected, others) = (database.dump().await, database.all("conversations").await);

    let replay = |filter: &[&str]| {
        operate_well(&place, &[&["events", "replay", "--tenant", "faster", "--json"], filter].concat()).json()
    };
    let dry = replay(&["--message", "107", "--dry-run"]);
    let (summary, changes) = dry.split_last().unwrap();
    assert_eq!((numbers(summary), changes.len()), ([1, 20, 1, 1], 2), "{dry:?}");
    assert_eq!(database.dump().await, expected, "nothing was changed");

    assert_eq!(numbers(&replay(&["--message", "107"])[0]), [1, 20, 1, 1]);
    for (collection, id) in [("messages", "107"), ("conversations", "+15551")] {
        expected.get_mut(collection).unwrap().insert(id.to_owned(), well[collection][id].clone());
    }
    assert_eq!(database.dump().await, expected);
    let replayed = database.all("conversations").await;
    for untouched in ["+15550", "+15552"] {
        assert_eq!(replayed[untouched], others[untouched]);
    }
    assert_eq!(numbers(&replay(&["--contact", "+15551"])[0]), [20, 20, 0, 0], "once more changes nothing");
    assert_eq!(database.all("conversations").await, replayed);
    assert_eq!(numbers(&replay(&["--key", "none"])[0]), [0, 0, 0, 0]);

    // Somebody restores a part of a backup.
    let erased = database.get("webhook_events", "e9").await;
    operate_well(&place, &["erase", "--tenant", "faster", "--phone", "+15550"]);
    collection("webhook_events").insert_one(erased).await.unwrap();
    assert_eq!(numbers(&replay(&["--key", "e9"])[0]), [1, 1, 0, 0]);
    assert_eq!(database.find("messages", "109").await, None);

    let all = operate(&place, &["events", "replay", "--tenant", "faster"]);
    assert!(all.status == 2 && all.errors.contains("--key <KEY>"), "{}", all.errors);
    worker.process.stop().await;
    place.remove().await;
}
