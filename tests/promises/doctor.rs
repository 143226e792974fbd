//! `worker doctor` finds what keeps events from being stored, and says what to do.

use mongodb::bson::{Document, doc};
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::metric;
use penstock_tests::poll;
use penstock_tests::process::{Answer, Ingest, Worker, operate_with};
use penstock_tests::stack::Place;
use reqwest::Method;
use serde_json::{Value, json};

fn doctor(place: &Place, more: &[&str]) -> Answer {
    let spool = place.folder.to_str().unwrap();
    let settings = [("AMQP_MANAGEMENT_URL", place.management_url.as_str()), ("SPOOL_DIR", spool)];
    operate_with(place, &[&["doctor"], more].concat(), &settings)
}

/// What needs doing.
fn to_do(place: &Place) -> Vec<String> {
    let answer = doctor(place, &["--json"]);
    let lines: Vec<Value> = answer.json();
    let to_do: Vec<String> = lines
        .iter()
        .filter(|line| line["verdict"] == "act")
        .map(|line| format!("{}: {}", line["subject"].as_str().unwrap(), line["found"].as_str().unwrap()))
        // It is MongoDB's default, and tests don't change it.
        .filter(|line| !line.contains("transactionLifetimeLimitSeconds"))
        .collect();
    assert!(to_do.is_empty() || answer.status == 1, "{}", answer.errors);
    to_do
}

async fn set_policy(place: &Place, pattern: &str, definition: Value) {
    let policy = json!({"pattern": pattern, "definition": definition, "apply-to": "queues"});
    place.manage(Method::PUT, &format!("policies/{}/short-lived", place.name), Some(policy)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_doing_is_named_and_nothing_else() {
    let place = Place::new().await;
    let broker = Broker::connect(&place.amqp_url).await;
    let missing = to_do(&place);
    assert!(missing.iter().any(|line| line == "webhooks.vip.0: there is no such queue"), "{missing:?}");
    assert_eq!(broker.depth("webhooks.vip.0").await, None, "looking makes nothing");

    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    poll::until("all is well", Vec::<String>::new(), async || to_do(&place)).await;
    let table = doctor(&place, &["--url", &ingest.url]);
    assert!(table.status == 1 && table.out.contains("ingest answers, unencrypted"), "{}", table.out);
    for line in [
        "version 4.",
        "queues",
        "a synced write takes",
        "a majority confirms after",
        "none lets messages vanish",
    ] {
        assert!(table.out.contains(line), "{line}: {}", table.out);
    }

    set_policy(&place, ".*", json!({"message-ttl": 3_600_000})).await;
    let vanish = async || to_do(&place).iter().filter(|line| line.contains("after 3600000 ms")).count();
    // Five work queues and one of dead letters for each of two tenants, and what can't be routed.
    poll::until("each queue is named", 13, vanish).await;
    place.manage(Method::DELETE, &format!("policies/{}/short-lived", place.name), None).await;
    poll::until("none is", 0, vanish).await;

    let messages = Database::of(&place, "faster").await.0.collection::<Document>("messages");
    let unique = mongodb::options::IndexOptions::builder().unique(true).build();
    let index = mongodb::IndexModel::builder().keys(doc! {"event_id": 1}).options(unique).build();
    messages.create_index(index).await.unwrap();
    let in_the_way = to_do(&place);
    assert!(in_the_way.len() == 1 && in_the_way[0].contains("event_id_1 of messages"), "{in_the_way:?}");
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_management_api_it_says_what_it_cant_know_and_servers_that_are_down_are_named() {
    let place = Place::new().await;
    let nowhere = [
        ("AMQP_URL", "amqp://127.0.0.1:1/%2f"),
        ("MONGO_URI", "mongodb://127.0.0.1:1/?replicaSet=rs"),
        ("MONGO_TIMEOUT", "1s"),
    ];
    let answer = operate_with(&place, &["doctor"], &nowhere);
    assert_eq!(answer.status, 1, "{}", answer.out);
    for line in [
        "ACT      RabbitMQ ",
        "ACT      faster: MongoDB ",
        "unknown  policies, alarms, members ",
        "fine     vip: MongoDB ",
    ] {
        assert!(answer.out.contains(line), "{line}: {}", answer.out);
    }
    place.remove().await;
}

#[tokio::test]
async fn a_policy_that_lets_webhooks_vanish_is_in_the_log_and_a_metric() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    set_policy(&place, "^webhooks[.]vip", json!({"message-ttl": 60_000})).await;
    let worker = Worker::start(&place, &[("AMQP_MANAGEMENT_URL", &place.management_url)]).await;
    let queues = async || metric(&worker.admin, "worker_queues_losing_messages", &[]).await;
    poll::until("the metric", Some(5.0), queues).await;
    let lines = worker.process.log_lines();
    let line =
        lines.iter().find(|line| line["message"] == "policies of RabbitMQ let answered webhooks vanish");
    assert!(
        line.unwrap()["queues"].as_str().unwrap().contains("webhooks.vip.large: by the policy short-lived")
    );
    ingest.process.stop().await;
    worker.process.stop().await;
    place.remove().await;
}
