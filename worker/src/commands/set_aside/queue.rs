//! Reading a queue without consuming it: what isn't removed returns to its place.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortStringError};
use lapin::{Channel, ErrorKind};
use shared::address::Address;
use shared::amqp::{Link, Purpose, next_session};
use shared::partition::WorkQueue;
use shared::publisher::Publisher;
use shared::tenant_queue::TenantQueue;
use shared::topology::{self, DeclareError};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout};

/// Longest wait for a connection, and for each answer.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// Longest wait for messages to be seen in their queue again; others may have taken them.
const RETURN_PATIENCE: Duration = Duration::from_secs(2);
/// AMQP's reply code for a queue that doesn't exist.
const NOT_FOUND: u16 = 404;
/// Messages published and not confirmed yet, at most.
pub const WINDOW: u32 = 64;

/// Why RabbitMQ can't be worked with.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// There is no connection.
    #[error("can't connect to RabbitMQ within {PATIENCE:?}")]
    NotConnected,
    /// An answer didn't come.
    #[error("RabbitMQ doesn't answer within {PATIENCE:?}")]
    Silent(#[from] Elapsed),
    /// The channel failed.
    #[error("RabbitMQ")]
    Channel(#[from] lapin::Error),
    /// The channel was gone before a message could be removed.
    #[error("lost the connection to RabbitMQ: a message is still in its queue")]
    NotRemoved,
    /// A queue can't be declared.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// A name is too long for AMQP.
    #[error("a name is too long for AMQP")]
    Name(#[from] ShortStringError),
}

/// Connects, declaring nothing for any tenant: an operator's slip of the pen must not leave queues behind.
pub async fn connect(address: Address) -> Result<Publisher, QueueError> {
    let link = Link::start(address, "worker command", Purpose::Publish { channels: 1 }, [].into(), 0);
    let connected = timeout(PATIENCE, next_session(&mut link.sessions())).await;
    connected.ok().flatten().ok_or(QueueError::NotConnected)?;
    Ok(Publisher::new(link, WINDOW))
}

/// Declares the queues to which a tenant's events are published: an event must not meet one that isn't there.
pub async fn declare_work(broker: &Publisher, tenant: &str, partitions: u16) -> Result<(), QueueError> {
    let session = broker.link().session().ok_or(QueueError::NotConnected)?;
    let channel = timeout(PATIENCE, session.channel()).await??;
    for queue in WorkQueue::all(partitions) {
        timeout(PATIENCE, TenantQueue::Work(queue).declare(&channel, tenant)).await??;
    }
    timeout(PATIENCE, channel.close(200, topology::short("done")?)).await??;
    Ok(())
}

/// The messages that were in a queue when it was opened, the oldest first. Each is taken out for as long as this is
/// open, and returns to its place then, unless it is removed.
#[derive(Debug)]
pub struct Queue {
    channel: Channel,
    name: String,
    /// Messages that were there.
    pub length: u32,
    left: u32,
    taken: u32,
    removed: AtomicU32,
}

impl Queue {
    /// Opens a queue; none if it doesn't exist.
    pub async fn open(broker: &Publisher, name: &str) -> Result<Option<Self>, QueueError> {
        let session = broker.link().session().ok_or(QueueError::NotConnected)?;
        let channel = timeout(PATIENCE, session.channel()).await??;
        let length = length_if_there(&channel, name).await?;
        Ok(length.map(|length| Self {
            channel,
            name: name.to_owned(),
            length,
            left: length,
            taken: 0,
            removed: AtomicU32::new(0),
        }))
    }

    /// The next message, as long as there were more when the queue was opened: a replayed event that is set aside again
    /// would come round for ever.
    pub async fn next(&mut self) -> Result<Option<BasicGetMessage>, QueueError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let get = self.channel.basic_get(topology::short(&self.name)?, BasicGetOptions::default());
        let message = timeout(PATIENCE, get).await??;
        self.taken += u32::from(message.is_some());
        Ok(message)
    }

    /// Removes a message for good.
    pub async fn remove(&self, message: &BasicGetMessage) -> Result<(), QueueError> {
        if !timeout(PATIENCE, message.delivery.acker.ack(BasicAckOptions::default())).await?? {
            return Err(QueueError::NotRemoved);
        }
        self.removed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Puts back whatever was not removed.
    pub async fn close(self) -> Result<(), QueueError> {
        if self.taken > 0 {
            let options = BasicNackOptions { multiple: true, requeue: true };
            // Tag 0 stands for all of them.
            timeout(PATIENCE, self.channel.basic_nack(0, options)).await??;
            self.until_returned().await?;
        }
        timeout(PATIENCE, self.channel.close(200, topology::short("done")?)).await??;
        Ok(())
    }

    /// RabbitMQ puts messages back after it has answered; who looks at once, such as a next command, would miss some.
    async fn until_returned(&self) -> Result<(), QueueError> {
        let until = Instant::now() + RETURN_PATIENCE;
        let removed = self.removed.load(Ordering::Relaxed);
        while length(&self.channel, &self.name).await? + removed < self.length && Instant::now() < until {
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

async fn length(channel: &Channel, name: &str) -> Result<u32, QueueError> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let declared = channel.queue_declare(topology::short(name)?, options, FieldTable::default());
    Ok(timeout(PATIENCE, declared).await??.message_count())
}

/// The length of a queue; none if there is no such queue, and then the channel is closed.
pub async fn length_if_there(channel: &Channel, name: &str) -> Result<Option<u32>, QueueError> {
    match length(channel, name).await {
        Ok(length) => Ok(Some(length)),
        Err(QueueError::Channel(error)) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if error.get_id() == NOT_FOUND)
}
