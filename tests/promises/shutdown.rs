//! A rollout loses nothing and answers nothing but 200.

use std::time::Duration;

use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::get;
use penstock_tests::load::Load;
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Process, Worker, until_idle};
use penstock_tests::relay::Fault;
use penstock_tests::stack::Place;
use serde_json::json;

#[tokio::test]
async fn rolling_both_binaries_under_load_answers_only_200_and_loses_nothing() {
    let place = Place::new().await;
    let drain = [("DRAIN_DELAY", "5s")];
    let (old_ingest, old_worker) = (Ingest::start(&place, &drain).await, Worker::start(&place, &[]).await);
    let load = Load::start(&old_ingest.url, 16, Duration::from_millis(20));
    load.until_more(300).await;

    let new_worker = Worker::start(&place, &[]).await;
    load.until_more(200).await;
    old_worker.process.stop().await;
    load.until_more(200).await;

    // A load balancer takes the old one until that says it isn't ready.
    let new_ingest = Ingest::start(&place, &drain).await;
    old_ingest.process.signal("TERM");
    let readyz = format!("{}/readyz", old_ingest.admin);
    poll::until("the old one says so", 503, async || get(&readyz).await.status).await;
    load.redirect(&new_ingest.url);
    let mut old = old_ingest.process;
    assert!(old.ended().await.success(), "{}", old.log_text());

    load.until_more(300).await;
    let report = load.stop().await;
    assert!(report.otherwise.is_empty(), "{:?}", report.otherwise);
    report.assert_stored_once(&Database::of(&place, "faster").await).await;
    new_worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn a_worker_told_to_stop_finishes_what_it_has_in_hand() {
    let place = Place::new().await;
    let (relay, slow) = place.mongo_relay().await;
    let worker = Worker::start(&place, &[("MONGO_URI", &slow), ("MONGO_TIMEOUT", "30s")]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    let publish = async |n: u64| {
        broker.publish_event("faster", "any", 1, json!({"n": n}).to_string().as_bytes()).await;
    };
    // Each queue begins with a single delivery in hand.
    for n in 0..20 {
        publish(n).await;
    }
    database.until_stored(20).await;
    until_idle(&broker, &[&worker]).await;
    relay.set(Fault::Stall);
    for n in 20..40 {
        publish(n).await;
    }
    let in_hand = async || penstock_tests::http::metric(&worker.admin, "worker_in_flight", &[]).await;
    poll::until("they are in hand", Some(20.0), in_hand).await;
    assert_eq!(database.count("webhook_events").await, 20);
    // A transaction takes seconds: the signal comes in the middle of it.
    relay.set(Fault::Delay(Duration::from_millis(300)));
    worker.process.stop().await;
    assert_eq!(database.count("webhook_events").await, 40);
    assert_eq!(broker.waiting("faster").await, Some(0));
    place.remove().await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let place = Place::new().await;
    // It would keep serving for longer than a test waits.
    let mut ingest = Ingest::start(&place, &[("DRAIN_DELAY", "60s")]).await.process;
    let told =
        |ingest: &Process, message: &str| ingest.log_lines().iter().any(|line| line["message"] == message);
    ingest.signal("TERM");
    poll::until("it stops", true, async || told(&ingest, "stopping")).await;
    ingest.signal("TERM");
    assert_eq!(ingest.ended().await.code(), Some(1));
    assert!(told(&ingest, "told to stop again, stopping at once"));
    place.remove().await;
}

#[tokio::test]
async fn without_servers_both_stop_within_the_grace_period() {
    let place = Place::new().await;
    let nowhere = [
        ("AMQP_URL", "amqp://127.0.0.1:1/%2f"),
        ("MONGO_URI", "mongodb://127.0.0.1:1/?replicaSet=rs0"),
        ("VIP_MONGO_URI", ""),
        ("MONGO_TIMEOUT", "500ms"),
    ];
    let ingest = Ingest::start_unconnected(&place, &nowhere).await;
    let worker = Worker::start_unconnected(&place, &nowhere).await;
    assert_eq!(penstock_tests::http::get(&format!("{}/readyz", worker.admin)).await.status, 503);
    let stopped = async {
        ingest.process.stop().await;
        worker.process.stop().await;
    };
    tokio::time::timeout(Duration::from_secs(20), stopped).await.expect("both end");
    place.remove().await;
}
