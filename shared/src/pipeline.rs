//! The state of the pipeline: which processes announce themselves, and how long the queues are. A task in the
//! background asks RabbitMQ, so that `/health` and the console answer at once, whatever is down.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::Channel;
use tokio::time::error::Elapsed;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::warn;

use crate::amqp::{self, Link, Session};
use crate::partition::WorkQueue;
use crate::status::{self, Announcement, Peers};
use crate::telemetry::chain;
use crate::topology::{self, DeclareError};

/// How often each queue is asked for its length: each answer costs RabbitMQ a third of a millisecond.
const INTERVAL: Duration = Duration::from_secs(2);
/// Shortest time between two questions, since the queue's leader answers each: with many queues, each is
/// asked less often.
const QUESTION_PAUSE: Duration = Duration::from_millis(5);
/// Longest wait for a channel, and for the queue of announcements.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// After this long without an answer, the state is unknown.
const FRESH: Duration = Duration::from_secs(4);
/// How long numbers of waiting events are kept.
const HISTORY: Duration = Duration::from_mins(1);

/// How long a tenant's queues are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Events that wait in its work queues, not counting those that workers have taken; none if there are no
    /// such queues.
    pub waiting: Option<u64>,
    /// Dead letters.
    pub dead: Option<u64>,
    /// Webhooks in quarantine.
    pub quarantined: Option<u64>,
}

/// A tenant at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its queues.
    pub lengths: Lengths,
    /// How many more events wait, here or in workers, than a minute ago; none before that is known.
    pub growth: Option<i64>,
    /// When the queues were last empty; none if they never were.
    pub empty_at: Option<Instant>,
}

/// The state of the pipeline, as far as RabbitMQ has told.
#[derive(Debug, Default)]
pub struct Pipeline(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    peers: Peers,
    tenants: BTreeMap<String, Measured>,
    /// When RabbitMQ last told a queue's length.
    answered_at: Option<Instant>,
}

#[derive(Debug)]
struct Measured {
    lengths: Lengths,
    backlogs: VecDeque<(Instant, u64)>,
    empty_at: Option<Instant>,
}

impl Pipeline {
    /// The announcements of the ingests and workers that are there.
    #[must_use]
    pub fn peers(&self, now: Instant) -> Vec<Announcement> {
        self.lock().peers.alive(now).cloned().collect()
    }

    /// The largest number of partitions that anybody has; `own` is what this process has.
    #[must_use]
    pub fn partitions(&self, own: u16, now: Instant) -> u16 {
        self.lock().peers.partitions(now).unwrap_or(own).max(own)
    }

    /// How long each tenant's queues are; nothing, unless RabbitMQ has told that lately.
    #[must_use]
    pub fn lengths(&self, now: Instant) -> BTreeMap<String, Lengths> {
        let known = self.lock();
        let fresh = known.tenants.iter().filter(|_| known.is_fresh(now));
        fresh.map(|(name, tenant)| (name.clone(), tenant.lengths)).collect()
    }

    /// A tenant's queues; none if RabbitMQ hasn't told of them lately.
    #[must_use]
    pub fn tenant(&self, name: &str, now: Instant) -> Option<Tenant> {
        let known = self.lock();
        let Measured { lengths, backlogs, empty_at } =
            known.tenants.get(name).filter(|_| known.is_fresh(now))?;
        Some(Tenant { lengths: *lengths, growth: growth(backlogs), empty_at: *empty_at })
    }

    fn heard(&self, announcement: Announcement, now: Instant) {
        self.lock().peers.record(announcement, now);
    }

    fn answered(&self, now: Instant) {
        let mut known = self.lock();
        if !known.is_fresh(now) {
            // Nobody knows the numbers in between.
            known.tenants.clear();
        }
        known.answered_at = Some(now);
    }

    fn measured(&self, tenant: &str, lengths: Lengths, now: Instant) {
        let mut known = self.lock();
        let statuses = known.peers.alive(now).filter_map(|peer| peer.served()?.get(tenant));
        let in_hand: usize = statuses.map(|status| status.in_flight).sum();
        let backlog = lengths.waiting.unwrap_or(0) + u64::try_from(in_hand).unwrap_or(u64::MAX);
        let new = || Measured { lengths, backlogs: VecDeque::new(), empty_at: None };
        let measured = known.tenants.entry(tenant.to_owned()).or_insert_with(new);
        measured.lengths = lengths;
        measured.backlogs.push_back((now, backlog));
        // The first is the one at the beginning of the last minute.
        while measured.backlogs.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= HISTORY) {
            measured.backlogs.pop_front();
        }
        if backlog == 0 {
            measured.empty_at = Some(now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn is_fresh(&self, now: Instant) -> bool {
        self.answered_at.is_some_and(|at| now.duration_since(at) < FRESH)
    }
}

fn growth(backlogs: &VecDeque<(Instant, u64)>) -> Option<i64> {
    let ((began, before), (ended, after)) = (backlogs.front()?, backlogs.back()?);
    let number = |backlog: u64| i64::try_from(backlog).unwrap_or(i64::MAX);
    (ended.duration_since(*began) >= HISTORY).then(|| number(*after) - number(*before))
}

/// Follows RabbitMQ as long as the link exists.
pub async fn follow(pipeline: &Pipeline, link: &Link, tenants: &[String], partitions: u16) {
    let mut sessions = link.sessions();
    while let Some(session) = amqp::next_session(&mut sessions).await {
        let ended: Result<(), FollowError> = tokio::select! {
            ended = listen(pipeline, &session) => ended.map(|()| session.report_broken("the status queue is gone")),
            ended = measure(pipeline, &session, tenants, partitions) => ended,
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
    #[error(transparent)]
    Length(#[from] DeclareError),
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
    let mut asking = Asking { pipeline, session, channel: None };
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let partitions = pipeline.partitions(own_partitions, Instant::now());
        for tenant in tenants {
            let lengths = asking.lengths(tenant, partitions).await?;
            pipeline.measured(tenant, lengths, Instant::now());
        }
    }
}

/// Asks for the length of queues, on a channel that lasts until a queue is missing.
struct Asking<'a> {
    pipeline: &'a Pipeline,
    session: &'a Session,
    channel: Option<Channel>,
}

impl Asking<'_> {
    async fn lengths(&mut self, tenant: &str, partitions: u16) -> Result<Lengths, FollowError> {
        let mut waiting = None;
        for queue in WorkQueue::all(partitions) {
            if let Some(length) = self.length(&queue.name(tenant)).await? {
                waiting = Some(waiting.unwrap_or(0) + length);
            }
        }
        let dead = self.length(&topology::dead_queue(tenant)).await?;
        let quarantined = self.length(&topology::quarantine_queue(tenant)).await?;
        Ok(Lengths { waiting, dead, quarantined })
    }

    async fn length(&mut self, name: &str) -> Result<Option<u64>, FollowError> {
        sleep(QUESTION_PAUSE).await;
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => timeout(ANSWER_TIMEOUT, self.session.channel()).await??,
        };
        let length = topology::length(&channel, name).await?;
        self.pipeline.answered(Instant::now());
        if length.is_some() {
            self.channel = Some(channel);
        }
        Ok(length.map(u64::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Role;

    fn measured(pipeline: &Pipeline, waiting: u64, now: Instant) {
        pipeline.answered(now);
        let lengths = Lengths { waiting: Some(waiting), dead: Some(0), quarantined: None };
        pipeline.measured("vip", lengths, now);
    }

    #[test]
    fn growth_is_known_after_a_minute() {
        let (pipeline, start) = (Pipeline::default(), Instant::now());
        let second = |n: u32| start + Duration::from_secs(n.into());
        for n in 0..60 {
            measured(&pipeline, n.into(), second(n));
        }
        let before = pipeline.tenant("vip", second(59)).unwrap();
        assert_eq!((before.growth, before.empty_at), (None, Some(start)));
        for n in 60..100 {
            measured(&pipeline, 60, second(n));
        }
        assert_eq!(pipeline.tenant("vip", second(99)).unwrap().growth, Some(21));
    }

    #[test]
    fn after_a_silence_nothing_is_known() {
        let (pipeline, start) = (Pipeline::default(), Instant::now());
        measured(&pipeline, 0, start);
        // With many queues it takes long to ask each of them, but some answer comes.
        let later = start + FRESH * 3;
        for n in 1..=10 {
            pipeline.answered(start + FRESH * n / 3);
        }
        assert!(pipeline.tenant("vip", later).is_some());
        let after = later + FRESH * 2;
        assert_eq!(pipeline.tenant("vip", after), None);
        pipeline.answered(after);
        assert_eq!(pipeline.tenant("vip", after), None, "another queue has answered");
        measured(&pipeline, 7, after);
        let tenant = pipeline.tenant("vip", after).unwrap();
        assert_eq!((tenant.lengths.waiting, tenant.growth, tenant.empty_at), (Some(7), None, None));
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
