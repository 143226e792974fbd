//! Operators can watch events as they come, without delaying them.

use std::time::{Duration, Instant};

use penstock_tests::broker::Broker;
use penstock_tests::http::post_received;
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Process};
use penstock_tests::stack::Place;
use serde_json::{Value, json};

const RECEIVED_AT_MS: i64 = 1_792_000_000_000;
/// More than a tail's queue holds, and what is on its way to it.
const MANY: u32 = 3000;
/// Events of one measurement, and measurements with the tail frozen, and as many with it awake.
const EVENTS: u32 = 100;
const ROUNDS: u32 = 6;

fn event(key: &str, event_type: &str) -> String {
    json!({"event_id": key, "event_type": event_type, "contact": {"id": 1}, "text": "x".repeat(2000)})
        .to_string()
}

/// The queues that no tenant has.
async fn own_queues(place: &Place) -> Vec<Value> {
    let url = format!("{}/api/queues/{}", place.management_url, place.name);
    let queues: Vec<Value> = reqwest::get(url).await.unwrap().json().await.unwrap();
    let is_own = |queue: &Value| queue["arguments"]["x-max-length"] == 1000;
    queues.into_iter().filter(is_own).collect()
}

#[tokio::test]
async fn a_tail_shows_the_events_that_are_wanted() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    let arguments = ["tail", "--tenant", "faster", "--event-type", "message.*", "--json"];
    let tail = Process::start_command(&place, &arguments, &[]);
    let (faster, vip) = (ingest.path("/webhook/faster"), ingest.path("/webhook/vip"));
    poll::until("it has begun", true, async || {
        post_received(&faster, event("first", "message.sent")).await;
        !tail.log_lines().is_empty()
    })
    .await;
    post_received(&faster, event("other type", "call.ended")).await;
    post_received(&vip, event("other tenant", "message.sent")).await;
    post_received(&faster, event("last", "message.received")).await;
    let keys = || tail.log_lines().iter().map(|line| line["key"].clone()).collect::<Vec<_>>();
    poll::until("the last one", true, async || keys().contains(&json!("last"))).await;
    assert!(keys().iter().all(|key| key == "first" || key == "last"), "{:?}", keys());
    let last = tail.log_lines().pop().unwrap();
    assert_eq!((&last["tenant"], &last["event_type"]), (&json!("faster"), &json!("message.received")));
    assert!(!tail.log_text().contains("xxx"), "bodies are nobody's business");
    let queues = async || own_queues(&place).await.len();
    assert_eq!(queues().await, 1);
    tail.crash().await;
    poll::until("its queue is gone", 0, queues).await;
    place.remove().await;
}

#[tokio::test]
async fn a_tail_that_reads_nothing_slows_no_publisher() {
    let place = Place::new().await;
    // It declares the queues.
    let ingest = Ingest::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let tail = Process::start_command(&place, &["tail", "--json"], &[]);
    let body = event("1", "message.sent").into_bytes();
    let publish = async |events: u32| {
        let started = Instant::now();
        for _ in 0..events {
            broker.publish_event("faster", "any", RECEIVED_AT_MS, &body).await;
        }
        started.elapsed()
    };
    poll::until("it has begun", true, async || {
        publish(1).await;
        !tail.log_lines().is_empty()
    })
    .await;
    tail.signal("STOP");
    publish(MANY).await;
    let (mut awake, mut frozen) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        frozen += publish(EVENTS).await;
        tail.signal("CONT");
        awake += publish(EVENTS).await;
        tail.signal("STOP");
    }
    println!("{} events: {frozen:?} with the tail frozen, {awake:?} with it awake", EVENTS * ROUNDS);
    assert!(frozen < awake * 2, "{frozen:?}, not {awake:?}");
    poll::until("its queue is short", true, async || {
        let queues = own_queues(&place).await;
        let [queue] = &queues[..] else { return false };
        queue["messages"].as_u64().is_some_and(|messages| messages <= 1100)
    })
    .await;
    ingest.process.stop().await;
    place.remove().await;
}
