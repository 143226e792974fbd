//! `worker compare`: what a trial beside the bridge has stored, and what the bridge has.

use std::collections::BTreeMap;

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{DateTime, Document, doc};
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::post_received;
use penstock_tests::process::{Answer, Ingest, Worker, operate, operate_well, until_idle};
use penstock_tests::stack::Place;
use serde_json::{Value, json};

use crate::bridge::{Recorded, recorded};
use crate::documents::sample;

/// When the bridge wrote, in milliseconds since 1970: long before whenever this runs.
const WRITTEN_AT_MS: i64 = 1_600_000_000_000;

/// Also what was written just now.
const AT_ONCE: [&str; 2] = ["--settle", "0s"];

/// A Penstock that got what the bridge got, for these tenants.
async fn penstock(place: &Place, recorded: &Recorded, tenants: &[&str]) -> Worker {
    let (ingest, worker) = (Ingest::start(place, &[]).await, Worker::start(place, &[]).await);
    for (file, path) in &recorded.posted {
        for tenant in tenants {
            post_received(&ingest.path(&path.replace("faster", tenant)), sample(file)).await;
        }
    }
    for tenant in tenants {
        Database::of(place, tenant).await.until_stored(recorded.posted.len() as u64).await;
    }
    until_idle(&Broker::connect(&place.amqp_url).await, &[&worker]).await;
    worker
}

/// The bridge's database, beside those of the tenants.
async fn bridge(place: &Place, recorded: &Recorded) -> Database {
    let database = Database::of(place, "bridge").await;
    for (name, documents) in &recorded.stored {
        let written = documents.values().map(|document| {
            let mut document = document.clone();
            for time in ["created_at", "updated_at"] {
                if let Some(time) = document.get_mut(time) {
                    *time = DateTime::from_millis(WRITTEN_AT_MS).into();
                }
            }
            document
        });
        database.0.collection::<Document>(name).insert_many(written).await.unwrap();
    }
    database
}

fn compare(place: &Place, more: &[&str]) -> Answer {
    let database = place.database("bridge");
    let with_bridge = ["compare", "--tenant", "faster", "--database", &database];
    operate(place, &[&with_bridge, more].concat())
}

fn by_collection(answer: &Answer) -> BTreeMap<String, Value> {
    let tallies = answer.json().into_iter();
    tallies.map(|tally| (tally["collection"].as_str().unwrap().to_owned(), tally)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trial_is_compared_with_the_bridge() {
    let (place, recorded) = (Place::new().await, recorded());
    let worker = penstock(&place, &recorded, &["faster"]).await;
    let (ours, bridges) = (Database::of(&place, "faster").await, bridge(&place, &recorded).await);

    let equal = compare(&place, &[&AT_ONCE[..], &["--json"]].concat());
    assert_eq!(equal.status, 0, "{} {}", equal.out, equal.errors);
    let tallies = by_collection(&equal);
    assert_eq!(tallies["messages"]["documents"], json!([26, 26]));
    assert_eq!(tallies["messages"]["documented"]["ts"]["count"], 1);
    assert_eq!(tallies["conversations"]["documented"]["last_message_ts"]["count"], 4);
    assert_eq!(tallies["calls"]["is_compared"], false);

    // A message without messageId has the event key here, and an id of MongoDB's there.
    let unnamed = doc! {"event_id": "unnamed", "type": "text"};
    let messages = [&ours, &bridges].map(|database| database.0.collection::<Document>("messages"));
    for (messages, id) in messages.iter().zip(["unnamed".into(), mongodb::bson::Bson::from(ObjectId::new())])
    {
        let mut message = unnamed.clone();
        message.insert("_id", id);
        messages.insert_one(message).await.unwrap();
    }
    assert_eq!(compare(&place, &AT_ONCE).status, 0);

    // Penstock lacks a message and has one of its own; a message and a conversation differ.
    let collection = |name: &str| ours.0.collection::<Document>(name);
    collection("messages").delete_one(doc! {"_id": "1791792900104729"}).await.unwrap();
    collection("messages").insert_one(doc! {"_id": "1", "type": "text"}).await.unwrap();
    let changed = doc! {"$set": {"raw_message.text": "secret words"}};
    collection("messages").update_one(doc! {"_id": "1791793090209458"}, changed).await.unwrap();
    let changed = doc! {"$set": {"contact.email": "secret@example.com", "message_count": 9}};
    collection("conversations").update_one(doc! {"_id": "+15550100231"}, changed).await.unwrap();
    let different = compare(&place, &[&AT_ONCE[..], &["--json"]].concat());
    assert_eq!(different.status, 1, "{}", different.out);
    assert!(different.errors.contains("4 documents are missing or different"), "{}", different.errors);
    let tallies = by_collection(&different);
    let (messages, conversations) = (&tallies["messages"], &tallies["conversations"]);
    assert_eq!(
        messages["missing"],
        json!([{"count": 1, "examples": ["1"]}, {"count": 1, "examples": ["1791792900104729"]}])
    );
    assert_eq!(messages["fields"], json!({"raw_message": {"count": 1, "examples": ["1791793090209458"]}}));
    let found = json!({"count": 1, "examples": ["418820301"]});
    assert_eq!(conversations["fields"], json!({"contact.email": found, "message_count": found}));

    let shown = compare(&place, &[&AT_ONCE[..], &["--examples", "1"]].concat());
    let database = place.database("bridge");
    assert!(shown.out.contains(&format!("  only in {database}: 1 (1791792900104729)\n")), "{}", shown.out);
    assert!(shown.out.contains("calls: the bridge has none"), "{}", shown.out);
    for private in ["secret", "+15550100231", "15550100142"] {
        assert!(!shown.out.contains(private) && !different.out.contains(private), "{private}: {}", shown.out);
    }
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_bridge_wrote_before_the_trial_is_not_missing() {
    let (place, recorded) = (Place::new().await, recorded());
    let worker = penstock(&place, &recorded, &["faster"]).await;
    let bridges = bridge(&place, &recorded).await;
    let messages = bridges.0.collection::<Document>("messages");
    let old = doc! {"_id": "1", "type": "text", "created_at": DateTime::from_millis(WRITTEN_AT_MS - 1000)};
    messages.insert_one(old).await.unwrap();
    // It began before the trial, and has counted for longer.
    let older =
        doc! {"$set": {"message_count": 90, "created_at": DateTime::from_millis(WRITTEN_AT_MS - 1000)}};
    let conversations = bridges.0.collection::<Document>("conversations");
    conversations.update_one(doc! {"_id": "+15550100142"}, older).await.unwrap();
    assert_eq!(compare(&place, &AT_ONCE).status, 1);
    let since = "2020-09-13T12:26:40Z";
    let compared = compare(&place, &[&AT_ONCE[..], &["--since", since]].concat());
    assert_eq!(compared.status, 0, "{} {}", compared.out, compared.errors);
    // What both have just written may be on its way to the other.
    let new = compare(&place, &["--settle", "1000d", "--json"]);
    assert_eq!(by_collection(&new)["messages"]["too_new"], 26);
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_penstocks_are_compared() {
    let (place, recorded) = (Place::new().await, recorded());
    let worker = penstock(&place, &recorded, &["faster", "vip"]).await;
    let tenants = ["compare", "--tenant", "faster", "--with", "vip", "--settle", "0s"];
    let equal = operate_well(&place, &tenants);
    assert!(!equal.out.contains("as documented"), "{}", equal.out);
    let vip = Database::of(&place, "vip").await;
    vip.0.collection::<Document>("internal_notes").delete_many(doc! {}).await.unwrap();
    let different = operate(&place, &tenants);
    let database = place.database("faster");
    assert!(different.out.contains(&format!("only in {database}: 1 (")), "{}", different.out);
    assert_eq!(different.status, 1);

    let alone = operate(&place, &["compare", "--tenant", "faster", "--with", "faster"]);
    assert!(alone.status == 1 && alone.errors.contains("the same database"), "{}", alone.errors);
    let misspelled = operate(&place, &["compare", "--tenant", "faster", "--database", "nothing_here"]);
    assert!(misspelled.status == 1 && misspelled.errors.contains("nothing_here"), "{}", misspelled.errors);
    worker.process.stop().await;
    place.remove().await;
}
