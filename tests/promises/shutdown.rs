//! A rollout loses nothing and answers nothing but 200.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::client;
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker};
use penstock_tests::stack::Place;
use serde_json::json;
use tokio::task::JoinSet;

/// A load balancer in front of two ingests: takes the first until that says it isn't ready.
#[derive(Clone)]
struct Balancer {
    url: Arc<Mutex<String>>,
    stop: Arc<AtomicBool>,
}

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    received: BTreeSet<u64>,
    otherwise: Vec<String>,
}

impl Balancer {
    fn target(&self) -> String {
        self.url.lock().unwrap().clone()
    }

    /// Sends events one after the other, each client its own, until told to stop.
    fn load(&self, clients: u64) -> JoinSet<Seen> {
        let (mut set, http) = (JoinSet::new(), client());
        for client in 0..clients {
            let (balancer, http) = (self.clone(), http.clone());
            set.spawn(async move {
                let mut seen = Seen::default();
                let mut n = client;
                while !balancer.stop.load(Ordering::Relaxed) {
                    let body = json!({"event_id": n.to_string(), "event_type": "message.received",
                        "contact": {"id": n % 50}, "message": {"messageId": n}});
                    let url = format!("{}/webhook/faster/incoming", balancer.target());
                    match http.post(url).body(body.to_string()).send().await {
                        Ok(answer) if answer.status() == 200 => drop(seen.received.insert(n)),
                        Ok(answer) => seen.otherwise.push(answer.status().to_string()),
                        Err(error) => seen.otherwise.push(format!("{error:?}")),
                    }
                    n += clients;
                }
                seen
            });
        }
        set
    }
}

#[tokio::test]
async fn rolling_both_binaries_under_load_answers_only_200_and_loses_nothing() {
    let place = Place::new().await;
    let drain = [("DRAIN_DELAY", "1s")];
    let (old_ingest, old_worker) = (Ingest::start(&place, &drain).await, Worker::start(&place, &[]).await);
    let balancer = Balancer {
        url: Arc::new(Mutex::new(old_ingest.url.clone())),
        stop: Arc::new(AtomicBool::new(false)),
    };
    let clients = balancer.load(16);
    let database = Database::of(&place, "faster").await;
    let until_more = async |more: u64| {
        let before = database.count("webhook_events").await;
        poll::until("events flow", true, async || database.count("webhook_events").await >= before + more)
            .await;
    };
    until_more(300).await;

    let new_worker = Worker::start(&place, &[]).await;
    until_more(200).await;
    old_worker.process.stop().await;

    let new_ingest = Ingest::start(&place, &drain).await;
    old_ingest.process.signal("TERM");
    let readyz = format!("{}/readyz", old_ingest.admin);
    poll::until("the old one says so", 503, async || {
        client().get(&readyz).send().await.unwrap().status().as_u16()
    })
    .await;
    *balancer.url.lock().unwrap() = new_ingest.url.clone();
    let mut old = old_ingest.process;
    assert!(old.ended().await.success(), "{}", old.log_text());

    until_more(300).await;
    balancer.stop.store(true, Ordering::Relaxed);
    let seen = clients.join_all().await;
    let otherwise: Vec<_> = seen.iter().flat_map(|seen| &seen.otherwise).collect();
    assert!(otherwise.is_empty(), "{otherwise:?}");
    let received: BTreeSet<u64> = seen.into_iter().flat_map(|seen| seen.received).collect();
    database.until_stored(u64::try_from(received.len()).unwrap()).await;
    new_worker.process.stop().await;
    let stored: BTreeSet<u64> =
        database.all("webhook_events").await.keys().map(|key| key.parse().unwrap()).collect();
    assert_eq!(stored, received);
    assert_eq!(database.sum("conversations", "message_count").await, i64::try_from(received.len()).unwrap());
    place.remove().await;
}

#[tokio::test]
async fn a_worker_told_to_stop_finishes_what_it_has_in_hand() {
    let place = Place::new().await;
    // It lingers so long that the batch is still open when the signal comes.
    let worker = Worker::start(&place, &[("BATCH_LINGER", "1s")]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    for n in 0..20 {
        broker.publish_event("faster", "any", 1, json!({"n": n}).to_string().as_bytes()).await;
    }
    let in_hand = async || penstock_tests::http::metric(&worker.admin, "worker_in_flight", &[]).await;
    poll::until("they are in hand", Some(20.0), in_hand).await;
    assert_eq!(database.count("webhook_events").await, 0);
    worker.process.stop().await;
    assert_eq!(database.count("webhook_events").await, 20);
    assert_eq!(broker.depth("webhooks.faster").await, Some(0));
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
