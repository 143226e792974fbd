//! A channel of a queue's own, with one consumer: what RabbitMQ sends over it, until it is settled.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::ShortString;
use lapin::{Channel, Consumer};
use shared::amqp::Session;
use shared::tenant_queue::TenantQueue;
use shared::topology::{self, DeclareError};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

use super::QueueContext;
use super::delivery::{Content, Receipt, Taken, Undecodable};
use crate::decode::Event;
use crate::state::Waiting;

/// Longest time for RabbitMQ to answer: a queue may not answer while it elects a leader.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of bodies in a batch: more than two hundred usual ones. A batch has at least one event,
/// whatever its size.
pub const MAX_BATCH_BYTES: usize = 512 << 10;

/// A batch with this many deliveries waits for a shorter time: each shares the cost of its transaction with
/// three others.
const ENOUGH: usize = 4;

/// Why nothing more comes over a channel.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The channel or its connection failed.
    #[error("the channel failed")]
    Channel(#[from] lapin::Error),
    /// RabbitMQ is silent.
    #[error("RabbitMQ didn't answer in time")]
    NoAnswer(#[from] Elapsed),
    /// The queue can't be declared.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// A name or argument doesn't fit into AMQP.
    #[error("a name is too long for AMQP")]
    Name(#[from] lapin::types::ShortStringError),
    /// The queue was deleted or has moved to another node.
    #[error("RabbitMQ has cancelled the consumer")]
    Cancelled,
}

/// Events that are written together, and the receipts of their deliveries in the same order; beside them what
/// can't be read as an event.
#[derive(Debug, Default)]
pub struct Batch {
    /// The events.
    pub events: Vec<Event>,
    /// Of these.
    pub receipts: Vec<Receipt>,
    /// The rest.
    pub undecodable: Vec<(Undecodable, Receipt)>,
}

/// A consumer, and what it has been sent.
#[derive(Debug)]
pub struct Intake {
    /// To settle deliveries on.
    pub channel: Channel,
    /// Most deliveries that RabbitMQ sends ahead of their being settled.
    pub prefetch: u16,
    consumer: Consumer,
    waiting: VecDeque<Taken>,
    ended: Option<IntakeError>,
}

impl Intake {
    /// Starts consuming the queue.
    pub async fn open(
        context: &QueueContext,
        session: &Session,
        prefetch: u16,
        priority: i32,
    ) -> Result<Self, IntakeError> {
        timeout(ANSWER_TIMEOUT, Self::start(context, session, prefetch, priority)).await?
    }

    async fn start(
        context: &QueueContext,
        session: &Session,
        prefetch: u16,
        priority: i32,
    ) -> Result<Self, IntakeError> {
        let channel = session.channel().await?;
        // Only other processes may know of this queue, or somebody may have deleted it.
        TenantQueue::Work(context.queue).declare(&channel, &context.tenant.name).await?;
        channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let (name, tag) = (topology::short(context.name.clone())?, ShortString::default());
        let arguments = topology::table(&[("x-priority", priority.into())])?;
        let consumer = channel.basic_consume(name, tag, BasicConsumeOptions::default(), arguments).await?;
        Ok(Self { channel, prefetch, consumer, waiting: VecDeque::new(), ended: None })
    }

    /// Waits until there is a delivery in hand.
    pub async fn until_waiting(&mut self, context: &QueueContext) -> Result<(), IntakeError> {
        while self.waiting.is_empty() {
            if let Some(error) = self.ended.take() {
                return Err(error);
            }
            self.receive(context).await;
        }
        Ok(())
    }

    /// Waits for this; meanwhile takes what RabbitMQ sends in hand.
    pub async fn while_receiving<T>(&mut self, context: &QueueContext, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.receive(context), if self.ended.is_none() => {}
            }
        }
    }

    async fn receive(&mut self, context: &QueueContext) {
        match self.consumer.next().await {
            Some(Ok(delivery)) => self.take(Taken::of(context, delivery), context),
            Some(Err(error)) => self.ended = Some(error.into()),
            None => self.ended = Some(IntakeError::Cancelled),
        }
    }

    fn take(&mut self, taken: Taken, context: &QueueContext) {
        self.waiting.push_back(taken);
        context.state.set_oldest(context.state.oldest().or(self.oldest()));
    }

    /// Since when the first of what waits is in hand.
    #[must_use]
    pub fn oldest(&self) -> Option<Waiting> {
        self.waiting.front().map(|taken| taken.receipt.in_hand.waiting)
    }

    /// Whether a waiting delivery was returned this often.
    #[must_use]
    pub fn has_returns(&self, returns: i64) -> bool {
        self.waiting.iter().any(|taken| taken.receipt.returns() >= returns)
    }

    /// A batch of what waits, and of what comes before it ends: at a moment that the queues share, `linger`
    /// after its first event at the latest, and sooner once it has enough events.
    pub async fn gather(&mut self, context: &QueueContext, linger: Duration) -> Batch {
        let most = context.tenant.settings.batch_size.min(usize::from(self.prefetch));
        let first = self.oldest().map_or_else(Instant::now, |waiting| waiting.since);
        let mut deadline = context.together.tick(first, linger);
        let (mut batch, mut bytes, mut deliveries) = (Batch::default(), 0, 0);
        while deliveries < most && bytes < MAX_BATCH_BYTES {
            if self.waiting.is_empty() {
                let received = timeout_at(deadline, self.receive(context)).await;
                if received.is_err() || self.waiting.is_empty() {
                    break;
                }
            }
            let Some(taken) = self.waiting.pop_front() else { break };
            (bytes, deliveries) = (bytes + taken.bytes(), deliveries + 1);
            if deliveries == ENOUGH {
                deadline =
                    deadline.min(context.together.tick(taken.receipt.in_hand.waiting.since, linger / 2));
            }
            batch.add(taken);
        }
        batch
    }

    /// Takes no more from RabbitMQ than it has sent already.
    pub async fn cancel(&mut self, context: &QueueContext) -> Result<(), IntakeError> {
        let cancel = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        timeout(ANSWER_TIMEOUT, cancel).await??;
        while let Some(Some(Ok(delivery))) = self.consumer.next().now_or_never() {
            self.take(Taken::of(context, delivery), context);
        }
        Ok(())
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Closes the channel: RabbitMQ takes back what isn't settled, and counts that as a delivery of each.
    pub async fn close(self) {
        let Ok(reason) = topology::short("done") else { return };
        // Fails if the channel is gone, which is fine here.
        let _ = timeout(ANSWER_TIMEOUT, self.channel.close(200, reason)).await;
    }
}

impl Batch {
    fn add(&mut self, Taken { content, receipt }: Taken) {
        match content {
            Content::Event(event) => {
                self.events.push(*event);
                self.receipts.push(receipt);
            }
            Content::Undecodable(undecodable) => self.undecodable.push((undecodable, receipt)),
        }
    }
}
