//! Whatever a tenant's MongoDB does, no event is lost or counted twice, no delivery is spent on trying, other
//! tenants don't notice, and everything is stored when it is well again.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use mongodb::bson::doc;
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::feed::Feed;
use penstock_tests::http::{get, metric};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, until_idle};
use penstock_tests::relay::{Fault, Relay};
use penstock_tests::replica_set::{Member, ReplicaSet};
use penstock_tests::stack::Place;
use serde_json::{Value, json};
use shared::partition::LARGE_BODY;

/// Of the events of the tenant that is well, half have to be stored within this time, whatever the other's
/// MongoDB does; or within three times as long as half of them took before, on a machine that has no time to
/// spare.
const MEDIAN_AGE: Duration = Duration::from_millis(100);
/// Longest time for everything to be stored after a fault.
const RECOVERY: Duration = Duration::from_secs(60);
/// Events that each tenant gets before, during and after a fault, at least.
const SOME: u64 = 60;
/// Settings with which a fault shows soon.
const IMPATIENT: [(&str, &str); 3] =
    [("MONGO_TIMEOUT", "1s"), ("CIRCUIT_BREAKER_THRESHOLD", "2"), ("CIRCUIT_BREAKER_TIMEOUT", "1")];

/// A pipeline under load for two tenants: `faster`, whose MongoDB can be harmed, and `vip`, whose MongoDB is
/// well.
struct Pipeline {
    place: Place,
    ingest: Ingest,
    workers: Vec<Worker>,
    broker: Broker,
    ill: Database,
    well: Database,
    faster: Feed,
    vip: Feed,
    /// How many events vip had got when the fault began.
    vip_before: u64,
}

impl Pipeline {
    /// Starts it, with a MongoDB for `faster`.
    async fn start(uri: &str, settings: &[(&str, &str)]) -> Self {
        let place = Place::new().await;
        let ill = Database::on(uri, &place, "faster").await;
        Self::with(place, uri, ill, settings).await
    }

    /// Starts it; `uri` is the worker's way to the MongoDB of `faster`, `ill` the test's.
    async fn with(place: Place, uri: &str, ill: Database, settings: &[(&str, &str)]) -> Self {
        let settings: Vec<_> = [("MONGO_URI", uri)].into_iter().chain(settings.iter().copied()).collect();
        let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &settings).await);
        let mut pipeline = Self {
            workers: vec![worker],
            broker: Broker::connect(&place.amqp_url).await,
            ill,
            well: Database::of(&place, "vip").await,
            faster: Feed::start(&place, "faster").await,
            vip: Feed::start(&place, "vip").await,
            vip_before: 0,
            ingest,
            place,
        };
        pipeline.until_faster_stores(SOME).await;
        pipeline.until_vip_stores(SOME).await;
        pipeline.vip_before = pipeline.vip.published();
        pipeline
    }

    /// Waits until this many more events of `faster` are published, and all until then are stored.
    async fn until_faster_stores(&self, more: u64) {
        self.faster.until_more(more).await;
        until_stored(&self.ill, self.faster.published()).await;
    }

    /// The same for `vip`.
    async fn until_vip_stores(&self, more: u64) {
        self.vip.until_more(more).await;
        until_stored(&self.well, self.vip.published()).await;
    }

    async fn is_in_state(&self, tenant: &str, state: &str) -> bool {
        let labels = [("tenant", tenant), ("state", state)];
        for worker in &self.workers {
            if metric(&worker.admin, "worker_breaker_state", &labels).await != Some(1.0) {
                return false;
            }
        }
        true
    }

    async fn health(&self) -> Value {
        get(&self.ingest.path("/health")).await.body
    }

    /// Lets a fault last that makes MongoDB useless: the breaker opens, everybody can see it, and `vip` goes
    /// on.
    async fn endure_outage(&self) {
        let opened = async || self.is_in_state("faster", "open").await;
        poll::until("the breaker opens", true, opened).await;
        poll::until("it shows", (json!("degraded"), json!("disconnected")), async || {
            let health = self.health().await;
            (health["status"].clone(), health["mongodb"]["faster"].clone())
        })
        .await;
        self.until_vip_stores(SOME).await;
        let closed = async || self.is_in_state("vip", "closed").await;
        poll::until("vip's breaker is closed", true, closed).await;
    }

    /// After the fault: everything is stored soon, and has counted once.
    async fn recovers(mut self, fault: &str) {
        let (repaired, backlog) = (Instant::now(), self.faster.published());
        let during = self.vip_before..self.vip.published();
        until_stored(&self.ill, backlog).await;
        let recovery = repaired.elapsed();
        self.until_faster_stores(SOME).await;
        self.until_vip_stores(SOME).await;
        let (to_faster, to_vip) = (self.faster.stop().await, self.vip.stop().await);
        until_stored(&self.ill, to_faster).await;
        until_stored(&self.well, to_vip).await;
        until_idle(&self.broker, &self.workers.iter().collect::<Vec<_>>()).await;

        let redelivered = redelivered(&self.workers).await;
        let (ledger, messages, counted) = counts(&self.ill).await;
        let (lost, twice) = (to_faster - ledger, counted.saturating_sub(to_faster));
        let before = Ages::of(&self.well, 0..self.vip_before).await;
        let vip = Ages::of(&self.well, during).await;
        println!(
            "{fault}: {to_faster} events, {lost} lost, {twice} counted twice, {redelivered} redelivered, \
             backlog stored after {recovery:.1?}; vip meanwhile: {vip}"
        );
        assert_eq!((ledger, messages, counted), (to_faster, to_faster, to_faster), "{fault}");
        assert_eq!(counts(&self.well).await, (to_vip, to_vip, to_vip), "{fault}");
        assert_eq!(redelivered, 0, "{fault}");
        assert!(vip.median() < MEDIAN_AGE.max(3 * before.median()), "{fault}: {vip}; before: {before}");
        for tenant in ["faster", "vip"] {
            assert!(self.is_in_state(tenant, "closed").await, "{fault}: {tenant}");
            let dead = self.broker.depth(&format!("dead.{tenant}")).await;
            let depths = (self.broker.waiting(tenant).await, dead);
            assert_eq!(depths, (Some(0), Some(0)), "{fault}: {tenant}");
        }
        poll::until("all is well", json!("healthy"), async || self.health().await["status"].clone()).await;
        for worker in self.workers {
            worker.process.stop().await;
        }
        self.place.remove().await;
    }
}

/// Waits until the ledger has this many events or more.
async fn until_stored(database: &Database, events: u64) {
    let stored = async || database.count("webhook_events").await >= events;
    poll::until_within("events are stored", true, RECOVERY, stored).await;
}

/// How many events, messages and counted messages there are.
async fn counts(database: &Database) -> (u64, u64, u64) {
    let counted = database.sum("conversations", "message_count").await.unsigned_abs();
    (database.count("webhook_events").await, database.count("messages").await, counted)
}

/// Deliveries beyond the first of each event.
async fn redelivered(workers: &[Worker]) -> u64 {
    let of = async |tenant| total(workers, "worker_redelivered_total", &[("tenant", tenant)]).await;
    of("faster").await + of("vip").await
}

/// A count, over all workers.
async fn total(workers: &[Worker], name: &str, labels: &[(&str, &str)]) -> u64 {
    let mut total = 0.0;
    for worker in workers {
        total += metric(&worker.admin, name, labels).await.expect("the series exists");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let total = total as u64;
    total
}

/// How long after they were published events were stored, sorted.
struct Ages(Vec<Duration>);

impl Ages {
    async fn of(database: &Database, numbers: Range<u64>) -> Self {
        let mut ages = Vec::new();
        for (key, event) in database.all("webhook_events").await {
            if numbers.contains(&key.parse().expect("a number")) {
                let [received, stored] =
                    ["received_at", "stored_at"].map(|field| *event.get_datetime(field).expect("a date"));
                ages.push(stored.saturating_duration_since(received));
            }
        }
        ages.sort();
        Self(ages)
    }

    fn median(&self) -> Duration {
        self.0[self.0.len() / 2]
    }
}

impl fmt::Display for Ages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slowest = self.0.last().expect("some events");
        write!(f, "{} events, median {:.1?}, slowest {slowest:.1?}", self.0.len(), self.median())
    }
}

async fn one_member() -> (ReplicaSet, String) {
    let set = ReplicaSet::start(1).await;
    let uri = set.uri();
    (set, uri)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_killed_and_started_again() {
    let (set, uri) = one_member().await;
    let pipeline = Pipeline::start(&uri, &IMPATIENT).await;
    set.members[0].server.signal("KILL");
    pipeline.endure_outage().await;
    tokio::task::block_in_place(|| set.members[0].server.start());
    pipeline.recovers("killed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_frozen() {
    let (set, uri) = one_member().await;
    let pipeline = Pipeline::start(&uri, &IMPATIENT).await;
    set.members[0].server.signal("STOP");
    pipeline.endure_outage().await;
    set.members[0].server.signal("CONT");
    pipeline.recovers("frozen").await;
}

/// A pipeline with a relay between the worker and the common MongoDB, for `faster` alone.
async fn through_a_relay(settings: &[(&str, &str)]) -> (Relay, Pipeline) {
    let place = Place::new().await;
    let (relay, uri) = place.mongo_relay().await;
    let ill = Database::of(&place, "faster").await;
    (relay, Pipeline::with(place, &uri, ill, settings).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_behind_a_network_that_is_cut() {
    let (relay, pipeline) = through_a_relay(&IMPATIENT).await;
    relay.set(Fault::Cut);
    pipeline.endure_outage().await;
    relay.set(Fault::None);
    pipeline.recovers("network cut").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_behind_a_network_that_stalls() {
    let (relay, pipeline) = through_a_relay(&IMPATIENT).await;
    relay.set(Fault::Stall);
    pipeline.endure_outage().await;
    relay.set(Fault::None);
    pipeline.recovers("network stalled").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_behind_a_slow_network_is_used_all_the_time() {
    let (relay, pipeline) = through_a_relay(&[]).await;
    relay.set(Fault::Delay(Duration::from_millis(200)));
    pipeline.until_faster_stores(2 * SOME).await;
    let log = pipeline.workers[0].process.log_text();
    assert!(!log.contains("MongoDB fails"), "{log}");
    relay.set(Fault::None);
    pipeline.recovers("network slow").await;
}

/// Waits until another member is the primary and has all events so far, and tells how long that has taken.
async fn until_stored_elsewhere(pipeline: &Pipeline, set: &ReplicaSet, before: &Member) -> Duration {
    let begun = Instant::now();
    let elected = async || set.primary().await.address != before.address;
    poll::until("another is elected", true, elected).await;
    pipeline.until_faster_stores(SOME).await;
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_killed() {
    let set = ReplicaSet::start(3).await;
    let pipeline = Pipeline::start(&set.uri(), &IMPATIENT).await;
    let primary = set.primary().await;
    primary.server.signal("KILL");
    let stored_after = until_stored_elsewhere(&pipeline, &set, primary).await;
    tokio::task::block_in_place(|| primary.server.start());
    pipeline.recovers(&format!("primary killed, events stored by another after {stored_after:.1?}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_frozen() {
    let set = ReplicaSet::start(3).await;
    let pipeline = Pipeline::start(&set.uri(), &IMPATIENT).await;
    let primary = set.primary().await;
    primary.server.signal("STOP");
    let stored_after = until_stored_elsewhere(&pipeline, &set, primary).await;
    primary.server.signal("CONT");
    pipeline.recovers(&format!("primary frozen, events stored by another after {stored_after:.1?}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_steps_down() {
    let set = ReplicaSet::start(3).await;
    let pipeline = Pipeline::start(&set.uri(), &IMPATIENT).await;
    let primary = set.primary().await;
    primary.run(doc! {"replSetStepDown": 10}).await.expect("it steps down");
    let stored_after = until_stored_elsewhere(&pipeline, &set, primary).await;
    pipeline
        .recovers(&format!("primary stepped down, events stored by another after {stored_after:.1?}"))
        .await;
}

/// The password of the worker's user, and what it is changed to.
const PASSWORDS: [&str; 2] = ["first-secret", "second-secret"];

/// A MongoDB that demands authentication, with a user for the worker, and a pipeline that goes there through
/// a relay.
async fn guarded() -> (ReplicaSet, mongodb::Client, Relay, Pipeline) {
    let (set, root) = ReplicaSet::guarded().await;
    let relay = Relay::start(set.members[0].address).await;
    let place = Place::new().await;
    let roles = doc! {"role": "readWrite", "db": place.database("faster")};
    let create = doc! {"createUser": "worker", "pwd": PASSWORDS[0], "roles": [roles]};
    root.database("admin").run_command(create).await.expect("a user");
    let uri = format!("mongodb://worker:{}@{}/?directConnection=true", PASSWORDS[0], relay.address);
    let ill = Database(root.database(&place.database("faster")));
    // Connections that break are failures of infrastructure, as many as the machine's pace makes them. They
    // are not what is looked at here.
    let settings = [("CIRCUIT_BREAKER_THRESHOLD", "10000")];
    let pipeline = Pipeline::with(place, &uri, ill, &settings).await;
    (set, root, relay, pipeline)
}

/// Waits until the worker holds the events of `faster`, and gives its log.
async fn log_while_held(pipeline: &Pipeline) -> String {
    let log = || pipeline.workers[0].process.log_text();
    let refused = async || log().contains("MongoDB refuses us");
    poll::until("the log says that MongoDB refuses the worker", true, refused).await;
    pipeline.until_vip_stores(SOME).await;
    assert_eq!(pipeline.broker.depth("dead.faster").await, Some(0));
    log()
}

/// The person who configured the worker has to act, and every error in the log says so.
fn assert_refused(log: &str) {
    assert_eq!(log.matches("ERROR").count(), log.matches("MongoDB refuses us").count(), "{log}");
    assert!(!log.contains("circuit breaker"), "{log}");
    assert!(!PASSWORDS.iter().any(|password| log.contains(password)), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_taken_away_and_given_back() {
    let (_set, root, _relay, pipeline) = guarded().await;
    let roles = doc! {"role": "readWrite", "db": pipeline.place.database("faster")};
    let change = async |command: &str| {
        let command = doc! {command: "worker", "roles": [roles.clone()]};
        root.database("admin").run_command(command).await.expect("changed")
    };
    change("revokeRolesFromUser").await;
    let log = log_while_held(&pipeline).await;
    change("grantRolesToUser").await;
    pipeline.recovers("rights taken away").await;
    assert_refused(&log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn password_changed_while_connections_break() {
    let (_set, root, relay, pipeline) = guarded().await;
    let change = async |password: &str| {
        let command = doc! {"updateUser": "worker", "pwd": password};
        root.database("admin").run_command(command).await.expect("changed")
    };
    change(PASSWORDS[1]).await;
    relay.break_all();
    let log = log_while_held(&pipeline).await;
    change(PASSWORDS[0]).await;
    pipeline.recovers("password changed").await;
    assert_refused(&log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_are_tried_again_and_are_no_outage() {
    let place = Place::new().await;
    let settings = [("WEBHOOK_WORKERS", "2"), ("BATCH_SIZE", "5")];
    let workers = [Worker::start(&place, &settings).await, Worker::start(&place, &settings).await];
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    let conflicts = async || total(&workers, "worker_conflicts_total", &[("tenant", "faster")]).await;
    let (started, mut published) = (Instant::now(), 0);
    // Each burst as soon as the one before is stored: never more than the machine can do.
    while conflicts().await < 10 {
        assert!(started.elapsed() < RECOVERY, "too few conflicts after {published} events");
        burst_into_two_queues(&broker, published..published + 50).await;
        published += 50;
        until_stored(&database, published).await;
    }
    until_idle(&broker, &workers.iter().collect::<Vec<_>>()).await;
    println!("{} conflicts in {published} events", conflicts().await);
    assert_eq!(counts(&database).await, (published, published, published));
    assert_eq!(redelivered(&workers).await, 0);
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    let closed = [("tenant", "faster"), ("state", "closed")];
    assert_eq!(total(&workers, "worker_breaker_state", &closed).await, 2);
    for worker in workers {
        worker.process.stop().await;
    }
    place.remove().await;
}

/// Publishes message events of one conversation, each fifth of them with a body so large that it has another
/// queue.
async fn burst_into_two_queues(broker: &Broker, numbers: Range<u64>) {
    let bodies: Vec<_> = numbers
        .map(|n| {
            let text = "x".repeat(if n % 5 == 0 { LARGE_BODY } else { 10 });
            let message = json!({"messageId": n, "message": {"type": "text", "text": text}});
            json!({"event_id": n.to_string(), "event_type": "message.received", "contact": {"id": 1}, "message": message})
                .to_string()
        })
        .collect();
    join_all(bodies.iter().map(|body| broker.publish_event("faster", "any", 1, body.as_bytes()))).await;
}

/// `faster` on a MongoDB that doesn't answer from before the worker starts until it ends.
async fn without_a_mongodb(uri: &str, fault: &str) {
    let place = Place::new().await;
    let settings: Vec<_> = [("MONGO_URI", uri)].into_iter().chain(IMPATIENT).collect();
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &settings).await);
    let (broker, well) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "vip").await);
    let mut vip = Feed::start(&place, "vip").await;
    until_stored(&well, 1).await;
    let mut faster = Feed::start(&place, "faster").await;
    vip.until_more(5 * SOME).await;
    let (to_faster, to_vip) = (faster.stop().await, vip.stop().await);
    until_stored(&well, to_vip).await;
    let ages = Ages::of(&well, 0..to_vip).await;
    let redelivered = redelivered(&[worker]).await;
    println!("{fault}: {to_faster} events wait, {redelivered} redelivered; vip meanwhile: {ages}");
    assert_eq!(counts(&well).await, (to_vip, to_vip, to_vip));
    // There is nothing from before the fault to compare with: a machine that does other things too needs more
    // time.
    assert!(ages.median() < 5 * MEDIAN_AGE, "{fault}: {ages}");
    assert_eq!(redelivered, 0);
    let depths = (broker.waiting("faster").await, broker.depth("dead.faster").await);
    assert_eq!(depths, (u32::try_from(to_faster).ok(), Some(0)));
    let health = get(&ingest.path("/health")).await.body;
    assert_eq!(health["mongodb"], json!({"faster": "disconnected", "vip": "connected"}));
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_that_was_never_there() {
    without_a_mongodb("mongodb://127.0.0.1:1/?replicaSet=rs0", "never there").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_that_was_never_heard_of() {
    // Taken, and never answered.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address");
    without_a_mongodb(&format!("mongodb://{address}/?replicaSet=rs0"), "silent from the start").await;
}
