//! Whatever RabbitMQ does, every webhook is answered 200 soon, and what got a 200 is stored once.

use std::time::Duration;

use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::{get, metric};
use penstock_tests::load::Load;
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker};
use penstock_tests::relay::Fault;
use penstock_tests::stack::{OwnRabbit, Place, is_long_run};
use reqwest::Method;
use serde_json::json;

/// Events that are received while the fault lasts.
const DURING: u64 = 600;
/// The promise is an answer within a second; twice that leaves room for a machine that does other things too.
const SLOWEST: Duration = Duration::from_secs(2);
/// What ingest may take, in bytes, in a build without optimisation.
const MEMORY: u64 = 128 << 20;

/// A pipeline under load, with something that can be harmed between ingest and RabbitMQ.
struct Outage {
    ingest: Ingest,
    worker: Worker,
    database: Database,
    load: Load,
}

impl Outage {
    /// `amqp_url` is the way from ingest to RabbitMQ; the worker has its own.
    async fn prepare(place: &Place, amqp_url: &str) -> Self {
        let ingest = Ingest::start(place, &[("AMQP_URL", amqp_url), ("PUBLISH_TIMEOUT", "250ms")]).await;
        let worker = Worker::start(place, &[]).await;
        let load = Load::start(&ingest.url, 8, Duration::from_millis(20));
        load.until_more(100).await;
        Self { ingest, worker, database: Database::of(place, "faster").await, load }
    }

    async fn spooled(&self) -> u64 {
        let via_spool = [("tenant", "faster"), ("via", "spool")];
        let spooled = metric(&self.ingest.admin, "ingest_accepted_total", &via_spool).await;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        spooled.map_or(0, |spooled| spooled as u64)
    }

    /// Lets the fault last for a while, under load.
    async fn endure(&self) {
        self.load.until_more(DURING).await;
        assert_eq!(get(&format!("{}/readyz", self.ingest.admin)).await.status, 200);
        assert_eq!(get(&self.ingest.path("/health")).await.status, 200);
    }

    /// After the fault: everything flows again, and nothing is lost.
    async fn recovered(self, what: &str) {
        let spooled = self.spooled().await;
        let repaired = std::time::Instant::now();
        let left = async || metric(&self.ingest.admin, "ingest_spool_records", &[]).await;
        poll::until_within("the spool is empty", Some(0.0), Duration::from_secs(60), left).await;
        let drained = repaired.elapsed();
        let before = self.spooled().await;
        self.load.until_more(200).await;
        let report = self.load.stop().await;
        let in_flight = async || metric(&self.ingest.admin, "ingest_publishes_in_flight", &[]).await;
        poll::until("confirms that came late have freed their places", Some(0.0), in_flight).await;
        let summary = report.summary(what);
        println!("{summary}, {spooled} spooled, drained after {drained:.1?}");
        assert!(report.otherwise.is_empty(), "{summary}: {:?}", report.otherwise);
        assert!(report.within(1000) < SLOWEST, "{summary}");
        assert!(report.within(500) < Duration::from_millis(100), "{summary}");
        let (after, memory) = (before, self.ingest.process.peak_memory());
        assert!(memory < MEMORY, "{what}: {memory} bytes, {after} spooled");
        report.assert_stored_once(&self.database).await;
        assert_eq!(metric(&self.ingest.admin, "ingest_lost_total", &[]).await, Some(0.0));
        assert_eq!(metric(&self.ingest.admin, "ingest_refused_total", &[]).await, Some(0.0));
        self.ingest.process.stop().await;
        self.worker.process.stop().await;
    }
}

async fn through_a_relay(fault: Fault, what: &str) {
    let place = Place::new().await;
    let (relay, url) = place.relay().await;
    let outage = Outage::prepare(&place, &url).await;
    relay.set(fault);
    outage.endure().await;
    assert!(outage.spooled().await > DURING / 2, "{what} is a fault");
    relay.set(Fault::None);
    outage.recovered(what).await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_that_cannot_be_reached() {
    through_a_relay(Fault::Cut, "unreachable").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_that_falls_silent() {
    through_a_relay(Fault::Stall, "silent").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_that_is_slow() {
    through_a_relay(Fault::Delay(Duration::from_millis(400)), "slow").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_killed_and_started_again() {
    let rabbit = OwnRabbit::start().await;
    let outage = Outage::prepare(&rabbit.place, &rabbit.place.amqp_url.clone()).await;
    rabbit.signal("KILL");
    outage.endure().await;
    tokio::task::block_in_place(|| rabbit.restart());
    outage.recovered("killed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_restarted_in_order() {
    let rabbit = OwnRabbit::start().await;
    let outage = Outage::prepare(&rabbit.place, &rabbit.place.amqp_url.clone()).await;
    tokio::task::block_in_place(|| rabbit.stop());
    outage.endure().await;
    tokio::task::block_in_place(|| rabbit.restart());
    outage.recovered("restarted").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_frozen() {
    let rabbit = OwnRabbit::start().await;
    let outage = Outage::prepare(&rabbit.place, &rabbit.place.amqp_url.clone()).await;
    rabbit.signal("STOP");
    outage.endure().await;
    rabbit.signal("CONT");
    outage.recovered("frozen").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_under_a_memory_alarm() {
    let rabbit = OwnRabbit::start().await;
    let outage = Outage::prepare(&rabbit.place, &rabbit.place.amqp_url.clone()).await;
    tokio::task::block_in_place(|| rabbit.alarm(true));
    outage.endure().await;
    let blocked = async || metric(&outage.ingest.admin, "amqp_connection_blocked", &[]).await;
    poll::until("it shows", Some(1.0), blocked).await;
    tokio::task::block_in_place(|| rabbit.alarm(false));
    outage.recovered("memory alarm").await;
}

/// Only with `tests/run --long`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_minutes_without_rabbitmq_at_1000_webhooks_a_second() {
    if !is_long_run() {
        return;
    }
    let place = Place::new().await;
    let (relay, url) = place.relay().await;
    let ingest = Ingest::start(&place, &[("AMQP_URL", &url), ("RUST_LOG", "info")]).await;
    let load = Load::start(&ingest.url, 40, Duration::from_millis(40));
    load.until_more(1000).await;
    relay.set(Fault::Cut);
    load.until_more_within(300_000, Duration::from_mins(10)).await;
    println!("after 300,000 webhooks: {} MiB", ingest.process.peak_memory() >> 20);
    relay.set(Fault::None);
    let report = load.stop().await;
    println!("{}", report.summary("five minutes"));
    assert!(report.otherwise.is_empty(), "{:?}", report.otherwise);
    assert!(ingest.process.peak_memory() < MEMORY);
    let left = async || metric(&ingest.admin, "ingest_spool_records", &[]).await;
    poll::until_within("the spool is empty", Some(0.0), Duration::from_mins(5), left).await;
    let broker = Broker::connect(&place.amqp_url).await;
    assert!(broker.waiting("faster").await.is_some_and(|depth| depth as usize >= report.received.len()));
    ingest.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_full() {
    let place = Place::new().await;
    let policy = format!("policies/{}/small", place.name);
    let ingest = Ingest::start(&place, &[]).await;
    let load = Load::start(&ingest.url, 8, Duration::from_millis(20));
    load.until_more(100).await;
    let small =
        json!({"pattern": "^webhooks\\.faster", "definition": {"max-length": 20}, "apply-to": "queues"});
    place.manage(Method::PUT, &policy, Some(small)).await;
    load.until_more(DURING).await;
    // The other tenant isn't concerned.
    penstock_tests::http::post_received(&ingest.path("/webhook/vip"), "{}").await;
    let broker = Broker::connect(&place.amqp_url).await;
    poll::until("vip's event is in its queue", Some(1), async || broker.waiting("vip").await).await;

    place.manage(Method::DELETE, &policy, None).await;
    let worker = Worker::start(&place, &[]).await;
    let database = Database::of(&place, "faster").await;
    Outage { ingest, worker, database, load }.recovered("full queue").await;
    assert_eq!(Broker::connect(&place.amqp_url).await.depth("dead.faster").await, Some(0));
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_meets_the_event_that_was_refused_and_no_other() {
    let place = Place::new().await;
    let (policy, ingest) = (format!("policies/{}/small", place.name), Ingest::start(&place, &[]).await);
    let small =
        json!({"pattern": "^webhooks\\.faster", "definition": {"max-length": 20}, "apply-to": "queues"});
    place.manage(Method::PUT, &policy, Some(small)).await;
    // Both tenants share the channels. If a refusal of one met an event of the other, the refused one would
    // be lost.
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..32 {
        let tenant = if client % 2 == 0 { "faster" } else { "vip" };
        let url = ingest.path(&format!("/webhook/{tenant}"));
        clients.spawn(async move {
            let http = penstock_tests::http::client();
            for n in 0..100 {
                let body = json!({"event_id": format!("{client}-{n}")}).to_string();
                let answer = http.post(&url).body(body).send().await.expect("an answer");
                assert_eq!(answer.status(), 200);
            }
        });
    }
    clients.join_all().await;
    place.manage(Method::DELETE, &policy, None).await;
    let worker = Worker::start(&place, &[]).await;
    for tenant in ["faster", "vip"] {
        let database = Database::of(&place, tenant).await;
        database.until_stored(1600).await;
    }
    worker.process.stop().await;
    ingest.process.stop().await;
    place.remove().await;
}
