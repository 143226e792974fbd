//! Publishes backfilled events to the work queues, each with RabbitMQ's confirm.

use std::time::Duration;

use futures_util::future::try_join_all;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortStringError};
use shared::event;
use shared::json::Scan;
use shared::partition;
use shared::publisher::{DELIVERY_MODE_PERSISTENT, Message, Publisher};
use shared::topology;
use tokio::time::{Instant, sleep};

use super::BackfillError;
use crate::commands::set_aside::queue::QueueError;
use crate::decode::BACKFILLED;

/// Longest wait for a confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
/// An event that RabbitMQ doesn't confirm is published again for this long; its key makes that harmless.
const RETRY_TIMEOUT: Duration = Duration::from_mins(2);
/// Pause before that.
const PAUSE: Duration = Duration::from_secs(1);

/// Publishes events of one tenant.
pub struct Outlet {
    /// The tenant.
    pub tenant: String,
    /// The tenant's partitions.
    pub partitions: u16,
    /// The connection.
    pub broker: Publisher,
}

impl Outlet {
    /// Publishes these bodies, of what was read at this time, and waits for all confirms.
    pub async fn publish(&self, bodies: Vec<String>, read_at_ms: i64) -> Result<(), BackfillError> {
        try_join_all(bodies.iter().map(|body| self.publish_one(body, read_at_ms))).await?;
        Ok(())
    }

    async fn publish_one(&self, body: &str, read_at_ms: i64) -> Result<(), BackfillError> {
        let started = Instant::now();
        loop {
            let message = self.message(body, read_at_ms).map_err(QueueError::Name)?;
            match self.broker.publish(message, CONFIRM_TIMEOUT).await {
                Ok(()) => return Ok(()),
                Err(error) if started.elapsed() > RETRY_TIMEOUT => return Err(error.into()),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// The message that ingest would have made of it.
    fn message(&self, body: &str, read_at_ms: i64) -> Result<Message, ShortStringError> {
        let scan = Scan::of(body.as_bytes()).ok();
        let (event_id, sent_type) = scan.map(|scan| (scan.event_id(), scan.event_type())).unwrap_or_default();
        let key = event::event_key(&self.tenant, event_id.as_deref(), body.as_bytes(), BACKFILLED);
        let event_type = event::routable_type(sent_type.as_deref());
        let queue = partition::queue_of_body(&key, body.as_bytes(), self.partitions);
        let text = |value: &str| AMQPValue::LongString(value.into());
        let headers = topology::table(&[
            ("tenant", text(&self.tenant)),
            ("stream", text(event::Stream::Any.name())),
            ("received_at_ms", AMQPValue::LongLongInt(read_at_ms)),
            ("signature", text(BACKFILLED)),
            (topology::REASON_HEADER, text(topology::DELIVERY_LIMIT_REASON)),
        ])?;
        let properties = BasicProperties::default()
            .with_delivery_mode(DELIVERY_MODE_PERSISTENT)
            .with_content_type(topology::short("application/json")?)
            .with_message_id(topology::short(&key)?)
            .with_type(topology::short(event_type)?)
            .with_timestamp(u64::try_from(read_at_ms / 1000).unwrap_or_default())
            .with_headers(headers);
        let routing_key = queue.routing_key(&self.tenant, event_type);
        Message::new(topology::WEBHOOKS_EXCHANGE, routing_key, properties, body.to_owned())
    }
}
