//! Workers share a tenant's queues, and whatever happens to one of them, the others take over its queues.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mongodb::bson::DateTime;
use penstock_tests::broker::{Broker, header};
use penstock_tests::database::Database;
use penstock_tests::feed::{CHATS, Feed, burst};
use penstock_tests::http::metric;
use penstock_tests::load::Load;
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, until_idle};
use penstock_tests::relay::{Fault, Relay};
use penstock_tests::replica_set::ReplicaSet;
use penstock_tests::stack::Place;
use shared::partition;

/// Partitions that three workers share.
const PARTITIONS: u16 = 6;
/// The promise: others take over a worker's queues within 15 s, and its locked documents as soon as MongoDB
/// ends its transaction, which takes 5 s here; half as much again is for a machine that does other things
/// too.
const STANDSTILL: Duration = Duration::from_secs(30);

/// How many message events of a tenant a worker has stored.
async fn stored_by(worker: &Worker, tenant: &str) -> f64 {
    let labels = [("tenant", tenant), ("event_type", "message.received"), ("outcome", "stored")];
    metric(&worker.admin, "worker_events_total", &labels).await.expect("the series exists")
}

/// Waits until each of the first events of a feed is stored, however many later ones are.
async fn until_stored(database: &Database, events: u64) {
    poll::until("events are stored", events, async || {
        let keys = database.ids("webhook_events").await;
        let is_meant = |key: &&String| key.parse::<u64>().is_ok_and(|n| n < events);
        keys.iter().filter(is_meant).count() as u64
    })
    .await;
}

/// Asserts that so many message events were stored, that each has counted once, and that none is left
/// anywhere.
async fn assert_all_counted_once(broker: &Broker, database: &Database, events: u64) {
    let counted = database.sum("conversations", "message_count").await.unsigned_abs();
    let counts = (database.count("webhook_events").await, database.count("messages").await, counted);
    assert_eq!(counts, (events, events, events));
    assert_eq!((broker.waiting("faster").await, broker.depth("dead.faster").await), (Some(0), Some(0)));
}

/// Three workers, each with a connection to RabbitMQ that can be broken, and a steady feed of events.
struct Trio {
    place: Place,
    relays: Vec<Relay>,
    urls: Vec<String>,
    workers: Vec<Worker>,
    broker: Broker,
    database: Database,
    feed: Feed,
}

/// What happens to a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Harm {
    Killed,
    Frozen,
    Unreachable,
}

impl Trio {
    async fn start() -> Self {
        let place = Place::new().await;
        let (mut relays, mut urls, mut workers) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..3 {
            let (relay, url) = place.relay().await;
            workers.push(Self::worker(&place, &url).await);
            relays.push(relay);
            urls.push(url);
        }
        let broker = Broker::connect(&place.amqp_url).await;
        let database = Database::of(&place, "faster").await;
        let feed = Feed::start(&place, "faster").await;
        Self { place, relays, urls, workers, broker, database, feed }
    }

    async fn worker(place: &Place, url: &str) -> Worker {
        Worker::start(place, &[("AMQP_URL", url), ("WEBHOOK_WORKERS", "6")]).await
    }

    /// Waits until each worker has a part in it.
    async fn until_shared(&self) {
        for worker in &self.workers {
            let before = stored_by(worker, "faster").await;
            let works = async || stored_by(worker, "faster").await > before;
            poll::until("each worker stores events", true, works).await;
        }
    }

    async fn harm(&self, n: usize, harm: Harm) {
        match harm {
            Harm::Killed => self.workers[n].process.signal("KILL"),
            Harm::Frozen => self.workers[n].process.signal("STOP"),
            Harm::Unreachable => self.relays[n].set(Fault::Stall),
        }
    }

    async fn repair(&mut self, n: usize, harm: Harm) {
        match harm {
            Harm::Killed => self.workers[n] = Self::worker(&self.place, &self.urls[n]).await,
            Harm::Frozen => self.workers[n].process.signal("CONT"),
            Harm::Unreachable => self.relays[n].set(Fault::None),
        }
    }

    /// The longest time that nothing was stored of a queue, since then.
    async fn longest_standstill(&self, since: DateTime) -> Duration {
        let mut by_queue: BTreeMap<_, Vec<DateTime>> = BTreeMap::new();
        for (key, event) in self.database.all("webhook_events").await {
            let chat = (key.parse::<u64>().expect("a number") % CHATS).to_string();
            let stored_at = *event.get_datetime("stored_at").expect("a date");
            if stored_at >= since {
                let queue = partition::queue_of(Some(&chat), &key, 0, PARTITIONS);
                by_queue.entry(queue).or_default().push(stored_at);
            }
        }
        let mut longest = Duration::ZERO;
        for stored_at in by_queue.values_mut() {
            stored_at.push(since);
            stored_at.sort();
            for pair in stored_at.windows(2) {
                longest = longest.max(pair[1].saturating_duration_since(pair[0]));
            }
        }
        longest
    }

    /// Harms one worker after the other, under load.
    async fn endures(mut self, harm: Harm) {
        let mut standstills = Vec::new();
        for n in 0..3 {
            self.until_shared().await;
            let begun = DateTime::now();
            self.harm(n, harm).await;
            self.feed.until_more(100).await;
            until_stored(&self.database, self.feed.published()).await;
            standstills.push(self.longest_standstill(begun).await);
            self.repair(n, harm).await;
        }
        let published = self.feed.stop().await;
        until_stored(&self.database, published).await;
        until_idle(&self.broker, &self.workers.iter().collect::<Vec<_>>()).await;
        println!(
            "each of three workers {harm:?}: {published} events, queues stood still for {standstills:.1?}"
        );
        assert_all_counted_once(&self.broker, &self.database, published).await;
        assert!(standstills.iter().all(|standstill| *standstill < STANDSTILL), "{standstills:?}");
        for worker in self.workers {
            worker.process.stop().await;
        }
        self.place.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_workers_share_the_queues_of_each_tenant() {
    let (place, settings) = (Place::new().await, [("WEBHOOK_WORKERS", "6")]);
    let started = Instant::now();
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(Worker::start(&place, &settings).await);
    }
    for tenant in ["faster", "vip"] {
        poll::until("two queues each", vec![2, 2, 2], async || {
            let mut queues: BTreeMap<String, u32> = BTreeMap::new();
            for connection in place.active_consumers(tenant).await.into_values() {
                *queues.entry(connection).or_default() += 1;
            }
            queues.into_values().collect()
        })
        .await;
        println!("{tenant}: shared after {:.1?}", started.elapsed());
    }
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    burst(&broker, "faster", 0..300, CHATS).await;
    until_stored(&database, 300).await;
    until_idle(&broker, &workers.iter().collect::<Vec<_>>()).await;
    for worker in workers {
        assert!(stored_by(&worker, "faster").await > 0.0, "{}", worker.process.log_text());
        worker.process.stop().await;
    }
    assert_all_counted_once(&broker, &database, 300).await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_three_workers_may_be_killed() {
    Trio::start().await.endures(Harm::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_three_workers_may_freeze() {
    Trio::start().await.endures(Harm::Frozen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_three_workers_may_lose_its_network() {
    Trio::start().await.endures(Harm::Unreachable).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_partitions_changes_under_load_one_binary_after_the_other() {
    const SOME: u64 = 200;
    let place = Place::new().await;
    let mut ingest = Ingest::start(&place, &[("WEBHOOK_WORKERS", "4")]).await;
    let mut worker = Worker::start(&place, &[("WEBHOOK_WORKERS", "4")]).await;
    let load = Load::start(&ingest.url, 8, Duration::from_millis(20));
    load.until_more(SOME).await;
    for (partitions, is_ingest_first) in [("8", false), ("2", true)] {
        let settings = [("WEBHOOK_WORKERS", partitions)];
        for is_ingest in [is_ingest_first, !is_ingest_first] {
            if is_ingest {
                let new = Ingest::start(&place, &settings).await;
                load.redirect(&new.url);
                std::mem::replace(&mut ingest, new).process.stop().await;
            } else {
                let new = Worker::start(&place, &settings).await;
                std::mem::replace(&mut worker, new).process.stop().await;
            }
            load.until_more(SOME).await;
        }
    }
    let report = load.stop().await;
    assert!(report.otherwise.is_empty(), "{:?}", report.otherwise);
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    report.assert_stored_once(&database).await;
    until_idle(&broker, &[&worker]).await;
    assert_eq!(
        broker.depth("webhooks.faster.7").await,
        Some(0),
        "a queue that the last setting doesn't name"
    );
    assert_all_counted_once(&broker, &database, database.count("webhook_events").await).await;
    worker.process.stop().await;
    ingest.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_kills_workers_becomes_a_dead_letter_and_takes_none_of_its_neighbours_along() {
    let (place, mongo) = (Place::new().await, ReplicaSet::patient().await);
    let uri = mongo.uri();
    let settings = [("MONGO_URI", uri.as_str()), ("WEBHOOK_WORKERS", "1")];
    let mut worker = Worker::start(&place, &settings).await;
    let (broker, database) =
        (Broker::connect(&place.amqp_url).await, Database::on(&uri, &place, "faster").await);
    burst(&broker, "faster", 0..1, 51).await;
    until_stored(&database, 1).await;
    // While its conversation can't be written, the event is in hand; and the worker that has it in hand is
    // killed.
    let mut locked = database.lock("conversations", "0").await;
    burst(&broker, "faster", 51..52, 51).await;
    let mut kills = 0;
    loop {
        let dead = async || broker.depth("dead.faster").await > Some(0);
        let conflicts = [("tenant", "faster")];
        let in_hand = async || metric(&worker.admin, "worker_conflicts_total", &conflicts).await > Some(0.0);
        poll::until("the event is in hand, or dead", true, async || in_hand().await || dead().await).await;
        if dead().await {
            break;
        }
        worker.process.crash().await;
        kills += 1;
        // It may be a neighbour that was in hand, which an open transaction of a killed worker had locked.
        assert!(kills <= 60, "it comes again and again");
        if kills == 3 {
            // From now on the event comes first, and alone. A worker that is killed while it writes several
            // together would leave an open transaction that locks the neighbours, too.
            let returned = async || broker.depth("webhooks.faster.0").await;
            poll::until("the event is back in its queue", Some(1), returned).await;
            burst(&broker, "faster", 52..102, 51).await;
        }
        worker = Worker::start(&place, &settings).await;
    }
    println!("dead after {kills} workers were killed");
    database.until_stored(51).await;
    locked.abort_transaction().await.expect("it was open");
    until_idle(&broker, &[&worker]).await;
    let letter = broker.next("dead.faster").await;
    assert_eq!(header(&letter.properties, "x-first-death-reason").as_deref(), Some("delivery_limit"));
    assert!(String::from_utf8_lossy(&letter.data).contains(r#""event_id":"51""#));
    assert_all_counted_once(&broker, &database, 51).await;
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn an_event_that_came_back_often_is_taken_alone_and_those_behind_it_are_stored_too() {
    let (place, settings) = (Place::new().await, [("WEBHOOK_WORKERS", "1")]);
    Worker::start(&place, &settings).await.process.stop().await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    burst(&broker, "faster", 0..1, CHATS).await;
    burst(&broker, "faster", 1..2, CHATS).await;
    broker.return_message("webhooks.faster.0", 1, 3).await;
    burst(&broker, "faster", 2..50, CHATS).await;
    let worker = Worker::start(&place, &settings).await;
    until_stored(&database, 50).await;
    until_idle(&broker, &[&worker]).await;
    assert!(worker.process.log_text().contains("taking one at a time"));
    assert_all_counted_once(&broker, &database, 50).await;
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_mongodb_alone_is_cut_off_leaves_its_queues_to_another_once() {
    let place = Place::new().await;
    let (relay, uri) = place.mongo_relay().await;
    let impatient = [
        ("MONGO_URI", uri.as_str()),
        ("MONGO_TIMEOUT", "1s"),
        ("CIRCUIT_BREAKER_THRESHOLD", "2"),
        ("CIRCUIT_BREAKER_TIMEOUT", "1"),
    ];
    let cut_off = Worker::start(&place, &impatient).await;
    let other = Worker::start(&place, &[]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    let mut feed = Feed::start(&place, "faster").await;
    for worker in [&cut_off, &other] {
        poll::until("both store events", true, async || stored_by(worker, "faster").await > 0.0).await;
    }

    relay.set(Fault::Cut);
    let steps_down = || cut_off.process.log_text().matches("leaving the queues to it").count();
    poll::until("it steps down", 1, async || steps_down()).await;
    feed.until_more(100).await;
    until_stored(&database, feed.published()).await;
    relay.set(Fault::None);
    let closed = [("tenant", "faster"), ("state", "closed")];
    let breaker = async || metric(&cut_off.admin, "worker_breaker_state", &closed).await;
    poll::until("its MongoDB is back", Some(1.0), breaker).await;
    let before = stored_by(&cut_off, "faster").await;
    feed.until_more(500).await;
    until_stored(&database, feed.published()).await;
    assert_eq!((stored_by(&cut_off, "faster").await, steps_down()), (before, 1), "the other comes first");

    other.process.crash().await;
    feed.until_more(100).await;
    until_stored(&database, feed.published()).await;
    let published = feed.stop().await;
    until_stored(&database, published).await;
    until_idle(&broker, &[&cut_off]).await;
    assert_all_counted_once(&broker, &database, published).await;
    cut_off.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_that_all_workers_had_all_of_them_go_on_with_what_they_held() {
    let place = Place::new().await;
    let (relay, uri) = place.mongo_relay().await;
    let settings = [("MONGO_URI", uri.as_str()), ("MONGO_TIMEOUT", "1s"), ("CIRCUIT_BREAKER_THRESHOLD", "2")];
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(Worker::start(&place, &settings).await);
    }
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    let mut feed = Feed::start(&place, "faster").await;
    for worker in &workers {
        poll::until("all store events", true, async || stored_by(worker, "faster").await > 0.0).await;
    }
    relay.set(Fault::Cut);
    // From then on each of them waits for 16 to 60 seconds between its tries, and not as long as the others.
    let tries = |worker: &Worker| worker.process.log_text().matches("circuit breaker HALF_OPEN").count();
    poll::until("each has tried often", true, async || workers.iter().all(|worker| tries(worker) >= 4)).await;
    relay.set(Fault::None);
    for worker in &workers {
        let before = stored_by(worker, "faster").await;
        poll::until("it stores again", true, async || stored_by(worker, "faster").await > before).await;
    }
    let published = feed.stop().await;
    until_stored(&database, published).await;
    assert_all_counted_once(&broker, &database, published).await;
    for worker in workers {
        assert!(!worker.process.log_text().contains("leaving the queues to it"));
        worker.process.stop().await;
    }
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_mongodb_as_long_as_an_election_is_over_soon() {
    let place = Place::new().await;
    let (relay, uri) = place.mongo_relay().await;
    let worker = Worker::start(&place, &[("MONGO_URI", &uri)]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    let mut feed = Feed::start(&place, "faster").await;
    feed.until_more(100).await;
    until_stored(&database, 100).await;
    relay.set(Fault::Cut);
    tokio::time::sleep(Duration::from_secs(3)).await;
    relay.set(Fault::None);
    let (repaired, backlog) = (Instant::now(), feed.published());
    until_stored(&database, backlog).await;
    let recovery = repaired.elapsed();
    println!("after an outage of 3 s the backlog was stored in {recovery:.1?}");
    assert!(recovery < Duration::from_secs(10), "{recovery:?}: {}", worker.process.log_text());
    let published = feed.stop().await;
    until_stored(&database, published).await;
    until_idle(&broker, &[&worker]).await;
    let redelivered = metric(&worker.admin, "worker_redelivered_total", &[("tenant", "faster")]).await;
    assert_eq!(redelivered, Some(0.0));
    assert_all_counted_once(&broker, &database, published).await;
    worker.process.stop().await;
    place.remove().await;
}
