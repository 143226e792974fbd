//! Settles deliveries: what is stored is acknowledged, what can't be is dead-lettered.
//!
//! A delivery is settled only after its effects are committed, or its dead letter is confirmed. If a dead
//! letter isn't confirmed in time, the delivery is rejected, and RabbitMQ dead-letters it itself, at least
//! once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use shared::event::UNKNOWN;
use shared::telemetry::chain;
use tokio::time::timeout;
use tracing::{debug, error, warn};

use super::QueueContext;
use super::delivery::{Receipt, Undecodable};
use super::intake::IntakeError;
use crate::dead::{self, DeadLetter, Reason};
use crate::decode::Event;
use crate::metrics;
use crate::project::Outcome;

/// Longest time for an acknowledgement to be written to the connection.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(10);

/// An event that can't be stored.
#[derive(Debug)]
pub struct Unstorable<'a> {
    /// Why.
    pub reason: Reason,
    /// What went wrong, fit for a log.
    pub error: String,
    /// The same with the server's words, which may quote documents.
    pub in_full: String,
    /// As it was received.
    pub body: &'a [u8],
}

/// Settles the deliveries of one channel.
#[derive(Debug)]
pub struct Settle<'a> {
    /// The queue that they came from.
    pub context: &'a QueueContext,
    /// The channel that they came over.
    pub channel: &'a Channel,
}

impl Settle<'_> {
    /// Acknowledges a whole batch of stored events: all up to the last one, since nothing before it is left.
    pub async fn stored_all(
        &self,
        events: &[Event],
        receipts: Vec<Receipt>,
        outcomes: &[Outcome],
    ) -> Result<(), IntakeError> {
        let Some(last) = receipts.iter().map(|receipt| receipt.tag).max() else { return Ok(()) };
        self.record_stored(events, receipts, outcomes);
        self.acknowledge(last, BasicAckOptions { multiple: true }).await
    }

    /// Acknowledges stored events one by one, since others before them are not settled.
    pub async fn stored_each(
        &self,
        events: &[Event],
        receipts: Vec<Receipt>,
        outcomes: &[Outcome],
    ) -> Result<(), IntakeError> {
        let tags: Vec<u64> = receipts.iter().map(|receipt| receipt.tag).collect();
        self.record_stored(events, receipts, outcomes);
        for tag in tags {
            self.acknowledge(tag, BasicAckOptions::default()).await?;
        }
        Ok(())
    }

    fn record_stored(&self, events: &[Event], receipts: Vec<Receipt>, outcomes: &[Outcome]) {
        let (tenant, now) =
            (&self.context.tenant, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        for ((event, receipt), outcome) in events.iter().zip(receipts).zip(outcomes) {
            let outcome = match outcome {
                // Its age would say how long the backfill took.
                Outcome::Stored if event.is_backfilled() => metrics::BACKFILLED,
                Outcome::Stored => {
                    let received =
                        Duration::from_millis(u64::try_from(event.received_at_ms).unwrap_or_default());
                    tenant.metrics.stored(&tenant.name, now.saturating_sub(received));
                    metrics::STORED
                }
                Outcome::Duplicate => metrics::DUPLICATE,
                Outcome::Erased => metrics::ERASED,
            };
            tenant.metrics.settled(&tenant.name, event.label(), outcome);
            if let Some(mut span) = receipt.span {
                span.set("penstock.outcome", outcome);
            }
            let trace_id = dead::trace_id(&receipt.properties);
            debug!(tenant = tenant.name, event_key = event.key, trace_id, outcome, "settled");
        }
    }

    /// Dead-letters what can't be read as an event.
    pub async fn undecodable(&self, all: Vec<(Undecodable, Receipt)>) -> Result<(), IntakeError> {
        let settled = all.into_iter().map(|(Undecodable { body, reason, error }, receipt)| async move {
            let unstorable = Unstorable { reason, in_full: error.clone(), error, body: &body };
            self.dead_letter(unstorable, receipt).await
        });
        join_all(settled).await.into_iter().collect()
    }

    /// Dead-letters one delivery.
    pub async fn dead_letter(
        &self,
        unstorable: Unstorable<'_>,
        mut receipt: Receipt,
    ) -> Result<(), IntakeError> {
        let Unstorable { reason, error, in_full, body } = unstorable;
        let (tenant, properties) = (&self.context.tenant, &receipt.properties);
        let letter = DeadLetter { tenant: &tenant.name, reason, error: &in_full, properties, body };
        let published = dead::publish(&tenant.publisher, &letter).await;
        let key = properties.message_id().as_ref().map(ToString::to_string);
        let (trace_id, queue) = (dead::trace_id(properties), &self.context.name);
        match &published {
            Ok(()) => warn!(
                tenant = tenant.name,
                event_key = key,
                trace_id,
                reason = reason.name(),
                error,
                "an event was dead-lettered"
            ),
            Err(failed) => error!(
                tenant = tenant.name,
                queue,
                event_key = key,
                trace_id,
                reason = reason.name(),
                error,
                not_confirmed = chain(failed),
                "a dead letter wasn't confirmed, RabbitMQ dead-letters the event itself"
            ),
        }
        let event_type = properties.kind().as_ref().map(ToString::to_string);
        let label = match reason {
            Reason::NoEvent => UNKNOWN,
            _ => shared::event::type_label(event_type.as_deref()),
        };
        tenant.metrics.dead_lettered(&tenant.name, label, reason);
        if let Some(span) = &mut receipt.span {
            span.set("penstock.outcome", metrics::DEAD);
            span.fail(reason.name());
        }
        match published {
            Ok(()) => self.acknowledge(receipt.tag, BasicAckOptions::default()).await,
            Err(_) => self.reject(receipt.tag).await,
        }
    }

    async fn acknowledge(&self, tag: u64, options: BasicAckOptions) -> Result<(), IntakeError> {
        Ok(timeout(ACKNOWLEDGE_TIMEOUT, self.channel.basic_ack(tag, options)).await??)
    }

    async fn reject(&self, tag: u64) -> Result<(), IntakeError> {
        let options = BasicRejectOptions { requeue: false };
        Ok(timeout(ACKNOWLEDGE_TIMEOUT, self.channel.basic_reject(tag, options)).await??)
    }
}
