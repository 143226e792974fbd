//! Reading a queue without consuming it: what isn't removed returns to its place.
//!
//! What one reader has taken out, another would miss. So readers take turns, also those of other processes.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::message::BasicGetMessage;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString, ShortStringError};
use lapin::{Channel, Consumer};
use shared::address::Address;
use shared::amqp::{Link, Purpose, next_session};
use shared::partition::WorkQueue;
use shared::publisher::Publisher;
use shared::tenant_queue::TenantQueue;
use shared::topology::{self, DeclareError};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout};

/// Longest wait for a connection, and for each answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for one's turn: a page of the console takes less.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is asked for meanwhile. RabbitMQ logs each refusal.
const TURN_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait until messages are in their queue again; others may have taken them.
const RETURN_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages that are returned at once. RabbitMQ keeps the order of at most 32: what it can't pass on to the
/// queue at once it collects by consumer, and each message that was got is a consumer's own.
const RETURNED_TOGETHER: usize = 24;
/// Messages published and not confirmed yet, at most.
pub const WINDOW: u32 = 64;

/// Why RabbitMQ can't be worked with.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// There is no connection.
    #[error("can't connect to RabbitMQ within {ANSWER_TIMEOUT:?}")]
    NotConnected,
    /// An answer didn't come.
    #[error("RabbitMQ doesn't answer within {ANSWER_TIMEOUT:?}")]
    Silent(#[from] Elapsed),
    /// It is another reader's turn.
    #[error("somebody else reads {0}, such as a page of the console or another command: try again later")]
    Busy(String),
    /// The channel failed.
    #[error("RabbitMQ")]
    Channel(#[from] lapin::Error),
    /// The channel was gone before a message could be removed.
    #[error("lost the connection to RabbitMQ: a message is still in its queue")]
    NotRemoved,
    /// A queue can't be declared, or asked for its length.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// A name is too long for AMQP.
    #[error("a name is too long for AMQP")]
    Name(#[from] ShortStringError),
}

/// Connects, and declares nothing for any tenant: a mistyped tenant must not make queues.
pub async fn connect(address: Address) -> Result<Publisher, QueueError> {
    let link = Link::start(address, "worker command", Purpose::Publish { channels: 1 }, [].into(), 0);
    let connected = timeout(ANSWER_TIMEOUT, next_session(&mut link.sessions())).await;
    connected.ok().flatten().ok_or(QueueError::NotConnected)?;
    Ok(Publisher::new(link, WINDOW))
}

/// Declares the queues to which a tenant's events are published: an event must not meet one that isn't there.
pub async fn declare_work(broker: &Publisher, tenant: &str, partitions: u16) -> Result<(), QueueError> {
    let session = broker.link().session().ok_or(QueueError::NotConnected)?;
    let channel = timeout(ANSWER_TIMEOUT, session.channel()).await??;
    for queue in WorkQueue::all(partitions) {
        timeout(ANSWER_TIMEOUT, TenantQueue::Work(queue).declare(&channel, tenant)).await??;
    }
    timeout(ANSWER_TIMEOUT, channel.close(200, topology::short("done")?)).await??;
    Ok(())
}

/// The number of messages in a queue; 0 if it doesn't exist.
pub async fn length(broker: &Publisher, name: &str) -> Result<u32, QueueError> {
    let session = broker.link().session().ok_or(QueueError::NotConnected)?;
    let channel = timeout(ANSWER_TIMEOUT, session.channel()).await??;
    let Some(length) = topology::length(&channel, name).await? else { return Ok(0) };
    timeout(ANSWER_TIMEOUT, channel.close(200, topology::short("done")?)).await??;
    Ok(length)
}

/// A turn to read a queue. Whoever has it is the only consumer of a queue that is made for this, so RabbitMQ
/// ends the turn with the channel, however that ends.
#[derive(Debug)]
pub struct Turn {
    channel: Channel,
    _consumer: Consumer,
}

impl Turn {
    /// Waits until nobody else reads this queue.
    pub async fn take(broker: &Publisher, name: &str) -> Result<Self, QueueError> {
        let until = Instant::now() + TURN_TIMEOUT;
        loop {
            let session = broker.link().session().ok_or(QueueError::NotConnected)?;
            let channel = timeout(ANSWER_TIMEOUT, session.channel()).await??;
            match consume_alone(&channel, topology::short(format!("penstock.turns.{name}"))?).await {
                Ok(consumer) => return Ok(Self { channel, _consumer: consumer }),
                Err(QueueError::Channel(error)) if is_taken(&error) => {}
                Err(error) => return Err(error),
            }
            if Instant::now() >= until {
                return Err(QueueError::Busy(name.to_owned()));
            }
            sleep(TURN_PAUSE).await;
        }
    }
}

async fn consume_alone(channel: &Channel, turns: ShortString) -> Result<Consumer, QueueError> {
    // For this connection alone, and gone with its consumer.
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    timeout(ANSWER_TIMEOUT, channel.queue_declare(turns.clone(), options, FieldTable::default())).await??;
    let options = BasicConsumeOptions { exclusive: true, ..Default::default() };
    let consumed = channel.basic_consume(turns, ShortString::default(), options, FieldTable::default());
    Ok(timeout(ANSWER_TIMEOUT, consumed).await??)
}

/// Whether another connection has the queue, or another channel of ours. Or that has just ended, and the
/// queue is gone.
fn is_taken(error: &lapin::Error) -> bool {
    let is_in_use = topology::is_soft(error, &AMQPSoftError::ACCESSREFUSED)
        && error.to_string().contains("exclusive use");
    let is_soft = |wanted| topology::is_soft(error, &wanted);
    is_in_use || is_soft(AMQPSoftError::RESOURCELOCKED) || is_soft(AMQPSoftError::NOTFOUND)
}

/// The messages that were in a queue when it was opened, the oldest first. Each is taken out for as long as
/// this is open, and returns to its place then, unless it is removed.
#[derive(Debug)]
pub struct Queue {
    turn: Turn,
    name: String,
    /// Messages that were there.
    pub length: u32,
    left: u32,
    /// The delivery tags of what was taken and not removed.
    taken: Mutex<BTreeSet<u64>>,
}

impl Queue {
    /// Opens a queue when nobody else reads it; none if it doesn't exist.
    pub async fn open(broker: &Publisher, name: &str) -> Result<Option<Self>, QueueError> {
        let turn = Turn::take(broker, name).await?;
        let length = topology::length(&turn.channel, name).await?;
        Ok(length.map(|length| Self {
            turn,
            name: name.to_owned(),
            length,
            left: length,
            taken: Mutex::default(),
        }))
    }

    /// The next of the messages that were there when the queue was opened: a replayed event that is set
    /// aside again must not be read for ever.
    pub async fn next(&mut self) -> Result<Option<BasicGetMessage>, QueueError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let get = self.turn.channel.basic_get(topology::short(&self.name)?, BasicGetOptions::default());
        let message = timeout(ANSWER_TIMEOUT, get).await??;
        self.taken().extend(message.as_ref().map(|message| message.delivery.delivery_tag));
        Ok(message)
    }

    /// Removes a message.
    pub async fn remove(&self, message: &BasicGetMessage) -> Result<(), QueueError> {
        if !timeout(ANSWER_TIMEOUT, message.delivery.acker.ack(BasicAckOptions::default())).await?? {
            return Err(QueueError::NotRemoved);
        }
        self.taken().remove(&message.delivery.delivery_tag);
        Ok(())
    }

    /// Closes a queue of which only a part was read, and keeps its order. A returned message goes behind
    /// those that were returned before: so all messages have to be taken, and returned together.
    pub async fn close_in_order(mut self) -> Result<(), QueueError> {
        while self.left > 0 && self.next().await?.is_some() {}
        self.close().await
    }

    /// Returns the messages that were not removed, in the order in which they were taken.
    pub async fn close(self) -> Result<(), QueueError> {
        let tags: Vec<u64> = self.taken().iter().copied().collect();
        let there =
            if tags.is_empty() { None } else { topology::length(&self.turn.channel, &self.name).await? };
        let mut expected = there.unwrap_or(0);
        let mut is_seen = true;
        for some in tags.chunks(RETURNED_TOGETHER) {
            let options = BasicNackOptions { multiple: true, requeue: true };
            let last = some.last().copied().unwrap_or_default();
            timeout(ANSWER_TIMEOUT, self.turn.channel.basic_nack(last, options)).await??;
            expected = expected.saturating_add(u32::try_from(some.len()).unwrap_or(u32::MAX));
            // If others take them meanwhile, this can't be seen.
            is_seen = is_seen && self.is_as_long(expected).await?;
        }
        timeout(ANSWER_TIMEOUT, self.turn.channel.close(200, topology::short("done")?)).await??;
        Ok(())
    }

    /// Waits until the queue has this many messages. RabbitMQ returns them after it has answered; otherwise
    /// the next command could miss some.
    async fn is_as_long(&self, expected: u32) -> Result<bool, QueueError> {
        let until = Instant::now() + RETURN_TIMEOUT;
        while let Some(length) = topology::length(&self.turn.channel, &self.name).await?
            && length < expected
        {
            if Instant::now() >= until {
                return Ok(false);
            }
            sleep(Duration::from_millis(2)).await;
        }
        Ok(true)
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
