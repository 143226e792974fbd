//! Compatibility with the version before and the next. `tests/versions/before-0.2` is what a build before
//! version 0.2 wrote when it got samples.

use std::collections::BTreeSet;
use std::time::Instant;

use mongodb::bson::Document;
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::{metric, metrics};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, operate_well, until_idle};
use penstock_tests::stack::Place;
use serde_json::json;
use shared::status::{Announcement, Peers};
use shared::topology::WEBHOOKS_EXCHANGE;

use crate::older::{self, OlderWorker, Published};

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

/// When later events come, in milliseconds since 1970: after all samples.
const LATER_MS: i64 = 1_900_000_000_000;

/// The samples that its spool has for `faster`; one, `ping`, was for `vip`.
const SAMPLES: [&str; 11] = [
    "message.received.text",
    "contact.created.custom-fields-flat",
    "comment.created",
    "conversation.opened",
    "message.sent.user",
    "contact.lifecycle.updated",
    "contact.tag.updated.add",
    "call.ended",
    "message.received.attachment-image",
    "conversation.closed",
    "message.received.string-ids",
];

fn sample(name: &str) -> String {
    std::fs::read_to_string(format!("{FOLDER}/payloads/{name}.json")).unwrap()
}

/// The ledger has each sample, byte for byte.
async fn assert_stored(database: &Database) {
    database.until_stored(SAMPLES.len() as u64).await;
    let entries = database.all("webhook_events").await;
    let mut stored: Vec<&str> = entries.values().map(|entry| entry.get_str("body").unwrap()).collect();
    let mut sent = SAMPLES.map(sample);
    stored.sort_unstable();
    sent.sort_unstable();
    assert_eq!(stored, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_of_the_version_before_is_published() {
    let place = Place::new().await;
    let spool = place.folder.join("spool-of-before");
    std::fs::create_dir(&spool).unwrap();
    std::fs::copy(format!("{FOLDER}/versions/before-0.2/spool.db"), spool.join("spool.db")).unwrap();
    let ingest = Ingest::start(&place, &[("SPOOL_DIR", spool.to_str().unwrap())]).await;
    let worker = Worker::start(&place, &[]).await;
    assert_stored(&Database::of(&place, "faster").await).await;
    Database::of(&place, "vip").await.until_stored(1).await;
    poll::until("the spool is empty", Some(0.0), async || {
        metric(&ingest.admin, "ingest_spool_records", &[]).await
    })
    .await;
    worker.process.stop().await;
    place.remove().await;
}

/// Publishes messages of the older build.
async fn publish(broker: &Broker, messages: &[Published]) {
    for Published { routing_key, properties, body } in messages {
        broker.publish_as(WEBHOOKS_EXCHANGE, routing_key, properties.clone(), body.as_bytes()).await;
    }
}

/// How many events a worker has stored, and how many were there.
async fn outcomes(worker: &Worker) -> [f64; 2] {
    let metrics = metrics(&worker.admin).await;
    let of = |outcome: &str| {
        let is_of = |line: &&str| {
            line.starts_with("worker_events_total{") && line.contains(&format!("outcome=\"{outcome}\""))
        };
        let values =
            metrics.lines().filter(is_of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum()
    };
    [of("stored"), of("duplicate")]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_an_older_build_are_stored_once_and_as_it_stored_them() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    let messages = older::published();
    for _ in 0..2 {
        publish(&broker, &messages).await;
    }
    until_idle(&broker, &[&worker]).await;
    let number = f64::from(u32::try_from(messages.len()).unwrap());
    assert_eq!(outcomes(&worker).await, [number, number]);
    let now = database.dump().await;
    for (name, documents) in older::stored() {
        assert_eq!(now[&name].len(), documents.len(), "{name}");
        for document in documents {
            let found = &now[&name][document.get_str("_id").unwrap()];
            let times = ["created_at", "updated_at", "stored_at"];
            for (field, value) in document.iter().filter(|(field, _)| !times.contains(&field.as_str())) {
                assert_eq!(found.get(field), Some(value), "{field} of {name}");
            }
        }
    }
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_of_an_older_build_are_continued() {
    let place = Place::new().await;
    let database = Database::of(&place, "faster").await;
    for (name, documents) in older::stored() {
        for document in documents {
            older::insert(&database, &name, document).await;
        }
    }
    let before = database.dump().await;
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let messages = older::published();
    publish(&broker, &messages).await;
    until_idle(&broker, &[&worker]).await;
    assert_eq!(outcomes(&worker).await, [0.0, f64::from(u32::try_from(messages.len()).unwrap())]);
    assert_eq!(database.dump().await, before, "nothing has changed");
    let rebuilt = operate_well(&place, &["rebuild", "--tenant", "faster", "--dry-run", "--json"]);
    let rebuilt = rebuilt.json().remove(0);
    assert_eq!([&rebuilt["inserted"], &rebuilt["updated"]], [0, 0], "nor would it: {rebuilt}");

    let contact = json!({"id": 418_820_117, "firstName": "Mina", "phone": "+15550100142"});
    let later = [
        json!({"event_id": "message", "event_type": "message.received", "contact": contact,
            "message": {"messageId": 7, "timestamp": 1_795_700_000, "message": {"type": "text", "text": "x"}}}),
        json!({"event_id": "note", "event_type": "comment.created", "contact": contact, "text": "x"}),
        json!({"event_id": "life", "event_type": "contact.lifecycle.updated", "contact": contact,
            "oldLifecycle": "Customer", "lifecycle": "Gone"}),
    ];
    for event in &later {
        broker.publish_event("faster", "any", LATER_MS, event.to_string().as_bytes()).await;
    }
    until_idle(&broker, &[&worker]).await;
    let number = |document: &Document, field: &str| document.get_i32(field).unwrap();
    let now = database.get("conversations", "+15550100142").await;
    let old = &before["conversations"]["+15550100142"];
    for field in ["message_count", "internal_note_count"] {
        assert_eq!(number(&now, field), number(old, field) + 1, "{field}");
    }
    assert_eq!(now.get("first_message_ts"), old.get("first_message_ts"));
    assert_eq!(now.get_document("contact").unwrap().get_str("firstName").unwrap(), "Mina");
    let contact = database.get("contacts", "418820117").await;
    let history = contact.get_array("lifecycle_history").unwrap();
    assert_eq!((history.len(), contact.get_str("lifecycle").unwrap()), (2, "Gone"));
    worker.process.stop().await;
    place.remove().await;
}

#[test]
fn announcements_of_other_versions_are_understood() {
    let now = Instant::now();
    let mut peers = Peers::default();
    for mut announced in older::announcements().into_values() {
        peers.record(serde_json::from_value::<Announcement>(announced.clone()).unwrap(), now);
        // What a later one may add.
        announced["new"] = json!(1);
        announced["name"] = json!(format!("later {}", announced["name"]));
        for role in announced["role"].as_object_mut().unwrap().values_mut() {
            role["new"] = json!([]);
            let tenant = role.get_mut("tenants").map(|tenants| &mut tenants["faster"]);
            if let Some(tenant) = tenant {
                tenant["new"] = json!({});
            }
        }
        peers.record(serde_json::from_value::<Announcement>(announced).unwrap(), now);
    }
    let workers =
        peers.alive(now).filter(|peer| peer.served().is_some_and(|tenants| tenants.contains_key("faster")));
    assert_eq!((workers.count(), peers.alive(now).count(), peers.partitions(now)), (2, 4, Some(4)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_worker_and_a_new_one_share_the_queues_and_nothing_is_lost_or_written_twice() {
    const EVENTS: u32 = 40;
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    let older = OlderWorker::start(&place.amqp_url).await;
    let shares = OlderWorker::shares();
    let is_own = |queue: &String| shares[queue] == 0;
    poll::until("each has its queues", true, async || {
        let consumers = place.active_consumers("faster").await;
        let of = |own: bool| -> BTreeSet<&String> {
            consumers
                .iter()
                .filter(|(queue, _)| is_own(queue) == own)
                .map(|(_, connection)| connection)
                .collect()
        };
        let (olders, news) = (of(true), of(false));
        (olders.len(), news.len()) == (1, 1) && olders != news
    })
    .await;

    let published: Vec<Published> = (0..EVENTS).map(|n| older::event(n, n)).collect();
    let mut olders = 0;
    for message in &published {
        let queue = broker.queue_of("faster", message.body.as_bytes()).await;
        olders += usize::from(is_own(&queue.name("faster")));
        let routing_key = queue.routing_key("faster", "message.received");
        publish(&broker, &[Published { routing_key, ..message.clone() }]).await;
    }
    assert!(olders > 4 && olders < published.len(), "{olders}");
    database.until_stored((published.len() - olders) as u64).await;
    poll::until("the older worker has its share", olders, async || older.in_hand().len()).await;

    // It stores half of them, acknowledges half of these, and dies.
    let (half, quarter) = (olders / 2, olders / 4);
    older.work(&database, half, quarter).await;
    older.die().await;
    database.until_stored(u64::from(EVENTS)).await;
    until_idle(&broker, &[&worker]).await;
    let [_, duplicates] = outcomes(&worker).await;
    assert_eq!(duplicates, f64::from(u32::try_from(half - quarter).unwrap()), "stored, but not acknowledged");

    // The conversations go on, whoever began them.
    for n in 0..EVENTS {
        let message = older::event(EVENTS + n, n);
        let queue = broker.queue_of("faster", message.body.as_bytes()).await;
        let routing_key = queue.routing_key("faster", "message.received");
        publish(&broker, &[Published { routing_key, ..message }]).await;
    }
    database.until_stored(u64::from(2 * EVENTS)).await;
    until_idle(&broker, &[&worker]).await;
    assert_eq!(database.count("messages").await, u64::from(2 * EVENTS));
    let counts = database.all("conversations").await;
    assert_eq!(counts.len(), EVENTS as usize);
    assert!(
        counts.values().all(|conversation| conversation.get_i32("message_count").unwrap() == 2),
        "{counts:?}"
    );
    assert_eq!((broker.waiting("faster").await, broker.depth("dead.faster").await), (Some(0), Some(0)));
    worker.process.stop().await;
    place.remove().await;
}
