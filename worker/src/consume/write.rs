//! Writes a batch, for as long as it takes, until each of its deliveries is settled.
//!
//! While MongoDB fails, the batch is held. If MongoDB works and the batch still can't be written, it is
//! halved again and again: events that can be written are written first, and a single event that can't is
//! dead-lettered. So no event delays the others of its queue for longer than two minutes.

use std::time::Duration;

use shared::telemetry::chain;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use super::QueueContext;
use super::intake::{Batch, IntakeError};
use super::parts::{Left, Part, STUCK_TIMEOUT};
use super::settle::{Settle, Unstorable};
use crate::dead::Reason;
use crate::project::Outcome;
use crate::store::abandoned;
use crate::store::failure::{Class, Failure};
use crate::store::retries::{Next, Novelty, Refusals};
use crate::store::transaction::{self, Work, Written};

/// First and longest pause between rounds of attempts to write what is stuck.
const ROUND_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Pause between tries of the first event of a queue that holds, since MongoDB refuses one event after the
/// other.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// How often the worker looks for open transactions of killed workers, while documents are locked.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The result of an attempt.
enum Attempted {
    /// All of it is stored.
    Stored(Written),
    /// MongoDB doesn't work, or another writer was faster.
    Again(Duration),
    /// MongoDB works, so the events are the cause.
    Suspect(Class, Failure),
}

/// Writes batches of one queue, over one channel.
pub struct Write<'a> {
    /// The queue.
    pub context: &'a QueueContext,
    /// Settles the deliveries.
    pub settle: Settle<'a>,
    /// What MongoDB has refused since it last stored something of this queue.
    pub refusals: &'a mut Refusals,
    /// Whether the events are new.
    pub novelty: &'a mut Novelty,
    /// When the worker last looked for abandoned transactions.
    pub looked_at: Option<Instant>,
}

impl Write<'_> {
    /// Writes a batch and settles its deliveries. Fails only if nothing can be settled any more.
    pub async fn batch(&mut self, batch: Batch) -> Result<(), IntakeError> {
        let Batch { events, receipts, undecodable } = batch;
        self.settle.undecodable(undecodable).await?;
        if events.is_empty() {
            return Ok(());
        }
        let mut whole = Part::new(events, receipts);
        let started = Instant::now();
        whole.is_new =
            whole.receipts.iter().all(|receipt| !receipt.redelivered) && self.novelty.is_presumed();
        if whole.is_new
            && let Some(outcomes) = self.together(&whole).await
        {
            self.refusals.record_success();
            return self.settle.stored_all(&whole.events, whole.receipts, &outcomes).await;
        }
        loop {
            match self.attempt(&mut whole, started.elapsed()).await {
                Attempted::Stored(written) => {
                    self.refusals.record_success();
                    return self.settle.stored_all(&whole.events, whole.receipts, &written.outcomes).await;
                }
                Attempted::Again(pause) => sleep(pause).await,
                Attempted::Suspect(class, failure) => return self.part_by_part(whole, class, failure).await,
            }
        }
    }

    /// One attempt in a transaction with other queues' batches, and the outcome of each event; none if the
    /// batch needs a transaction of its own.
    async fn together(&self, whole: &Part) -> Option<Vec<Outcome>> {
        let QueueContext { tenant, together, .. } = self.context;
        tenant.state.breaker().closed().await;
        together.write(&whole.events, tenant.settings.batch_size).await
    }

    /// One attempt, as soon as the breaker is closed.
    async fn attempt(&mut self, part: &mut Part, elapsed: Duration) -> Attempted {
        let context = self.context;
        let tenant = &context.tenant;
        tenant.state.breaker().closed().await;
        let started = Instant::now();
        let work = if part.is_new { Work::ApplyNew } else { Work::Apply };
        let failure = match transaction::attempt(&tenant.store, part.events.clone(), work, false).await {
            Ok(written) => {
                tenant.metrics.committed(part.events.len(), started.elapsed());
                tenant.state.record_success();
                return Attempted::Stored(written);
            }
            Err(failure) => failure,
        };
        if part.is_new && failure.is_duplicate_key() {
            part.is_new = false;
            self.novelty.is_refuted();
            return Attempted::Again(Duration::ZERO);
        }
        let (class, next) = part.attempts.failed(&failure, elapsed + started.elapsed());
        debug!(
            tenant = tenant.name,
            queue = context.name,
            class = class.name(),
            error = chain(&failure),
            "not written"
        );
        tenant.state.record_failure(class, &failure);
        tenant.metrics.retries.inc();
        match next {
            Next::HalveIfProbed(pause) if class == Class::Conflict && self.end_abandoned().await => {
                Attempted::Again(pause)
            }
            Next::HalveIfProbed(_) if tenant.probe().await => Attempted::Suspect(class, failure),
            Next::Again(pause) | Next::HalveIfProbed(pause) => Attempted::Again(pause),
            Next::Halve => Attempted::Suspect(class, failure),
        }
    }

    /// Ends transactions that killed workers have left open, and says whether there were any. Looks for them
    /// now and then.
    async fn end_abandoned(&mut self) -> bool {
        if self.looked_at.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
            return false;
        }
        self.looked_at = Some(Instant::now());
        let (tenant, queue) = (&self.context.tenant, &self.context.name);
        match abandoned::end(&tenant.store).await {
            Ok(0) => false,
            Ok(transactions) => {
                warn!(
                    tenant = tenant.name,
                    queue, transactions, "a worker that is gone had left documents locked, ended that"
                );
                tenant.metrics.ended_abandoned(&tenant.name, transactions);
                true
            }
            Err(failure) => {
                debug!(
                    tenant = tenant.name,
                    queue,
                    error = chain(&failure),
                    "can't look for abandoned transactions"
                );
                false
            }
        }
    }

    /// Writes what can be written of a batch that can't be written as a whole, and dead-letters the rest.
    async fn part_by_part(&mut self, whole: Part, class: Class, failure: Failure) -> Result<(), IntakeError> {
        if class == Class::Conflict {
            let (tenant, queue, events) = (&self.context.tenant.name, &self.context.name, whole.events.len());
            warn!(
                tenant,
                queue,
                events,
                "another transaction holds documents locked, writing the events that don't need them"
            );
        }
        let mut left = Left::of(whole, class, failure);
        loop {
            self.rounds(&mut left).await?;
            let Some((part, reason, failure)) = left.refused.pop_front() else { break };
            // If ten in a row are refused with the same code, and none is stored in between, the cause isn't
            // the events.
            if !left.any_stored && self.refusals.record_refusal(failure.code()) {
                self.hold(part, &failure).await?;
                left.parts.extend(left.refused.drain(..).map(|(part, ..)| part));
            } else {
                self.dead_letter(part, reason, &failure).await?;
            }
        }
        if left.any_stored {
            self.refusals.record_success();
        }
        Ok(())
    }

    /// One attempt for each part a round, until all are stored or refused: so none waits for one that is
    /// stuck, and what can be stored is stored before anything is dead-lettered.
    async fn rounds(&mut self, left: &mut Left) -> Result<(), IntakeError> {
        let mut pause = ROUND_PAUSE.0;
        while !left.parts.is_empty() {
            let before = left.counts();
            for mut part in std::mem::take(&mut left.parts) {
                match self.attempt(&mut part, STUCK_TIMEOUT).await {
                    Attempted::Stored(written) => {
                        left.any_stored = true;
                        self.settle.stored_each(&part.events, part.receipts, &written.outcomes).await?;
                    }
                    Attempted::Suspect(class, failure) => left.sort(part, class, failure),
                    Attempted::Again(_) => {
                        // Time of an outage doesn't count for a stuck event.
                        left.stuck_since = Instant::now();
                        left.parts.push_back(part);
                    }
                }
            }
            if left.counts() == before {
                sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                pause = (pause * 2).min(ROUND_PAUSE.1);
            }
        }
        Ok(())
    }

    async fn dead_letter(&self, part: Part, reason: Reason, failure: &Failure) -> Result<(), IntakeError> {
        for (event, receipt) in part.events.iter().zip(part.receipts) {
            let (error, in_full) = (failure.to_string(), failure.in_full());
            let unstorable = Unstorable { reason, error, in_full, body: event.body.as_bytes() };
            self.settle.dead_letter(unstorable, receipt).await?;
        }
        Ok(())
    }

    /// Tries the refused event now and then, until it is stored or refused with another code.
    async fn hold(&mut self, mut part: Part, failure: &Failure) -> Result<(), IntakeError> {
        let context = self.context;
        let (tenant, queue, error) = (&context.tenant.name, &context.name, failure.to_string());
        error!(tenant, queue, error, "MongoDB refuses one event after the other: holding this queue");
        let refusing = Refusing::start(context);
        loop {
            sleep(REFUSED_PAUSE).await;
            match self.attempt(&mut part, STUCK_TIMEOUT).await {
                Attempted::Stored(written) => {
                    info!(tenant, queue, "MongoDB stores events of this queue again");
                    self.refusals.record_success();
                    drop(refusing);
                    return self.settle.stored_each(&part.events, part.receipts, &written.outcomes).await;
                }
                Attempted::Suspect(_, other) if other.code() != failure.code() => {
                    self.refusals.record_success();
                    drop(refusing);
                    return self.dead_letter(part, Reason::RefusedByMongodb, &other).await;
                }
                Attempted::Suspect(..) | Attempted::Again(_) => {}
            }
        }
    }
}

/// Shows a queue as one that holds, for as long as it exists.
struct Refusing<'a>(&'a QueueContext);

impl<'a> Refusing<'a> {
    fn start(context: &'a QueueContext) -> Self {
        context.state.set_refusing(true);
        Self(context)
    }
}

impl Drop for Refusing<'_> {
    fn drop(&mut self) {
        self.0.state.set_refusing(false);
    }
}
