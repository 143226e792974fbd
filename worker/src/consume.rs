//! Takes a tenant's deliveries from RabbitMQ and hands each to its lane.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer};
use shared::amqp::{self, Link, Session};
use shared::event::{Stream, UNKNOWN};
use shared::telemetry::chain;
use shared::topology;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::decode::{Envelope, Event};
use crate::lane::{self, Context, Job};
use crate::settle::{self, Dead, DeadLetter};

/// Most deliveries in hand per tenant: enough to fill the next batch of every lane while one is written.
const MAX_PREFETCH: usize = 2000;
/// Pause before a channel that failed is opened again.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// Serves a tenant until told to stop, then finishes what is in hand.
pub async fn serve(context: Arc<Context>, link: Arc<Link>, stop: CancellationToken) {
    let mut sessions = link.sessions();
    while !stop.is_cancelled() {
        let session = tokio::select! {
            session = amqp::next_session(&mut sessions) => session,
            () = stop.cancelled() => return,
        };
        let Some(session) = session else { return };
        match consume(&context, &session, &stop).await {
            Ok(()) => {}
            Err(error) => {
                let error = chain(&error);
                warn!(tenant = context.tenant, error, "consuming ended, will start again");
            }
        }
        tokio::select! {
            () = sleep(REOPEN_PAUSE) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Consumes until told to stop, or until the channel is gone.
async fn consume(context: &Arc<Context>, session: &Session, stop: &CancellationToken) -> lapin::Result<()> {
    let settings = &context.settings;
    let prefetch = (2 * settings.lanes * settings.batch_size).min(MAX_PREFETCH);
    let (channel, mut consumer) = start(context, session, prefetch).await?;
    // Cancelled when acknowledging has become impossible: RabbitMQ delivers again what is in hand.
    let lost = session.lost().child_token();
    let mut lanes = Lanes::start(context, prefetch, &lost);
    let ended = loop {
        let delivery = tokio::select! {
            delivery = consumer.next() => delivery,
            () = stop.cancelled() => break Ok(()),
            () = lost.cancelled() => break Ok(()),
        };
        match delivery {
            Some(Ok(delivery)) => lanes.take(context, delivery, &lost).await,
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        }
    };
    if stop.is_cancelled() && !lost.is_cancelled() {
        finish(context, &channel, &mut consumer, lanes, &lost).await;
    } else {
        lost.cancel();
        lanes.join().await;
    }
    ended
}

async fn start(context: &Context, session: &Session, prefetch: usize) -> lapin::Result<(Channel, Consumer)> {
    let channel = session.channel().await?;
    let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let queue = topology::work_queue(&context.tenant).into();
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let consumer = channel.basic_consume(queue, ShortString::default(), options, arguments).await?;
    info!(tenant = context.tenant, prefetch, "consuming");
    Ok((channel, consumer))
}

/// Takes no more from RabbitMQ, and finishes what it has sent already, within the grace period.
async fn finish(
    context: &Arc<Context>,
    channel: &Channel,
    consumer: &mut Consumer,
    mut lanes: Lanes,
    lost: &CancellationToken,
) {
    let in_hand = async {
        if channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await.is_err() {
            lost.cancel();
        }
        while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
            lanes.take(context, delivery, lost).await;
        }
        lanes.join().await;
    };
    if timeout(context.settings.shutdown_grace, in_hand).await.is_err() {
        let (tenant, in_flight) = (&context.tenant, context.state.in_flight());
        warn!(tenant, in_flight, "gave events back that could not be stored in time");
        lost.cancel();
    }
}

/// The lanes of one consumer.
struct Lanes {
    senders: Vec<mpsc::Sender<Job>>,
    running: JoinSet<()>,
}

impl Lanes {
    /// Each lane's queue holds whatever is prefetched, so that a slow lane never stalls another.
    fn start(context: &Arc<Context>, capacity: usize, lost: &CancellationToken) -> Self {
        let mut running = JoinSet::new();
        let senders = (0..context.settings.lanes)
            .map(|_| {
                let (sender, jobs) = mpsc::channel(capacity);
                running.spawn(lane::run(context.clone(), jobs, lost.clone()));
                sender
            })
            .collect();
        Self { senders, running }
    }

    async fn take(&mut self, context: &Arc<Context>, delivery: Delivery, lost: &CancellationToken) {
        let Delivery { data, properties, acker, .. } = delivery;
        context.state.received(1);
        let envelope = envelope(&context.tenant, &properties);
        match Event::decode(&data, envelope) {
            Ok(event) => {
                let lane = lane_of(event.chat_id.as_ref().unwrap_or(&event.key), self.senders.len());
                let job = Job { event, acker, properties };
                if self.senders[lane].send(job).await.is_err() {
                    context.state.settled(1);
                }
            }
            Err(unusable) => {
                let letter = DeadLetter {
                    tenant: &context.tenant,
                    reason: Dead::NoEvent,
                    error: unusable.to_string(),
                    attempts: 1,
                    properties: &properties,
                    body: &data,
                };
                if settle::bury(&context.publisher, &letter, lost).await {
                    settle::acknowledge(std::iter::once(&acker)).await;
                    context.metrics.dead_lettered(&context.tenant, UNKNOWN, Dead::NoEvent);
                }
                context.state.settled(1);
            }
        }
    }

    async fn join(mut self) {
        drop(self.senders);
        while self.running.join_next().await.is_some() {}
    }
}

fn lane_of(name: &str, lanes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    usize::try_from(hasher.finish() % lanes as u64).unwrap_or_default()
}

/// What ingest wrote into the headers; with defaults where somebody else has published.
fn envelope<'a>(tenant: &'a str, properties: &'a BasicProperties) -> Envelope<'a> {
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    let header = |name: &str| headers.and_then(|headers| headers.get(name));
    let text = |name: &str| match header(name) {
        Some(AMQPValue::LongString(text)) => std::str::from_utf8(text.as_bytes()).ok(),
        Some(AMQPValue::ShortString(text)) => Some(text.as_str()),
        _ => None,
    };
    let sent_at = || i64::try_from((*properties.timestamp())?).ok()?.checked_mul(1000);
    let received_at_ms = match header("received_at_ms") {
        Some(AMQPValue::LongLongInt(ms)) => Some(*ms),
        Some(AMQPValue::Timestamp(ms)) => i64::try_from(*ms).ok(),
        _ => None,
    };
    Envelope {
        tenant,
        stream: text("stream").map_or(Stream::Any, Stream::from_name),
        received_at_ms: received_at_ms.or_else(sent_at).unwrap_or_else(now_ms),
        signature: text("signature").unwrap_or("unknown"),
    }
}

fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}
