//! What a build before version 0.2 wrote, in `tests/versions/before-0.2`: messages, announcements, documents.
//! And a worker that does with RabbitMQ what that build's did.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use mongodb::bson::{DateTime, Document};
use penstock_tests::database::Database;
use serde_json::Value;
use shared::event::body_digest;
use shared::status::ANNOUNCE_INTERVAL;
use shared::topology::STATUS_EXCHANGE;
use shared::verify::Form;
use tokio::task::JoinHandle;
use tokio::time::interval;

/// Messages that its workers took at once.
const PREFETCH: u16 = 400;

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

/// Ids of the message that [`event`] varies.
const EVENT: &str = "5a9b40a7-1515-4ef9-aee9-bc0523b8f023";
const MESSAGE: &str = "1792171920618225";
const PHONE: &str = "+447700900733";
const CONTACT: &str = "418820733";

fn vary(text: &str, n: u32, chat: u32) -> String {
    let event = format!("event-{n}");
    let (message, phone) = (format!("17921719206{n:05}"), format!("+4477001{chat:05}"));
    let contact = format!("4188{chat:05}");
    [(EVENT, event), (MESSAGE, message), (PHONE, phone), (CONTACT, contact)]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// A message of a chat, as it published one.
pub fn event(n: u32, chat: u32) -> Published {
    let is_it = |message: &Published| message.properties.message_id().as_ref().unwrap().as_str() == EVENT;
    let Published { routing_key, properties, body } = published().into_iter().find(is_it).unwrap();
    let properties = properties.with_message_id(format!("event-{n}").into());
    Published { routing_key, properties, body: vary(&body, n, chat) }
}

/// Stores the only message of a chat as it did.
pub async fn store(database: &Database, n: u32, chat: u32) {
    let of_it = [("webhook_events", EVENT), ("messages", MESSAGE), ("conversations", PHONE)];
    for (name, id) in of_it {
        let document =
            stored()[name].iter().find(|document| document.get_str("_id").unwrap() == id).unwrap().clone();
        let text = serde_json::to_string(&document).unwrap();
        let mut document: Document = serde_json::from_str(&vary(&text, n, chat)).unwrap();
        if let Ok(body) = document.get_str("body") {
            let digest = body_digest(body.as_bytes(), Form::Unsigned.name());
            document.insert("body_sha256", digest);
        }
        insert(database, name, document).await;
    }
}

/// Stores one of its documents as if just now: MongoDB removes what the ledger has had for long.
pub async fn insert(database: &Database, name: &str, mut document: Document) {
    if document.contains_key("stored_at") {
        document.insert("stored_at", DateTime::now());
    }
    database.0.collection::<Document>(name).insert_one(document).await.unwrap();
}

/// The name of the older worker: no name comes before it. Its priorities were recorded beside a worker whose
/// name comes after its own.
const OLDER: &str = "!older";

/// A worker for `faster` that shares the queues with one more.
pub struct OlderWorker {
    connection: Connection,
    announcing: JoinHandle<()>,
    in_hand: Arc<Mutex<Vec<Delivery>>>,
}

impl OlderWorker {
    /// Starts it. The queues have to be there.
    pub async fn start(amqp_url: &str) -> Self {
        let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await.unwrap();
        let in_hand = Arc::default();
        for (queue, priority) in Self::shares() {
            let channel = connection.create_channel().await.unwrap();
            consume(channel, &queue, priority, Arc::clone(&in_hand)).await;
        }
        let announcing = tokio::spawn(announce(connection.create_channel().await.unwrap()));
        Self { connection, announcing, in_hand }
    }

    /// Its priorities, by queue.
    pub fn shares() -> BTreeMap<String, i32> {
        serde_json::from_str(&read("priorities.json")).unwrap()
    }

    /// What it has in hand.
    pub fn in_hand(&self) -> MutexGuard<'_, Vec<Delivery>> {
        self.in_hand.lock().unwrap()
    }

    /// Stores the first so many of what it has in hand, and acknowledges fewer.
    pub async fn work(&self, database: &Database, stored: usize, acknowledged: usize) {
        let in_hand = std::mem::take(&mut *self.in_hand());
        for (position, delivery) in in_hand.iter().take(stored).enumerate() {
            let key = delivery.properties.message_id().as_ref().unwrap().as_str();
            let n = key.strip_prefix("event-").unwrap().parse().unwrap();
            store(database, n, n).await;
            if position < acknowledged {
                delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
            }
        }
    }

    /// It is gone, and everybody hears it.
    pub async fn die(self) {
        self.connection.close(320, "killed".into()).await.unwrap();
        self.announcing.abort();
    }
}

async fn consume(channel: Channel, queue: &str, priority: i32, in_hand: Arc<Mutex<Vec<Delivery>>>) {
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-priority".into(), AMQPValue::LongInt(priority));
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), String::new().into(), options, arguments).await;
    let mut consumer = consumer.unwrap();
    tokio::spawn(async move {
        while let Some(Ok(delivery)) = consumer.next().await {
            in_hand.lock().unwrap().push(delivery);
        }
    });
}

async fn announce(channel: Channel) {
    let mut announcement = announcements().remove("worker").unwrap();
    announcement["name"] = OLDER.into();
    let announcement = announcement.to_string();
    let mut ticks = interval(ANNOUNCE_INTERVAL);
    loop {
        ticks.tick().await;
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let published = channel.basic_publish(
            STATUS_EXCHANGE.into(),
            String::new().into(),
            options,
            announcement.as_bytes(),
            properties,
        );
        published.await.unwrap();
    }
}
