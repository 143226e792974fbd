//! A lane writes batches one after the other. A conversation always takes the same lane, so that lanes
//! don't contend for its documents.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lapin::BasicProperties;
use shared::event::UNKNOWN;
use shared::publisher::Publisher;
use shared::telemetry::chain;
use shared::traces::{Span, Traces};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::acknowledge::Done;
use crate::attempts::{Attempts, Next};
use crate::dead::{self, Dead, DeadLetter};
use crate::decode::Event;
use crate::failure::{Class, Failure};
use crate::metrics::{self, Metrics};
use crate::project::Outcome;
use crate::settings::Settings;
use crate::state::{InHand, TenantState};
use crate::store::Store;
use crate::transaction::Work;

/// Most bytes of bodies in a batch: more than two hundred usual ones. A batch has at least one event, whatever its size.
const MAX_BATCH_BYTES: usize = 512 << 10;

/// A batch waits for more events this many times as long as the last one took to be written: a transaction costs much,
/// however few events share it, so the slower they get, the fewer there should be.
const LINGER_FACTOR: u32 = 2;

/// So many batches are written in turn with other workers after one that conflicted with another: with a backlog, batches of two workers
/// nearly always have a conversation in common, and a transaction that is refused late has cost most of what a good one does.
const IN_TURN: u32 = 10;
/// After so many conflicts a batch doesn't wait for its turn any more: a worker that was killed in its turn has it for a minute.
const MOST_TURNS: u32 = 40;

/// So many batches are looked up first after one with something that was there already. Others are taken to be new: that saves
/// a twentieth of the work, more if batches are small, and if it isn't so, a duplicate key ends the transaction.
const LOOKED_UP: u32 = 10;

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
    /// Something that can't be read as one, and why.
    Rubbish(Vec<u8>, Dead, String),
}

/// What is left of a delivery without its body.
#[derive(Debug)]
pub struct Receipt {
    /// To acknowledge it with.
    pub done: Done,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    /// As they were received.
    pub properties: BasicProperties,
    /// Counts it as in hand.
    pub in_hand: InHand,
    /// Ends when it is settled.
    pub span: Option<Span>,
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
    /// For spans of deliveries.
    pub traces: Arc<Traces>,
    /// What others see of the tenant.
    pub state: Arc<TenantState>,
}

/// Events that are written together, and the receipts of their deliveries in the same order.
#[derive(Debug, Default)]
struct Batch {
    events: Vec<Event>,
    receipts: Vec<Receipt>,
}

/// The body of something that can't be read as an event, why, and the receipt.
type Rubbish = (Vec<u8>, Dead, String, Receipt);

/// A lane: what it works with, and what it remembers.
#[derive(Debug)]
pub struct Lane {
    /// What it shares with the tenant's other lanes.
    pub context: Arc<Context>,
    /// Its place among them. The lanes of this number have the same conversations in all workers that have as many lanes.
    pub number: usize,
    /// Where deliveries go that are to be acknowledged. Has room for all that are in hand.
    pub done: mpsc::Sender<Done>,
    /// Cancelled when nothing can be acknowledged any more.
    pub lost: CancellationToken,
    /// So many batches are to be looked up before one is taken to be new again.
    pub look_up: u32,
    /// So many batches are to be written in turn with other workers.
    pub in_turn: u32,
}

impl Lane {
    /// Works until `jobs` is closed and empty, or `lost` is cancelled.
    pub async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut linger = Duration::ZERO;
        while let Some(first) = jobs.recv().await {
            if self.lost.is_cancelled() {
                continue;
            }
            let (batch, rubbish) = gather(first, &mut jobs, &self.context.settings, linger).await;
            if !batch.events.is_empty() {
                let started = Instant::now();
                self.write(batch).await;
                linger = LINGER_FACTOR * started.elapsed();
            }
            for (body, reason, error, receipt) in rubbish {
                self.bury(reason, error, &body, receipt).await;
            }
        }
    }

    /// Writes a batch, holding it as long as MongoDB fails. If MongoDB refuses it, the halves are written by
    /// themselves, until what is refused stands alone and goes to the dead letters.
    async fn write(&mut self, batch: Batch) {
        let mut batches = vec![batch];
        while let Some(Batch { events, mut receipts }) = batches.pop() {
            let events: Arc<[Event]> = events.into();
            if receipts.iter().any(|receipt| receipt.redelivered) {
                self.look_up = LOOKED_UP;
            }
            match self.hold_until_written(&events).await {
                Written::Done(outcomes) => self.stored(&events, receipts, &outcomes),
                Written::Refused(failure) if events.len() == 1 => {
                    let reason = match failure {
                        Failure::Panicked => Dead::Defect,
                        _ => Dead::RefusedByMongodb,
                    };
                    if let Some(receipt) = receipts.pop() {
                        self.bury(reason, failure.to_string(), events[0].body.as_bytes(), receipt).await;
                    }
                }
                Written::Refused(_) | Written::TooSlow => batches.extend(halves(&events, receipts)),
                Written::GivenUp => return,
            }
        }
    }

    async fn hold_until_written(&mut self, events: &Arc<[Event]>) -> Written {
        let Self { context, number, lost, look_up, in_turn, .. } = self;
        let (mut attempts, successes) = (Attempts::default(), context.state.successes());
        loop {
            // While MongoDB is left alone, the batch is held, and the queue keeps what would come after it.
            tokio::select! {
                () = context.state.breaker().closed() => {}
                () = lost.cancelled() => return Written::GivenUp,
            }
            let started = Instant::now();
            let work = if *look_up > 0 { Work::Apply } else { Work::ApplyNew };
            let turn = (*in_turn > 0 && attempts.conflicts() < MOST_TURNS).then_some(*number);
            let failure = match context.store.write(events.clone(), work, turn, false).await {
                Ok(written) => {
                    // Whoever has the turn and doesn't give it back need not be waited for by every batch.
                    *in_turn = turn.map_or(0, |_| in_turn.saturating_sub(1));
                    *look_up = if written.repeated { LOOKED_UP } else { look_up.saturating_sub(1) };
                    context.metrics.committed(events.len(), started.elapsed());
                    context.state.mongodb_works(&context.tenant);
                    return Written::Done(written.outcomes);
                }
                Err(failure) if work == Work::ApplyNew && failure.is_duplicate_key() => {
                    *look_up = LOOKED_UP;
                    continue;
                }
                Err(failure) => failure,
            };
            // A single event can't be halved.
            let others_pass = events.len() > 1 && context.state.successes() > successes;
            let (class, next) = attempts.failed(&failure, others_pass);
            match class {
                Class::Data => context.state.mongodb_works(&context.tenant),
                Class::Conflict => {
                    *in_turn = IN_TURN;
                    debug!(tenant = context.tenant, error = chain(&failure), "conflict");
                }
                _ => context.state.mongodb_fails(&context.tenant, class, &failure),
            }
            let pause = match next {
                Next::Again(pause) => pause,
                Next::Halve => return Written::TooSlow,
                Next::Refuse => return Written::Refused(failure),
            };
            context.metrics.retries.inc();
            tokio::select! {
                () = sleep(pause) => {}
                () = lost.cancelled() => return Written::GivenUp,
            }
        }
    }

    async fn bury(&self, reason: Dead, error: String, body: &[u8], mut receipt: Receipt) {
        let Self { context, lost, .. } = self;
        let letter =
            DeadLetter { tenant: &context.tenant, reason, error, properties: &receipt.properties, body };
        if dead::bury(&context.publisher, &letter, lost).await {
            let event_type = receipt.properties.kind().as_ref().map(ToString::to_string);
            let label = if reason == Dead::NoEvent {
                UNKNOWN
            } else {
                shared::event::type_label(event_type.as_deref())
            };
            context.metrics.dead_lettered(&context.tenant, label, reason);
            if let Some(span) = &mut receipt.span {
                span.set("penstock.outcome", metrics::DEAD);
                span.fail(reason.name());
            }
            self.acknowledge(receipt.done);
        }
    }

    fn stored(&self, events: &[Event], receipts: Vec<Receipt>, outcomes: &[Outcome]) {
        let (context, now) =
            (&self.context, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        for ((event, receipt), outcome) in events.iter().zip(receipts).zip(outcomes) {
            let outcome = match outcome {
                Outcome::Stored => {
                    let received = u64::try_from(event.received_at_ms).unwrap_or_default();
                    context
                        .metrics
                        .stored(&context.tenant, now.saturating_sub(Duration::from_millis(received)));
                    metrics::STORED
                }
                Outcome::Duplicate => metrics::DUPLICATE,
            };
            context.metrics.settled(&context.tenant, event.label(), outcome);
            if let Some(mut span) = receipt.span {
                span.set("penstock.outcome", outcome);
            }
            let trace_id = dead::trace_id(&receipt.properties);
            debug!(tenant = context.tenant, event_key = event.key, trace_id, outcome, "settled");
            self.acknowledge(receipt.done);
        }
    }

    fn acknowledge(&self, done: Done) {
        // There is room for all that are in hand, so this fails only if nothing can be acknowledged any more.
        if self.done.try_send(done).is_err() {
            self.lost.cancel();
        }
    }
}

/// A batch: what is there, and what comes while it lingers. Beside it what is no event.
async fn gather(
    first: Job,
    jobs: &mut mpsc::Receiver<Job>,
    settings: &Settings,
    linger: Duration,
) -> (Batch, Vec<Rubbish>) {
    let deadline = tokio::time::Instant::now() + linger.min(settings.batch_linger);
    let (mut batch, mut rubbish, mut bytes, mut next) = (Batch::default(), Vec::new(), 0, Some(first));
    while let Some(Job { content, receipt }) = next.take() {
        match content {
            Content::Event(event) => {
                bytes += event.body.len();
                batch.events.push(*event);
                batch.receipts.push(receipt);
            }
            Content::Rubbish(body, reason, error) => {
                bytes += body.len();
                rubbish.push((body, reason, error, receipt));
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
