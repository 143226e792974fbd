//! What a migration asks of RabbitMQ.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use shared::event;
use shared::partition::{self, WorkQueue};
use shared::publisher::{Message, Publisher};
use shared::tenant_queue::TenantQueue;
use shared::topology::{self, ASIDE_EXCHANGE, WEBHOOKS_EXCHANGE, is_soft};
use tokio::time::{Instant, sleep, timeout};

use super::MigrationError;
use crate::commands::set_aside::queue::{ANSWER_TIMEOUT, QueueError, Turn};

/// Messages in hand.
const BATCH: u16 = 64;
/// Longest wait for a confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for which RabbitMQ may still count our own consumer, which was cancelled, and how often it is
/// asked meanwhile.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
const CANCEL_PAUSE: Duration = Duration::from_millis(200);
/// An exclusive queue: only the process that has it migrates, until its connection ends.
const LOCK: &str = "penstock.migration";

/// What RabbitMQ tells of a queue.
#[derive(Debug)]
pub struct Queue {
    /// Messages that are ready.
    pub messages: u32,
    /// Consumers.
    pub consumers: u32,
}

/// Where a message goes.
pub enum Destination {
    /// The copy of this queue.
    Copy(TenantQueue),
    /// This queue.
    Home(TenantQueue),
    /// The work queue of its conversation, among this many partitions.
    WorkQueues(u16),
}

impl Destination {
    /// The exchange and the routing key.
    fn of(&self, tenant: &str, delivery: &Delivery) -> (&'static str, String) {
        let kind = delivery.properties.kind().as_ref().map(ShortString::as_str);
        let event_type = event::routable_type(kind);
        match self {
            Self::Copy(queue) => (ASIDE_EXCHANGE, queue.copy_name(tenant)),
            Self::Home(queue) => (queue.exchange(), queue.routing_key(tenant, event_type)),
            Self::WorkQueues(partitions) => {
                let event_key = delivery.properties.message_id().as_ref().map_or("", ShortString::as_str);
                let queue = partition::queue_of_body(event_key, &delivery.data, *partitions);
                (WEBHOOKS_EXCHANGE, queue.routing_key(tenant, event_type))
            }
        }
    }
}

/// RabbitMQ.
pub struct Broker {
    publisher: Publisher,
}

impl Broker {
    /// Over this connection.
    pub fn new(publisher: Publisher) -> Self {
        Self { publisher }
    }

    /// Closes the connection.
    pub async fn close(&self) {
        self.publisher.link().close().await;
    }

    async fn channel(&self) -> Result<Channel, QueueError> {
        channel(&self.publisher).await
    }

    /// Keeps others from migrating while the channel is held.
    pub async fn lock(&self) -> Result<Channel, MigrationError> {
        lock(&self.publisher).await
    }

    /// Keeps others from reading a queue: what they have taken out would be deleted with it.
    pub async fn turn(&self, name: &str) -> Result<Turn, QueueError> {
        Turn::take(&self.publisher, name).await
    }

    /// A queue, if there is one of this name.
    pub async fn find(&self, name: &str) -> Result<Option<Queue>, QueueError> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        match declare(&channel, name, options).await {
            Ok(queue) => close(&channel).await.map(|()| Some(queue)),
            Err(QueueError::Channel(error)) if is_soft(&error, &AMQPSoftError::NOTFOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a queue, which is there, has other arguments than those of this version.
    pub async fn has_other_arguments(&self, queue: TenantQueue, tenant: &str) -> Result<bool, QueueError> {
        let channel = self.channel().await?;
        match queue.declare(&channel, tenant).await {
            Ok(()) => close(&channel).await.map(|()| false),
            Err(error) if error.is_other_arguments() => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Declares a queue.
    pub async fn declare(&self, queue: TenantQueue, tenant: &str) -> Result<(), MigrationError> {
        let channel = self.channel().await?;
        queue.declare(&channel, tenant).await.map_err(QueueError::from)?;
        Ok(close(&channel).await?)
    }

    /// Declares the queues of a tenant.
    pub async fn declare_all(&self, tenant: &str, partitions: u16) -> Result<(), MigrationError> {
        for queue in WorkQueue::all(partitions).map(TenantQueue::Work) {
            self.declare(queue, tenant).await?;
        }
        Ok(())
    }

    /// Declares the copy of a queue.
    pub async fn declare_copy(&self, queue: TenantQueue, tenant: &str) -> Result<(), MigrationError> {
        let channel = self.channel().await?;
        queue.declare_copy(&channel, tenant).await.map_err(QueueError::from)?;
        Ok(close(&channel).await?)
    }

    /// Removes a binding.
    pub async fn unbind(&self, queue: &str, exchange: &str, key: &str) -> Result<(), MigrationError> {
        let channel = self.channel().await?;
        topology::unbind(&channel, queue, exchange, key).await.map_err(QueueError::from)?;
        Ok(close(&channel).await?)
    }

    /// Deletes a queue, which is empty, unless somebody consumes it, and so may have messages of it in hand.
    pub async fn delete(&self, name: &str) -> Result<(), MigrationError> {
        let channel = self.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let until = Instant::now() + CANCEL_TIMEOUT;
        while declare(&channel, name, passive).await?.consumers > 0 {
            if Instant::now() > until {
                return Err(MigrationError::Consumed(name.to_owned()));
            }
            sleep(CANCEL_PAUSE).await;
        }
        // RabbitMQ deletes no quorum queue only if it is empty; nothing leads to this one any more.
        let deleted = channel.queue_delete(short(name)?, QueueDeleteOptions::default());
        timeout(ANSWER_TIMEOUT, deleted).await.map_err(QueueError::from)?.map_err(QueueError::from)?;
        Ok(close(&channel).await?)
    }

    /// Moves the messages of a queue, in their order, until it is empty.
    pub async fn move_all(&self, from: &str, to: &Destination, tenant: &str) -> Result<(), MigrationError> {
        let channel = self.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        loop {
            let left = declare(&channel, from, passive).await?.messages;
            let batch = u16::try_from(left).unwrap_or(BATCH).min(BATCH);
            if batch == 0 {
                return Ok(close(&channel).await?);
            }
            let taken = take(&channel, from, batch).await?;
            self.publish_all(&taken, to, tenant).await?;
            // Up to the last one.
            let Some(last) = taken.last() else { continue };
            let options = BasicAckOptions { multiple: true };
            let removed = channel.basic_ack(last.delivery_tag, options);
            timeout(ANSWER_TIMEOUT, removed).await.map_err(QueueError::from)?.map_err(QueueError::from)?;
        }
    }

    async fn publish_all(
        &self,
        deliveries: &[Delivery],
        to: &Destination,
        tenant: &str,
    ) -> Result<(), MigrationError> {
        let published = deliveries.iter().map(|delivery| self.publish(delivery, to, tenant));
        // In their order: the first to ask gets a place in flight.
        join_all(published).await.into_iter().collect()
    }

    async fn publish(
        &self,
        delivery: &Delivery,
        to: &Destination,
        tenant: &str,
    ) -> Result<(), MigrationError> {
        let (exchange, key) = to.of(tenant, delivery);
        let message = Message::new(exchange, key, properties(delivery), delivery.data.clone());
        Ok(self.publisher.publish(message.map_err(QueueError::from)?, CONFIRM_TIMEOUT).await?)
    }
}

/// A channel, which RabbitMQ closes when it refuses something.
async fn channel(publisher: &Publisher) -> Result<Channel, QueueError> {
    let session = publisher.link().session().ok_or(QueueError::NotConnected)?;
    Ok(timeout(ANSWER_TIMEOUT, session.channel()).await??)
}

/// Keeps others from migrating while the channel is held.
pub async fn lock(publisher: &Publisher) -> Result<Channel, MigrationError> {
    let channel = channel(publisher).await?;
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    match declare(&channel, LOCK, options).await {
        Err(QueueError::Channel(error)) if is_soft(&error, &AMQPSoftError::RESOURCELOCKED) => {
            Err(MigrationError::Running)
        }
        declared => Ok(declared.map(|_| channel)?),
    }
}

/// Takes this many messages, and no more: of one that is on its way to us, no length tells.
async fn take(channel: &Channel, from: &str, count: u16) -> Result<Vec<Delivery>, QueueError> {
    timeout(ANSWER_TIMEOUT, channel.basic_qos(count, BasicQosOptions::default())).await??;
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let consumed = channel.basic_consume(short(from)?, ShortString::default(), options, none);
    let mut consumer = timeout(ANSWER_TIMEOUT, consumed).await??;
    let mut taken = Vec::with_capacity(count.into());
    for _ in 0..count {
        let next = timeout(ANSWER_TIMEOUT, consumer.next()).await?;
        taken.push(next.ok_or(QueueError::NotRemoved)??);
    }
    timeout(ANSWER_TIMEOUT, channel.basic_cancel(consumer.tag(), BasicCancelOptions::default())).await??;
    Ok(taken)
}

/// As the message was published, without RabbitMQ's headers about deliveries. Its headers about deaths stay:
/// they tell why a message is a dead letter.
fn properties(delivery: &Delivery) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in delivery.properties.headers().clone().unwrap_or_default().inner() {
        if !["x-delivery-count", "x-acquired-count"].contains(&name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    delivery.properties.clone().with_headers(headers)
}

async fn declare(channel: &Channel, name: &str, options: QueueDeclareOptions) -> Result<Queue, QueueError> {
    let declared = channel.queue_declare(short(name)?, options, FieldTable::default());
    let queue = timeout(ANSWER_TIMEOUT, declared).await??;
    Ok(Queue { messages: queue.message_count(), consumers: queue.consumer_count() })
}

async fn close(channel: &Channel) -> Result<(), QueueError> {
    Ok(timeout(ANSWER_TIMEOUT, channel.close(200, short("done")?)).await??)
}

fn short(name: &str) -> Result<ShortString, QueueError> {
    Ok(topology::short(name)?)
}
