//! A queue that neither confirms nor refuses delays its own tenant only.

use std::time::{Duration, Instant};

use lapin::{Connection, ConnectionProperties};
use penstock_tests::broker;
use penstock_tests::database::Database;
use penstock_tests::http::{get, metric, post_received};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker};
use penstock_tests::rabbit_cluster::RabbitCluster;
use penstock_tests::relay::{Fault, Relay};
use reqwest::Client;
use serde_json::{Value, json};
use shared::partition::WorkQueue;
use shared::topology;

/// The queue of `faster` that falls silent; its other queues don't.
const SILENT: WorkQueue = WorkQueue::Partition(0);
/// More than what RabbitMQ reads from a connection beyond a queue that is slow.
const MANY: u64 = 600;

fn event(n: u64) -> String {
    json!({"event_id": n.to_string(), "event_type": "message.received", "contact": {"id": n % 20},
        "message": {"messageId": n}})
    .to_string()
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

/// Declares that queue through a node, so that it lives there alone; what else is declared lives on the first node alone.
async fn spread_queues(cluster: &RabbitCluster, node: usize) {
    for node in &cluster.nodes {
        let alone = "application:set_env(rabbit, quorum_cluster_size, 1).";
        tokio::task::block_in_place(|| node.rabbitmqctl(&["eval", alone]));
    }
    let declare = async |node: usize| {
        let url = cluster.url_of(node);
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.expect("it answers");
        (connection.create_channel().await.expect("a channel"), connection)
    };
    let (first, _connection) = declare(0).await;
    topology::declare(&first, &[], 0).await.expect("declared");
    let (there, _connection) = declare(node).await;
    topology::declare_work_queue(&there, "faster", SILENT).await.expect("declared");
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
    let ingest = Ingest::start(place, &[("AMQP_URL", &url), ("PUBLISH_TIMEOUT", "1s")]).await;
    for n in 0..20 {
        post_to_both(&ingest, n).await;
    }
    assert!((0..20).any(|n| broker::queue_of("faster", event(n).as_bytes(), 4) == SILENT));

    cluster.nodes[2].signal("STOP");
    let mut n = 20;
    while !is_suspect(&ingest, "faster").await {
        post_to_both(&ingest, n).await;
        n += 1;
    }
    let (before, mut slowest) = (accepted(&ingest, "vip", "spool").await, Duration::ZERO);
    for n in n..n + MANY {
        slowest = slowest.max(post_to_both(&ingest, n).await);
    }
    n += MANY;
    println!("beside a silent queue: slowest {slowest:?}");
    assert!(!is_suspect(&ingest, "vip").await);
    assert_eq!((before, accepted(&ingest, "vip", "spool").await), (0.0, 0.0));
    assert!(accepted(&ingest, "faster", "spool").await >= MANY as f64);

    // Both have something in the spool, that of the silent queue first.
    relay.set(Fault::Stall);
    for n in n..n + 20 {
        post_to_both(&ingest, n).await;
    }
    n += 20;
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
    for tenant in ["faster", "vip"] {
        Database::of(place, tenant).await.until_stored(n).await;
    }
    assert_eq!(metric(&ingest.admin, "ingest_lost_total", &[]).await, Some(0.0));
    worker.process.stop().await;
}
