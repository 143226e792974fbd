//! The announcements of ingests and workers, which they exchange over RabbitMQ.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Consumer};
use serde::{Deserialize, Serialize};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::amqp::Session;
use crate::publisher::{Message, Publisher};
use crate::telemetry::chain;
use crate::topology;

/// How often each process announces its state.
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
/// A process that was silent for so long counts as gone.
pub const ANNOUNCEMENT_TTL: Duration = Duration::from_secs(5);

/// The state of an ingest or a worker, as it announces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Name of the process, unique among those alive.
    pub name: String,
    /// Partitions of each tenant, as this process was told. While settings differ, the largest number counts.
    pub partitions: u16,
    /// True when this is the last announcement, because the process stops.
    pub leaving: bool,
    /// What it does, and its state.
    pub role: Role,
}

/// What a process does, and its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It writes events into MongoDB.
    Worker {
        /// Per tenant that it serves.
        tenants: BTreeMap<String, TenantStatus>,
    },
    /// It takes webhooks in.
    Ingest {
        /// What it couldn't publish yet.
        spool: SpoolStatus,
        /// Webhooks that it can still refuse without harm.
        refusals_left: u32,
    },
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
    /// Time since MongoDB last committed a batch or answered a probe, in milliseconds; none if it never did.
    pub success_age_ms: Option<u64>,
    /// Events received and not settled yet.
    pub in_flight: usize,
    /// While the breaker is half-open: successes so far.
    pub half_open_successes: u32,
    /// Seconds since MongoDB failed last; none if it hasn't failed since the worker started.
    pub seconds_since_failure: Option<u64>,
    /// Seconds since ingest received the oldest event in hand; 0 if none is, or from a worker that doesn't
    /// tell it yet.
    #[serde(default)]
    pub oldest_waiting_seconds: u64,
}

/// What a worker knows of a tenant's MongoDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MongoState {
    /// It answers.
    Connected,
    /// It has failed.
    Disconnected,
    /// It hasn't answered for a while, and hasn't failed yet.
    Unknown,
}

/// A MongoDB that hasn't answered for this long may be frozen: an idle one is asked more often. The next
/// announcement follows within a second.
const SILENCE_MS: u64 = 4000;

impl TenantStatus {
    /// What is known of MongoDB.
    #[must_use]
    pub fn mongodb(&self) -> MongoState {
        match self.success_age_ms {
            _ if !self.mongodb_connected => MongoState::Disconnected,
            Some(age) if age < SILENCE_MS => MongoState::Connected,
            _ => MongoState::Unknown,
        }
    }
}

/// The state of an ingest's spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolStatus {
    /// Webhooks in it.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Time since the oldest of them was received, in seconds.
    pub oldest_age_seconds: u64,
    /// Whether it can be written.
    pub writable: bool,
}

/// Who is there, by their announcements. Pure.
#[derive(Debug, Default)]
pub struct Peers(BTreeMap<String, (Announcement, Instant)>);

impl Peers {
    /// Records an announcement.
    pub fn record(&mut self, announcement: Announcement, now: Instant) {
        self.0.retain(|_, (_, heard)| is_recent(*heard, now));
        if announcement.leaving {
            self.0.remove(&announcement.name);
        } else {
            self.0.insert(announcement.name.clone(), (announcement, now));
        }
    }

    /// The latest announcement of each that is there, sorted by name.
    pub fn alive(&self, now: Instant) -> impl Iterator<Item = &Announcement> {
        let recent = self.0.values().filter(move |(_, heard)| is_recent(*heard, now));
        recent.map(|(announcement, _)| announcement)
    }

    /// Whether this process is there.
    #[must_use]
    pub fn is_there(&self, name: &str, now: Instant) -> bool {
        self.0.get(name).is_some_and(|(_, heard)| is_recent(*heard, now))
    }

    /// The largest number of partitions that anybody announces.
    #[must_use]
    pub fn partitions(&self, now: Instant) -> Option<u16> {
        self.alive(now).map(|announcement| announcement.partitions).max()
    }
}

fn is_recent(heard: Instant, now: Instant) -> bool {
    now.duration_since(heard) < ANNOUNCEMENT_TTL
}

impl Announcement {
    /// The tenants that this process writes events of; none if it is an ingest.
    #[must_use]
    pub fn served(&self) -> Option<&BTreeMap<String, TenantStatus>> {
        match &self.role {
            Role::Worker { tenants } => Some(tenants),
            Role::Ingest { .. } => None,
        }
    }

    /// The spool of this process; none if it is a worker.
    #[must_use]
    pub fn spool(&self) -> Option<&SpoolStatus> {
        match &self.role {
            Role::Ingest { spool, .. } => Some(spool),
            Role::Worker { .. } => None,
        }
    }
}

/// States of the circuit breaker, the better one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BreakerState {
    /// MongoDB is used.
    Closed,
    /// MongoDB is tried.
    HalfOpen,
    /// MongoDB isn't called.
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

/// Follows the announcements of all ingests and workers.
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

/// A name for this process, which two processes on a host of this name don't share.
#[must_use]
pub fn unique_name(host: &str) -> String {
    // Two containers may share a host name, and each has a process of the same number.
    format!("{host}-{}-{:04x}", std::process::id(), fastrand::u16(..))
}

/// The host in such a name.
#[must_use]
pub fn host(name: &str) -> &str {
    name.rsplitn(3, '-').nth(2).unwrap_or(name)
}

/// Announces until `stop`, and then that this process leaves.
pub async fn announce(
    publisher: &Publisher,
    stop: &CancellationToken,
    announcement: impl Fn(bool) -> Announcement,
) {
    let mut ticks = interval(ANNOUNCE_INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => publish(publisher, &announcement(false)).await,
            () = stop.cancelled() => return publish(publisher, &announcement(true)).await,
        }
    }
}

async fn publish(publisher: &Publisher, announcement: &Announcement) {
    let body = match serde_json::to_vec(announcement) {
        Ok(body) => body,
        Err(error) => return error!(error = chain(&error), "can't write an announcement"),
    };
    let properties = BasicProperties::default();
    let message = Message::new(topology::STATUS_EXCHANGE, String::new(), properties, body);
    let Ok(message) = message else { return };
    if let Err(error) = publisher.publish(message, ANNOUNCE_INTERVAL).await {
        // The next announcement is enough; the connection's supervisor has logged the cause.
        debug!(error = chain(&error), "an announcement was not confirmed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ingest(name: &str, partitions: u16, leaving: bool) -> Announcement {
        let spool = SpoolStatus { records: 0, bytes: 0, oldest_age_seconds: 0, writable: true };
        let role = Role::Ingest { spool, refusals_left: 10 };
        Announcement { name: name.into(), partitions, leaving, role }
    }

    #[test]
    fn those_who_are_silent_or_leave_are_gone() {
        let (mut peers, start) = (Peers::default(), Instant::now());
        let half = start + ANNOUNCEMENT_TTL / 2;
        peers.record(ingest("b", 8, false), start);
        peers.record(ingest("a", 4, false), half);
        let names = |peers: &Peers, now| peers.alive(now).map(|a| a.name.clone()).collect::<Vec<_>>();
        assert_eq!((names(&peers, half), peers.partitions(half)), (vec!["a".into(), "b".into()], Some(8)));
        let later = start + ANNOUNCEMENT_TTL;
        assert_eq!((names(&peers, later), peers.partitions(later)), (vec!["a".into()], Some(4)));
        peers.record(ingest("a", 4, true), later);
        assert_eq!((names(&peers, later).len(), peers.partitions(later)), (0, None));
    }

    #[test]
    fn what_is_announced_can_be_read() {
        let status = TenantStatus {
            breaker: BreakerState::HalfOpen,
            failures: 1,
            threshold: 10,
            seconds_in_state: 2,
            mongodb_connected: true,
            success_age_ms: Some(3),
            in_flight: 4,
            half_open_successes: 2,
            seconds_since_failure: None,
            oldest_waiting_seconds: 5,
        };
        let role = Role::Worker { tenants: [("vip".to_owned(), status)].into() };
        let worker = Announcement { name: "w".into(), partitions: 4, leaving: false, role };
        for announcement in [worker, ingest("i", 4, true)] {
            let text = serde_json::to_vec(&announcement).unwrap();
            assert_eq!(serde_json::from_slice::<Announcement>(&text).unwrap(), announcement);
        }
    }
}
