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
use crate::status::{self, Announcement, Peers, SpoolStatus};
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
/// How long the spool of an ingest that is gone is told of.
const REMEMBERED: Duration = Duration::from_hours(1);

/// Work queues, and how many events wait in each.
type Waiting = Vec<(String, u64)>;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its queues.
    pub lengths: Lengths,
    /// How many more events wait, here or in workers, than a minute ago; none before that is known.
    pub growth: Option<i64>,
    /// How many more webhooks are in quarantine than a minute ago, or since that is known.
    pub quarantined_lately: u64,
    /// For each work queue in which events wait: when it was last empty; none if it never was.
    pub empty_at: Vec<Option<Instant>>,
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
    /// Since when announcements are listened to; none while they aren't.
    listening_since: Option<Instant>,
    /// When anybody was heard last.
    heard_at: Option<Instant>,
    /// Messages for which no tenant's queue is bound.
    unroutable: Option<u64>,
    /// By the ingest's host.
    filled_spools: BTreeMap<String, FilledSpool>,
}

/// A spool with webhooks in it, as its ingest announced it last.
#[derive(Debug)]
struct FilledSpool {
    ingest: String,
    records: u64,
    heard: Instant,
}

#[derive(Debug)]
struct Measured {
    lengths: Lengths,
    backlogs: VecDeque<(Instant, u64)>,
    quarantined: VecDeque<(Instant, u64)>,
    /// By name, how long each work queue is, and when it was last empty.
    queues: BTreeMap<String, (u64, Option<Instant>)>,
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
        let measured = known.tenants.get(name).filter(|_| known.is_fresh(now))?;
        let (first, last) = (measured.quarantined.front(), measured.quarantined.back());
        let quarantined_lately = last.zip(first).map_or(0, |(last, first)| last.1.saturating_sub(first.1));
        let filled = measured.queues.values().filter(|(length, _)| *length > 0);
        Some(Tenant {
            lengths: measured.lengths,
            growth: growth(&measured.backlogs),
            quarantined_lately,
            empty_at: filled.map(|(_, empty_at)| *empty_at).collect(),
        })
    }

    /// How long announcements have been listened to.
    #[must_use]
    pub fn listens_for(&self, now: Instant) -> Duration {
        self.lock().listening_since.map_or(Duration::ZERO, |since| now.duration_since(since))
    }

    /// How long nobody has announced anything.
    #[must_use]
    pub fn silent_for(&self, now: Instant) -> Duration {
        self.lock().heard_at.map_or(Duration::MAX, |heard| now.saturating_duration_since(heard))
    }

    /// Messages for which no tenant's queue is bound, if that is known.
    #[must_use]
    pub fn unroutable(&self, now: Instant) -> Option<u64> {
        let known = self.lock();
        known.unroutable.filter(|_| known.is_fresh(now))
    }

    /// Ingests that are gone and had webhooks in their spool: names and numbers.
    #[must_use]
    pub fn left_spools(&self, now: Instant) -> Vec<(String, u64)> {
        let known = self.lock();
        let gone = known.filled_spools.values().filter(|spool| !known.peers.is_there(&spool.ingest, now));
        gone.map(|spool| (spool.ingest.clone(), spool.records)).collect()
    }

    fn heard(&self, announcement: Announcement, now: Instant) {
        let mut known = self.lock();
        known.heard_at = Some(now);
        known.filled_spools.retain(|_, spool| now.duration_since(spool.heard) < REMEMBERED);
        if let Some(SpoolStatus { records, .. }) = announcement.spool() {
            // The next process with this spool has the same host.
            let host = status::host(&announcement.name).to_owned();
            if *records == 0 {
                known.filled_spools.remove(&host);
            } else {
                let spool = FilledSpool { ingest: announcement.name.clone(), records: *records, heard: now };
                known.filled_spools.insert(host, spool);
            }
        }
        known.peers.record(announcement, now);
    }

    fn answered(&self, now: Instant) {
        let mut known = self.lock();
        if !known.is_fresh(now) {
            // Nobody knows the numbers in between.
            known.tenants.clear();
        }
        known.answered_at = Some(now);
    }

    fn measured(&self, tenant: &str, (lengths, waiting): (Lengths, Waiting), now: Instant) {
        let mut known = self.lock();
        let statuses = known.peers.alive(now).filter_map(|peer| peer.served()?.get(tenant));
        let in_hand: usize = statuses.map(|status| status.in_flight).sum();
        let backlog = lengths.waiting.unwrap_or(0) + u64::try_from(in_hand).unwrap_or(u64::MAX);
        let new = || Measured {
            lengths,
            backlogs: VecDeque::new(),
            quarantined: VecDeque::new(),
            queues: BTreeMap::new(),
        };
        let measured = known.tenants.entry(tenant.to_owned()).or_insert_with(new);
        measured.lengths = lengths;
        remember(&mut measured.backlogs, backlog, now);
        remember(&mut measured.quarantined, lengths.quarantined.unwrap_or(0), now);
        let empty_at = |queue: &str| measured.queues.get(queue).and_then(|(_, empty_at)| *empty_at);
        let queues = waiting.into_iter().map(|(queue, length)| {
            let empty_at = if length == 0 { Some(now) } else { empty_at(&queue) };
            (queue, (length, empty_at))
        });
        measured.queues = queues.collect();
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

/// Adds a number to those of the last minute. The first is the one at its beginning.
fn remember(numbers: &mut VecDeque<(Instant, u64)>, number: u64, now: Instant) {
    numbers.push_back((now, number));
    while numbers.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= HISTORY) {
        numbers.pop_front();
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
        pipeline.lock().listening_since = None;
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
    pipeline.lock().listening_since = Some(Instant::now());
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
        let unroutable = asking.length(topology::UNROUTABLE).await?;
        pipeline.lock().unroutable = unroutable;
    }
}

/// Asks for the length of queues, on a channel that lasts until a queue is missing.
struct Asking<'a> {
    pipeline: &'a Pipeline,
    session: &'a Session,
    channel: Option<Channel>,
}

impl Asking<'_> {
    async fn lengths(&mut self, tenant: &str, partitions: u16) -> Result<(Lengths, Waiting), FollowError> {
        let mut queues = Vec::new();
        for queue in WorkQueue::all(partitions) {
            let name = queue.name(tenant);
            if let Some(length) = self.length(&name).await? {
                queues.push((name, length));
            }
        }
        let waiting = (!queues.is_empty()).then(|| queues.iter().map(|(_, length)| length).sum());
        let dead = self.length(&topology::dead_queue(tenant)).await?;
        let quarantined = self.length(&topology::quarantine_queue(tenant)).await?;
        Ok((Lengths { waiting, dead, quarantined }, queues))
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
        let lengths = Lengths { waiting: Some(waiting), dead: Some(0), quarantined: Some(waiting / 2) };
        pipeline.measured("vip", (lengths, vec![("a".to_owned(), waiting), ("b".to_owned(), 0)]), now);
    }

    #[test]
    fn growth_is_known_after_a_minute() {
        let (pipeline, start) = (Pipeline::default(), Instant::now());
        let second = |n: u32| start + Duration::from_secs(n.into());
        for n in 0..60 {
            measured(&pipeline, n.into(), second(n));
        }
        let before = pipeline.tenant("vip", second(59)).unwrap();
        assert_eq!((before.growth, before.empty_at), (None, vec![Some(start)]));
        for n in 60..100 {
            measured(&pipeline, 60, second(n));
        }
        let after = pipeline.tenant("vip", second(99)).unwrap();
        assert_eq!((after.growth, after.quarantined_lately), (Some(21), 11));
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
        assert_eq!((tenant.lengths.waiting, tenant.growth, tenant.empty_at), (Some(7), None, vec![None]));
    }

    #[test]
    fn a_spool_that_an_ingest_has_left_is_told_of_until_it_is_used_again() {
        let (pipeline, start) = (Pipeline::default(), Instant::now());
        let ingest = |name: &str, records, leaving| {
            let spool = SpoolStatus { records, bytes: 0, oldest_age_seconds: 0, writable: true };
            let role = Role::Ingest { spool, refusals_left: 10 };
            Announcement { name: name.into(), partitions: 4, leaving, role }
        };
        pipeline.heard(ingest("ingest-2-1-00ff", 7, false), start);
        pipeline.heard(ingest("ingest-1-1-0a0b", 0, false), start);
        assert!(pipeline.left_spools(start).is_empty());
        let later = start + Duration::from_mins(1);
        assert_eq!(pipeline.left_spools(later), [("ingest-2-1-00ff".to_owned(), 7)]);
        pipeline.heard(ingest("ingest-2-1-00fa", 5, false), later);
        assert!(pipeline.left_spools(later).is_empty());
        pipeline.heard(ingest("ingest-2-1-00fa", 3, true), later);
        assert_eq!(pipeline.left_spools(later), [("ingest-2-1-00fa".to_owned(), 3)]);
        pipeline.heard(ingest("ingest-2-2-000a", 0, false), later);
        assert!(pipeline.left_spools(later).is_empty());
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
