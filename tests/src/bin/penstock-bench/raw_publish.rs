//! The ceiling of accepting: lapin alone, publishing what ingest would, with confirms, into a queue like the tenants'.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::ensure;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueuePurgeOptions};
use lapin::types::AMQPValue;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use shared::partition::{self, WorkQueue};
use shared::topology;
use tokio::task::JoinSet;

use crate::event::{Event, Maker};
use crate::generate::Limit;
use crate::mix::STREAMS;

/// As many as ingest has.
const CHANNELS: usize = 2;
/// As many as a tenant has unless told otherwise.
const PARTITIONS: u16 = 4;

/// Publishes past ingest.
#[derive(Debug)]
pub struct RawPublisher {
    tenant: String,
    channels: Vec<Channel>,
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
        Ok(Self { tenant: tenant.to_owned(), channels, _connection: connection })
    }

    /// Publishes with so many messages in flight. Gives the numbers of those that were confirmed.
    pub async fn publish(
        &self,
        maker: &Maker,
        in_flight: usize,
        limit: Limit,
    ) -> anyhow::Result<(BTreeSet<u64>, Duration)> {
        let (started, taken, mut tasks) = (Instant::now(), Arc::new(AtomicU64::new(0)), JoinSet::new());
        for slot in 0..in_flight {
            let (tenant, maker) = (self.tenant.clone(), maker.clone());
            let (channel, taken) = (self.channels[slot % CHANNELS].clone(), taken.clone());
            tasks.spawn(async move {
                let mut confirmed = Vec::new();
                while started.elapsed() < limit.time && taken.fetch_add(1, Ordering::Relaxed) < limit.events {
                    let event = maker.make();
                    publish(&channel, &tenant, &event).await?;
                    confirmed.push(event.n);
                }
                anyhow::Ok(confirmed)
            });
        }
        let mut all = BTreeSet::new();
        while let Some(done) = tasks.join_next().await {
            all.extend(done??);
        }
        Ok((all, started.elapsed()))
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

async fn publish(channel: &Channel, tenant: &str, event: &Event) -> anyhow::Result<()> {
    let properties = properties(tenant, event)?;
    // Spread as ingest's are, without the time to read the body.
    let queue = partition::queue_of(None, &crate::mix::event_id(event.n), event.body.len(), PARTITIONS);
    let key = topology::short(queue.routing_key(tenant, event.kind().event_type()))?;
    let exchange = topology::short(topology::WEBHOOKS_EXCHANGE)?;
    let options = BasicPublishOptions::default();
    let confirm = channel.basic_publish(exchange, key, options, &event.body, properties).await?;
    ensure!(confirm.await?.is_ack(), "RabbitMQ refuses a message");
    Ok(())
}

/// Just as ingest sets them.
fn properties(tenant: &str, event: &Event) -> anyhow::Result<BasicProperties> {
    let now = SystemTime::UNIX_EPOCH.elapsed()?;
    let text = |value: &str| AMQPValue::LongString(value.into());
    let traceparent = format!("00-{:032x}-{:016x}-01", fastrand::u128(1..), fastrand::u64(1..));
    let headers = [
        ("tenant", text(tenant)),
        ("stream", text(STREAMS[event.kind().stream()])),
        ("received_at_ms", AMQPValue::LongLongInt(i64::try_from(now.as_millis())?)),
        ("signature", text("raw")),
        ("traceparent", text(&traceparent)),
        (topology::REASON_HEADER, text(topology::DELIVERY_LIMIT_REASON)),
    ];
    Ok(BasicProperties::default()
        .with_delivery_mode(shared::publisher::DELIVERY_MODE_PERSISTENT)
        .with_content_type(topology::short("application/json")?)
        .with_message_id(topology::short(crate::mix::event_id(event.n))?)
        .with_type(topology::short(event.kind().event_type())?)
        .with_timestamp(now.as_secs())
        .with_headers(topology::table(&headers)?))
}
