//! What ingest knows of the pipeline behind the broker: who is there, the workers' breakers, the length of the queues.
//!
//! It is learnt in the background, so that `/health` answers at once whatever is down.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use shared::amqp::{self, Link, Session};
use shared::partition::WorkQueue;
use shared::status::{self, Announcement, Peers};
use shared::telemetry::chain;
use shared::topology;
use tokio::time::error::Elapsed;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::warn;

/// How often the length of each queue is asked for.
const DEPTH_INTERVAL: Duration = Duration::from_secs(1);
/// Between two questions passes at least this time, since each is answered by the queue's leader: with many queues each
/// is asked less often.
const QUESTION_PAUSE: Duration = Duration::from_millis(5);
/// When RabbitMQ has answered no question for so long, what it told is old.
const SILENCE: Duration = Duration::from_secs(4);
/// A queue whose leader is being elected may not answer at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The state of the pipeline as last heard.
#[derive(Debug, Default)]
pub struct Pipeline(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    peers: Peers,
    depths: BTreeMap<String, Depths>,
    answered_at: Option<Instant>,
}

/// Messages in a tenant's queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depths {
    /// Events that wait in its work queues, not counting those that workers have taken.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
    /// Webhooks in quarantine.
    pub quarantined: u64,
}

impl Pipeline {
    /// The announcements of the ingests and workers that are there.
    #[must_use]
    pub fn peers(&self, now: Instant) -> Vec<Announcement> {
        self.lock().peers.alive(now).cloned().collect()
    }

    /// How long each tenant's queues are; nothing, unless RabbitMQ has told that lately.
    #[must_use]
    pub fn depths(&self, now: Instant) -> BTreeMap<String, Depths> {
        let known = self.lock();
        let is_fresh = known.answered_at.is_some_and(|at| now.duration_since(at) < SILENCE);
        if is_fresh { known.depths.clone() } else { BTreeMap::new() }
    }

    /// The largest number of partitions that anybody has; `own` is what this process has.
    #[must_use]
    pub fn partitions(&self, own: u16, now: Instant) -> u16 {
        self.lock().peers.partitions(now).unwrap_or(own).max(own)
    }

    fn heard(&self, announcement: Announcement, now: Instant) {
        self.lock().peers.record(announcement, now);
    }

    fn measured(&self, tenant: &str, depths: Depths) {
        self.lock().depths.insert(tenant.to_owned(), depths);
    }

    fn answered(&self, now: Instant) {
        self.lock().answered_at = Some(now);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the pipeline as long as the link exists.
pub async fn follow(pipeline: Arc<Pipeline>, link: &Link, tenants: &[String], partitions: u16) {
    let mut sessions = link.sessions();
    while let Some(session) = amqp::next_session(&mut sessions).await {
        let ended: Result<(), FollowError> = tokio::select! {
            ended = listen(&pipeline, &session) => ended.map(|()| session.report_broken("the status queue is gone")),
            ended = measure(&pipeline, &session, tenants, partitions) => ended,
            () = session.lost().cancelled() => Ok(()),
        };
        if let Err(error) = ended {
            warn!(error = chain(&error), "can't follow the state of workers and queues");
            session.report_broken("a channel for status failed");
        }
        session.lost().cancelled().await;
    }
}

/// Why the pipeline can't be followed over a session.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("a channel failed")]
    Channel(#[from] lapin::Error),
    #[error("RabbitMQ didn't answer within {ANSWER_TIMEOUT:?}")]
    TimedOut(#[from] Elapsed),
}

async fn listen(pipeline: &Pipeline, session: &Session) -> Result<(), FollowError> {
    let mut announcements = timeout(ANSWER_TIMEOUT, status::subscribe(session)).await??;
    while let Some(delivery) = announcements.next().await {
        match serde_json::from_slice(&delivery?.data) {
            Ok(announcement) => pipeline.heard(announcement, Instant::now()),
            Err(error) => warn!(error = chain(&error), "an announcement can't be read"),
        }
    }
    Ok(())
}

/// Every queue to which anybody may publish is counted: those of all partitions that are announced.
async fn measure(
    pipeline: &Pipeline,
    session: &Session,
    tenants: &[String],
    own_partitions: u16,
) -> Result<(), FollowError> {
    let channel = session.channel().await?;
    let mut ticks = interval(DEPTH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let partitions = pipeline.partitions(own_partitions, Instant::now());
        for tenant in tenants {
            let mut depths = Depths::default();
            for queue in WorkQueue::all(partitions) {
                depths.waiting += length(pipeline, &channel, &queue.name(tenant)).await?;
            }
            depths.dead = length(pipeline, &channel, &topology::dead_queue(tenant)).await?;
            depths.quarantined = length(pipeline, &channel, &topology::quarantine_queue(tenant)).await?;
            pipeline.measured(tenant, depths);
        }
    }
}

async fn length(pipeline: &Pipeline, channel: &Channel, name: &str) -> Result<u64, FollowError> {
    sleep(QUESTION_PAUSE).await;
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let declared = channel.queue_declare(name.into(), options, FieldTable::default());
    let length = timeout(ANSWER_TIMEOUT, declared).await??.message_count();
    pipeline.answered(Instant::now());
    Ok(length.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::status::Role;

    #[test]
    fn what_rabbitmq_told_is_known_for_some_seconds() {
        let (pipeline, now) = (Pipeline::default(), Instant::now());
        let depths = Depths { waiting: 3, dead: 2, quarantined: 1 };
        pipeline.measured("vip", depths);
        assert!(pipeline.depths(now).is_empty());
        pipeline.answered(now);
        assert_eq!(pipeline.depths(now)["vip"], depths);
        assert!(pipeline.depths(now + SILENCE).is_empty());
    }

    #[test]
    fn the_largest_number_of_partitions_counts() {
        let (pipeline, now) = (Pipeline::default(), Instant::now());
        assert_eq!(pipeline.partitions(4, now), 4);
        let role = Role::Worker { tenants: BTreeMap::new() };
        pipeline.heard(Announcement { name: "w".into(), partitions: 8, leaving: false, role }, now);
        assert_eq!((pipeline.partitions(4, now), pipeline.partitions(16, now)), (8, 16));
    }
}
