//! Looks into a tenant's dead letters or quarantine, and replays or drops what is there.
//!
//! RabbitMQ shows messages only to a client that takes them out. So requests and commands take turns. A
//! request looks at the oldest messages, for some seconds at most. Then those that it doesn't remove return.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::message::BasicGetMessage;
use tokio::time::{Instant, timeout};

use super::state::{Console, TenantPages};
use crate::commands::set_aside::Kind;
use crate::commands::set_aside::queue::{Queue, QueueError};

pub mod change;
pub mod item;

use item::{Item, Whole};

/// Most messages that one request looks at, and most bytes of their bodies.
pub const MOST: usize = 1000;
const MOST_BYTES: usize = 64 << 20;
/// Longest time for looking; what was seen by then is shown.
const LOOK_TIMEOUT: Duration = Duration::from_secs(6);

/// Why nothing can be seen or done.
#[derive(Debug, thiserror::Error)]
pub enum AsideError {
    /// RabbitMQ, or the way there, failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// RabbitMQ doesn't answer.
    #[error("RabbitMQ doesn't answer within {LOOK_TIMEOUT:?}")]
    Silent,
    /// There is no such queue.
    #[error("RabbitMQ has no queue {0:?} yet: has a worker ever run?")]
    NoQueue(String),
}

/// What was seen of a queue.
#[derive(Debug, Default)]
pub struct Looked {
    /// What fits, the oldest first, each event once.
    pub items: Vec<Item>,
    /// How many messages these are.
    pub fitting: usize,
    /// How far it was seen.
    pub reach: Reach,
}

/// How far into a queue a request has looked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reach {
    /// Messages in the queue.
    pub length: u32,
    /// How many of them were looked at, the oldest first.
    pub looked_at: usize,
}

impl Reach {
    /// Whether all of the queue was looked at.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.looked_at as u64 >= u64::from(self.length)
    }
}

/// A tenant's queue.
pub struct Aside<'a> {
    /// Everything that there is.
    pub console: &'a Console,
    /// The tenant.
    pub tenant: &'a str,
    /// Its pages.
    pub pages: &'a TenantPages,
    /// Which of its queues.
    pub kind: Kind,
}

impl Aside<'_> {
    /// The messages that fit, each once: a dead letter may have a twin, see `worker dead list`.
    pub async fn look(&self, takes: impl Fn(&Item, &BasicGetMessage) -> bool) -> Result<Looked, AsideError> {
        let mut met = BTreeSet::new();
        let (mut items, mut fitting) = (Vec::new(), 0);
        let reach = self
            .each(|item, message| {
                if takes(&item, message) {
                    fitting += 1;
                    if met.insert(item.id.clone()) {
                        items.push(item);
                    }
                }
            })
            .await?;
        items.sort_by(|a, b| (a.about.set_aside_at_ms, &a.id).cmp(&(b.about.set_aside_at_ms, &b.id)));
        Ok(Looked { items, fitting, reach })
    }

    /// A message in full, if it was seen.
    pub async fn show(&self, id: &str) -> Result<(Option<Whole>, Reach), AsideError> {
        let mut found = None;
        let reach = self
            .each(|item, message| {
                if item.id == id {
                    found = Some(Whole::of(item, message));
                }
            })
            .await?;
        Ok((found, reach))
    }

    /// Opens the queue, shows each message, and closes it: so everything returns to its place.
    async fn each(&self, mut look: impl FnMut(Item, &BasicGetMessage)) -> Result<Reach, AsideError> {
        let mut queue = self.open().await?;
        let mut looking = Looking::begin();
        while let Some(message) = looking.next(&mut queue).await? {
            look(Item::of(self, &message), &message);
        }
        let reach = looking.reach(&queue);
        in_time(queue.close()).await?;
        Ok(reach)
    }

    async fn open(&self) -> Result<Queue, AsideError> {
        let name = self.kind.queue(self.tenant);
        // May wait for its turn.
        Queue::open(&self.console.reading, &name).await?.ok_or(AsideError::NoQueue(name))
    }
}

/// How much one request has looked at.
struct Looking {
    messages: usize,
    bytes: usize,
    until: Instant,
}

impl Looking {
    fn begin() -> Self {
        Self { messages: 0, bytes: 0, until: Instant::now() + LOOK_TIMEOUT }
    }

    fn reach(&self, queue: &Queue) -> Reach {
        Reach { length: queue.length, looked_at: self.messages }
    }

    /// The next message, unless that was enough.
    async fn next(&mut self, queue: &mut Queue) -> Result<Option<BasicGetMessage>, AsideError> {
        if self.messages >= MOST || self.bytes >= MOST_BYTES || Instant::now() >= self.until {
            return Ok(None);
        }
        let message = in_time(queue.next()).await?;
        if let Some(message) = &message {
            self.messages += 1;
            self.bytes += message.data.len();
        }
        Ok(message)
    }
}

async fn in_time<T>(asked: impl Future<Output = Result<T, QueueError>>) -> Result<T, AsideError> {
    Ok(timeout(LOOK_TIMEOUT, asked).await.map_err(|_| AsideError::Silent)??)
}
