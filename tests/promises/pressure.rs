//! Too many requests, and senders that never finish theirs, harm nobody else.

use std::time::Duration;

use penstock_tests::database::Database;
use penstock_tests::http::metric;
use penstock_tests::load::Load;
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker};
use penstock_tests::stack::Place;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// respond.io's deadline.
const DEADLINE: Duration = Duration::from_secs(5);

/// Sends a beginning and waits for what happens.
async fn unfinished(address: &str, beginning: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(beginning.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_that_never_finish_are_sent_away_and_the_others_do_not_notice() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    let address = ingest.url.trim_start_matches("http://").to_owned();
    let mut slow = JoinSet::new();
    let head = "POST /webhook/faster HTTP/1.1\r\nhost: x\r\n";
    let body = format!("{head}content-length: 1000\r\n\r\n{{\"a\":");
    let chunk = format!("{head}transfer-encoding: chunked\r\n\r\n5\r\n{{\"a\":\r\n");
    for _ in 0..100 {
        for beginning in [head, &body, &chunk] {
            let (address, beginning) = (address.clone(), beginning.to_owned());
            slow.spawn(async move { unfinished(&address, &beginning).await });
        }
    }
    let load = Load::start(&ingest.url, 8, Duration::from_millis(10));
    let answers =
        tokio::time::timeout(Duration::from_secs(20), slow.join_all()).await.expect("all are sent away");
    assert!(
        answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 408")).count() >= 200,
        "{:?}",
        answers.first()
    );
    load.until_more(100).await;
    let report = load.stop().await;
    println!("{}", report.summary("beside 300 unfinished requests"));
    assert!(report.otherwise.is_empty(), "{:?}", report.otherwise);
    assert!(report.within(1000) < DEADLINE);
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_than_the_machine_can_take_wait_and_none_is_refused() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    let load = Load::start(&ingest.url, 400, Duration::from_millis(1));
    load.until_more(6000).await;
    let report = load.stop().await;
    println!("{}", report.summary("400 clients without a pause"));
    assert!(report.otherwise.is_empty(), "{:?}", report.otherwise);
    assert!(report.within(1000) < DEADLINE);
    let memory = ingest.process.peak_memory() >> 20;
    assert!(memory < 256, "{memory} MiB");
    let left = async || metric(&ingest.admin, "ingest_spool_records", &[]).await;
    poll::until_within("the spool is empty", Some(0.0), Duration::from_secs(60), left).await;
    report.assert_stored_once(&Database::of(&place, "faster").await).await;
    worker.process.stop().await;
    place.remove().await;
}
