//! Publishing with confirms: a message counts as taken only when RabbitMQ has said so.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use lapin::options::BasicPublishOptions;
use lapin::types::{ShortString, ShortStringError};
use lapin::{BasicProperties, Confirmation};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::amqp::{ConfirmChannel, Link, Session};
use crate::gate::Gate;
use crate::topology;

/// Persistent, in the words of AMQP.
pub const DELIVERY_MODE_PERSISTENT: u8 = 2;

/// A message on its way to an exchange.
#[derive(Debug)]
pub struct Message {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Bytes,
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

/// Why a message wasn't confirmed. After all but the first three it may arrive nevertheless.
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

/// A message takes a place in flight per so many bytes of its body, so that large ones are bounded too.
const BYTES_PER_PLACE: usize = 32 << 10;
/// After so many refusals in a row a session is replaced: RabbitMQ 3.10 goes on refusing on a channel that
/// was refused while the policy that limited the queue was lifted.
const NACKS_BEFORE_NEW_SESSION: usize = 50;
/// At most one session is replaced for that in this time, since the queue may simply be full.
const NACKED_SESSION_LIFE: Duration = Duration::from_secs(5);

/// Publishes over a [`Link`], with a bound on what is under way.
#[derive(Debug)]
pub struct Publisher {
    link: Link,
    places: u32,
    free_places: Arc<Semaphore>,
    in_flight: Arc<AtomicUsize>,
    nacks: Arc<AtomicUsize>,
    next_channel: AtomicUsize,
    gate: Arc<Gate>,
}

impl Publisher {
    /// A publisher that has at most `places` messages unconfirmed, fewer if they are large: lapin's own
    /// queue has no bound.
    #[must_use]
    pub fn new(link: Link, places: u32) -> Self {
        Self {
            link,
            places,
            free_places: Arc::new(Semaphore::new(places as usize)),
            in_flight: Arc::default(),
            nacks: Arc::default(),
            next_channel: AtomicUsize::new(0),
            gate: Arc::default(),
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
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Publishes and waits for the confirm, at most for `patience`.
    pub async fn publish(&self, message: Message, patience: Duration) -> Result<(), PublishError> {
        let deadline = Instant::now() + patience;
        let session = self.link.session().ok_or(PublishError::NotConnected)?;
        if session.is_blocked() {
            return Err(PublishError::Blocked);
        }
        let places =
            u32::try_from(message.body.len() / BYTES_PER_PLACE).unwrap_or(u32::MAX).saturating_add(1);
        let taken = self.free_places.clone().acquire_many_owned(places.min(self.places));
        // Half of the time at most, since a message that was sent deserves a chance to be confirmed.
        let Ok(Ok(taken)) = timeout_at(deadline - patience / 2, taken).await else {
            return Err(PublishError::Busy);
        };
        let sending = Sending {
            _places: taken,
            _in_flight: InFlight::one_more(&self.in_flight),
            nacks: self.nacks.clone(),
            channel: self.next_channel.fetch_add(1, Ordering::Relaxed),
            session,
            gate: self.gate.clone(),
        };
        // A task of its own, which outlives this call: a confirm that is dropped leaks in lapin, and the
        // message still takes its place until it is settled.
        let settled = tokio::spawn(sending.send(message));
        match timeout_at(deadline, settled).await {
            Ok(Ok(outcome)) => outcome,
            // The task was cancelled (shutdown) or panicked; either way nothing is confirmed.
            Ok(Err(_)) => Err(PublishError::NotConnected),
            Err(_) => Err(PublishError::TimedOut),
        }
    }

    /// Waits until nothing is in flight, at most for `patience`, and closes the connection.
    pub async fn close(&self, patience: Duration) {
        let _ = timeout_at(Instant::now() + patience, self.free_places.acquire_many(self.places)).await;
        self.link.close().await;
    }
}

/// Counts a message for as long as it exists.
#[derive(Debug)]
struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    fn one_more(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Sending {
    _places: OwnedSemaphorePermit,
    _in_flight: InFlight,
    nacks: Arc<AtomicUsize>,
    channel: usize,
    session: Arc<Session>,
    gate: Arc<Gate>,
}

impl Sending {
    async fn send(self, message: Message) -> Result<(), PublishError> {
        let lost = self.session.lost().clone();
        let confirmation = tokio::select! {
            confirmation = self.confirmation(message) => confirmation,
            // lapin doesn't resolve every confirm of a connection that is gone.
            () = lost.cancelled() => return Err(PublishError::Lost),
        };
        match confirmation {
            Ok(Confirmation::Ack(None)) => {
                self.nacks.store(0, Ordering::Relaxed);
                Ok(())
            }
            Ok(_) => {
                let nacks = self.nacks.fetch_add(1, Ordering::Relaxed) + 1;
                if nacks >= NACKS_BEFORE_NEW_SESSION && self.session.age() > NACKED_SESSION_LIFE {
                    self.nacks.store(0, Ordering::Relaxed);
                    self.session.report_broken("RabbitMQ goes on refusing messages");
                }
                Err(PublishError::Nacked)
            }
            Err(error) => {
                self.session.report_broken("a channel for publishing failed");
                Err(PublishError::Failed(error))
            }
        }
    }

    async fn confirmation(&self, message: Message) -> lapin::Result<Confirmation> {
        let channels = self.session.confirm_channels();
        let ConfirmChannel { channel, order } = &channels[self.channel % channels.len()];
        let Message { exchange, routing_key, properties, body } = message;
        let options = BasicPublishOptions::default();
        let _passed = self.gate.pass().await;
        let mut sending = pin!(channel.basic_publish(exchange, routing_key, options, &body, properties));
        // Numbered and put into line the first time that it is polled.
        let begun = poll_fn(|context| {
            let _in_order = order.lock().unwrap_or_else(PoisonError::into_inner);
            Poll::Ready(sending.as_mut().poll(context))
        });
        let confirm = match begun.await {
            Poll::Ready(sent) => sent?,
            Poll::Pending => sending.await?,
        };
        confirm.await
    }
}
