//! A MongoDB that can't do what is needed is named in plain words, and no good event is given up because of
//! it.

use std::process::Output;
use std::time::{Duration, Instant};

use mongodb::bson::doc;
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::feed::burst;
use penstock_tests::http::{get, metric};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, run, until_idle};
use penstock_tests::replica_set::{Member, ReplicaSet};
use penstock_tests::stack::Place;
use serde_json::Value;

/// Makes a member answer these commands with an error, or no more.
async fn answer_with(member: &Member, code: Option<i32>, commands: &[&str]) {
    let mode = if code.is_some() { "alwaysOn" } else { "off" };
    let data = doc! {"errorCode": code.unwrap_or(1), "failCommands": commands, "appName": "penstock-worker"};
    member.run(doc! {"configureFailPoint": "failCommand", "mode": mode, "data": data}).await.unwrap();
}

async fn down(worker: &Worker) -> String {
    let down = &get(&format!("{}/health", worker.admin)).await.body["down"]["faster"];
    down.as_str().unwrap_or_default().to_owned()
}

/// What `--check --connect` says of a worker for `faster` alone.
fn check(place: &Place, uri: &str, settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let database = place.database("faster");
    let common = [("AMQP_URL", place.amqp_url.as_str()), ("MONGO_URI", uri), ("DB_NAME", &database)];
    let settings: Vec<_> = common.into_iter().chain(settings.iter().copied()).collect();
    let Output { status, stdout, stderr } =
        tokio::task::block_in_place(|| run("worker", &place.folder, &["--check", "--connect"], &settings));
    (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_only_looks_like_mongodb_is_refused_and_gives_up_no_event() {
    let (place, set) = (Place::new().await, ReplicaSet::start(1).await);
    let (uri, member, broker) = (set.uri(), &set.members[0], Broker::connect(&place.amqp_url).await);
    let database = Database::on(&uri, &place, "faster").await;
    for (code, commands) in [(115, &["commitTransaction"][..]), (20, &["insert"]), (59, &["find"])] {
        answer_with(member, Some(code), commands).await;
        let (status, said) = check(&place, &uri, &[]);
        assert_eq!(status, Some(64), "{said}");
        assert!(
            said.contains("tenant faster: MongoDB can't do what is needed") && said.contains("DocumentDB"),
            "{said}"
        );
    }
    // From the start.
    let worker = Worker::start(&place, &[("MONGO_URI", &uri)]).await;
    burst(&broker, "faster", 0..20, 20).await;
    poll::until("/health says why", true, async || down(&worker).await.contains("Cosmos DB")).await;
    answer_with(member, None, &[]).await;
    database.until_stored(20).await;

    // It turns out later.
    for (code, commands) in [(115, &["insert"][..]), (263, &["update"]), (20, &["commitTransaction"])] {
        until_idle(&broker, &[&worker]).await;
        let before = database.count("webhook_events").await;
        let refusals = || worker.process.log_text().matches("MongoDB refuses us").count();
        let logged = refusals();
        answer_with(member, Some(code), commands).await;
        burst(&broker, "faster", before..before + 20, 20).await;
        poll::until("it is said", true, async || refusals() > logged).await;
        assert_eq!(broker.depth("dead.faster").await, Some(0), "{code}");
        answer_with(member, None, &[]).await;
        database.until_stored(before + 20).await;
    }
    until_idle(&broker, &[&worker]).await;
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    assert_eq!(database.sum("conversations", "message_count").await, 80);
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_that_cannot_confirm_shows_within_15_seconds_also_while_nothing_comes() {
    let (place, set) = (Place::new().await, ReplicaSet::with_arbiter().await);
    let uri = set.uri();
    let ingest = Ingest::start(&place, &[]).await;
    let worker = Worker::start(&place, &[("MONGO_URI", &uri)]).await;
    let shown = async || {
        let health = get(&ingest.path("/health")).await.body;
        (health["status"].clone(), health["mongodb"]["faster"].clone())
    };
    let well = (Value::from("healthy"), Value::from("connected"));
    poll::until("all is well", well.clone(), shown).await;

    let primary = set.primary().await.address;
    let secondary = set.members[..2].iter().find(|member| member.address != primary).unwrap();
    secondary.server.signal("KILL");
    let (killed, bad) = (Instant::now(), (Value::from("degraded"), Value::from("disconnected")));
    poll::until_within("it shows", bad, Duration::from_secs(15), shown).await;
    println!("shown after {:.1?}", killed.elapsed());
    let (status, said) = check(&place, &uri, &[]);
    assert!(
        status == Some(64) && said.contains("a majority of MongoDB's members doesn't confirm writes"),
        "{said}"
    );

    tokio::task::block_in_place(|| secondary.server.start());
    poll::until("all is well again", well, shown).await;
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_are_missing_are_named_before_the_first_event() {
    let (place, (set, root)) = (Place::new().await, ReplicaSet::guarded().await);
    let (admin, database) = (root.database("admin"), place.database("faster"));
    let grant = |role: &str| doc! {"role": role, "db": &database};
    admin
        .run_command(doc! {"createUser": "reader", "pwd": "hunter2", "roles": [grant("read")]})
        .await
        .unwrap();
    let uri = format!("mongodb://reader:hunter2@{}/?directConnection=true", set.members[0].address);
    let (status, said) = check(&place, &uri, &[]);
    assert!(status == Some(64) && said.contains("no right to insert, update, createIndex"), "{said}");
    assert!(said.contains(&format!("the database {database}: give it the role readWrite")), "{said}");
    let worker = Worker::start(&place, &[("MONGO_URI", &uri)]).await;
    poll::until("/health says it", true, async || down(&worker).await.contains("no right to insert")).await;
    admin.run_command(doc! {"grantRolesToUser": "reader", "roles": [grant("readWrite")]}).await.unwrap();
    let up = async || metric(&worker.admin, "worker_tenant_up", &[("tenant", "faster")]).await;
    poll::until("it is served", Some(1.0), up).await;
    let (status, said) = check(&place, &uri, &[]);
    assert!(status == Some(0) && said.contains("and so are RabbitMQ and MongoDB"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_should_know_is_told_by_the_check_and_at_start() {
    let (place, set) = (Place::new().await, ReplicaSet::start(1).await);
    let (uri, database) = (set.uri(), Database::on(&set.uri(), &place, "faster").await);
    let index = doc! {"name": "by_event", "key": {"event_id": 1}, "unique": true};
    database.0.run_command(doc! {"createIndexes": "messages", "indexes": [index]}).await.unwrap();
    set.members[0].run(doc! {"setParameter": 1, "transactionLifetimeLimitSeconds": 60}).await.unwrap();
    let (status, said) = check(&place, &uri, &[("MONGO_MAX_POOL_SIZE", "3")]);
    assert_eq!(status, Some(0), "{said}");
    for warning in
        ["by_event of messages", "transactionLifetimeLimitSeconds of MongoDB is 60", "MONGO_MAX_POOL_SIZE: 6"]
    {
        assert!(
            said.lines().any(|line| line.starts_with("warning: ") && line.contains(warning)),
            "{warning}: {said}"
        );
    }
    set.members[0].run(doc! {"setParameter": 1, "transactionLifetimeLimitSeconds": 3}).await.unwrap();
    let worker = Worker::start(&place, &[("MONGO_URI", &uri)]).await;
    let told = async || worker.process.log_text().contains("is 3, below MONGO_TIMEOUT (5s)");
    poll::until("it is logged", true, told).await;
    let nobody =
        check(&place, "mongodb://127.0.0.1:1/?replicaSet=rs0", &[("AMQP_URL", "amqp://127.0.0.1:1")]);
    assert_eq!(nobody.0, Some(64), "{}", nobody.1);
    assert!(nobody.1.contains("AMQP_URL: ") && nobody.1.contains("tenant faster: "), "{}", nobody.1);
    worker.process.stop().await;
    place.remove().await;
}
