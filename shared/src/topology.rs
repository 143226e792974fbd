//! Exchanges and queues. Both binaries declare them with the same arguments, each flag with its reason.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString, ShortStringError};
use lapin::{Channel, ErrorKind, ExchangeKind};
use tokio::time::timeout;

use crate::partition::WorkQueue;

/// Every accepted event goes here, with the [routing key](WorkQueue::routing_key) of its queue.
pub const WEBHOOKS_EXCHANGE: &str = "webhooks";
/// Catches what no tenant's queue is bound for: exchange and queue have the same name.
pub const UNROUTABLE: &str = "unroutable";
/// Dead letters and quarantined requests go here, with their queue's name as routing key. Unlike the default
/// exchange it has an alternate exchange: a message for a queue that somebody has deleted is not confirmed
/// and dropped.
pub const ASIDE_EXCHANGE: &str = "webhooks.aside";
/// Every ingest and every worker announces here how it is.
pub const STATUS_EXCHANGE: &str = "penstock.status";

/// Header with the reason, on each message in a dead letter or quarantine queue.
pub const REASON_HEADER: &str = "reason";

/// Header of a quarantined message: the bytes that were sent, of which not all may have been kept.
pub const BODY_BYTES_HEADER: &str = "body_bytes";
/// Header of a quarantined message of which not all was kept: the SHA-256 of what was sent.
pub const BODY_SHA256_HEADER: &str = "body_sha256";
/// Header of a quarantined message: the signature that was sent.
pub const SENT_SIGNATURE_HEADER: &str = "sent_signature";

/// The reason of what RabbitMQ dead-letters itself, after too many deliveries. It can't add a header when it does so:
/// every event carries this one from the start, and a worker that has another reason replaces it.
pub const DELIVERY_LIMIT_REASON: &str = "delivery_limit";

/// After so many returns to the queue a message is taken for one that kills workers, and dead-lettered.
const DELIVERY_LIMIT: i64 = 20;
/// How long a worker may hold a delivery, in milliseconds: seven days. A worker whose MongoDB fails holds what it has
/// for as long as it takes. RabbitMQ's own limit, half an hour, would close its channel, and each time count a delivery.
const CONSUMER_TIMEOUT_MS: i64 = 7 * 24 * 60 * 60 * 1000;
/// How long RabbitMQ 4.3 waits for the workers that were connected to a lost node of its cluster before the next ones take
/// over, in milliseconds; otherwise a minute. Earlier releases ignore this, and don't wait.
const CONSUMER_DISCONNECTED_TIMEOUT_MS: i64 = 10_000;
/// Operators look at set-aside messages by taking and returning them, which RabbitMQ counts as well; its
/// own limit (20 from 4.0 on) would throw evidence away.
const UNLIMITED_DELIVERIES: i64 = 1_000_000_000;
/// Longest wait for each answer. All of them together have no limit: many tenants with many partitions take minutes, once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds of a quarantine queue: the oldest evidence goes first. An operator's policy can be smaller.
const QUARANTINE_MAX_LENGTH: i64 = 100_000;
const QUARANTINE_MAX_BYTES: i64 = 1 << 30;

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
    /// The broker refused. `PRECONDITION_FAILED` stays so until somebody deletes the queue or exchange that
    /// was declared by something else with other arguments.
    #[error(
        "can't declare {name} (PRECONDITION_FAILED means that it exists with other arguments: empty and delete it)"
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

/// Declares everything that these tenants need, with so many partitions each. Does nothing where it exists already.
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
        declare_aside(channel, &dead_queue(tenant), &[]).await?;
        let bounds = [
            // A flood of unusable requests must fill neither the broker nor the disk.
            ("x-overflow", text("drop-head")),
            ("x-max-length", QUARANTINE_MAX_LENGTH.into()),
            ("x-max-length-bytes", QUARANTINE_MAX_BYTES.into()),
        ];
        declare_aside(channel, &quarantine_queue(tenant), &bounds).await?;
        for work in WorkQueue::all(partitions) {
            declare_work_queue(channel, tenant, work).await?;
        }
    }
    Ok(())
}

async fn declare_aside(
    channel: &Channel,
    name: &str,
    bounds: &[(&str, AMQPValue)],
) -> Result<(), DeclareError> {
    let mut arguments = vec![("x-delivery-limit", UNLIMITED_DELIVERIES.into())];
    arguments.extend_from_slice(bounds);
    queue(channel, name, &arguments).await?;
    bind(channel, name, ASIDE_EXCHANGE, name).await
}

/// Declares one work queue, which may be one that only others know of. What it dead-letters to, and the exchange, have
/// to be there already.
pub async fn declare_work_queue(
    channel: &Channel,
    tenant: &str,
    work: WorkQueue,
) -> Result<(), DeclareError> {
    let name = work.name(tenant);
    let arguments = [
        // A conversation's events go to one worker at a time. The queue for large bodies has it too: it is what makes
        // consumer priorities decide who is served, and so what spreads these queues over the workers; and of two
        // large events of one conversation, which would conflict, none is written beside the other.
        ("x-single-active-consumer", true.into()),
        ("x-delivery-limit", DELIVERY_LIMIT.into()),
        // Through the default exchange, which needs no binding that could be missing.
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&dead_queue(tenant))),
        // Otherwise dead-lettering may lose the message when a node fails at that moment.
        ("x-dead-letter-strategy", text("at-least-once")),
        // A full queue must say no, not drop; at-least-once dead-lettering requires it too.
        ("x-overflow", text("reject-publish")),
        // Otherwise all leaders are on the node that the first ingest happened to connect to.
        ("x-queue-leader-locator", text("balanced")),
        ("x-consumer-timeout", CONSUMER_TIMEOUT_MS.into()),
        ("x-consumer-disconnected-timeout", CONSUMER_DISCONNECTED_TIMEOUT_MS.into()),
    ];
    queue(channel, &name, &arguments).await?;
    // Event types have dots in them.
    bind(channel, &name, WEBHOOKS_EXCHANGE, &work.routing_key(tenant, "#")).await
}

/// Whether there is a queue of this name, which is of no more use for the channel if there is none; none if RabbitMQ
/// doesn't say.
pub async fn exists(channel: &Channel, name: &str) -> Option<bool> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let declared = channel.queue_declare(short(name).ok()?, options, FieldTable::default());
    match timeout(ANSWER_TIMEOUT, declared).await.ok()? {
        Ok(_) => Some(true),
        Err(error) => is_not_found(&error).then_some(false),
    }
}

fn is_not_found(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
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

async fn queue(channel: &Channel, name: &str, arguments: &[(&str, AMQPValue)]) -> Result<(), DeclareError> {
    // Replicated, and fsynced before the confirm: what a 200 stands for.
    let mut all = vec![("x-queue-type", text("quorum"))];
    all.extend_from_slice(arguments);
    let (options, arguments) = (QueueDeclareOptions::durable(), table(&all)?);
    answered(name, channel.queue_declare(short(name)?, options, arguments)).await?;
    Ok(())
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), DeclareError> {
    let (name, exchange, key) = (short(queue)?, short(exchange)?, short(key)?);
    let options = QueueBindOptions::default();
    answered(queue, channel.queue_bind(name, exchange, key, options, FieldTable::default())).await
}

async fn answered<T>(name: &str, asked: impl Future<Output = lapin::Result<T>>) -> Result<T, DeclareError> {
    let answer = timeout(ANSWER_TIMEOUT, asked).await.map_err(|_| DeclareError::Silent(name.to_owned()))?;
    answer.map_err(|source| DeclareError::Refused { name: name.to_owned(), source })
}

fn text(value: &str) -> AMQPValue {
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
