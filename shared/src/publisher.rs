//! Publishing with confirms: a message counts as taken only when RabbitMQ has said so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::types::{ShortString, ShortStringError};
use lapin::{BasicProperties, Confirmation};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::amqp::{Link, Session};
use crate::topology;

/// Persistent, in the words of AMQP.
pub const DELIVERY_MODE_PERSISTENT: u8 = 2;

/// A message on its way to an exchange.
#[derive(Debug)]
pub struct Message {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Vec<u8>,
}

impl Message {
    /// A message to `exchange`; the empty name is the exchange that takes the routing key for a queue.
    /// Fails if a name is longer than 255 bytes.
    pub fn new(
        exchange: &str,
        routing_key: String,
        properties: BasicProperties,
        body: Vec<u8>,
    ) -> Result<Self, ShortStringError> {
        let (exchange, routing_key) = (topology::short(exchange)?, topology::short(routing_key)?);
        Ok(Self { exchange, routing_key, properties, body })
    }
}

/// Why a message wasn't confirmed. After all but the first two it may arrive nevertheless.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// RabbitMQ can't be reached.
    #[error("no connection to RabbitMQ")]
    NotConnected,
    /// RabbitMQ takes no publishes, for want of memory or disk.
    #[error("RabbitMQ blocks publishing")]
    Blocked,
    /// The deadline passed.
    #[error("no confirm in time")]
    TimedOut,
    /// RabbitMQ refused the message, for instance because a queue is full.
    #[error("RabbitMQ refused the message")]
    Nacked,
    /// The channel or connection failed.
    #[error("publishing failed")]
    Failed(#[from] lapin::Error),
}

impl PublishError {
    /// The outcomes that the metric counts.
    pub const OUTCOMES: [&str; 6] =
        ["confirmed", "not_connected", "blocked", "timed_out", "nacked", "failed"];

    /// The outcome that the metric counts this as.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::NotConnected => "not_connected",
            Self::Blocked => "blocked",
            Self::TimedOut => "timed_out",
            Self::Nacked => "nacked",
            Self::Failed(_) => "failed",
        }
    }
}

/// Publishes over a [`Link`], with a bound on what is under way.
#[derive(Debug)]
pub struct Publisher {
    link: Link,
    max_in_flight: usize,
    permits: Arc<Semaphore>,
    next_channel: AtomicUsize,
    // Confirms are awaited here, not on the callers' runtimes, which end with their requests' threads.
    runtime: Handle,
}

impl Publisher {
    /// A publisher that has at most `max_in_flight` messages unconfirmed: lapin's own queue has no bound.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(link: Link, max_in_flight: usize) -> Self {
        Self {
            link,
            max_in_flight,
            permits: Arc::new(Semaphore::new(max_in_flight)),
            next_channel: AtomicUsize::new(0),
            runtime: Handle::current(),
        }
    }

    /// The connection this publishes over.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Messages sent and not confirmed yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.max_in_flight - self.permits.available_permits()
    }

    /// Publishes and waits for the confirm, at most for `patience`.
    pub async fn publish(&self, message: Message, patience: Duration) -> Result<(), PublishError> {
        let deadline = Instant::now() + patience;
        let session = self.link.session().ok_or(PublishError::NotConnected)?;
        if session.is_blocked() {
            return Err(PublishError::Blocked);
        }
        let permit = timeout_at(deadline, self.permits.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return Err(PublishError::TimedOut) };
        let channel = self.next_channel.fetch_add(1, Ordering::Relaxed);
        // A task of its own, which outlives this call: a confirm that is dropped leaks in lapin, and the
        // message still takes one of the places until it is settled.
        let settled = self.runtime.spawn(send(session, channel, message, permit));
        match timeout_at(deadline, settled).await {
            Ok(Ok(outcome)) => outcome,
            // The task was cancelled (shutdown) or panicked; either way nothing is confirmed.
            Ok(Err(_)) => Err(PublishError::NotConnected),
            Err(_) => Err(PublishError::TimedOut),
        }
    }

    /// Waits until nothing is in flight, at most for `patience`, and closes the connection.
    pub async fn close(&self, patience: Duration) {
        let all = u32::try_from(self.max_in_flight).unwrap_or(u32::MAX);
        let _ = timeout_at(Instant::now() + patience, self.permits.acquire_many(all)).await;
        self.link.close().await;
    }
}

async fn send(
    session: Arc<Session>,
    channel: usize,
    message: Message,
    _permit: OwnedSemaphorePermit,
) -> Result<(), PublishError> {
    let channels = session.confirm_channels();
    let channel = channels.get(channel % channels.len().max(1)).ok_or(PublishError::NotConnected)?;
    let Message { exchange, routing_key, properties, body } = message;
    let options = BasicPublishOptions::default();
    let confirm = channel.basic_publish(exchange, routing_key, options, &body, properties).await;
    let confirmation = match confirm {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    match confirmation {
        Ok(Confirmation::Ack(None)) => Ok(()),
        Ok(_) => Err(PublishError::Nacked),
        Err(error) => {
            session.report_broken();
            Err(PublishError::Failed(error))
        }
    }
}
