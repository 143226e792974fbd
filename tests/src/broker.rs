//! What is in RabbitMQ, and putting things there past ingest.

use lapin::message::BasicGetMessage;
use lapin::options::{
    BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

/// A connection of the test's own.
#[derive(Debug)]
pub struct Broker {
    connection: Connection,
    channel: Channel,
}

impl Broker {
    /// Connects.
    pub async fn connect(url: &str) -> Self {
        let connection =
            Connection::connect(url, ConnectionProperties::default()).await.expect("RabbitMQ answers");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Self { connection, channel }
    }

    /// Takes a message out of a queue, if there is one.
    pub async fn take(&self, queue: &str) -> Option<BasicGetMessage> {
        let options = BasicGetOptions { no_ack: true };
        self.channel.basic_get(queue.into(), options).await.expect("the queue exists")
    }

    /// Takes a message out of a queue, if there is one, and puts it back.
    pub async fn take_and_return(&self, queue: &str) {
        let taken = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await;
        if let Some(message) = taken.expect("the queue exists") {
            let options = BasicNackOptions { requeue: true, ..Default::default() };
            message.delivery.acker.nack(options).await.expect("RabbitMQ takes it back");
        }
    }

    /// Declares a queue as somebody else might have.
    pub async fn declare_classic(&self, queue: &str) {
        let options = QueueDeclareOptions::durable();
        self.channel.queue_declare(queue.into(), options, FieldTable::default()).await.expect("declared");
    }

    /// Messages that wait in a queue; none if there is no such queue.
    pub async fn depth(&self, queue: &str) -> Option<u32> {
        let channel = self.connection.create_channel().await.expect("a channel");
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        declared.ok().map(|queue| queue.message_count())
    }

    /// Publishes an event as ingest would have, at a given time.
    pub async fn publish_event(&self, tenant: &str, stream: &str, received_at_ms: i64, body: &[u8]) {
        let mut headers = FieldTable::default();
        headers.insert("tenant".into(), AMQPValue::LongString(tenant.into()));
        headers.insert("stream".into(), AMQPValue::LongString(stream.into()));
        headers.insert("signature".into(), AMQPValue::LongString("unsigned".into()));
        headers.insert("received_at_ms".into(), AMQPValue::LongLongInt(received_at_ms));
        self.publish("webhooks", &format!("{tenant}.test"), headers, body).await;
    }

    /// Publishes a message and waits for the confirm.
    pub async fn publish(&self, exchange: &str, key: &str, headers: FieldTable, body: &[u8]) {
        self.publish_as(exchange, key, BasicProperties::default().with_headers(headers), body).await;
    }

    /// As [`Broker::publish`], with any properties.
    pub async fn publish_as(&self, exchange: &str, key: &str, properties: BasicProperties, body: &[u8]) {
        let properties = properties.with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let confirm =
            self.channel.basic_publish(exchange.into(), key.into(), options, body, properties).await;
        let confirmation = confirm.expect("RabbitMQ takes it").await.expect("RabbitMQ confirms");
        assert!(confirmation.is_ack(), "{confirmation:?}");
    }
}

/// A header as text.
pub fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::LongLongInt(number) => Some(number.to_string()),
        _ => None,
    }
}
