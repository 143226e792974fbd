//! Publishing with confirms: a message counts as published only after RabbitMQ's confirm.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{ShortString, ShortStringError};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::amqp::{Link, Session};
use crate::outbox::Outgoing;
use crate::topology;

/// Persistent, in the words of AMQP.
pub const DELIVERY_MODE_PERSISTENT: u8 = 2;

/// A message on its way to an exchange.
#[derive(Debug)]
pub struct Message {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
}

impl Message {
    /// A message to `exchange`; the empty name is the exchange that takes the routing key for a queue.
    /// Fails if a name is longer than 255 bytes.
    pub fn new(
        exchange: &str,
        routing_key: String,
        properties: BasicProperties,
        body: impl Into<Bytes>,
    ) -> Result<Self, ShortStringError> {
        let body = body.into();
        let (exchange, routing_key) = (topology::short(exchange)?, topology::short(routing_key)?);
        Ok(Self { exchange, routing_key, properties, body })
    }
}

/// Why a message wasn't confirmed. Except for the first three reasons, it may still arrive.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// RabbitMQ can't be reached.
    #[error("no connection to RabbitMQ")]
    NotConnected,
    /// RabbitMQ takes no publishes, for want of memory or disk.
    #[error("RabbitMQ blocks publishing")]
    Blocked,
    /// Too much is in flight already.
    #[error("too many publishes are in flight")]
    Busy,
    /// The deadline passed.
    #[error("no confirm in time")]
    TimedOut,
    /// RabbitMQ refused the message, for instance because a queue is full.
    #[error("RabbitMQ refused the message")]
    Nacked,
    /// The connection was lost before the confirm.
    #[error("the connection was lost before the confirm")]
    Lost,
    /// The channel or connection failed.
    #[error("publishing failed")]
    Failed(#[from] lapin::Error),
}

impl PublishError {
    /// The outcomes that the metric counts.
    pub const OUTCOMES: [&str; 8] =
        ["confirmed", "not_connected", "blocked", "busy", "timed_out", "nacked", "lost", "failed"];

    /// The outcome that the metric counts this as.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::NotConnected => "not_connected",
            Self::Blocked => "blocked",
            Self::Busy => "busy",
            Self::TimedOut => "timed_out",
            Self::Nacked => "nacked",
            Self::Lost => "lost",
            Self::Failed(_) => "failed",
        }
    }
}

/// A message takes one place in flight, and another for each 32 KiB of its body.
const BYTES_PER_PLACE: usize = 32 << 10;

/// Publishes over a [`Link`], with a bound on what is in flight.
#[derive(Debug)]
pub struct Publisher {
    link: Link,
    places: u32,
    free_places: Arc<Semaphore>,
    // Every message in flight has a clone.
    in_flight: Arc<()>,
}

impl Publisher {
    /// A publisher that has at most `places` messages unconfirmed, fewer if they are large: lapin's own
    /// queue has no bound.
    #[must_use]
    pub fn new(link: Link, places: u32) -> Self {
        let free_places = Arc::new(Semaphore::new(places as usize));
        Self { link, places, free_places, in_flight: Arc::default() }
    }

    /// The connection this publishes over.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Messages sent and not confirmed yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        Arc::strong_count(&self.in_flight) - 1
    }

    /// Publishes and waits for the confirm, at most for `patience`. A message that has its place is sent,
    /// even if this future is dropped.
    pub async fn publish(&self, message: Message, patience: Duration) -> Result<(), PublishError> {
        let deadline = Instant::now() + patience;
        let session = self.link.session().ok_or(PublishError::NotConnected)?;
        if session.is_blocked() {
            return Err(PublishError::Blocked);
        }
        // Half of the time at most, since a message that was sent deserves a chance to be confirmed.
        let place = self.place(&message, deadline - patience / 2).await?;
        let (outcome, confirmed) = oneshot::channel();
        enqueue(&session, Outgoing { message, place, outcome })?;
        match timeout_at(deadline, confirmed).await {
            Ok(Ok(outcome)) => outcome,
            // The task that publishes has ended, and everything that waited for it.
            Ok(Err(_)) => Err(PublishError::Lost),
            Err(_) => Err(PublishError::TimedOut),
        }
    }

    async fn place(&self, message: &Message, deadline: Instant) -> Result<Place, PublishError> {
        let places = u32::try_from(message.body.len() / BYTES_PER_PLACE).unwrap_or(u32::MAX);
        let places = places.saturating_add(1).min(self.places);
        let taken = timeout_at(deadline, self.free_places.clone().acquire_many_owned(places)).await;
        let Ok(Ok(taken)) = taken else { return Err(PublishError::Busy) };
        Ok(Place { _taken: taken, _in_flight: self.in_flight.clone() })
    }

    /// Waits until nothing is in flight, at most for `patience`, and closes the connection.
    pub async fn close(&self, patience: Duration) {
        let _ = timeout_at(Instant::now() + patience, self.free_places.acquire_many(self.places)).await;
        self.link.close().await;
    }
}

/// What a message takes of what may be in flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _taken: OwnedSemaphorePermit,
    _in_flight: Arc<()>,
}

fn enqueue(session: &Session, outgoing: Outgoing) -> Result<(), PublishError> {
    let outbox = session.outbox().ok_or(PublishError::NotConnected)?;
    outbox.put(outgoing).map_err(|error| match error {
        TrySendError::Full(()) => PublishError::Busy,
        TrySendError::Closed(()) => {
            session.report_broken("nothing publishes over it any more");
            PublishError::NotConnected
        }
    })
}
