//! A lane writes batches one after the other. A conversation always takes the same lane, so that lanes
//! don't contend for its documents.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lapin::Acker;
use lapin::BasicProperties;
use shared::publisher::Publisher;
use shared::telemetry::chain;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::decode::Event;
use crate::failure::{Class, Failure};
use crate::metrics::{self, Metrics};
use crate::project::Outcome;
use crate::settings::Settings;
use crate::settle::{self, Dead, DeadLetter};
use crate::state::TenantState;
use crate::store::Store;

/// Most bytes of bodies in a batch, so that what they unfold to fits MongoDB's commands. A batch has at
/// least one event, whatever its size.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// First and longest pause between attempts while MongoDB fails.
const HOLD: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Longest pause after a conflict with another writer.
const CONFLICT_PAUSE: Duration = Duration::from_millis(50);

/// An event and the delivery it came with.
#[derive(Debug)]
pub struct Job {
    /// The event.
    pub event: Event,
    /// To acknowledge it with.
    pub acker: Acker,
    /// As they were received.
    pub properties: BasicProperties,
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
}

/// Works until the channel is closed and empty, or `lost` is cancelled.
pub async fn run(context: Arc<Context>, mut jobs: mpsc::Receiver<Job>, lost: CancellationToken) {
    while let Some(first) = jobs.recv().await {
        let batch = gather(first, &mut jobs, &context.settings).await;
        let taken = batch.len();
        if !lost.is_cancelled() {
            write(&context, batch, &lost).await;
        }
        context.state.settled(taken);
    }
}

/// A batch: what is there, and what comes while it lingers.
async fn gather(first: Job, jobs: &mut mpsc::Receiver<Job>, settings: &Settings) -> Vec<Job> {
    let deadline = tokio::time::Instant::now() + settings.batch_linger;
    let mut bytes = first.event.body.len();
    let mut batch = vec![first];
    while batch.len() < settings.batch_size && bytes < MAX_BATCH_BYTES {
        let next = match jobs.try_recv() {
            Ok(job) => Some(job),
            Err(_) => timeout_at(deadline, jobs.recv()).await.ok().flatten(),
        };
        let Some(job) = next else { break };
        bytes += job.event.body.len();
        batch.push(job);
    }
    batch
}

/// Writes a batch, holding it as long as MongoDB fails. If MongoDB refuses it, the halves are written by
/// themselves, until what is refused stands alone and goes to the dead letters.
async fn write(context: &Context, batch: Vec<Job>, lost: &CancellationToken) {
    let mut batches = vec![batch];
    while let Some(batch) = batches.pop() {
        match hold_until_written(context, &batch, lost).await {
            Written::Done(outcomes) => {
                settle::acknowledge(batch.iter().map(|job| &job.acker)).await;
                count(context, &batch, &outcomes);
            }
            Written::Refused(failure, attempts) => match <[Job; 1]>::try_from(batch) {
                Ok([job]) => bury(context, &job, &failure, attempts, lost).await,
                Err(mut batch) => {
                    let half = batch.split_off(batch.len() / 2);
                    batches.extend([half, batch]);
                }
            },
            Written::GivenUp => return,
        }
    }
}

enum Written {
    Done(Vec<Outcome>),
    Refused(Failure, u32),
    GivenUp,
}

async fn hold_until_written(context: &Context, batch: &[Job], lost: &CancellationToken) -> Written {
    let events: Arc<[Event]> = batch.iter().map(|job| job.event.clone()).collect();
    let mut pause = HOLD.0;
    for attempt in 1_u32.. {
        let started = Instant::now();
        let failure = match context.store.write(events.clone()).await {
            Ok(outcomes) => {
                context.metrics.committed(events.len(), started.elapsed());
                context.state.mongodb_works(&context.tenant);
                return Written::Done(outcomes);
            }
            Err(failure) => failure,
        };
        let before_next = match failure.class(attempt) {
            Class::Data => {
                context.state.mongodb_works(&context.tenant);
                return Written::Refused(failure, attempt);
            }
            Class::Conflict => {
                debug!(tenant = context.tenant, attempt, error = chain(&failure), "conflict");
                CONFLICT_PAUSE.mul_f64(fastrand::f64())
            }
            class @ (Class::Infrastructure | Class::Configuration) => {
                context.state.mongodb_fails(&context.tenant, class, &failure);
                let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
                pause = (pause * 2).min(HOLD.1);
                jittered
            }
        };
        context.metrics.retries.inc();
        tokio::select! {
            () = sleep(before_next) => {}
            () = lost.cancelled() => break,
        }
    }
    Written::GivenUp
}

async fn bury(context: &Context, job: &Job, failure: &Failure, attempts: u32, lost: &CancellationToken) {
    let letter = DeadLetter {
        tenant: &context.tenant,
        reason: Dead::RefusedByMongodb,
        error: failure.to_string(),
        attempts,
        properties: &job.properties,
        body: job.event.body.as_bytes(),
    };
    if settle::bury(&context.publisher, &letter, lost).await {
        settle::acknowledge(std::iter::once(&job.acker)).await;
        context.metrics.dead_lettered(&context.tenant, job.event.label(), Dead::RefusedByMongodb);
    }
}

fn count(context: &Context, batch: &[Job], outcomes: &[Outcome]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for (job, outcome) in batch.iter().zip(outcomes) {
        let outcome = match outcome {
            Outcome::Stored => {
                let received = u64::try_from(job.event.received_at_ms).unwrap_or_default();
                context.metrics.stored(&context.tenant, now.saturating_sub(Duration::from_millis(received)));
                metrics::STORED
            }
            Outcome::Duplicate => metrics::DUPLICATE,
        };
        context.metrics.settled(&context.tenant, job.event.label(), outcome);
    }
}
