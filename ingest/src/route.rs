//! The way of one tenant's webhooks into RabbitMQ, and whether it is under suspicion.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use shared::address::Address;
use shared::amqp::{Link, Purpose};
use shared::partition::WorkQueue;
use shared::publisher::{PublishError, Publisher};
use shared::telemetry::chain;
use tracing::{error, info, warn};

use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::webhook::Webhook;

/// A tenant's messages published and not confirmed yet. With more, RabbitMQ's rate hardly rises, but its
/// latency does.
const MAX_IN_FLIGHT: u32 = 512;
/// Channels for publishing: RabbitMQ has a process for each.
const PUBLISH_CHANNELS: usize = 2;

/// How routes are made.
#[derive(Debug)]
pub struct Routes {
    address: Address,
    partitions: u16,
    publish_timeout: Duration,
    metrics: Arc<Metrics>,
}

impl Routes {
    /// Routes by these settings.
    #[must_use]
    pub fn new(settings: &Settings, metrics: Arc<Metrics>) -> Self {
        Self {
            address: settings.rabbitmq.clone(),
            partitions: settings.partitions,
            publish_timeout: settings.publish_timeout,
            metrics,
        }
    }

    /// A route of one tenant, on which what it needs is declared. Needs a tokio runtime.
    #[must_use]
    pub fn of(&self, tenant: &str) -> Route {
        self.connect(tenant, [tenant.to_owned()].into())
    }

    /// A route for tenants that aren't in the settings any more. Needs a tokio runtime.
    #[must_use]
    pub fn of_others(&self) -> Route {
        self.connect("others", [].into())
    }

    /// A connection of its own: RabbitMQ stops reading from a connection when a queue that one of its
    /// channels publishes to is slow.
    fn connect(&self, name: &str, declares: Arc<[String]>) -> Route {
        let purpose = Purpose::Publish { channels: PUBLISH_CHANNELS };
        let connection = format!("ingest publish {name}");
        let link = Link::start(self.address.clone(), &connection, purpose, declares, self.partitions);
        Route {
            name: name.to_owned(),
            publisher: Publisher::new(link, MAX_IN_FLIGHT),
            suspicion: Suspicion::default(),
            publish_timeout: self.publish_timeout,
            metrics: self.metrics.clone(),
        }
    }
}

/// Publishes one tenant's webhooks.
#[derive(Debug)]
pub struct Route {
    name: String,
    publisher: Publisher,
    suspicion: Suspicion,
    publish_timeout: Duration,
    metrics: Arc<Metrics>,
}

/// How a route is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RouteState {
    /// Whether RabbitMQ can be reached.
    pub connected: bool,
    /// Whether RabbitMQ blocks publishing.
    pub blocked: bool,
    /// Whether RabbitMQ was silent, so that only the drain publishes.
    pub suspect: bool,
    /// Messages published and not confirmed yet.
    pub in_flight: usize,
}

impl RouteState {
    /// Whether webhooks are published.
    #[must_use]
    pub fn is_open(self) -> bool {
        self.connected && !self.blocked && !self.suspect
    }
}

impl Route {
    /// How it is.
    #[must_use]
    pub fn state(&self) -> RouteState {
        let link = self.publisher.link();
        RouteState {
            connected: link.is_up(),
            blocked: link.is_blocked(),
            suspect: self.is_suspect(),
            in_flight: self.publisher.in_flight(),
        }
    }

    /// Whether only the drain tries to publish.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.suspicion.is_raised()
    }

    /// Publishes, waits for the confirm at most for `PUBLISH_TIMEOUT`, and draws conclusions from how it
    /// went.
    pub async fn publish(&self, webhook: &Webhook, queue: WorkQueue) -> Result<(), PublishError> {
        self.publish_patiently(webhook, queue, self.publish_timeout).await
    }

    /// The same with another timeout.
    pub async fn publish_patiently(
        &self,
        webhook: &Webhook,
        queue: WorkQueue,
        patience: Duration,
    ) -> Result<(), PublishError> {
        let message = match webhook.message(queue) {
            Ok(message) => message,
            Err(error) => {
                // Names are bounded well below AMQP's limit, so this is a defect of ours.
                let (event_key, trace_id) = (&webhook.metadata.key, webhook.metadata.trace_id());
                error!(event_key, trace_id, error = chain(&error), "a webhook can't be published");
                return Err(PublishError::Nacked);
            }
        };
        let started = Instant::now();
        let outcome = self.publisher.publish(message, patience).await;
        let took = started.elapsed();
        self.metrics.published(outcome.as_ref().map_or_else(PublishError::outcome, |()| "confirmed"), took);
        let tenant = &self.name;
        match self.suspicion.observe(&outcome, took, self.publish_timeout) {
            Some(true) => {
                warn!(tenant, "RabbitMQ didn't confirm in time: webhooks go to the spool until it does");
            }
            Some(false) => info!(tenant, "RabbitMQ confirms in time again: webhooks go to it"),
            None => {}
        }
        outcome
    }

    /// Waits until nothing is in flight, at most for `patience`, and closes the connection.
    pub async fn close(&self, patience: Duration) {
        self.publisher.close(patience).await;
    }
}

/// Raised by one late confirm. While it is raised, only the drain publishes: so only the first callers wait
/// for a frozen queue.
#[derive(Debug, Default)]
pub struct Suspicion(AtomicBool);

impl Suspicion {
    /// Whether there is suspicion.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Draws the conclusion from how a publish went; tells what the suspicion is now if that has changed.
    pub fn observe(
        &self,
        outcome: &Result<(), PublishError>,
        took: Duration,
        publish_timeout: Duration,
    ) -> Option<bool> {
        let raised = match outcome {
            // After a late confirm, callers would wait in vain; only the drain waits that long.
            Ok(()) if took <= publish_timeout => false,
            Err(PublishError::TimedOut) => true,
            _ => return None,
        };
        (self.0.swap(raised, Ordering::Relaxed) != raised).then_some(raised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_raises_suspicion_and_only_a_confirm_in_time_lifts_it() {
        let (suspicion, second) = (Suspicion::default(), Duration::from_secs(1));
        let observe = |outcome, took| suspicion.observe(&outcome, took, second);
        assert_eq!(observe(Err(PublishError::Nacked), second / 2), None);
        assert_eq!(observe(Err(PublishError::Busy), second), None);
        assert_eq!(observe(Err(PublishError::TimedOut), second), Some(true));
        assert_eq!(observe(Err(PublishError::TimedOut), second), None);
        assert_eq!(observe(Ok(()), 2 * second), None);
        assert!(suspicion.is_raised());
        assert_eq!(observe(Ok(()), second), Some(false));
        assert!(!suspicion.is_raised());
    }
}
