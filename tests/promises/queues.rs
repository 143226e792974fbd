//! A conversation has one queue, for every publisher, at any time.

use std::io::{Read, Write};
use std::net::TcpListener;

use penstock_tests::broker::{self, Broker};
use penstock_tests::http::{get, metric, post, post_received};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, operate_with};
use penstock_tests::stack::Place;
use serde_json::json;
use shared::partition::{LARGE_BODY, WorkQueue};

const NOWHERE: (&str, &str) = ("AMQP_URL", "amqp://127.0.0.1:1/%2f");

fn event(n: u32, text: &str) -> String {
    json!({"event_id": n.to_string(), "contact": {"phone": format!("+4915{}", n % 20)}, "text": text})
        .to_string()
}

/// Takes all events, and asserts that each is in the queue where it belongs.
async fn assert_in_place(broker: &Broker, partitions: u16, events: usize) {
    let mut taken = 0;
    for queue in WorkQueue::all(partitions) {
        while let Some(message) = broker.take(&queue.name("faster")).await {
            let belongs = broker::queue_of("faster", &message.data, partitions);
            assert_eq!(belongs, queue, "{:?}", message.properties.message_id());
            taken += 1;
        }
    }
    assert_eq!(taken, events);
}

#[tokio::test]
async fn the_events_of_a_conversation_are_in_one_queue_and_large_bodies_in_theirs() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[("WEBHOOK_WORKERS", "3")]).await;
    for n in 0..60 {
        post_received(&ingest.path("/webhook/faster"), event(n, "")).await;
    }
    post_received(&ingest.path("/webhook/faster"), event(60, &"x".repeat(LARGE_BODY))).await;
    let broker = Broker::connect(&place.amqp_url).await;
    assert_eq!(broker.depth("webhooks.faster.large").await, Some(1));
    for n in 0..3 {
        assert!(broker.depth(&format!("webhooks.faster.{n}")).await > Some(0), "{n} has a share");
    }
    assert_eq!(broker.depth("webhooks.faster.3").await, None);
    assert_in_place(&broker, 3, 61).await;
    place.remove().await;
}

#[tokio::test]
async fn what_was_spooled_gets_the_queue_that_is_right_when_it_is_drained() {
    let place = Place::new().await;
    let spool = place.folder.join("the-spool");
    let spool = ("SPOOL_DIR", spool.to_str().unwrap());
    let before = Ingest::start_unconnected(&place, &[NOWHERE, spool, ("WEBHOOK_WORKERS", "8")]).await;
    for n in 0..40 {
        post_received(&before.path("/webhook/faster"), event(n, "")).await;
    }
    post_received(&before.path("/webhook/faster"), event(40, &"x".repeat(LARGE_BODY))).await;
    before.process.crash().await;

    let after = Ingest::start(&place, &[spool, ("WEBHOOK_WORKERS", "2")]).await;
    let spooled = async || metric(&after.admin, "ingest_spool_records", &[]).await;
    poll::until("the spool is empty", Some(0.0), spooled).await;
    assert_in_place(&Broker::connect(&place.amqp_url).await, 2, 41).await;
    place.remove().await;
}

#[tokio::test]
async fn the_largest_number_of_partitions_is_counted_while_settings_differ() {
    let place = Place::new().await;
    let few = Ingest::start(&place, &[("WEBHOOK_WORKERS", "2")]).await;
    let many = Ingest::start(&place, &[("WEBHOOK_WORKERS", "9")]).await;
    let faster = async || get(&few.path("/health")).await.body["queue"]["tenants"]["faster"].clone();
    poll::until("it hears of the other", json!(9), async || faster().await["partitions"].clone()).await;
    for n in 0..20 {
        post_received(&many.path("/webhook/faster"), event(n, "")).await;
    }
    poll::until("it counts what the other publishes", json!(20), async || faster().await["size"].clone())
        .await;
    many.process.stop().await;
    poll::until("the other has left", json!(2), async || faster().await["partitions"].clone()).await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_event_goes_to_the_queue_of_its_conversation() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[("SIGNING_KEYS", "k")]).await;
    for n in 0..20 {
        // Not signed.
        post(&ingest.path("/webhook/faster"), event(n, "")).await;
    }
    let arguments = ["quarantine", "replay", "--tenant", "faster", "--unverified"];
    let replayed = operate_with(&place, &arguments, &[("WEBHOOK_WORKERS", "7")]);
    assert_eq!(replayed.status, 0, "{}", replayed.errors);
    assert_in_place(&Broker::connect(&place.amqp_url).await, 7, 20).await;
    place.remove().await;
}

/// The first words of a RabbitMQ 3.13: `connection.start` with its version, in a frame.
const OLD_RABBITMQ: &[u8] =
    b"\x01\0\0\0\0\0\x2f\0\x0a\0\x0a\0\x09\0\0\0\x13\x07versionS\0\0\0\x063.13.7\0\0\0\x05PLAIN\0\0\0\x05en_US\xce";

#[tokio::test]
async fn an_older_rabbitmq_is_refused_in_plain_words() {
    let place = Place::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://{}/%2f", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 8]).and_then(|_| stream.write_all(OLD_RABBITMQ));
        }
    });
    let ingest = Ingest::start_unconnected(&place, &[("AMQP_URL", &url)]).await;
    poll::until("the log says so", true, async || {
        ingest.process.log_text().contains("RabbitMQ 3.13.7 is too old: 4.0 is the oldest")
    })
    .await;
    // The spool takes what comes.
    post_received(&ingest.path("/webhook/faster"), "{}").await;
    place.remove().await;
}
