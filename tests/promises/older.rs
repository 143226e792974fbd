//! What a build before version 0.2 wrote, in `tests/versions/before-0.2`: messages, announcements, documents.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use mongodb::bson::{DateTime, Document};
use penstock_tests::database::Database;
use serde_json::Value;

pub fn read(name: &str) -> String {
    std::fs::read_to_string(format!("{}/versions/before-0.2/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A message that its ingest published.
#[derive(Clone)]
pub struct Published {
    pub routing_key: String,
    pub properties: BasicProperties,
    pub body: String,
}

/// What it published of these samples, in order.
pub fn published() -> Vec<Published> {
    let messages: Vec<Value> = serde_json::from_str(&read("messages.json")).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let message = |message: &Value| Published {
        routing_key: text(&message["routing_key"]),
        properties: properties(&message["properties"]),
        body: text(&message["body"]),
    };
    messages.iter().map(message).collect()
}

fn properties(told: &Value) -> BasicProperties {
    let text = |name: &str| told[name].as_str().unwrap().into();
    let mut headers = FieldTable::default();
    for (name, value) in told["headers"].as_object().unwrap() {
        let value = match value {
            Value::Number(number) => AMQPValue::LongLongInt(number.as_i64().unwrap()),
            value => AMQPValue::LongString(value.as_str().unwrap().into()),
        };
        headers.insert(name.as_str().into(), value);
    }
    BasicProperties::default()
        .with_content_type(text("content_type"))
        .with_message_id(text("message_id"))
        .with_type(text("type"))
        .with_timestamp(told["timestamp"].as_u64().unwrap())
        .with_headers(headers)
}

/// What it announced: a worker and an ingest.
pub fn announcements() -> BTreeMap<String, Value> {
    let announcements: Vec<Value> = serde_json::from_str(&read("announcements.json")).unwrap();
    let role = |of: &Value| of["role"].as_object().unwrap().keys().next().unwrap().clone();
    announcements.into_iter().map(|announcement| (role(&announcement), announcement)).collect()
}

/// The documents that it made of what it had published, by collection.
pub fn stored() -> BTreeMap<String, Vec<Document>> {
    serde_json::from_str(&read("documents.json")).unwrap()
}

/// Stores one of its documents as if just now: MongoDB removes what the ledger has had for long.
pub async fn insert(database: &Database, name: &str, mut document: Document) {
    if document.contains_key("stored_at") {
        document.insert("stored_at", DateTime::now());
    }
    database.0.collection::<Document>(name).insert_one(document).await.unwrap();
}
