//! A queue that neither confirms nor refuses delays its own tenant only.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lapin::{Connection, ConnectionProperties};
use penstock_tests::broker;
use penstock_tests::database::Database;
use penstock_tests::http::{get, metric, post_received};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker};
use penstock_tests::rabbit_cluster::RabbitCluster;
use penstock_tests::relay::Fault;
use reqwest::Client;
use serde_json::{Value, json};
use shared::partition::WorkQueue;
use shared::tenant_queue::TenantQueue;
use shared::topology;

/// The queue of `faster` that falls silent; its other queues don't.
const SILENT: WorkQueue = WorkQueue::Partition(0);
/// Events for the silent queue that are published before it is found to be silent: RabbitMQ calls a queue
/// slow after 32.
const BURST: u64 = 300;
/// More than RabbitMQ reads from a connection on which something is published to a slow queue.
const MANY: u64 = 600;

fn event(n: u64) -> String {
    json!({"event_id": n.to_string(), "event_type": "message.received", "contact": {"id": n % 20},
        "message": {"messageId": n}})
    .to_string()
}

/// Numbers of this many events for the silent queue, which no other event has.
fn silent_numbers(count: u64) -> Vec<u64> {
    let is_for_it = |n: &u64| broker::queue_of("faster", event(*n).as_bytes(), 4) == SILENT;
    (1_000_000..).filter(is_for_it).take(usize::try_from(count).unwrap()).collect()
}

/// Posts an event for each tenant, and tells how long the answer for `vip` took.
async fn post_to_both(ingest: &Ingest, n: u64) -> Duration {
    post_received(&ingest.path("/webhook/faster"), event(n)).await;
    let sent = Instant::now();
    post_received(&ingest.path("/webhook/vip"), event(n)).await;
    sent.elapsed()
}

async fn accepted(ingest: &Ingest, tenant: &str, via: &str) -> f64 {
    let labels = [("tenant", tenant), ("via", via)];
    metric(&ingest.admin, "ingest_accepted_total", &labels).await.expect("there from the start")
}

async fn is_suspect(ingest: &Ingest, tenant: &str) -> bool {
    get(&ingest.path("/health")).await.body["broker"]["tenants"][tenant]["suspect"] == true
}

/// Declares that queue through a node, so that it lives there alone; what else is declared lives on the first
/// node alone.
async fn spread_queues(cluster: &RabbitCluster, node: usize) {
    for node in &cluster.nodes {
        let alone = "application:set_env(rabbit, quorum_cluster_size, 1).";
        tokio::task::block_in_place(|| node.rabbitmqctl(&["eval", alone]));
    }
    let declare = async |node: usize| {
        let url = cluster.url_of(node);
        let connection =
            Connection::connect(&url, ConnectionProperties::default()).await.expect("it answers");
        (connection.create_channel().await.expect("a channel"), connection)
    };
    let (first, _connection) = declare(0).await;
    topology::declare(&first, &[], 0).await.expect("declared");
    let (there, _connection) = declare(node).await;
    TenantQueue::Work(SILENT).declare(&there, "faster").await.expect("declared");
    let queue = SILENT.name("faster");
    let management = cluster.nodes[0].env("AMQP_MANAGEMENT_URL");
    let url = format!("{management}/api/queues/{}/{queue}", cluster.place.name);
    let members = async || {
        let answer = Client::new().get(&url).send().await.expect("it answers");
        answer.json::<Value>().await.expect("JSON")["members"].as_array().map(Vec::len)
    };
    poll::until("the queue has one member", Some(1), members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_on_a_frozen_node_delays_its_own_tenant_and_the_others_are_published_and_drained() {
    let cluster = RabbitCluster::start().await;
    let place = &cluster.place;
    spread_queues(&cluster, 2).await;
    let (relay, url) = cluster.relay(0).await;
    let ingest = Ingest::start(place, &[("AMQP_URL", &url)]).await;
    let mut numbers = 0..;
    let mut next = |count: u64| numbers.by_ref().take(usize::try_from(count).unwrap()).collect::<Vec<u64>>();
    for n in next(20) {
        post_to_both(&ingest, n).await;
    }

    cluster.nodes[2].signal("STOP");
    let burst = silent_numbers(BURST);
    let webhooks = ingest.path("/webhook/faster");
    join_all(burst.iter().map(|n| post_received(&webhooks, event(*n)))).await;
    assert!(is_suspect(&ingest, "faster").await);
    assert_eq!(accepted(&ingest, "faster", "spool").await, BURST as f64);
    let mut slowest = Duration::ZERO;
    for n in next(MANY) {
        slowest = slowest.max(post_to_both(&ingest, n).await);
    }
    println!("beside a silent queue: slowest {slowest:?}");
    assert!(!is_suspect(&ingest, "vip").await);
    assert_eq!(accepted(&ingest, "vip", "spool").await, 0.0);
    assert_eq!(accepted(&ingest, "faster", "spool").await, (BURST + MANY) as f64);

    // Both have something in the spool, that for the silent queue first.
    relay.set(Fault::Stall);
    for n in next(20) {
        post_to_both(&ingest, n).await;
    }
    assert!(is_suspect(&ingest, "vip").await);
    let spooled = metric(&ingest.admin, "ingest_spool_records", &[]).await.unwrap();
    relay.set(Fault::None);
    let left = async || {
        let left = metric(&ingest.admin, "ingest_spool_records", &[]).await.unwrap();
        (left <= spooled - 20.0, is_suspect(&ingest, "vip").await)
    };
    poll::until("the other tenant is drained", (true, false), left).await;
    assert!(is_suspect(&ingest, "faster").await);

    cluster.nodes[2].signal("CONT");
    let worker = Worker::start(place, &[("AMQP_URL", &url)]).await;
    let of_both = 20 + MANY + 20;
    for (tenant, events) in [("faster", of_both + BURST), ("vip", of_both)] {
        Database::of(place, tenant).await.until_stored(events).await;
    }
    assert_eq!(metric(&ingest.admin, "ingest_lost_total", &[]).await, Some(0.0));
    worker.process.stop().await;
}
