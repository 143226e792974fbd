//! Operators find stored events.

use penstock_tests::database::Database;
use penstock_tests::http::post_received;
use penstock_tests::process::{Ingest, Worker, operate, operate_well};
use penstock_tests::stack::Place;
use serde_json::json;

fn message(n: u64) -> String {
    let event_type = if n.is_multiple_of(2) { "message.received" } else { "message.sent" };
    json!({"event_id": format!("e{n}"), "event_type": event_type, "contact": {"id": n % 3, "phone": format!("+1555{}", n % 3)},
        "message": {"messageId": 100 + n, "timestamp": 1_791_000_000 + n, "message": {"type": "text", "text": "hello"}}})
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_events_are_listed_and_shown() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    for n in 0..60 {
        post_received(&ingest.path("/webhook/faster"), message(n)).await;
    }
    let database = Database::of(&place, "faster").await;
    database.until_stored(60).await;
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
