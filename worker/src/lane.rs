//! A lane writes batches one after the other. A conversation always takes the same lane, so that lanes
//! don't contend for its documents.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lapin::{Acker, BasicProperties};
use shared::event::UNKNOWN;
use shared::json::Unusable;
use shared::publisher::Publisher;
use shared::telemetry::chain;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::decode::Event;
use crate::failure::{Class, Failure};
use crate::metrics::{self, Metrics};
use crate::project::Outcome;
use crate::settings::Settings;
use crate::settle::{self, Dead, DeadLetter};
use crate::state::{InHand, TenantState};
use crate::store::Store;

/// Most bytes of bodies in a batch: two hundred usual ones. A batch has at least one event, whatever its size.
const MAX_BATCH_BYTES: usize = 256 << 10;
/// Most bytes of bodies, in KiB, that the lanes of a tenant work on at the same time. A body like `[0,0,0]` takes two
/// hundred times its size when it is parsed and made into documents.
pub const UNFOLDED_KIB: u32 = 1 << 10;
/// First and longest pause between attempts while MongoDB fails.
const HOLD: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Longest pause after a conflict with another writer.
const CONFLICT_PAUSE: Duration = Duration::from_millis(50);
/// A batch that missed the deadline so often, while others were written, is cut in half.
const MISSED_DEADLINES: u32 = 3;

/// A delivery on its way through a lane.
#[derive(Debug)]
pub struct Job {
    /// What it brought.
    pub content: Content,
    /// To settle it with.
    pub receipt: Receipt,
}

/// What a delivery brought.
#[derive(Debug)]
pub enum Content {
    /// An event.
    Event(Box<Event>),
    /// Something that is none, and why.
    Rubbish(Vec<u8>, Unusable),
}

/// What is left of a delivery without its body.
#[derive(Debug)]
pub struct Receipt {
    /// To acknowledge it with.
    pub acker: Acker,
    /// As they were received.
    pub properties: BasicProperties,
    /// Counts it as in hand.
    pub in_hand: InHand,
}

/// What the lanes of a tenant share.
#[derive(Debug)]
pub struct Context {
    /// The tenant's name.
    pub tenant: String,
    /// The settings.
    pub settings: Settings,
    /// The tenant's MongoDB.
    pub store: Store,
    /// For dead letters.
    pub publisher: Arc<Publisher>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// What others see of the tenant.
    pub state: Arc<TenantState>,
    /// Shared by the lanes: [`UNFOLDED_KIB`].
    pub memory: Semaphore,
}

/// Events that are written together, and the receipts of their deliveries in the same order.
#[derive(Debug, Default)]
struct Batch {
    events: Vec<Event>,
    receipts: Vec<Receipt>,
}

/// Works until the channel is closed and empty, or `lost` is cancelled.
pub async fn run(context: Arc<Context>, mut jobs: mpsc::Receiver<Job>, lost: CancellationToken) {
    while let Some(first) = jobs.recv().await {
        if lost.is_cancelled() {
            continue;
        }
        let (batch, rubbish) = gather(first, &mut jobs, &context.settings).await;
        if !batch.events.is_empty() {
            write_within_memory(&context, batch, &lost).await;
        }
        for (body, unusable, receipt) in rubbish {
            bury(&context, Dead::NoEvent, unusable.to_string(), (&body, &receipt), &lost).await;
        }
    }
}

/// A batch: what is there, and what comes while it lingers. Beside it what is no event.
async fn gather(
    first: Job,
    jobs: &mut mpsc::Receiver<Job>,
    settings: &Settings,
) -> (Batch, Vec<(Vec<u8>, Unusable, Receipt)>) {
    let deadline = tokio::time::Instant::now() + settings.batch_linger;
    let (mut batch, mut rubbish, mut bytes, mut next) = (Batch::default(), Vec::new(), 0, Some(first));
    while let Some(Job { content, receipt }) = next.take() {
        match content {
            Content::Event(event) => {
                bytes += event.body.len();
                batch.events.push(*event);
                batch.receipts.push(receipt);
            }
            Content::Rubbish(body, unusable) => {
                bytes += body.len();
                rubbish.push((body, unusable, receipt));
            }
        }
        if batch.events.len() < settings.batch_size && bytes < MAX_BATCH_BYTES {
            next = match jobs.try_recv() {
                Ok(job) => Some(job),
                Err(_) => timeout_at(deadline, jobs.recv()).await.ok().flatten(),
            };
        }
    }
    (batch, rubbish)
}

/// Unfolds a batch when there is memory for it, and writes it.
async fn write_within_memory(context: &Context, mut batch: Batch, lost: &CancellationToken) {
    let bytes: usize = batch.events.iter().map(|event| event.body.len()).sum();
    let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).saturating_add(1).min(UNFOLDED_KIB);
    let memory = tokio::select! {
        memory = context.memory.acquire_many(kib) => memory,
        () = lost.cancelled() => return,
    };
    batch.events.iter_mut().for_each(Event::recall_members);
    write(context, batch, lost).await;
    drop(memory);
}

/// Writes a batch, holding it as long as MongoDB fails. If MongoDB refuses it, the halves are written by
/// themselves, until what is refused stands alone and goes to the dead letters.
async fn write(context: &Context, batch: Batch, lost: &CancellationToken) {
    let mut batches = vec![batch];
    while let Some(Batch { events, receipts }) = batches.pop() {
        let events: Arc<[Event]> = events.into();
        match hold_until_written(context, &events, lost).await {
            Written::Done(outcomes) => {
                settle::acknowledge(receipts.iter().map(|receipt| &receipt.acker)).await;
                count(context, &events, &outcomes);
            }
            Written::Refused(failure) if events.len() == 1 => {
                let letter = (events[0].body.as_bytes(), &receipts[0]);
                bury(context, Dead::RefusedByMongodb, failure.to_string(), letter, lost).await;
            }
            Written::Refused(_) | Written::TooSlow => batches.extend(halves(&events, receipts)),
            Written::GivenUp => return,
        }
    }
}

/// The second half first, since the last one is taken next.
fn halves(events: &[Event], mut receipts: Vec<Receipt>) -> [Batch; 2] {
    let middle = events.len() / 2;
    let second = Batch { events: events[middle..].to_vec(), receipts: receipts.split_off(middle) };
    [second, Batch { events: events[..middle].to_vec(), receipts }]
}

enum Written {
    Done(Vec<Outcome>),
    Refused(Failure),
    TooSlow,
    GivenUp,
}

async fn hold_until_written(context: &Context, events: &Arc<[Event]>, lost: &CancellationToken) -> Written {
    let (mut pause, mut conflicts, mut missed) = (HOLD.0, 0, 0);
    let others_before = context.state.successes();
    while !lost.is_cancelled() {
        let started = Instant::now();
        let failure = match context.store.write(events.clone()).await {
            Ok(outcomes) => {
                context.metrics.committed(events.len(), started.elapsed());
                context.state.mongodb_works(&context.tenant);
                return Written::Done(outcomes);
            }
            Err(failure) => failure,
        };
        let class = failure.class(conflicts);
        conflicts = if class == Class::Conflict { conflicts + 1 } else { 0 };
        let before_next = match class {
            Class::Data => {
                context.state.mongodb_works(&context.tenant);
                return Written::Refused(failure);
            }
            Class::Conflict => {
                debug!(tenant = context.tenant, conflicts, error = chain(&failure), "conflict");
                CONFLICT_PAUSE.mul_f64(fastrand::f64())
            }
            Class::Infrastructure | Class::Configuration => {
                missed += u32::from(matches!(failure, Failure::TimedOut(_)));
                let others_pass = context.state.successes() > others_before;
                if missed >= MISSED_DEADLINES && others_pass && events.len() > 1 {
                    return Written::TooSlow;
                }
                context.state.mongodb_fails(&context.tenant, class, &failure);
                let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
                pause = (pause * 2).min(HOLD.1);
                jittered
            }
        };
        context.metrics.retries.inc();
        tokio::select! {
            () = sleep(before_next) => {}
            () = lost.cancelled() => {}
        }
    }
    Written::GivenUp
}

async fn bury(
    context: &Context,
    reason: Dead,
    error: String,
    (body, receipt): (&[u8], &Receipt),
    lost: &CancellationToken,
) {
    let letter = DeadLetter { tenant: &context.tenant, reason, error, properties: &receipt.properties, body };
    if settle::bury(&context.publisher, &letter, lost).await {
        settle::acknowledge(std::iter::once(&receipt.acker)).await;
        let event_type = receipt.properties.kind().as_ref().map(ToString::to_string);
        let label =
            if reason == Dead::NoEvent { UNKNOWN } else { shared::event::type_label(event_type.as_deref()) };
        context.metrics.dead_lettered(&context.tenant, label, reason);
    }
}

fn count(context: &Context, events: &[Event], outcomes: &[Outcome]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for (event, outcome) in events.iter().zip(outcomes) {
        let outcome = match outcome {
            Outcome::Stored => {
                let received = u64::try_from(event.received_at_ms).unwrap_or_default();
                context.metrics.stored(&context.tenant, now.saturating_sub(Duration::from_millis(received)));
                metrics::STORED
            }
            Outcome::Duplicate => metrics::DUPLICATE,
        };
        context.metrics.settled(&context.tenant, event.label(), outcome);
    }
}
