//! Makes a webhook durable: RabbitMQ's confirm, or else the spool's fsync.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shared::partition::WorkQueue;
use shared::publisher::{PublishError, Publisher};
use shared::telemetry::chain;
use tracing::{error, info, warn};

use crate::metrics::Metrics;
use crate::spool::{Spool, SpoolError};
use crate::webhook::Webhook;

/// Where a webhook is safe now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// RabbitMQ has confirmed it.
    Broker,
    /// It is fsynced on disk, and will be published later.
    Spool,
}

impl Via {
    /// Both ways.
    pub const ALL: [Self; 2] = [Self::Broker, Self::Spool];

    /// The value of the metrics label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Spool => "spool",
        }
    }
}

/// Why a webhook is durable nowhere.
#[derive(Debug, thiserror::Error)]
#[error("neither RabbitMQ ({broker}) nor the spool ({spool}) can take it")]
pub struct NotDurable {
    broker: String,
    spool: String,
}

/// The two ways, and which is taken.
#[derive(Debug)]
pub struct Durable {
    publisher: Publisher,
    spool: Spool,
    publish_timeout: Duration,
    metrics: Arc<Metrics>,
    // Set when RabbitMQ was silent once. While it is, only the drain tries: a frozen broker costs the first
    // callers their patience, and nobody else.
    suspect: AtomicBool,
}

impl Durable {
    /// Publishes with this publisher, and spools into this spool.
    #[must_use]
    pub fn new(publisher: Publisher, spool: Spool, publish_timeout: Duration, metrics: Arc<Metrics>) -> Self {
        Self { publisher, spool, publish_timeout, metrics, suspect: AtomicBool::new(false) }
    }

    /// The way into RabbitMQ.
    #[must_use]
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// The spool.
    #[must_use]
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Whether only the drain tries to publish.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// Keeps a webhook, one way or the other. The queue is that of its body.
    pub async fn keep(&self, webhook: &Webhook, queue: WorkQueue) -> Result<Via, NotDurable> {
        if self.is_suspect() {
            return match self.spool.append(webhook).await {
                Ok(()) => Ok(Via::Spool),
                // Nothing is left to be saved by sparing RabbitMQ.
                Err(spool) => match self.publish(webhook, queue, self.publish_timeout).await {
                    Ok(()) => Ok(Via::Broker),
                    Err(broker) => Err(not_durable(&broker, &spool)),
                },
            };
        }
        let Err(broker) = self.publish(webhook, queue, self.publish_timeout).await else {
            return Ok(Via::Broker);
        };
        match self.spool.append(webhook).await {
            Ok(()) => Ok(Via::Spool),
            Err(spool) => Err(not_durable(&broker, &spool)),
        }
    }

    /// Publishes, waits for the confirm at most for `patience`, and draws conclusions from how it went.
    pub async fn publish(
        &self,
        webhook: &Webhook,
        queue: WorkQueue,
        patience: Duration,
    ) -> Result<(), PublishError> {
        let message = match webhook.message(queue) {
            Ok(message) => message,
            Err(error) => {
                // Names are bounded well below what AMQP allows, so this is a defect of ours.
                let (event_key, trace_id) = (&webhook.metadata.key, webhook.metadata.trace_id());
                error!(event_key, trace_id, error = chain(&error), "a webhook can't be published");
                return Err(PublishError::Nacked);
            }
        };
        let started = Instant::now();
        let outcome = self.publisher.publish(message, patience).await;
        let took = started.elapsed();
        self.metrics.published(outcome.as_ref().map_or_else(PublishError::outcome, |()| "confirmed"), took);
        match &outcome {
            // A late confirm shows that callers would wait in vain; only the drain is so patient.
            Ok(()) if took <= self.publish_timeout => {
                if self.suspect.swap(false, Ordering::Relaxed) {
                    info!("RabbitMQ confirms in time again, publishing to it");
                }
            }
            Err(PublishError::TimedOut) => {
                if !self.suspect.swap(true, Ordering::Relaxed) {
                    warn!("RabbitMQ didn't confirm in time, spooling until it does");
                }
            }
            _ => {}
        }
        outcome
    }
}

fn not_durable(broker: &PublishError, spool: &SpoolError) -> NotDurable {
    NotDurable { broker: chain(broker), spool: chain(spool) }
}
