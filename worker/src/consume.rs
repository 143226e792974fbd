//! Takes a tenant's deliveries from RabbitMQ and hands each to its lane.

use std::future::pending;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::select_all;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer};
use shared::amqp::{self, Link, Session};
use shared::event::Stream;
use shared::partition::{self, WorkQueue};
use shared::telemetry::chain;
use shared::traces::{Span, SpanKind};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::acknowledge::{self, Done};
use crate::dead::{self, Dead};
use crate::decode::{Envelope, Event};
use crate::intake::{Intake, Sizes};
use crate::lane::{Content, Context, Job, Lane, Receipt};

/// The part of what is prefetched that may wait for earlier ones to be done before it is acknowledged.
const HELD_BACK: usize = 4;
/// Longest time for RabbitMQ to start a consumer: a queue whose leader is being elected may not answer at all.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for RabbitMQ to cancel a consumer.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for a channel to be closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between tries of a MongoDB for which nothing is consumed.
const PROBE_PAUSE: Duration = Duration::from_secs(2);
/// Pause before consuming is tried again.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// Why consuming ended.
#[derive(Debug, thiserror::Error)]
enum ConsumeError {
    #[error("the channel failed")]
    Channel(#[from] lapin::Error),
    #[error("RabbitMQ didn't answer in time")]
    NoAnswer(#[from] Elapsed),
    #[error("RabbitMQ has cancelled the consumer")]
    Cancelled,
    #[error("a lane has failed")]
    Lane,
}

/// Serves a tenant until told to stop, then finishes what is in hand.
pub async fn serve(context: Arc<Context>, link: Arc<Link>, stop: CancellationToken) {
    let mut sessions = link.sessions();
    let mut intake = Intake::Few;
    while !stop.is_cancelled() {
        if context.state.has_failed_for(context.settings.hold_timeout) {
            tokio::select! {
                () = until_mongodb_works(&context) => intake = Intake::Trial,
                () = stop.cancelled() => return,
            }
        }
        let session = tokio::select! {
            session = amqp::next_session(&mut sessions) => session,
            () = stop.cancelled() => return,
        };
        let Some(session) = session else { return };
        match consume(&context, &session, intake, &stop).await {
            Ok(Ended::Told) => {}
            Ok(Ended::HeldTooLong) => continue,
            Ok(Ended::Emptied) => {
                intake = Intake::Few;
                continue;
            }
            Err(error) => {
                warn!(tenant = context.tenant, error = chain(&error), "consuming ended, will start again");
                // With a new connection everything is declared again, in case somebody has deleted the queue.
                session.report_broken("consuming ended");
            }
        }
        tokio::select! {
            () = sleep(REOPEN_PAUSE) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Why consuming ended in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The worker stops, or the connection is gone.
    Told,
    /// What was in hand has been given back, since MongoDB has failed for so long.
    HeldTooLong,
    /// What was in hand is stored, and another intake is right from now on.
    Emptied,
}

/// Consumes until told to stop, or until the channel is gone, or until MongoDB has failed for too long.
async fn consume(
    context: &Arc<Context>,
    session: &Session,
    mut intake: Intake,
    stop: &CancellationToken,
) -> Result<Ended, ConsumeError> {
    let settings = &context.settings;
    let mut sizes = Sizes::default();
    let is_trial = intake == Intake::Trial;
    let proven = async { if is_trial { context.state.next_success().await } else { pending().await } };
    tokio::pin!(proven);
    let started = tokio::select! {
        started = timeout(START_TIMEOUT, start(context, session, intake)) => started,
        () = stop.cancelled() => return Ok(Ended::Told),
    };
    let (channel, mut consumers) = started??;
    // Cancelled when acknowledging has become impossible: RabbitMQ delivers again what is in hand.
    let lost = session.lost().child_token();
    let mut lanes = Lanes::start(context, intake, &lost);
    let mut ended = loop {
        let delivery = tokio::select! {
            delivery = next_of(&mut consumers) => delivery,
            () = stop.cancelled() => break Ok(Ended::Told),
            () = lost.cancelled() => break lost_by(session),
            () = context.state.failing_for(settings.hold_timeout) => break Ok(Ended::HeldTooLong),
            () = &mut proven => break Ok(Ended::Emptied),
        };
        match delivery {
            Some(Ok(delivery)) => {
                let bytes = delivery.data.len();
                lanes.take(context, delivery);
                match sizes.count(bytes, context.state.bytes_in_flight(), intake) {
                    None => {}
                    Some(Intake::Many) => {
                        intake = Intake::Many;
                        lanes.hold_back(intake.prefetch(settings));
                    }
                    Some(Intake::Few | Intake::Trial) => break Ok(Ended::Emptied),
                }
            }
            Some(Err(error)) => break Err(error.into()),
            None => break Err(ConsumeError::Cancelled),
        }
    };
    if let Ok(Ended::Emptied) = ended {
        let emptied = async {
            take_no_more(context, &channel, &mut consumers, &mut lanes, &lost).await;
            lanes.join(&context.tenant).await;
        };
        tokio::select! {
            () = emptied => if !lost.is_cancelled() {
                // RabbitMQ may have sent more before it cancelled them, which nobody gets: it takes that back.
                close(&channel).await?;
                return ended;
            },
            () = stop.cancelled() => ended = Ok(Ended::Told),
            () = lost.cancelled() => {}
            () = context.state.failing_for(settings.hold_timeout) => ended = Ok(Ended::HeldTooLong),
        }
        if lost.is_cancelled() {
            ended = lost_by(session);
        }
    }
    if stop.is_cancelled() && ended.is_ok() && !lost.is_cancelled() {
        finish(context, &channel, &mut consumers, &mut lanes, &lost).await;
        return ended;
    }
    let in_hand = context.state.in_flight();
    lost.cancel();
    if timeout(settings.shutdown_grace, lanes.join(&context.tenant)).await.is_err() {
        // What they may still write will come again, and count once.
        lanes.running.shutdown().await;
    }
    if let Ok(Ended::HeldTooLong) = ended {
        let (tenant, after) = (&context.tenant, settings.hold_timeout);
        warn!(tenant, in_hand, ?after, "MongoDB fails for too long, gave events back until it works");
        close(&channel).await?;
    }
    ended
}

/// Closes the channel: RabbitMQ takes back what is in hand. It counts that as a delivery, so in an outage this is done
/// once, but sooner than RabbitMQ would do it each time its patience ends.
async fn close(channel: &Channel) -> Result<(), ConsumeError> {
    Ok(timeout(CLOSE_TIMEOUT, channel.close(200, "done".into())).await??)
}

/// Why nothing can be acknowledged any more.
fn lost_by(session: &Session) -> Result<Ended, ConsumeError> {
    if session.lost().is_cancelled() { Ok(Ended::Told) } else { Err(ConsumeError::Lane) }
}

/// Tries MongoDB now and then, with small writes of our own, since nothing else does while nothing is consumed.
async fn until_mongodb_works(context: &Context) {
    loop {
        context.state.breaker().closed().await;
        match context.store.probe().await {
            Ok(()) => return context.state.mongodb_works(&context.tenant),
            Err(failure) => context.state.mongodb_fails(&context.tenant, failure.class(0), &failure),
        }
        sleep(PROBE_PAUSE).await;
    }
}

async fn start(
    context: &Context,
    session: &Session,
    intake: Intake,
) -> lapin::Result<(Channel, Vec<Consumer>)> {
    let (channel, prefetch) = (session.channel().await?, intake.prefetch(&context.settings));
    let mut consumers = Vec::new();
    for queue in WorkQueue::all(context.settings.partitions) {
        consumers.push(start_consumer(context, &channel, queue, prefetch).await?);
    }
    info!(tenant = context.tenant, prefetch, "consuming");
    Ok((channel, consumers))
}

async fn start_consumer(
    context: &Context,
    channel: &Channel,
    queue: WorkQueue,
    prefetch: usize,
) -> lapin::Result<Consumer> {
    let count = u16::try_from(prefetch).unwrap_or(u16::MAX);
    channel.basic_qos(count, BasicQosOptions::default()).await?;
    let queue = queue.name(&context.tenant).into();
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    channel.basic_consume(queue, ShortString::default(), options, arguments).await
}

/// What comes first to one of them.
async fn next_of(consumers: &mut [Consumer]) -> Option<lapin::Result<Delivery>> {
    select_all(consumers.iter_mut().map(StreamExt::next)).await.0
}

/// Takes no more from RabbitMQ, and finishes what it has sent already, within the grace period.
async fn finish(
    context: &Arc<Context>,
    channel: &Channel,
    consumers: &mut [Consumer],
    lanes: &mut Lanes,
    lost: &CancellationToken,
) {
    let in_hand = async {
        take_no_more(context, channel, consumers, lanes, lost).await;
        lanes.join(&context.tenant).await;
    };
    let finished = tokio::select! {
        finished = timeout(context.settings.shutdown_grace, in_hand) => finished.is_ok(),
        // What is held can't be written soon, and others wait for this process to end.
        () = context.state.breaker().not_closed() => false,
    };
    if !finished {
        let (tenant, in_flight) = (&context.tenant, context.state.in_flight());
        warn!(tenant, in_flight, "gave events back that could not be stored in time");
        lost.cancel();
    }
}

/// Cancels the consumers, and takes what they have been sent already.
async fn take_no_more(
    context: &Arc<Context>,
    channel: &Channel,
    consumers: &mut [Consumer],
    lanes: &mut Lanes,
    lost: &CancellationToken,
) {
    for consumer in consumers {
        let cancelled = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        if !matches!(timeout(CANCEL_TIMEOUT, cancelled).await, Ok(Ok(()))) {
            lost.cancel();
        }
        while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
            lanes.take(context, delivery);
        }
    }
}

/// The lanes of one channel.
struct Lanes {
    senders: Vec<mpsc::Sender<Job>>,
    held_back: Arc<AtomicUsize>,
    running: JoinSet<()>,
    lost: CancellationToken,
}

impl Lanes {
    /// Each lane's queue holds whatever may be in hand, so that a slow lane never stalls another.
    fn start(context: &Arc<Context>, intake: Intake, lost: &CancellationToken) -> Self {
        let capacity = Intake::Many.prefetch(&context.settings);
        let (done, to_acknowledge) = mpsc::channel(capacity);
        let (senders, running) = (Vec::new(), JoinSet::new());
        let mut lanes = Self { senders, held_back: Arc::default(), running, lost: lost.clone() };
        lanes.hold_back(intake.prefetch(&context.settings));
        for number in 0..usize::from(context.settings.partitions) {
            let (sender, jobs) = mpsc::channel(capacity);
            let (context, done, lost) = (context.clone(), done.clone(), lost.clone());
            let lane = Lane { context, number, done, lost, look_up: 0, in_turn: 0 };
            lanes.spawn(lane.run(jobs));
            lanes.senders.push(sender);
        }
        lanes.spawn(acknowledge::run(to_acknowledge, lanes.held_back.clone(), lost.clone()));
        lanes
    }

    fn hold_back(&self, prefetch: usize) {
        self.held_back.store(prefetch / HELD_BACK, Ordering::Relaxed);
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        // If it panics, what it has in hand must not wait for an acknowledgement for ever.
        let guard = self.lost.clone().drop_guard();
        self.running.spawn(async move {
            task.await;
            guard.disarm();
        });
    }

    fn take(&mut self, context: &Arc<Context>, delivery: Delivery) {
        let Delivery { data, properties, acker, redelivered, delivery_tag: tag, .. } = delivery;
        if redelivered {
            context.metrics.redelivered(&context.tenant);
        }
        let envelope = envelope(&context.tenant, &properties);
        // A defect that one body brings to light must not take with it all that is in hand.
        let decoded = catch_unwind(|| Event::decode(&data, envelope));
        let span = span(context, &properties, &data);
        let (done, in_hand) = (Done { tag, acker }, context.state.in_hand(data.len()));
        let receipt = Receipt { done, redelivered, properties, in_hand, span };
        let (lane, content) = match decoded {
            Ok(Ok(mut event)) => {
                if event.is_large() {
                    event.shed_members();
                }
                let lane = lane_of(event.chat_id.as_ref().unwrap_or(&event.key), self.senders.len());
                (lane, Content::Event(Box::new(event)))
            }
            Ok(Err(unusable)) => (0, Content::Rubbish(data, Dead::NoEvent, unusable.to_string())),
            Err(_) => (0, Content::Rubbish(data, Dead::Defect, "reading it panicked".to_owned())),
        };
        // There is room for everything that is prefetched, so this fails only if the lane is gone.
        let sender = self.senders.get(lane);
        if sender.is_none_or(|sender| sender.try_send(Job { content, receipt }).is_err()) {
            self.lost.cancel();
        }
    }

    async fn join(&mut self, tenant: &str) {
        self.senders.clear();
        while let Some(ended) = self.running.join_next().await {
            if let Err(panic) = ended {
                error!(tenant, error = chain(&panic), "a lane failed, its events will be delivered again");
            }
        }
    }
}

/// A span for a delivery, from now until it is settled.
fn span(context: &Context, properties: &BasicProperties, body: &[u8]) -> Option<Span> {
    let (tenant, caller) = (&context.tenant, dead::traceparent(properties));
    let queue = || partition::queue_of_body(tenant, body, context.settings.partitions).name(tenant);
    let name = || format!("process {}", queue());
    let mut span = context.traces.span(name, SpanKind::Consumer, SystemTime::now(), caller)?;
    span.set("messaging.system", "rabbitmq");
    span.set("messaging.destination.name", queue());
    let key = properties.message_id().as_ref().map(ToString::to_string);
    span.set("messaging.message.id", key.unwrap_or_default());
    span.set("penstock.tenant", context.tenant.clone());
    Some(span)
}

fn lane_of(name: &str, lanes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    usize::try_from(hasher.finish() % lanes.max(1) as u64).unwrap_or_default()
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
