//! Large bodies and documents are stored in bounded memory, or dead-lettered, and delay no other event.

use std::time::Duration;

use penstock_tests::broker::{Broker, header};
use penstock_tests::database::Database;
use penstock_tests::feed::burst;
use penstock_tests::http::{metric, post_received};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, until_idle};
use penstock_tests::relay::{Fault, Relay};
use penstock_tests::stack::{Place, is_long_run};
use serde_json::json;

fn attachment(n: usize, zeros: usize) -> String {
    let list = vec!["0"; zeros].join(",");
    format!(
        r#"{{"event_id":"a{n}","event_type":"message.sent","contact":{{"id":{n}}},"message":{{"messageId":"a{n}","message":{{"type":"attachment","attachment":{{"n":[{list}]}}}}}}}}"#
    )
}

#[tokio::test]
async fn a_document_beyond_what_mongodb_takes_is_a_dead_letter_and_the_rest_is_stored() {
    let place = Place::new().await;
    // A million values take a debug build on a busy machine longer than the usual deadline.
    let worker = Worker::start(&place, &[("MONGO_TIMEOUT", "60s")]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    broker.publish_event("faster", "any", 1_700_000_000_000, attachment(0, 950_000).as_bytes()).await;
    for n in 1..=20 {
        broker.publish_event("faster", "any", 1_700_000_000_000, attachment(n, 3).as_bytes()).await;
    }
    let dead = async || broker.depth("dead.faster").await;
    poll::until_within("the dead letter", Some(1), Duration::from_secs(120), dead).await;
    database.until_stored(20).await;
    let letter = broker.next("dead.faster").await;
    assert_eq!(header(&letter.properties, "reason").as_deref(), Some("refused_by_mongodb"));
    assert_eq!(letter.data, attachment(0, 950_000).as_bytes());
    worker.process.stop().await;
    place.remove().await;
}

/// Nearly as many members as fit into a body.
fn many_members() -> String {
    let members: Vec<String> = (0..80_000).map(|n| format!(r#""{n:05}":1"#)).collect();
    members.join(",")
}

#[tokio::test]
async fn a_body_of_very_many_names_is_stored_as_any_other_and_delays_no_tenant() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let (faster, vip) = (Database::of(&place, "faster").await, Database::of(&place, "vip").await);
    let members = many_members();
    let message = |n: u8, channel: &str, attachment: &str| {
        format!(
            r#"{{"event_id":"{n}","event_type":"message.received","contact":{{"id":{n}}},"channel":{{{channel}}},"message":{{"messageId":"{n}","message":{{"type":"attachment","attachment":{{{attachment}}}}}}}}}"#
        )
    };
    for body in [message(1, &members, ""), message(2, "", &members)] {
        broker.publish_event("faster", "any", 1_700_000_000_000, body.as_bytes()).await;
    }
    for n in 0..20 {
        let body = json!({"event_id": n.to_string()}).to_string();
        broker.publish_event("vip", "any", 1_700_000_000_000, body.as_bytes()).await;
    }
    vip.until_stored(20).await;
    faster.until_stored(2).await;
    assert_eq!(metric(&worker.admin, "worker_retries_total", &[]).await, Some(0.0));
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn large_bodies_do_not_fill_the_workers_memory() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    // More than are in hand at a time.
    for n in 0..15 {
        post_received(&ingest.path("/webhook/faster"), attachment(n, 150_000)).await;
    }
    let worker = Worker::start(&place, &[("MONGO_TIMEOUT", "60s")]).await;
    Database::of(&place, "faster").await.until_stored(15).await;
    let peak = worker.process.peak_memory() >> 20;
    println!("peak: {peak} MiB");
    assert!(peak < 400, "{peak} MiB");
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn a_backlog_of_large_bodies_does_not_fill_the_workers_memory_either() {
    const LARGE: usize = 500;
    const SMALL: usize = 200;
    let place = Place::new().await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    // From then on there are the queues.
    Worker::start(&place, &[]).await.process.stop().await;
    for n in 0..LARGE + SMALL {
        let padding = "x".repeat(if n < LARGE { 256 << 10 } else { 1 << 10 });
        let body = json!({"event_id": n.to_string(), "padding": padding}).to_string();
        broker.publish_event("faster", "any", 1_700_000_000_000, body.as_bytes()).await;
    }
    let worker = Worker::start(&place, &[]).await;
    let stored = async || database.count("webhook_events").await;
    poll::until_within("all are stored", (LARGE + SMALL) as u64, Duration::from_secs(120), stored).await;
    let peak = worker.process.peak_memory() >> 20;
    println!("peak: {peak} MiB");
    assert!(peak < 130, "{peak} MiB");
    until_idle(&broker, &[&worker]).await;
    assert_eq!(metric(&worker.admin, "worker_in_flight_bytes", &[]).await, Some(0.0));
    worker.process.stop().await;
    place.remove().await;
}

/// Events in the queue for large bodies, and in the others, of those that a worker is sent while MongoDB
/// stalls.
const BACKLOG: (u64, u64) = (40, 600);
/// Events before that, some for each partition.
const WARM: u64 = 40;
/// Deliveries of the queue for large bodies that a worker has in hand.
const LARGE_IN_HAND: u64 = 4;

/// A worker that has as much in hand as it wants, since MongoDB stalls.
async fn with_full_hands(place: &Place) -> (Worker, Relay) {
    let broker = Broker::connect(&place.amqp_url).await;
    let (relay, uri) = place.mongo_relay().await;
    let worker = Worker::start(place, &[("MONGO_URI", uri.as_str()), ("SHUTDOWN_GRACE", "5s")]).await;
    // Each queue begins with a single delivery in hand.
    burst(&broker, "faster", 0..WARM, WARM).await;
    broker.publish_event("faster", "any", 1, attachment(0, 40_000).as_bytes()).await;
    until_stored_and_idle(place, &worker, WARM + 1).await;
    relay.set(Fault::Stall);
    let (large, others) = BACKLOG;
    for n in 0..large + others {
        let padding = "x".repeat(if n < large { 256 << 10 } else { 32 << 10 });
        let body = json!({"event_id": format!("b{n}"), "padding": padding}).to_string();
        broker.publish_event("faster", "any", 1_700_000_000_000, body.as_bytes()).await;
    }
    let wanted = u32::try_from(LARGE_IN_HAND + others).expect("a few");
    let in_hand = async || metric(&worker.admin, "worker_in_flight", &[]).await;
    poll::until("few of the large ones are in hand, and all others", Some(f64::from(wanted)), in_hand).await;
    assert_eq!(broker.waiting("faster").await.map(u64::from), Some(large - LARGE_IN_HAND));
    (worker, relay)
}

async fn until_stored_and_idle(place: &Place, worker: &Worker, events: u64) {
    Database::of(place, "faster").await.until_stored(events).await;
    until_idle(&Broker::connect(&place.amqp_url).await, &[worker]).await;
}

async fn assert_backlog_stored(place: &Place, worker: Worker) {
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(place, "faster").await);
    let all = WARM + 1 + BACKLOG.0 + BACKLOG.1;
    until_stored_and_idle(place, &worker, all).await;
    assert_eq!(metric(&worker.admin, "worker_in_flight_bytes", &[]).await, Some(0.0));
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    worker.process.stop().await;
    assert_eq!(database.count("webhook_events").await, all);
}

#[tokio::test]
async fn large_bodies_are_taken_few_at_a_time() {
    let place = Place::new().await;
    let (worker, relay) = with_full_hands(&place).await;
    relay.set(Fault::None);
    assert_backlog_stored(&place, worker).await;
    place.remove().await;
}

#[tokio::test]
async fn a_worker_with_much_in_hand_can_be_stopped() {
    let place = Place::new().await;
    let (mut worker, _relay) = with_full_hands(&place).await;
    worker.process.signal("TERM");
    assert!(worker.process.ended().await.success());
    assert_backlog_stored(&place, Worker::start(&place, &[]).await).await;
    place.remove().await;
}

#[tokio::test]
async fn a_document_that_grows_beyond_what_mongodb_takes_is_a_dead_letter_too() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[("MONGO_TIMEOUT", "60s")]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    broker.publish_event("faster", "any", 1_700_000_000_000, attachment(0, 3).as_bytes()).await;
    database.until_stored(1).await;
    let later = attachment(0, 950_000).replace(r#""event_id":"a0""#, r#""event_id":"later""#);
    broker.publish_event("faster", "any", 1_700_000_001_000, later.as_bytes()).await;
    let dead = async || broker.depth("dead.faster").await;
    poll::until_within("the dead letter", Some(1), Duration::from_secs(120), dead).await;
    broker.publish_event("faster", "any", 1_700_000_002_000, attachment(1, 3).as_bytes()).await;
    database.until_stored(2).await;
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn an_event_that_always_takes_too_long_holds_up_only_its_own_queue_and_only_for_two_minutes() {
    let place = Place::new().await;
    let (relay, uri) = place.mongo_relay().await;
    // Two seconds for the first event, a tenth of one for a batch of the others.
    relay.set(Fault::Narrow(4 << 20));
    // On a machine with much to do others miss this deadline too, now and then: that is not for the breaker
    // to judge here.
    let settings =
        [("MONGO_URI", uri.as_str()), ("MONGO_TIMEOUT", "1s"), ("CIRCUIT_BREAKER_THRESHOLD", "10000")];
    let worker = Worker::start(&place, &settings).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    broker.publish_event("faster", "any", 1_700_000_000_000, attachment(0, 520_000).as_bytes()).await;
    let retries = async || metric(&worker.admin, "worker_retries_total", &[]).await > Some(2.0);
    poll::until("it is tried again and again", true, retries).await;
    let behind_it = attachment(1000, 40_000);
    broker.publish_event("faster", "any", 1, behind_it.as_bytes()).await;
    for n in 1..=64 {
        broker.publish_event("faster", "any", 1, attachment(n, n % 2 * 9000 + 3).as_bytes()).await;
    }
    let stored = async || database.count("webhook_events").await;
    poll::until("those of other queues are stored", 64, stored).await;
    // Of the queue for large bodies, this one and perhaps the one behind it.
    let settled = async || metric(&worker.admin, "worker_in_flight", &[]).await <= Some(2.0);
    poll::until("and settled", true, settled).await;
    assert_eq!(database.find("messages", "a0").await, None);
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    if is_long_run() {
        let dead = async || broker.depth("dead.faster").await;
        poll::until_within("it is given up", Some(1), Duration::from_mins(4), dead).await;
        let letter = broker.next("dead.faster").await;
        assert_eq!(header(&letter.properties, "reason").as_deref(), Some("stuck"));
        assert_eq!(letter.data, attachment(0, 520_000).as_bytes());
        poll::until("the one behind it is stored", 65, stored).await;
    }
    place.remove().await;
}
