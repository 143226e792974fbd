//! The queues of a tenant: names, arguments with a reason for each, bindings.

use lapin::Channel;
use lapin::types::AMQPValue;

use crate::partition::WorkQueue;
use crate::topology::{
    ASIDE_EXCHANGE, DeclareError, WEBHOOKS_EXCHANGE, bind, dead_queue, quarantine_queue, queue, text,
};

/// After this many returns to the queue, RabbitMQ dead-letters a message: it probably kills workers.
const DELIVERY_LIMIT: i64 = 20;
/// How long a worker may hold a delivery, in milliseconds: seven days. While MongoDB fails, a worker holds
/// its deliveries. RabbitMQ's own limit, half an hour, would close its channel, and count a delivery each
/// time.
const CONSUMER_TIMEOUT_MS: i64 = 7 * 24 * 60 * 60 * 1000;
/// How long RabbitMQ 4.3 waits for the workers that were connected to a lost node of its cluster before the
/// next ones take over, in milliseconds; otherwise a minute. Earlier releases ignore this, and don't wait.
const CONSUMER_DISCONNECTED_TIMEOUT_MS: i64 = 10_000;
/// Operators look at set-aside messages by taking and returning them, which RabbitMQ counts as well; its
/// own limit (20 from 4.0 on) would throw evidence away.
pub(crate) const UNLIMITED_DELIVERIES: i64 = 1_000_000_000;
/// Bounds of a quarantine queue: the oldest evidence goes first. An operator's policy can be smaller.
pub const QUARANTINE_MAX_LENGTH: u32 = 100_000;
const QUARANTINE_MAX_BYTES: i64 = 1 << 30;

/// One of a tenant's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenantQueue {
    /// For dead letters.
    Dead,
    /// For requests that can't be used.
    Quarantine,
    /// For events.
    Work(WorkQueue),
}

impl TenantQueue {
    /// Every queue of a tenant that has this many partitions. The dead letters' comes first, since the others
    /// need it.
    pub fn all(partitions: u16) -> impl Iterator<Item = Self> {
        [Self::Dead, Self::Quarantine].into_iter().chain(WorkQueue::all(partitions).map(Self::Work))
    }

    /// The queue's name.
    #[must_use]
    pub fn name(self, tenant: &str) -> String {
        match self {
            Self::Dead => dead_queue(tenant),
            Self::Quarantine => quarantine_queue(tenant),
            Self::Work(work) => work.name(tenant),
        }
    }

    /// The exchange that it is bound to.
    #[must_use]
    pub fn exchange(self) -> &'static str {
        match self {
            Self::Dead | Self::Quarantine => ASIDE_EXCHANGE,
            Self::Work(_) => WEBHOOKS_EXCHANGE,
        }
    }

    /// The key that it is bound with, which takes any event type.
    #[must_use]
    pub fn binding_key(self, tenant: &str) -> String {
        // Event types have dots in them.
        self.routing_key(tenant, "#")
    }

    /// The key by which a message of this event type gets there.
    #[must_use]
    pub fn routing_key(self, tenant: &str, event_type: &str) -> String {
        match self {
            Self::Dead | Self::Quarantine => self.name(tenant),
            Self::Work(work) => work.routing_key(tenant, event_type),
        }
    }

    /// Declares it. The exchanges have to be there already, and of a work queue, that for dead letters.
    pub async fn declare(self, channel: &Channel, tenant: &str) -> Result<(), DeclareError> {
        let name = self.name(tenant);
        queue(channel, &name, &self.arguments(tenant)).await?;
        bind(channel, &name, self.exchange(), &self.binding_key(tenant)).await
    }

    /// Its arguments. Queues that exist have to be [migrated](TenantQueue::declare_copy) when these change.
    fn arguments(self, tenant: &str) -> Vec<(&'static str, AMQPValue)> {
        match self {
            Self::Dead => vec![("x-delivery-limit", UNLIMITED_DELIVERIES.into())],
            Self::Quarantine => vec![
                ("x-delivery-limit", UNLIMITED_DELIVERIES.into()),
                // A flood of unusable requests must fill neither the broker nor the disk.
                ("x-overflow", text("drop-head")),
                ("x-max-length", i64::from(QUARANTINE_MAX_LENGTH).into()),
                ("x-max-length-bytes", QUARANTINE_MAX_BYTES.into()),
            ],
            Self::Work(_) => work_arguments(tenant),
        }
    }

    /// The name of the queue that has the messages of this one while it is replaced.
    #[must_use]
    pub fn copy_name(self, tenant: &str) -> String {
        format!("migrating.{}", self.name(tenant))
    }

    /// Declares that queue. It gets what is published to its name, and also what would go to this queue.
    pub async fn declare_copy(self, channel: &Channel, tenant: &str) -> Result<(), DeclareError> {
        let copy = self.copy_name(tenant);
        let arguments = [
            ("x-delivery-limit", UNLIMITED_DELIVERIES.into()),
            // If a policy bounds this queue, it must refuse messages, not drop them.
            ("x-overflow", text("reject-publish")),
        ];
        queue(channel, &copy, &arguments).await?;
        bind(channel, &copy, ASIDE_EXCHANGE, &copy).await?;
        bind(channel, &copy, self.exchange(), &self.binding_key(tenant)).await
    }
}

fn work_arguments(tenant: &str) -> Vec<(&'static str, AMQPValue)> {
    vec![
        // A conversation's events go to one worker at a time. The queue for large bodies has it too: it is
        // what makes consumer priorities decide who is served, and so what spreads these queues over the
        // workers; and of two large events of one conversation, which would conflict, none is written beside
        // the other.
        ("x-single-active-consumer", true.into()),
        ("x-delivery-limit", DELIVERY_LIMIT.into()),
        // Through the default exchange, which needs no binding that could be missing.
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&dead_queue(tenant))),
        // Otherwise dead-lettering may lose the message when a node fails at that moment.
        ("x-dead-letter-strategy", text("at-least-once")),
        // A full queue must refuse messages, not drop them; at-least-once dead-lettering requires it too.
        ("x-overflow", text("reject-publish")),
        // Otherwise all leaders are on the node that the first ingest happened to connect to.
        ("x-queue-leader-locator", text("balanced")),
        ("x-consumer-timeout", CONSUMER_TIMEOUT_MS.into()),
        ("x-consumer-disconnected-timeout", CONSUMER_DISCONNECTED_TIMEOUT_MS.into()),
    ]
}
