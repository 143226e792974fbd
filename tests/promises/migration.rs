//! Queues that an older version declared get the arguments of this one, and lose nothing.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::{metric, post_received};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Process, Worker, operate, operate_well};
use penstock_tests::relay::{Fault, Relay};
use penstock_tests::stack::Place;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

const OLD: &str = "webhooks.faster.0";
const COPY: &str = "migrating.webhooks.faster.0";
const EVENTS: u32 = 600;
/// So that a migration can be killed in the middle.
const SLOW: Fault = Fault::Delay(Duration::from_millis(15));

/// What version 0.2 first gave its work queues.
fn old_arguments() -> Value {
    json!({
        "x-queue-type": "quorum", "x-single-active-consumer": true, "x-delivery-limit": 20, "x-overflow": "reject-publish",
        "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead.faster", "x-dead-letter-strategy": "at-least-once",
    })
}

async fn redeclare(place: &Place, queue: &str, arguments: Value, binding: (&str, &str)) {
    let vhost = &place.name;
    let (name, (exchange, key)) = (format!("queues/{vhost}/{queue}"), binding);
    if queue != "webhooks.vip" {
        place.manage(Method::DELETE, &name, None).await;
    }
    place.manage(Method::PUT, &name, Some(json!({"durable": true, "arguments": arguments}))).await;
    let bindings = format!("bindings/{vhost}/e/{exchange}/q/{queue}");
    place.manage(Method::POST, &bindings, Some(json!({"routing_key": key}))).await;
}

fn event(n: u32) -> String {
    json!({"event_id": format!("{n:04}"), "event_type": "call.ended", "call": {"id": n}}).to_string()
}

async fn publish(broker: &Broker, exchange: &str, key: &str, n: u32) {
    let mut headers = FieldTable::default();
    for (name, value) in [("tenant", "faster"), ("stream", "any"), ("signature", "unsigned")] {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    let properties = BasicProperties::default()
        .with_message_id(format!("{n:04}").into())
        .with_type("call.ended".into())
        .with_headers(headers);
    broker.publish_as(exchange, key, properties, event(n).as_bytes()).await;
}

async fn consume(place: &Place, queue: &str) -> (Connection, Channel, Consumer) {
    let connection = Connection::connect(&place.amqp_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.basic_qos(10_000, BasicQosOptions::default()).await.unwrap();
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let consumer = channel.basic_consume(queue.into(), "".into(), options, none).await.unwrap();
    (connection, channel, consumer)
}

/// The event keys of what is in a queue, in its order.
async fn keys(place: &Place, broker: &Broker, queue: &str) -> Vec<String> {
    let depth = broker.depth(queue).await.unwrap() as usize;
    let (connection, _channel, consumer) = consume(place, queue).await;
    let key = async |delivery: lapin::Result<lapin::message::Delivery>| {
        delivery.unwrap().properties.message_id().clone().unwrap().to_string()
    };
    let keys = consumer.take(depth).then(key).collect().await;
    connection.close(200, "done".into()).await.unwrap();
    poll::until("they are back", Some(depth), async || broker.depth(queue).await.map(|n| n as usize)).await;
    keys
}

async fn has_new_arguments(place: &Place) -> bool {
    let url = format!("{}/api/queues/{}/{OLD}", place.management_url, place.name);
    let queue: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
    queue["arguments"]["x-queue-leader-locator"] == "balanced"
}

fn migrate(place: &Place, url: &str) -> Process {
    Process::start_command(place, &["queues", "migrate"], &[("AMQP_URL", url)])
}

/// Kills a migration when its copy of the queue holds as many messages as this accepts.
async fn kill_when(relay: &Relay, broker: &Broker, migration: Process, is_time: impl Fn(u32) -> bool) {
    let copied = async || broker.depth(COPY).await.is_some_and(&is_time);
    poll::until("it is half done", true, copied).await;
    migration.crash().await;
    relay.set(Fault::None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_is_killed_goes_on_and_loses_no_message_and_no_order() {
    let place = Place::new().await;
    Ingest::start(&place, &[]).await.process.stop().await;
    redeclare(&place, OLD, old_arguments(), ("webhooks", "faster.0.#")).await;
    redeclare(&place, "dead.vip", json!({}), ("webhooks.aside", "dead.vip")).await;
    // Version 0.1 had one work queue for each tenant.
    redeclare(&place, "webhooks.vip", json!({"x-queue-type": "quorum"}), ("webhooks", "vip.#")).await;
    let broker = Broker::connect(&place.amqp_url).await;
    for n in 0..EVENTS {
        publish(&broker, "webhooks", "faster.0.call.ended", n).await;
    }
    for n in 0..30 {
        publish(&broker, "", "webhooks.vip", n).await;
        publish(&broker, "webhooks.aside", "dead.vip", n).await;
    }
    let ingest = Ingest::start_unconnected(&place, &[]).await;
    post_received(&ingest.path("/webhook/faster"), event(EVENTS)).await;

    let named = |answer: &[Value]| -> Vec<(String, u64)> {
        let of =
            |line: &Value| (line["queue"].as_str().unwrap().to_owned(), line["messages"].as_u64().unwrap());
        answer.iter().map(of).collect()
    };
    let found = named(&operate_well(&place, &["queues", "migrate", "--dry-run", "--json"]).json());
    let expected = [(OLD, u64::from(EVENTS)), ("dead.vip", 30), ("webhooks.vip", 30)];
    assert_eq!(found, expected.map(|(name, messages)| (name.to_owned(), messages)));
    assert_eq!(
        (broker.depth(OLD).await, broker.depth(COPY).await),
        (Some(EVENTS), None),
        "nothing is changed"
    );

    let (relay, url) = place.relay().await;
    for copied in [100, 400] {
        relay.set(SLOW);
        let migration = migrate(&place, &url);
        poll::until("the copy is there", true, async || broker.depth(COPY).await.is_some()).await;
        let more = broker.depth(COPY).await.unwrap().max(copied);
        kill_when(&relay, &broker, migration, |depth| depth >= more).await;
        assert!(!has_new_arguments(&place).await, "killed before the queue was replaced");
        // RabbitMQ has to notice that its connection is gone.
        poll::until("none is in hand", true, async || {
            broker.depth(OLD).await.unwrap() + broker.depth(COPY).await.unwrap() >= EVENTS
        })
        .await;
    }
    relay.set(SLOW);
    let migration = migrate(&place, &url);
    poll::until("the queue is replaced", true, async || has_new_arguments(&place).await).await;
    kill_when(&relay, &broker, migration, |depth| depth < EVENTS - 100).await;
    assert!(broker.depth(COPY).await > Some(0), "killed before all messages were back");
    poll::until("it is done", 0, async || operate(&place, &["queues", "migrate"]).status).await;

    for gone in [COPY, "migrating.dead.vip", "webhooks.vip"] {
        assert_eq!(broker.depth(gone).await, None, "{gone} is gone");
    }
    poll::until("ingest is connected", Some(1.0), async || {
        metric(&ingest.admin, "amqp_connection_up", &[]).await
    })
    .await;
    let keys = keys(&place, &broker, OLD).await;
    let mut firsts = BTreeSet::new();
    // ingest publishes what is in its spool as soon as the queue is the right one.
    let firsts: Vec<&String> =
        keys.iter().filter(|key| **key != format!("{EVENTS:04}") && firsts.insert(*key)).collect();
    assert!(firsts.is_sorted(), "in their order");
    assert_eq!(broker.depth("dead.vip").await, Some(30));
    assert_eq!(operate_well(&place, &["dead", "list", "--tenant", "vip", "--json"]).json().len(), 30);
    assert_eq!(
        operate_well(&place, &["queues", "migrate"]).out,
        "none: all queues have the arguments of this version\n"
    );

    let worker = Worker::start(&place, &[]).await;
    Database::of(&place, "faster").await.until_stored(u64::from(EVENTS) + 1).await;
    Database::of(&place, "vip").await.until_stored(30).await;
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_somebody_begins_to_consume_is_not_deleted() {
    let (place, dead) = (Place::new().await, "dead.vip");
    Ingest::start(&place, &[]).await.process.stop().await;
    redeclare(&place, dead, json!({}), ("webhooks.aside", dead)).await;
    let broker = Broker::connect(&place.amqp_url).await;
    for n in 0..30 {
        publish(&broker, "webhooks.aside", dead, n).await;
    }
    let mut migration = migrate(&place, &place.amqp_url);
    // It has looked, and waits before it moves anything.
    let has_copy = async || broker.depth("migrating.dead.vip").await.is_some();
    poll::until("the copy is there", true, has_copy).await;
    let (connection, _channel, _consumer) = consume(&place, dead).await;
    assert_eq!(migration.ended().await.code(), Some(1));
    assert!(migration.log_text().contains("dead.vip is being consumed"), "{}", migration.log_text());
    connection.close(200, "done".into()).await.unwrap();
    poll::until("it is migrated", 0, async || operate(&place, &["queues", "migrate"]).status).await;
    let keys: BTreeSet<String> = keys(&place, &broker, dead).await.into_iter().collect();
    assert_eq!(keys.len(), 30, "none is lost");
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_consumed_is_not_migrated() {
    let place = Place::new().await;
    Ingest::start(&place, &[]).await.process.stop().await;
    redeclare(&place, OLD, old_arguments(), ("webhooks", "faster.0.#")).await;
    let (connection, _channel, _consumer) = consume(&place, OLD).await;
    let refused = operate(&place, &["queues", "migrate"]);
    assert_eq!(refused.status, 1);
    assert!(
        refused.errors.contains("webhooks.faster.0 is being consumed: stop the workers"),
        "{}",
        refused.errors
    );
    assert!(!has_new_arguments(&place).await);
    connection.close(200, "done".into()).await.unwrap();
    poll::until("it is migrated", 0, async || operate(&place, &["queues", "migrate"]).status).await;
    assert!(has_new_arguments(&place).await);
    let typo = operate(&place, &["queues", "migrate", "--tenant", "fastre"]);
    assert!(typo.status == 1 && typo.errors.contains("fastre"), "{}", typo.errors);
    place.remove().await;
}
