//! The collections are full of the Flask bridge's documents at the change-over. Events for the same people go
//! on from them.

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, DateTime, Document, doc};
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::process::{Worker, operate_well, until_idle};
use penstock_tests::stack::Place;
use serde_json::{Value, json};

/// When the bridge stored what it did, and when the events come, in milliseconds since 1970.
const BEFORE: i64 = 1_780_000_000_000;
const RECEIVED_AT_MS: i64 = 1_792_000_000_000;

fn date(at_ms: i64) -> Bson {
    DateTime::from_millis(at_ms).into()
}

/// What the bridge left of two people: one with everything, one of its oldest.
async fn insert_old_documents(database: &Database) {
    let insert = async |name: &str, documents: Vec<Document>| {
        database.0.collection::<Document>(name).insert_many(documents).await.unwrap();
    };
    let conversations = vec![
        doc! {
            "_id": "+15550100142", "created_at": date(BEFORE), "first_message_ts": date(BEFORE),
            "last_message_ts": date(BEFORE + 9), "message_count": 40, "media_counts": {"image": 7, "file": 1},
            "updated_at": date(BEFORE + 9), "channel": ["WhatsApp Showroom"],
            "contact": {"id": 418_820_117, "firstName": "Amina", "lifecycle": "Customer"},
            "channel_info": {"id": 55_310, "name": "WhatsApp Showroom", "source": "whatsapp_cloud"}, "assignee": null,
            "internal_note_count": 3, "last_internal_note_at": date(BEFORE + 8),
        },
        doc! {"_id": "+15550100231", "message_count": 2, "last_message_ts": date(BEFORE), "channel": "WhatsApp"},
    ];
    let messages = vec![
        doc! {
            "_id": "1001", "chat_id": "+15550100142", "contact_id": 418_820_117, "event_id": "old-1001",
            "raw_message": {"type": "image", "url": "u"}, "image_url": "u", "sender": "+15550100142", "status": [],
            "ts": date(BEFORE + 9), "type": "image",
        },
        doc! {
            "_id": ObjectId::new(), "chat_id": "+15550100142", "event_id": "old-unnamed",
            "raw_message": {"type": "text", "text": "x"}, "ts": date(BEFORE + 1), "type": "text",
        },
        doc! {"_id": "1002", "chat_id": "+15550100231", "sender": "+15550100231", "ts": date(BEFORE), "type": "text"},
    ];
    let contacts = vec![
        doc! {
            "_id": "418820117", "firstName": "Amina", "tags": ["vip", "asked"], "lifecycle": "Customer",
            "lifecycle_history": [{"from": "Lead", "to": "Customer", "timestamp": date(BEFORE), "event_id": "old-life"}],
            "updated_at": date(BEFORE),
        },
        doc! {"_id": "418820301", "firstName": "Yousef"},
    ];
    let notes = vec![
        doc! {"_id": "old-note", "chat_id": "+15550100142", "contact_id": "418820117", "text": "x", "created_at": date(BEFORE + 8)},
    ];
    insert("conversations", conversations).await;
    insert("messages", messages).await;
    insert("contacts", contacts).await;
    insert("internal_notes", notes).await;
}

fn amina() -> Value {
    json!({"id": "418820117", "firstName": "Amina", "phone": "+15550100142"})
}

/// New events, and some that the bridge had stored.
fn events() -> Vec<Value> {
    let channel = json!({"id": 55_350, "name": "Example Furniture bot", "source": "telegram"});
    let message = |event: &str, message: Value| json!({"event_id": event, "event_type": "message.received", "contact": amina(), "channel": channel, "message": message});
    vec![
        message(
            "new",
            json!({"messageId": 1003, "timestamp": 1_791_000_000, "message": {"type": "image", "url": "u"}}),
        ),
        message(
            "old-1001",
            json!({"messageId": 1001, "timestamp": BEFORE + 9, "message": {"type": "image", "url": "u"}}),
        ),
        message("old-unnamed", json!({"timestamp": BEFORE + 1, "message": {"type": "text", "text": "x"}})),
        json!({"event_id": "read", "event_type": "message.read", "contact": amina(),
            "message": {"messageId": 1001, "status": [{"value": "read", "timestamp": 1_791_000_009}]}}),
        json!({"event_id": "old-note", "event_type": "comment.created", "contact": amina(), "text": "x"}),
        json!({"event_id": "new-note", "event_type": "comment.created", "contact": amina(), "text": "y"}),
        json!({"event_id": "tag", "event_type": "contact.tag.updated", "contact": amina(), "tag": "asked", "action": "remove"}),
        json!({"event_id": "life", "event_type": "contact.lifecycle.updated", "contact": amina(), "lifecycle": "Gone"}),
        json!({"event_id": "other", "event_type": "message.sent", "contact": {"id": 418_820_301, "phone": "+15550100231"},
            "channel": channel, "message": {"messageId": 1004, "timestamp": 1_791_000_001, "message": {"type": "text"}}}),
        json!({"event_id": "status", "event_type": "message.delivered", "contact": {"id": 418_820_301},
            "message": {"messageId": 1002, "status": [{"value": "read", "timestamp": 1_791_000_009}]}}),
    ]
}

fn expect(document: &Document, expected: Document) {
    for (path, value) in expected {
        let found = path.split('.').fold(Bson::from(document.clone()), |value, name| match &value {
            Bson::Document(inner) => inner.get(name).cloned().unwrap_or(Bson::Undefined),
            Bson::Array(list) => list.get(name.parse::<usize>().unwrap()).cloned().unwrap_or(Bson::Undefined),
            _ => Bson::Undefined,
        });
        assert_eq!(found, value, "{path} of {document}");
    }
}

async fn expect_continued(database: &Database) {
    expect(
        &database.get("conversations", "+15550100142").await,
        doc! {
            "message_count": 41, "media_counts": {"file": 1, "image": 8}, "internal_note_count": 4,
            "first_message_ts": date(BEFORE), "last_message_ts": date(1_791_000_000_000), "created_at": date(BEFORE),
            "channel": ["Example Furniture bot", "WhatsApp Showroom"], "channel_info.name": "WhatsApp Showroom",
            "contact.id": "418820117", "contact.lifecycle": "Gone",
        },
    );
    expect(
        &database.get("conversations", "+15550100231").await,
        doc! {
            "message_count": 3, "last_message_ts": date(1_791_000_001_000), "channel": ["Example Furniture bot", "WhatsApp"],
            "channel_info.name": "Example Furniture bot", "contact.id": 418_820_301,
        },
    );
    expect(
        &database.get("messages", "1001").await,
        doc! {
            "type": "image", "contact_id": "418820117", "status.0.value": "read", "ts": date(BEFORE + 9),
        },
    );
    expect(
        &database.get("messages", "1002").await,
        doc! {"type": "text", "ts": date(BEFORE), "status.0.value": "read"},
    );
    expect(
        &database.get("contacts", "418820117").await,
        doc! {
            "tags": ["vip"], "lifecycle": "Gone", "lifecycle_history.0.event_id": "old-life",
            "lifecycle_history.1.event_id": "life", "lifecycle_history.2": Bson::Undefined,
        },
    );
    assert_eq!(database.count("messages").await, 5, "the one without a name was found");
    assert_eq!(database.count("internal_notes").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_bridge_stored_continues_and_is_rebuilt_to_the_same() {
    let place = Place::new().await;
    let database = Database::of(&place, "faster").await;
    insert_old_documents(&database).await;
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    for (second, event) in (0..).zip(&events()) {
        let at = RECEIVED_AT_MS + second * 1000;
        broker.publish_event("faster", "any", at, event.to_string().as_bytes()).await;
    }
    database.until_stored(10).await;
    until_idle(&broker, &[&worker]).await;
    expect_continued(&database).await;

    let rebuild = |more: &[&str]| operate_well(&place, &[&["rebuild", "--tenant", "faster"], more].concat());
    let dry = rebuild(&["--dry-run", "--json"]).json();
    assert_eq!(dry.len(), 1, "{dry:?}");
    rebuild(&[]);
    expect_continued(&database).await;

    // What the bridge stored may be deleted by its owner. Its counts stay; what events set is computed anew.
    let collection = |name: &str| database.0.collection::<Document>(name);
    collection("messages").delete_many(doc! {"chat_id": "+15550100142"}).await.unwrap();
    collection("internal_notes").delete_many(doc! {}).await.unwrap();
    let garbage = doc! {"$set": {"message_count": 1, "media_counts": {}}, "$unset": {"contact": 1}};
    collection("conversations").update_one(doc! {"_id": "+15550100142"}, garbage).await.unwrap();
    let dry = rebuild(&["--dry-run", "--json"]).json();
    let changed = dry.iter().find(|change| change["_id"] == "+15550100142").unwrap();
    assert_eq!(
        (&changed["collection"], &changed["before"]["message_count"]),
        (&json!("conversations"), &json!(1))
    );
    assert_eq!(changed["after"]["message_count"], 41);
    assert_eq!(changed["after"]["media_counts"], json!({"file": 1, "image": 8}));
    assert_eq!(changed["before"].get("contact"), None);
    let shown = rebuild(&["--dry-run"]).out;
    assert!(
        shown.contains("conversations +15550100142\n") && shown.contains("  message_count: 1 → 41\n"),
        "{shown}"
    );
    assert_eq!(database.count("internal_notes").await, 0, "a dry run writes nothing");
    rebuild(&[]);
    expect_continued(&database).await;
    worker.process.stop().await;
    place.remove().await;
}
