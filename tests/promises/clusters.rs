//! With clusters of both servers and two of each binary, nodes may die and binaries be replaced: nobody
//! notices.

use std::time::Duration;

use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::metric;
use penstock_tests::load::{Load, Report};
use penstock_tests::process::{Ingest, Worker, until_idle};
use penstock_tests::rabbit_cluster::RabbitCluster;
use penstock_tests::replica_set::ReplicaSet;

/// Webhooks that each ingest receives while something is down.
const DURING: u64 = 150;
/// Longest time for them to be received.
const PATIENCE: Duration = Duration::from_mins(1);

async fn under_load(loads: &[Load]) {
    for load in loads {
        load.until_more_within(DURING, PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_may_die_and_every_binary_be_replaced() {
    let (rabbit, mongo) = (RabbitCluster::start().await, ReplicaSet::start(3).await);
    let (place, uri) = (&rabbit.place, mongo.uri());
    let for_worker = [("MONGO_URI", uri.as_str()), ("MONGO_TIMEOUT", "2s"), ("CIRCUIT_BREAKER_TIMEOUT", "1")];
    let mut ingests = [Ingest::start(place, &[]).await, Ingest::start(place, &[]).await];
    let mut workers = [Worker::start(place, &for_worker).await, Worker::start(place, &for_worker).await];
    rabbit.until_whole().await;
    let loads =
        [&ingests[0], &ingests[1]].map(|ingest| Load::start(&ingest.url, 4, Duration::from_millis(40)));
    under_load(&loads).await;

    for node in &rabbit.nodes {
        node.signal("KILL");
        under_load(&loads).await;
        tokio::task::block_in_place(|| node.start());
        rabbit.until_whole().await;
        under_load(&loads).await;
    }
    for member in &mongo.members {
        member.server.signal("KILL");
        under_load(&loads).await;
        tokio::task::block_in_place(|| member.server.start());
        mongo.until_settled().await;
        under_load(&loads).await;
    }
    for (ingest, load) in ingests.iter_mut().zip(&loads) {
        let new = Ingest::start(place, &[]).await;
        load.redirect(&new.url);
        std::mem::replace(ingest, new).process.stop().await;
        under_load(&loads).await;
    }
    for worker in &mut workers {
        let new = Worker::start(place, &for_worker).await;
        std::mem::replace(worker, new).process.stop().await;
        under_load(&loads).await;
    }

    let mut report = Report::default();
    for load in loads {
        report.extend(load.stop().await);
    }
    println!("{}", report.summary("clusters"));
    assert!(report.otherwise.is_empty(), "{:?}", report.otherwise);
    let database = Database::on(&uri, place, "faster").await;
    report.assert_stored_once(&database).await;
    let broker = Broker::connect(&place.amqp_url).await;
    until_idle(&broker, &workers.iter().collect::<Vec<_>>()).await;
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    for ingest in &ingests {
        assert_eq!(metric(&ingest.admin, "ingest_lost_total", &[]).await, Some(0.0));
    }
    for worker in workers {
        worker.process.stop().await;
    }
}
