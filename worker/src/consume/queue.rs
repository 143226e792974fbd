//! The task of one queue: takes deliveries, gathers a batch, writes it, settles it, and takes the next one.
//!
//! - One batch at a time, in the order of the queue. Meanwhile the next one is taken in hand.
//! - A delivery stays in hand until its effects are committed, for as long as MongoDB fails.
//! - If the task ends at any point, RabbitMQ delivers what wasn't settled to the next consumer of the queue.

use std::sync::Arc;
use std::time::Duration;

use shared::amqp::{self, Session};
use shared::telemetry::chain;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::QueueContext;
use super::intake::{Intake, IntakeError};
use super::roster::{Preference, View};
use super::settle::Settle;
use super::share::Consumed;
use super::write::Write;
use crate::store::retries::{Novelty, Refusals};

/// First and longest pause before a queue is consumed again.
const REOPEN_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A delivery that came back this often may kill workers: from then on one is taken at a time, so that its
/// neighbours don't reach RabbitMQ's delivery limit, too.
const SUSPECT_RETURNS: i64 = 3;
/// If a delivery is in hand for this long while MongoDB works, that is a defect of ours.
const STANDSTILL: Duration = Duration::from_mins(5);

/// Why consuming ended in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The worker stops.
    Stopped,
    /// The connection is gone.
    Disconnected,
    /// The priority or the prefetch count has changed.
    Changed,
    /// What was in hand has been given back.
    GivenBack,
}

/// The task of one queue.
pub struct QueueTask {
    /// The queue, and what it shares with the tenant's others.
    pub context: QueueContext,
    /// The workers, from which follows this worker's priority for the queue.
    pub views: watch::Receiver<View>,
    /// The queues of all tenants, from which follows how much it may have in hand.
    pub consumed: watch::Receiver<Consumed>,
    /// Cancelled when the worker stops.
    pub stop: CancellationToken,
}

/// What a task remembers from one channel to the next.
struct TaskState {
    /// Whether one delivery is taken at a time.
    careful: bool,
    refusals: Refusals,
    novelty: Novelty,
}

impl QueueTask {
    /// Consumes the queue until told to stop.
    pub async fn run(mut self, mut sessions: watch::Receiver<Option<Arc<Session>>>) {
        // An earlier task may have ended early.
        self.context.state.set_oldest(None);
        // The first delivery may be what has killed the worker before this one.
        let (refusals, novelty) = (Refusals::default(), Novelty::default());
        let mut task_state = TaskState { careful: true, refusals, novelty };
        let mut pause = REOPEN_PAUSE.0;
        while !self.stop.is_cancelled() {
            let session = tokio::select! {
                session = amqp::next_session(&mut sessions) => session,
                () = self.stop.cancelled() => return,
            };
            let Some(session) = session else { return };
            let opened = Instant::now();
            match self.consume(&session, &mut task_state).await {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Changed) => continue,
                Ok(Ended::Disconnected | Ended::GivenBack) => {}
                Err(error) => {
                    let (tenant, queue) = (&self.context.tenant.name, &self.context.name);
                    warn!(tenant, queue, error = chain(&error), "consuming ended, will start again");
                    if matches!(error, IntakeError::NoAnswer(_)) {
                        session.report_broken("RabbitMQ didn't answer in time");
                    }
                }
            }
            if opened.elapsed() > REOPEN_PAUSE.1 {
                pause = REOPEN_PAUSE.0;
            }
            tokio::select! {
                () = sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)) => {}
                () = self.stop.cancelled() => return,
            }
            pause = (pause * 2).min(REOPEN_PAUSE.1);
        }
    }

    /// Consumes over one connection.
    async fn consume(&mut self, session: &Session, task_state: &mut TaskState) -> Result<Ended, IntakeError> {
        self.views.mark_unchanged();
        self.consumed.mark_unchanged();
        let preference = self.preference();
        let prefetch = self.prefetch(task_state);
        let opened = Intake::open(&self.context, session, prefetch, preference.priority);
        let mut intake = tokio::select! {
            opened = opened => opened?,
            () = self.stop.cancelled() => return Ok(Ended::Stopped),
        };
        let mut views = self.views.clone();
        let (context, stop) = (self.context.clone(), self.stop.clone());
        let ended = tokio::select! {
            ended = self.work(session, &mut intake, preference, task_state) => ended,
            () = session.lost().cancelled() => Ok(Ended::Disconnected),
            () = gives_up(&context, &stop) => Ok(Ended::Stopped),
            () = stands_still(&context) => Ok(Ended::GivenBack),
            () = steps_down(&context, &mut views, preference) => Ok(Ended::Changed),
        };
        context.state.set_oldest(None);
        if !matches!(ended, Ok(Ended::Disconnected)) {
            intake.close().await;
        }
        ended
    }

    /// Writes one batch after the other. Dropped when nothing is left to wait for: what is being written
    /// then may still be committed, and counts once.
    async fn work(
        &mut self,
        session: &Session,
        intake: &mut Intake,
        mut preference: Preference,
        task_state: &mut TaskState,
    ) -> Result<Ended, IntakeError> {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return self.finish(intake, task_state).await,
                Ok(()) = self.views.changed() => {
                    let next = self.preference();
                    if next.priority != preference.priority {
                        preference = next;
                        self.consume_anew(session, intake, preference, task_state).await?;
                    }
                    continue;
                }
                Ok(()) = self.consumed.changed() => {
                    if self.prefetch(task_state) != intake.prefetch {
                        self.consume_anew(session, intake, preference, task_state).await?;
                    }
                    continue;
                }
                waiting = intake.until_waiting(&self.context) => waiting?,
            }
            if !task_state.careful && intake.has_returns(SUSPECT_RETURNS) {
                let (tenant, queue) = (&self.context.tenant.name, &self.context.name);
                warn!(tenant, queue, "an event came back {SUSPECT_RETURNS} times, taking one at a time");
                task_state.careful = true;
                return Ok(Ended::Changed);
            }
            if task_state.careful && !intake.has_returns(SUSPECT_RETURNS) {
                // While one is in hand, nothing is under way to the consumer that is cancelled.
                task_state.careful = false;
                self.consume_anew(session, intake, preference, task_state).await?;
                continue;
            }
            self.write_batch(intake, task_state, self.context.tenant.settings.batch_linger).await?;
        }
    }

    /// Gathers a batch and writes it.
    async fn write_batch(
        &self,
        intake: &mut Intake,
        task_state: &mut TaskState,
        linger: Duration,
    ) -> Result<(), IntakeError> {
        let context = &self.context;
        let batch = intake.gather(context, linger).await;
        let receipts = batch.receipts.iter().chain(batch.undecodable.iter().map(|(_, receipt)| receipt));
        let oldest = receipts.map(|receipt| receipt.in_hand.waiting).min_by_key(|waiting| waiting.since);
        context.state.set_oldest(oldest);
        let channel = intake.channel.clone();
        let settle = Settle { context, channel: &channel };
        let TaskState { refusals, novelty, .. } = task_state;
        let mut write = Write { context, settle, refusals, novelty, looked_at: None };
        intake.while_receiving(context, write.batch(batch)).await?;
        context.state.set_oldest(intake.oldest());
        Ok(())
    }

    /// Takes no more deliveries, and writes those in hand.
    async fn finish(&self, intake: &mut Intake, task_state: &mut TaskState) -> Result<Ended, IntakeError> {
        intake.cancel(&self.context).await?;
        while !intake.is_empty() {
            self.write_batch(intake, task_state, Duration::ZERO).await?;
        }
        Ok(Ended::Stopped)
    }

    /// Continues with another priority or prefetch count: first starts a consumer with these, on a channel of
    /// its own, to which RabbitMQ sends nothing before the old consumer is done. With a cancel alone, the
    /// next worker would start while deliveries of ours are not settled.
    async fn consume_anew(
        &self,
        session: &Session,
        intake: &mut Intake,
        preference: Preference,
        task_state: &mut TaskState,
    ) -> Result<(), IntakeError> {
        let prefetch = self.prefetch(task_state);
        let next = Intake::open(&self.context, session, prefetch, preference.priority).await?;
        self.finish(intake, task_state).await?;
        std::mem::replace(intake, next).close().await;
        let (tenant, queue, priority) = (&self.context.tenant.name, &self.context.name, preference.priority);
        info!(tenant, queue, priority, prefetch, "consuming anew");
        Ok(())
    }

    fn prefetch(&self, task_state: &TaskState) -> u16 {
        let QueueContext { tenant, queue, .. } = &self.context;
        if task_state.careful {
            1
        } else {
            self.consumed.borrow().prefetch(*queue, tenant.settings.batch_size)
        }
    }

    fn preference(&self) -> Preference {
        let QueueContext { tenant, queue, .. } = &self.context;
        self.views.borrow().preference(&tenant.worker, &tenant.name, *queue)
    }
}

/// Completes when the worker stops and can't write the deliveries in hand soon: others wait for this process
/// to end.
async fn gives_up(context: &QueueContext, stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::select! {
        () = sleep(context.tenant.settings.shutdown_grace) => {}
        () = context.tenant.state.breaker().not_closed() => {}
    }
    let (tenant, queue, in_hand) = (&context.tenant.name, &context.name, context.state.in_hand());
    if in_hand > 0 {
        warn!(tenant, queue, in_hand, "gave events back that could not be stored in time");
    }
}

/// Completes when a delivery was in hand for too long although MongoDB works.
async fn stands_still(context: &QueueContext) {
    let mut works_since = Instant::now();
    loop {
        sleep(Duration::from_secs(1)).await;
        if !context.tenant.state.works() || context.state.is_refusing() {
            works_since = Instant::now();
        }
        let oldest = context.state.oldest();
        if oldest.is_some_and(|waiting| waiting.since.max(works_since).elapsed() >= STANDSTILL) {
            let (tenant, queue) = (&context.tenant.name, &context.name);
            return error!(tenant, queue, "an event was in hand for {STANDSTILL:?}, gave it back: a defect");
        }
    }
}

/// Completes when this worker steps down: its deliveries go to another worker, for which MongoDB works.
async fn steps_down(context: &QueueContext, views: &mut watch::Receiver<View>, now: Preference) {
    let QueueContext { tenant, queue, .. } = context;
    let changed =
        |view: &View| view.preference(&tenant.worker, &tenant.name, *queue).step_downs != now.step_downs;
    if views.wait_for(changed).await.is_err() {
        std::future::pending::<()>().await;
    }
}
