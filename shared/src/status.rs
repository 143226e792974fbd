//! What workers tell ingest about themselves, over the broker.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::Consumer;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde::{Deserialize, Serialize};

use crate::amqp::Session;
use crate::topology;

/// How often a worker announces its state.
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
/// A worker that was silent for so long counts as gone.
pub const ANNOUNCEMENT_TTL: Duration = Duration::from_secs(5);

/// A worker's state, as it announces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Name of the worker process, unique among those alive.
    pub worker: String,
    /// Batches that this worker writes at the same time, per tenant.
    pub lanes: usize,
    /// True when this is the last announcement, because the worker stops.
    pub leaving: bool,
    /// Per tenant that this worker serves.
    pub tenants: BTreeMap<String, TenantStatus>,
}

/// A worker's state for one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantStatus {
    /// State of the circuit breaker in front of MongoDB.
    pub breaker: BreakerState,
    /// Consecutive failures of MongoDB.
    pub failures: u32,
    /// So many consecutive failures open the breaker.
    pub threshold: u32,
    /// How long the breaker has been in its state, in seconds.
    pub seconds_in_state: u64,
    /// Whether the last operation on MongoDB reached it.
    pub mongodb_connected: bool,
    /// Events received and not settled yet.
    pub in_flight: usize,
}

/// States of the circuit breaker, the better one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BreakerState {
    /// MongoDB is used.
    Closed,
    /// MongoDB is tried.
    HalfOpen,
    /// MongoDB is left alone.
    Open,
}

impl BreakerState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    /// The name of the state as metrics label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// Follows the announcements of all workers.
pub async fn subscribe(session: &Session) -> lapin::Result<Consumer> {
    let channel = session.channel().await?;
    let name = || String::new().into();
    let queue =
        channel.queue_declare(name(), QueueDeclareOptions::exclusive(), FieldTable::default()).await?;
    let (queue, exchange) = (queue.name().clone(), topology::STATUS_EXCHANGE.into());
    let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.clone(), exchange, name(), bind, none.clone()).await?;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    channel.basic_consume(queue, name(), options, none).await
}
