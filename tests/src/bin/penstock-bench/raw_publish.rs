//! The ceiling of accepting: lapin alone publishes what ingest would, into queues like a tenant's.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use anyhow::ensure;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueuePurgeOptions};
use lapin::types::AMQPValue;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use shared::partition::{self, WorkQueue};
use shared::topology;

use crate::event::{Event, Kind, event_id};

/// As many as ingest has.
const CHANNELS: usize = 2;
/// As many as a tenant has unless told otherwise.
const PARTITIONS: u16 = 4;

/// Publishes past ingest. A load generator has one thread, so no message gets the confirm of another.
#[derive(Debug)]
pub struct RawPublisher {
    tenant: String,
    channels: Vec<Channel>,
    next: AtomicUsize,
    _connection: Connection,
}

impl RawPublisher {
    /// Connects, and declares the tenant's queues.
    pub async fn connect(url: &str, tenant: &str) -> anyhow::Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let mut channels = Vec::new();
        for _ in 0..CHANNELS {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            channels.push(channel);
        }
        topology::declare(&channels[0], &[tenant.to_owned()], PARTITIONS).await?;
        Ok(Self { tenant: tenant.to_owned(), channels, next: AtomicUsize::new(0), _connection: connection })
    }

    /// Publishes an event and waits for the confirm.
    pub async fn publish(&self, event: &Event) -> anyhow::Result<()> {
        let properties = properties(&self.tenant, event)?;
        // Spread as ingest's are, without the time to read the body.
        let queue = partition::queue_of(None, &event_id(event.n), event.body.len(), PARTITIONS);
        let key = topology::short(queue.routing_key(&self.tenant, Kind::of(event.n).event_type))?;
        let exchange = topology::short(topology::WEBHOOKS_EXCHANGE)?;
        let channel = &self.channels[self.next.fetch_add(1, Ordering::Relaxed) % CHANNELS];
        let options = BasicPublishOptions::default();
        let confirm = channel.basic_publish(exchange, key, options, &event.body, properties).await?;
        ensure!(confirm.await?.is_ack(), "RabbitMQ refuses a message");
        Ok(())
    }

    /// Throws away what was published.
    pub async fn purge(&self) -> anyhow::Result<()> {
        for queue in WorkQueue::all(PARTITIONS) {
            let queue = topology::short(queue.name(&self.tenant))?;
            self.channels[0].queue_purge(queue, QueuePurgeOptions::default()).await?;
        }
        Ok(())
    }
}

/// Just as ingest sets them.
fn properties(tenant: &str, event: &Event) -> anyhow::Result<BasicProperties> {
    let (now, kind) = (SystemTime::UNIX_EPOCH.elapsed()?, Kind::of(event.n));
    let text = |value: &str| AMQPValue::LongString(value.into());
    let traceparent = format!("00-{:032x}-{:016x}-01", fastrand::u128(1..), fastrand::u64(1..));
    let headers = [
        ("tenant", text(tenant)),
        ("stream", text(kind.stream)),
        ("received_at_ms", AMQPValue::LongLongInt(i64::try_from(now.as_millis())?)),
        ("signature", text("raw")),
        ("traceparent", text(&traceparent)),
        (topology::REASON_HEADER, text(topology::DELIVERY_LIMIT_REASON)),
    ];
    Ok(BasicProperties::default()
        .with_delivery_mode(shared::publisher::DELIVERY_MODE_PERSISTENT)
        .with_content_type(topology::short("application/json")?)
        .with_message_id(topology::short(event_id(event.n))?)
        .with_type(topology::short(kind.event_type)?)
        .with_timestamp(now.as_secs())
        .with_headers(topology::table(&headers)?))
}
