//! The task that publishes over a connection: it takes waiting messages, sends groups, and returns the
//! confirms.
//!
//! RabbitMQ wakes up, writes to disk and confirms once for a group. With single messages, that is most of its
//! work.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::publisher::{Message, Place, PublishError};

/// A group of this size is sent at once. Measured: with twice as many RabbitMQ is idle meanwhile, half as
/// many cost it a tenth more.
const LARGE_GROUP: usize = 16;
/// Shortest time between smaller groups, and so the longest wait of a message. After a silence a message is
/// sent at once. Measured at 1,000/s: with half of this time RabbitMQ works a fifth more.
const PAUSE: Duration = Duration::from_millis(8);
/// Messages that the task hasn't taken yet: more than any publisher has in flight.
const MAX_QUEUED: usize = 1024;

/// A message to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// The message.
    pub(crate) message: Message,
    /// Kept until RabbitMQ has answered, however late: until then the message takes its place in flight.
    pub(crate) place: Place,
    /// Gets the result.
    pub(crate) outcome: oneshot::Sender<Result<(), PublishError>>,
}

/// Where messages wait for the task.
#[derive(Debug)]
pub(crate) struct Outbox {
    waiting: mpsc::Sender<Outgoing>,
    // Told when a large group waits.
    fills_group: Arc<Notify>,
}

impl Outbox {
    /// Leaves a message to be sent.
    pub(crate) fn put(&self, outgoing: Outgoing) -> Result<(), TrySendError<()>> {
        self.waiting.try_send(outgoing).map_err(|error| match error {
            TrySendError::Full(_) => TrySendError::Full(()),
            TrySendError::Closed(_) => TrySendError::Closed(()),
        })?;
        // The first message of a group has been taken.
        if self.waiting.max_capacity() - self.waiting.capacity() >= LARGE_GROUP - 1 {
            self.fills_group.notify_one();
        }
        Ok(())
    }
}

/// Opens channels, and starts the task that publishes over them until the connection is lost. Then the task
/// drops its messages, which ends every wait: lapin doesn't resolve every confirm of a lost connection.
pub(crate) async fn open(
    connection: &Connection,
    channels: usize,
    lost: CancellationToken,
    broken: watch::Sender<Option<&'static str>>,
) -> lapin::Result<Outbox> {
    let mut opened = Vec::new();
    for _ in 0..channels {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        opened.push(channel);
    }
    let (waiting, queue) = mpsc::channel(MAX_QUEUED);
    let outbox = Outbox { waiting, fills_group: Arc::default() };
    let fills_group = outbox.fills_group.clone();
    tokio::spawn(async move { lost.run_until_cancelled(run(&opened, queue, &fills_group, &broken)).await });
    Ok(outbox)
}

// Everything is sent by this one task. lapin numbers a message and queues its frames in two steps: with two
// threads, a message could get the confirm of another.
async fn run(
    channels: &[Channel],
    mut queue: mpsc::Receiver<Outgoing>,
    fills_group: &Notify,
    broken: &watch::Sender<Option<&'static str>>,
) {
    let mut channels = channels.iter().cycle();
    let mut unconfirmed = FuturesUnordered::new();
    let mut group = Vec::new();
    let mut next_leaves = Instant::now();
    loop {
        // The first message of a group wakes this task, and the others don't: to wake up for each costs more
        // than to send it.
        tokio::select! {
            biased;
            Some(()) = unconfirmed.next() => continue,
            taken = queue.recv_many(&mut group, LARGE_GROUP), if group.is_empty() => {
                if taken == 0 {
                    return;
                }
            }
            () = fills_group.notified(), if !group.is_empty() => {}
            () = sleep_until(next_leaves), if !group.is_empty() => {}
        }
        while group.len() < LARGE_GROUP
            && let Ok(outgoing) = queue.try_recv()
        {
            group.push(outgoing);
        }
        let now = Instant::now();
        if group.len() < LARGE_GROUP && now < next_leaves {
            continue;
        }
        next_leaves = now + PAUSE;
        let Some(channel) = channels.next() else { return };
        unconfirmed.extend(group.drain(..).map(|outgoing| send(channel, outgoing, broken)));
    }
}

/// Sends a message and waits for its confirm, however late it is: in lapin, a confirm that is dropped leaks.
async fn send(channel: &Channel, outgoing: Outgoing, broken: &watch::Sender<Option<&'static str>>) {
    let Outgoing { message, place, outcome } = outgoing;
    let told = match confirmation(channel, message).await {
        Ok(Confirmation::Ack(None)) => Ok(()),
        Ok(_) => Err(PublishError::Nacked),
        Err(error) => {
            broken.send_replace(Some("a channel for publishing failed"));
            Err(PublishError::Failed(error))
        }
    };
    drop(place);
    // Fails if the publisher has given up.
    let _ = outcome.send(told);
}

async fn confirmation(channel: &Channel, message: Message) -> lapin::Result<Confirmation> {
    let Message { exchange, routing_key, properties, body } = message;
    let options = BasicPublishOptions::default();
    channel.basic_publish(exchange, routing_key, options, &body, properties).await?.await
}
