//! The console's pages are as quick with many events as with few: each question follows an index. And a
//! person can be erased among them, though that follows none. `tests/run --long` has ten million events.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use mongodb::bson::{Document, doc};
use penstock_tests::console::{Console, Operator, encoded};
use penstock_tests::database::Database;
use penstock_tests::http::post_received;
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, operate_well};
use penstock_tests::stack::{OwnServer, Place, is_long_run};
use serde_json::json;

/// Events that were really sent, of which the others are copies.
const SENT: i64 = 100;
/// A minute has so many copies of each.
const COPIES_PER_MINUTE: i64 = 3;
/// The most that MongoDB may look at for a question: a page of 50 lines, or the events of a minute, and some
/// more.
const MAX_EXAMINED: i64 = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_question_of_the_console_follows_an_index_and_a_person_is_erased() {
    let events = if is_long_run() { 10_000_000 } else { 20_000 };
    let mongod = OwnServer::new("mongod");
    mongod.start();
    let place = Place { mongo_uri: mongod.env("MONGO_URI"), ..Place::new().await };
    let database = Database::on(&place.mongo_uri, &place, "faster").await;
    send(&place, &database).await;
    multiply(&database, events / SENT).await;
    let console = Console::start(&place, &[]).await;
    let ada = console.log_in("Ada").await;
    make_indexes(&ada, &database).await;

    database.0.run_command(doc! {"profile": 2}).await.unwrap();
    let (now, page_two) = (event(1), format!("{}.10", at(&database).await));
    for (path, fields) in [
        ("/", vec![]),
        ("/t/faster/events", vec![]),
        ("/t/faster/events", vec![("before", &*page_two)]),
        ("/t/faster/events", vec![("key", &*now)]),
        ("/t/faster/events", vec![("key", "none")]),
        ("/t/faster/events", vec![("type", "message.received")]),
        ("/t/faster/events", vec![("type", "message.received"), ("before", &*page_two)]),
        ("/t/faster/events", vec![("type", "none")]),
        ("/t/faster/events", vec![("from", "2001-01-01T00:00"), ("to", "2001-01-02T00:00")]),
        // A conversation with a hundredth of all events.
        ("/t/faster/events", vec![("contact", "+15550100000")]),
        ("/t/faster/events", vec![("contact", "1000")]),
        ("/t/faster/events", vec![("contact", "+15550100001-7"), ("type", "message.received")]),
        ("/t/faster/events", vec![("message", "m0")]),
        ("/t/faster/events", vec![("message", "m1"), ("type", "message.sent")]),
        ("/t/faster/event", vec![("key", &*now)]),
        ("/t/faster/conversation", vec![("chat", "1000")]),
        ("/t/faster/conversation", vec![("chat", "m1")]),
    ] {
        let started = Instant::now();
        ada.open(&format!("{path}?{}", encoded(&fields))).await;
        println!("{:4} ms: {path} {fields:?}", started.elapsed().as_millis());
    }
    database.0.run_command(doc! {"profile": 0}).await.unwrap();
    check(&database).await;
    console.process.stop().await;
    erase(&place, &database, events / SENT).await;
    place.remove().await;
}

fn event(n: i64) -> String {
    format!("e{n:02}")
}

/// Sends the events that the others are copies of.
async fn send(place: &Place, database: &Database) {
    let (ingest, worker) = (Ingest::start(place, &[]).await, Worker::start(place, &[]).await);
    for n in 0..SENT {
        let kind = ["message.received", "message.sent", "contact.updated"][usize::try_from(n).unwrap() % 3];
        let mut body = json!({
            "event_id": event(n), "event_type": kind,
            "contact": {"id": 1000 + n, "phone": format!("+15550100{n:03}"), "firstName": "Ada", "lastName": "Lovelace",
                "email": "ada@example.com", "language": "en", "countryCode": "GB", "tags": ["a", "b"], "status": "open"},
            "channel": {"id": 5, "name": "WhatsApp", "source": "whatsapp", "meta": "{}", "created_at": 1_663_274_081},
        });
        if kind != "contact.updated" {
            let content =
                json!({"type": "text", "text": "A message of the length that most messages have, or so."});
            body["message"] =
                json!({"messageId": format!("m{n}"), "timestamp": 1_791_792_900, "message": content});
        }
        post_received(&ingest.path("/webhook/faster"), body.to_string()).await;
    }
    database.until_stored(u64::try_from(SENT).unwrap()).await;
    worker.process.stop().await;
    ingest.process.stop().await;
}

/// Copies each event, to earlier and earlier times, and to other conversations; but those of the first
/// conversation stay there. MongoDB does so by itself, and keeps the indexes.
async fn multiply(database: &Database, copies: i64) {
    let started = Instant::now();
    let events = database.0.collection::<Document>("webhook_events");
    events.aggregate([doc! {"$out": "sent"}]).await.unwrap();
    let nth = |text: &str, n: Document| doc! {"$concat": [text, "-", {"$toString": n}]};
    let is_moved = doc! {"$and": [{"$gt": ["$n", 0]}, {"$eq": [{"$type": "$chat_id"}, "string"]},
    {"$ne": ["$chat_id", "+15550100000"]}]};
    let names_message = doc! {"$and": [{"$gt": ["$n", 0]}, {"$eq": [{"$type": "$message_id"}, "string"]}]};
    let age = doc! {"$multiply": ["$n", 60_000 / COPIES_PER_MINUTE]};
    let copied = [
        doc! {"$set": {"n": {"$range": [0, copies]}}},
        doc! {"$unwind": "$n"},
        doc! {"$set": {
            "_id": {"$cond": [{"$gt": ["$n", 0]}, nth("$_id", doc! {"$toInt": "$n"}), "$_id"]},
            "stored_at": {"$subtract": ["$stored_at", age.clone()]},
            "received_at": {"$subtract": ["$received_at", age]},
            "chat_id": {"$cond": [is_moved, nth("$chat_id", doc! {"$mod": ["$n", 1000]}), "$chat_id"]},
            "message_id": {"$cond": [names_message, nth("$message_id", doc! {"$toInt": "$n"}), "$message_id"]},
        }},
        doc! {"$unset": "n"},
        doc! {"$out": "webhook_events"},
    ];
    database.0.collection::<Document>("sent").aggregate(copied).await.unwrap();
    println!("{} events after {:?}", events.estimated_document_count().await.unwrap(), started.elapsed());
}

/// Has the console make its indexes, and prints what they take.
async fn make_indexes(ada: &Operator<'_>, database: &Database) {
    let started = Instant::now();
    poll::until_within("the indexes are made", false, poll::PATIENCE * 20, async || {
        ada.open("/t/faster/events?key=none").await.html.contains("The indexes for searching")
    })
    .await;
    println!("indexes after {:?}", started.elapsed());
    let stats = database.0.run_command(doc! {"collStats": "webhook_events"}).await.unwrap();
    for figure in ["count", "avgObjSize", "storageSize", "indexSizes"] {
        println!("{figure}: {}", stats.get(figure).unwrap());
    }
}

/// Counts a stranger's events, then erases a person with a hundredth of all.
async fn erase(place: &Place, database: &Database, copies: i64) {
    let total = database.count("webhook_events").await;
    for (contact, options, expected) in [("999999", &["--dry-run"][..], 0), ("1050", &[], copies)] {
        let started = Instant::now();
        let arguments = [&["erase", "--json", "--tenant", "faster", "--contact", contact], options].concat();
        let removed = operate_well(place, &arguments).json().remove(0)["removed"].clone();
        println!("erased {contact} {options:?} in {:?}: {removed}", started.elapsed());
        assert_eq!(removed["webhook_events"], expected, "{removed}");
    }
    let left = total - u64::try_from(copies).unwrap();
    assert_eq!(database.count("webhook_events").await, left);
}

/// When the latest event was stored, in milliseconds since 1970.
async fn at(database: &Database) -> i64 {
    let entry = database.get("webhook_events", &event(50)).await;
    entry.get_datetime("stored_at").unwrap().timestamp_millis()
}

/// What MongoDB tells of each question since it was told to take note.
async fn check(database: &Database) {
    let profile = database.0.collection::<Document>("system.profile");
    let of_console = doc! {"appName": {"$regex": "console"}, "op": {"$in": ["query", "command"]}};
    let asked: Vec<Document> = profile.find(of_console).await.unwrap().try_collect().await.unwrap();
    let number = |entry: &Document, name: &str| {
        entry.get_i32(name).map(i64::from).or_else(|_| entry.get_i64(name)).unwrap_or(0)
    };
    let mut questions = 0;
    for entry in &asked {
        let Ok(plan) = entry.get_str("planSummary") else { continue };
        let (keys, documents) = (number(entry, "keysExamined"), number(entry, "docsExamined"));
        let millis = Duration::from_millis(u64::try_from(number(entry, "millis")).unwrap());
        println!("{millis:>8.1?} {keys:5} keys {documents:5} documents {plan}");
        assert!(!plan.contains("COLLSCAN") || documents == 0, "{entry}");
        assert!(keys <= MAX_EXAMINED && documents <= MAX_EXAMINED, "{entry}");
        questions += 1;
    }
    assert!(questions > 30, "{questions} of {}", asked.len());
}
