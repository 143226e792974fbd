//! Compatibility with the version before and the next. `tests/versions/before-0.2` is what a build before
//! version 0.2 wrote when it got these samples.

use std::time::Instant;

use penstock_tests::database::Database;
use penstock_tests::http::metric;
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker};
use penstock_tests::stack::Place;
use serde_json::json;
use shared::status::{Announcement, Peers};

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

/// The samples that it got for the tenant `faster`; one, `ping`, was for `vip`.
const SAMPLES: [&str; 11] = [
    "message.received.text",
    "contact.created.custom-fields-flat",
    "comment.created",
    "conversation.opened",
    "message.sent.user",
    "contact.lifecycle.updated",
    "contact.tag.updated.add",
    "call.ended",
    "message.received.attachment-image",
    "conversation.closed",
    "message.received.string-ids",
];

fn sample(name: &str) -> String {
    std::fs::read_to_string(format!("{FOLDER}/payloads/{name}.json")).unwrap()
}

/// The ledger has each sample, byte for byte.
async fn assert_stored(database: &Database) {
    database.until_stored(SAMPLES.len() as u64).await;
    let entries = database.all("webhook_events").await;
    let mut stored: Vec<&str> = entries.values().map(|entry| entry.get_str("body").unwrap()).collect();
    let mut sent = SAMPLES.map(sample);
    stored.sort_unstable();
    sent.sort_unstable();
    assert_eq!(stored, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_of_the_version_before_is_published() {
    let place = Place::new().await;
    let spool = place.folder.join("spool-of-before");
    std::fs::create_dir(&spool).unwrap();
    std::fs::copy(format!("{FOLDER}/versions/before-0.2/spool.db"), spool.join("spool.db")).unwrap();
    let ingest = Ingest::start(&place, &[("SPOOL_DIR", spool.to_str().unwrap())]).await;
    let worker = Worker::start(&place, &[]).await;
    assert_stored(&Database::of(&place, "faster").await).await;
    Database::of(&place, "vip").await.until_stored(1).await;
    poll::until("the spool is empty", Some(0.0), async || {
        metric(&ingest.admin, "ingest_spool_records", &[]).await
    })
    .await;
    worker.process.stop().await;
    place.remove().await;
}

#[test]
fn announcements_of_other_versions_are_understood() {
    // As version 0.2 makes them, with what a later one may add.
    let worker = json!({"name": "worker-1", "partitions": 4, "leaving": false, "new": 1, "role": {"worker": {"new": [], "tenants": {
        "faster": {"breaker": "CLOSED", "failures": 0, "threshold": 10, "seconds_in_state": 1, "mongodb_connected": true,
            "success_age_ms": 5, "in_flight": 0, "half_open_successes": 0, "seconds_since_failure": null, "new": {}}}}}});
    let ingest = json!({"name": "ingest-1", "partitions": 8, "leaving": false, "role": {"ingest": {"refusals_left": 10,
        "spool": {"records": 0, "bytes": 0, "oldest_age_seconds": 0, "writable": true, "new": 1}}}});
    let now = Instant::now();
    let mut peers = Peers::default();
    for announced in [worker, ingest] {
        peers.record(serde_json::from_value::<Announcement>(announced).unwrap(), now);
    }
    assert_eq!((peers.alive(now).count(), peers.partitions(now)), (2, Some(8)));
}
