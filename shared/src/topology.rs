//! Exchanges and queues. Both binaries declare them with the same arguments, each flag with its reason; those
//! of a tenant's queues are in [`crate::tenant_queue`].

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString, ShortStringError};
use lapin::{Channel, ErrorKind, ExchangeKind};
use tokio::time::timeout;

use crate::tenant_queue::{TenantQueue, UNLIMITED_DELIVERIES};

/// Every accepted event goes here, with the [routing key](crate::partition::WorkQueue::routing_key) of its
/// queue.
pub const WEBHOOKS_EXCHANGE: &str = "webhooks";
/// Gets the messages for which no tenant's queue is bound: exchange and queue have the same name.
pub const UNROUTABLE: &str = "unroutable";
/// Dead letters and quarantined requests go here, with their queue's name as routing key. Unlike the default
/// exchange it has an alternate exchange: a message for a queue that somebody has deleted is not confirmed
/// and dropped.
pub const ASIDE_EXCHANGE: &str = "webhooks.aside";
/// Every ingest and every worker announces its state here.
pub const STATUS_EXCHANGE: &str = "penstock.status";

/// Header with the reason, on each message in a dead letter or quarantine queue.
pub const REASON_HEADER: &str = "reason";

/// Header of a quarantined message: the bytes that were sent, of which not all may have been kept.
pub const BODY_BYTES_HEADER: &str = "body_bytes";
/// Header of a quarantined message of which not all was kept: the SHA-256 of what was sent.
pub const BODY_SHA256_HEADER: &str = "body_sha256";
/// Header of a quarantined message: the signature that was sent.
pub const SENT_SIGNATURE_HEADER: &str = "sent_signature";

/// The reason of what RabbitMQ dead-letters itself, after too many deliveries. It can't add a header when it
/// does so: every event carries this one from the start, and a worker that has another reason replaces it.
pub const DELIVERY_LIMIT_REASON: &str = "delivery_limit";

/// Longest wait for each answer. All of them together have no limit: many tenants with many partitions take
/// minutes, once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Events that can't be stored, until an operator decides.
#[must_use]
pub fn dead_queue(tenant: &str) -> String {
    format!("dead.{tenant}")
}

/// Requests that can't be used, kept as evidence.
#[must_use]
pub fn quarantine_queue(tenant: &str) -> String {
    format!("quarantine.{tenant}")
}

/// A name fit for the protocol, which allows 255 bytes.
pub fn short(name: impl Into<String>) -> Result<ShortString, ShortStringError> {
    ShortString::try_new(name)
}

/// Why the exchanges and queues couldn't be declared.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// A name is too long. Tenant names are bounded, so this doesn't happen.
    #[error("a name is too long for AMQP")]
    Name(#[from] ShortStringError),
    /// The broker refused. `PRECONDITION_FAILED` stays so until the queue is migrated, or the exchange
    /// deleted, that something else has declared with other arguments.
    #[error(
        "can't declare {name} (PRECONDITION_FAILED means that it exists with other arguments: run `worker queues migrate`)"
    )]
    Refused {
        /// The exchange or queue.
        name: String,
        /// What the broker said.
        source: lapin::Error,
    },
    /// The broker didn't answer, as while a queue's leader is being elected.
    #[error("can't declare {0} within {ANSWER_TIMEOUT:?}")]
    Silent(String),
}

impl DeclareError {
    /// Whether there is a queue or exchange of this name that has other arguments.
    #[must_use]
    pub fn is_other_arguments(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if is_soft(source, &AMQPSoftError::PRECONDITIONFAILED))
    }
}

/// Declares everything that these tenants need, with this many partitions each; what exists already stays.
pub async fn declare(channel: &Channel, tenants: &[String], partitions: u16) -> Result<(), DeclareError> {
    // An event must not vanish because a binding is missing, and `mandatory` can't be relied on: under
    // concurrency lapin attaches returned messages to the wrong confirm.
    exchange(channel, UNROUTABLE, ExchangeKind::Fanout, &[]).await?;
    queue(channel, UNROUTABLE, &[("x-delivery-limit", UNLIMITED_DELIVERIES.into())]).await?;
    bind(channel, UNROUTABLE, UNROUTABLE, "").await?;

    let alternate = [("alternate-exchange", text(UNROUTABLE))];
    exchange(channel, WEBHOOKS_EXCHANGE, ExchangeKind::Topic, &alternate).await?;
    exchange(channel, ASIDE_EXCHANGE, ExchangeKind::Direct, &alternate).await?;
    exchange(channel, STATUS_EXCHANGE, ExchangeKind::Fanout, &[]).await?;

    for tenant in tenants {
        for queue in TenantQueue::all(partitions) {
            queue.declare(channel, tenant).await?;
        }
    }
    Ok(())
}

/// Removes a binding; does nothing if there is none.
pub async fn unbind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), DeclareError> {
    let (name, exchange, key) = (short(queue)?, short(exchange)?, short(key)?);
    answered(queue, channel.queue_unbind(name, exchange, key, FieldTable::default())).await
}

/// Whether there is a queue of this name; none if RabbitMQ doesn't say. If there is no queue, the channel is
/// closed.
pub async fn exists(channel: &Channel, name: &str) -> Option<bool> {
    length(channel, name).await.ok().map(|length| length.is_some())
}

/// The number of messages in a queue; none if there is no such queue, and then the channel is closed.
pub async fn length(channel: &Channel, name: &str) -> Result<Option<u32>, DeclareError> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let declared = channel.queue_declare(short(name)?, options, FieldTable::default());
    match answered(name, declared).await {
        Ok(queue) => Ok(Some(queue.message_count())),
        Err(DeclareError::Refused { source, .. }) if is_soft(&source, &AMQPSoftError::NOTFOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether RabbitMQ refused for this reason.
#[must_use]
pub fn is_soft(error: &lapin::Error, wanted: &AMQPSoftError) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Soft(error) if error == wanted)
}

async fn exchange(
    channel: &Channel,
    name: &str,
    kind: ExchangeKind,
    arguments: &[(&str, AMQPValue)],
) -> Result<(), DeclareError> {
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let arguments = table(arguments)?;
    answered(name, channel.exchange_declare(short(name)?, kind, options, arguments)).await
}

pub(crate) async fn queue(
    channel: &Channel,
    name: &str,
    arguments: &[(&str, AMQPValue)],
) -> Result<(), DeclareError> {
    // Replicated, and fsynced before the confirm: what a 200 stands for.
    let mut all = vec![("x-queue-type", text("quorum"))];
    all.extend_from_slice(arguments);
    let (options, arguments) = (QueueDeclareOptions::durable(), table(&all)?);
    answered(name, channel.queue_declare(short(name)?, options, arguments)).await?;
    Ok(())
}

pub(crate) async fn bind(
    channel: &Channel,
    queue: &str,
    exchange: &str,
    key: &str,
) -> Result<(), DeclareError> {
    let (name, exchange, key) = (short(queue)?, short(exchange)?, short(key)?);
    let options = QueueBindOptions::default();
    answered(queue, channel.queue_bind(name, exchange, key, options, FieldTable::default())).await
}

async fn answered<T>(name: &str, asked: impl Future<Output = lapin::Result<T>>) -> Result<T, DeclareError> {
    let answer = timeout(ANSWER_TIMEOUT, asked).await.map_err(|_| DeclareError::Silent(name.to_owned()))?;
    answer.map_err(|source| DeclareError::Refused { name: name.to_owned(), source })
}

pub(crate) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A table of headers or arguments.
pub fn table(entries: &[(&str, AMQPValue)]) -> Result<FieldTable, ShortStringError> {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(short(*name)?, value.clone());
    }
    Ok(table)
}
