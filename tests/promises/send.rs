//! An operator can send a webhook as respond.io would, and sees where it ends.

use penstock_tests::database::Database;
use penstock_tests::process::{Ingest, Worker, operate_with, run_with_input};
use penstock_tests::stack::Place;
use serde_json::json;

const KEY: (&str, &str) = ("SIGNING_KEYS", "first,second");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_is_signed_sent_and_seen_to_be_stored() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[KEY]).await, Worker::start(&place, &[]).await);
    let send = |more: &[&str], key: (&str, &str)| {
        let common = ["send", "--tenant", "faster", "--json", "--url", &ingest.url];
        operate_with(&place, &[&common, more].concat(), &[key])
    };
    let sent = send(&["--sample", "message.received", "--count", "3", "--wait"], KEY);
    assert_eq!(sent.status, 0, "{}", sent.errors);
    let database = Database::of(&place, "faster").await;
    assert_eq!((sent.json().len(), database.count("messages").await), (3, 3));
    for event in sent.json() {
        let ledger = format!("{}.webhook_events", place.database("faster"));
        assert_eq!((&event["status"], &event["stored_in"]), (&json!(200), &json!(ledger)));
        assert!(event["stored_after_ms"].as_u64() >= event["answered_after_ms"].as_u64(), "{event}");
        let entry = database.get("webhook_events", event["key"].as_str().unwrap()).await;
        assert_eq!(entry.get_str("signature").unwrap(), "raw");
    }
    let refused = send(&["--sample", "call.ended"], ("SIGNING_KEYS", "wrong"));
    assert!(refused.status == 1 && refused.errors.contains("1 of 1 did not arrive"), "{}", refused.errors);
    assert!(refused.out.contains("invalid_signature"), "{}", refused.out);
    let unknown = send(&["--sample", "message.receivd"], KEY);
    assert!(unknown.status == 1 && unknown.errors.contains("conversation.closed"), "{}", unknown.errors);
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_somebodys_own_is_sent_as_it_is() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    let (file, body) = (place.folder.join("own.json"), r#"{ "event_id": "own", "n": 1.50 }"#);
    std::fs::write(&file, body).unwrap();
    let arguments = ["send", "--tenant", "vip", "--url", &ingest.url, "--wait"];
    let from_file = [&arguments[..], &["--sample", file.to_str().unwrap()]].concat();
    let sent = operate_with(&place, &from_file, &[]);
    assert!(sent.status == 0 && sent.out.contains("stored in "), "{}{}", sent.out, sent.errors);
    let database = Database::of(&place, "vip").await;
    assert_eq!(database.get("webhook_events", "own").await.get_str("body").unwrap(), body);
    let again = operate_with(&place, &from_file, &[]);
    assert!(again.status == 1 && again.errors.contains("own is stored already"), "{}", again.errors);
    let from_input = ["send", "--tenant", "vip", "--url", &ingest.url, "--sample", "-"];
    let sent = tokio::task::block_in_place(|| {
        run_with_input("worker", &place.folder, &from_input, &[], r#"{"event_id":"piped"}"#)
    });
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    database.until_stored(2).await;
    database.get("webhook_events", "piped").await;
    worker.process.stop().await;
    place.remove().await;
}
