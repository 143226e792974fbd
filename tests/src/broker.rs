//! What is in RabbitMQ, and putting things there past ingest.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use shared::event;
use shared::json::Scan;
use shared::partition::{self, MAX_PARTITIONS, WorkQueue};
use shared::verify::Form;
use tokio::time::timeout;

use crate::poll;

/// The work queue of a body that isn't signed.
#[must_use]
pub fn queue_of(tenant: &str, body: &[u8], partitions: u16) -> WorkQueue {
    let event_id = Scan::of(body).ok().and_then(|scan| scan.event_id());
    let key = event::event_key(tenant, event_id.as_deref(), body, Form::Unsigned.name());
    partition::queue_of_body(&key, body, partitions)
}

/// A connection of the test's own.
#[derive(Debug)]
pub struct Broker {
    url: String,
    connection: Connection,
    channel: Channel,
    // For questions about queues that may not exist: in lapin, the error that answers such a one may also be
    // told to the next channel of the connection.
    asking: tokio::sync::Mutex<Option<Connection>>,
    // Of each tenant, once known.
    partitions: Mutex<BTreeMap<String, u16>>,
}

impl Broker {
    /// Connects.
    pub async fn connect(url: &str) -> Self {
        let connection = connect(url).await;
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let (url, asking, partitions) = (url.to_owned(), tokio::sync::Mutex::default(), Mutex::default());
        Self { url, connection, channel, asking, partitions }
    }

    /// Takes a message out of a queue, if there is one. By consuming: RabbitMQ refuses to get from a queue
    /// with a single active consumer.
    pub async fn take(&self, queue: &str) -> Option<Delivery> {
        if self.depth(queue).await.expect("the queue exists") == 0 {
            return None;
        }
        let channel = self.connection.create_channel().await.expect("a channel");
        channel.basic_qos(1, BasicQosOptions::default()).await.expect("a prefetch count");
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = channel.basic_consume(queue.into(), String::new().into(), options, none).await;
        let mut consumer = consumer.expect("the queue exists");
        let message = consumer.next().await.expect("the consumer is open").expect("a delivery");
        // Or the next one would be sent, and count a delivery when the channel closes.
        let cancelled = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        cancelled.await.expect("RabbitMQ cancels it");
        message.acker.ack(BasicAckOptions::default()).await.expect("RabbitMQ takes it");
        close(channel).await;
        Some(message)
    }

    /// Has the message behind so many others of a work queue come back so often, or until it doesn't come any
    /// more; each of the others comes back once. By closing the channel, which counts as a delivery: since
    /// 4.3, to refuse a message doesn't.
    pub async fn return_message(&self, queue: &str, behind: u16, times: u32) {
        let mut front = self.hold(queue, behind).await;
        for n in 1..=times {
            let Some(message) = self.hold(queue, 1).await else { break };
            if n == times
                && let Some(front) = front.take()
            {
                close(front).await;
                let are_back = async || self.depth(queue).await >= Some(u32::from(behind));
                poll::until("those before it are back", true, are_back).await;
            }
            close(message).await;
        }
    }

    /// Takes the first messages of a queue, and keeps them until the channel closes.
    async fn hold(&self, queue: &str, messages: u16) -> Option<Channel> {
        if messages == 0 {
            return None;
        }
        let channel = self.connection.create_channel().await.expect("a channel");
        channel.basic_qos(messages, BasicQosOptions::default()).await.expect("a prefetch count");
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = channel.basic_consume(queue.into(), String::new().into(), options, none).await;
        let mut consumer = consumer.expect("the queue exists");
        for _ in 0..messages {
            let next = timeout(Duration::from_secs(5), consumer.next()).await.ok()?;
            next.expect("a message").expect("a message");
        }
        let cancelled = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        cancelled.await.expect("RabbitMQ cancels it");
        Some(channel)
    }

    /// Declares a queue as somebody else might have.
    pub async fn declare_classic(&self, queue: &str) {
        let options = QueueDeclareOptions::durable();
        self.channel.queue_declare(queue.into(), options, FieldTable::default()).await.expect("declared");
    }

    /// Messages that wait in a queue; none if there is no such queue.
    pub async fn depth(&self, queue: &str) -> Option<u32> {
        let mut asking = self.asking.lock().await;
        let connection = match asking.take() {
            Some(connection) => connection,
            None => connect(&self.url).await,
        };
        let channel = connection.create_channel().await.expect("a channel");
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await.ok()?;
        close(channel).await;
        *asking = Some(connection);
        Some(declared.message_count())
    }

    /// The work queues that a tenant has.
    async fn work_queues(&self, tenant: &str) -> Vec<WorkQueue> {
        let mut queues = Vec::new();
        // Where one partition is missing there are none behind it.
        for n in 0..MAX_PARTITIONS {
            let queue = WorkQueue::Partition(n);
            if self.depth(&queue.name(tenant)).await.is_none() {
                break;
            }
            queues.push(queue);
        }
        let large = WorkQueue::Large;
        queues.extend(self.depth(&large.name(tenant)).await.map(|_| large));
        queues
    }

    /// Messages that wait in a tenant's work queues; none if it has no queue.
    pub async fn waiting(&self, tenant: &str) -> Option<u32> {
        let mut waiting = None;
        for queue in self.work_queues(tenant).await {
            let depth = self.depth(&queue.name(tenant)).await?;
            waiting = Some(waiting.unwrap_or(0) + depth);
        }
        waiting
    }

    /// Waits for a message in a queue and takes it. On a busy machine it may have come through the spool.
    pub async fn next(&self, queue: &str) -> Delivery {
        let waits = async || self.depth(queue).await > Some(0);
        poll::until(&format!("a message in {queue}"), true, waits).await;
        self.take(queue).await.expect("it waits")
    }

    /// The same with the work queues of a tenant.
    pub async fn next_event(&self, tenant: &str) -> Delivery {
        let waits = async || self.waiting(tenant).await > Some(0);
        poll::until(&format!("an event of {tenant}"), true, waits).await;
        for queue in self.work_queues(tenant).await {
            if let Some(message) = self.take(&queue.name(tenant)).await {
                return message;
            }
        }
        panic!("it waits")
    }

    /// The work queue that ingest would publish this body to.
    pub async fn queue_of(&self, tenant: &str, body: &[u8]) -> WorkQueue {
        let known = self.partitions.lock().expect("no panic").get(tenant).copied();
        let partitions = match known {
            Some(partitions) => partitions,
            None => {
                let queues = self.work_queues(tenant).await;
                let partitions = queues.iter().filter(|queue| **queue != WorkQueue::Large).count();
                u16::try_from(partitions).expect("few")
            }
        };
        if partitions > 0 {
            self.partitions.lock().expect("no panic").insert(tenant.to_owned(), partitions);
        }
        queue_of(tenant, body, partitions)
    }

    /// Publishes an event as ingest would have, at a given time.
    pub async fn publish_event(&self, tenant: &str, stream: &str, received_at_ms: i64, body: &[u8]) {
        let headers = [("tenant", tenant), ("stream", stream), ("signature", "unsigned")];
        self.publish_with(tenant, &headers, received_at_ms, body).await;
    }

    /// As [`Broker::publish_event`], with other headers.
    pub async fn publish_with(&self, tenant: &str, with: &[(&str, &str)], received_at_ms: i64, body: &[u8]) {
        let mut headers = FieldTable::default();
        for (name, value) in with {
            headers.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        headers.insert("received_at_ms".into(), AMQPValue::LongLongInt(received_at_ms));
        let key = self.queue_of(tenant, body).await.routing_key(tenant, "test");
        self.publish("webhooks", &key, headers, body).await;
    }

    /// Publishes a message and waits for the confirm.
    pub async fn publish(&self, exchange: &str, key: &str, headers: FieldTable, body: &[u8]) {
        self.publish_as(exchange, key, BasicProperties::default().with_headers(headers), body).await;
    }

    /// Publishes a message, and tells whether RabbitMQ refuses it.
    pub async fn is_refused(&self, exchange: &str, key: &str) -> bool {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let confirm = self.channel.basic_publish(exchange.into(), key.into(), options, b"{}", properties);
        confirm.await.expect("RabbitMQ takes it").await.expect("RabbitMQ answers").is_nack()
    }

    /// Takes a binding away, as somebody else might.
    pub async fn unbind(&self, queue: &str, exchange: &str, key: &str) {
        let unbound =
            self.channel.queue_unbind(queue.into(), exchange.into(), key.into(), FieldTable::default());
        unbound.await.expect("there is such a binding");
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

async fn connect(url: &str) -> Connection {
    Connection::connect(url, ConnectionProperties::default()).await.expect("RabbitMQ answers")
}

async fn close(channel: Channel) {
    channel.close(200, "done".into()).await.expect("the channel closes");
}

/// A header as text.
pub fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::LongLongInt(number) => Some(number.to_string()),
        _ => None,
    }
}
