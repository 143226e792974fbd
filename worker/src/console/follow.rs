//! What RabbitMQ tells by itself: who is there, how long the queues are. Learnt in the background, so that
//! the overview answers at once whatever is down.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::Channel;
use shared::amqp::{self, Link, Session};
use shared::partition::WorkQueue;
use shared::status::{self, Announcement, Peers};
use shared::telemetry::chain;
use shared::topology;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::warn;

use crate::commands::set_aside::queue::{self, QueueError};

/// How often each queue is asked for its length.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two questions passes at least this time: each is answered by the queue's leader.
const QUESTION_PAUSE: Duration = Duration::from_millis(5);
/// A queue whose leader is being elected may not answer at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// What is older isn't shown as the present.
const FRESH: Duration = Duration::from_secs(5);
/// How far back the number of waiting events is known.
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
    /// When nothing waited last; none if that was never seen.
    pub empty_at: Option<Instant>,
}

/// What was seen last.
#[derive(Debug, Default)]
pub struct Seen(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    peers: Peers,
    tenants: BTreeMap<String, Measured>,
}

#[derive(Debug)]
struct Measured {
    at: Instant,
    lengths: Lengths,
    backlogs: VecDeque<(Instant, u64)>,
    empty_at: Option<Instant>,
}

impl Seen {
    /// The ingests and workers that are there.
    #[must_use]
    pub fn peers(&self, now: Instant) -> Vec<Announcement> {
        self.lock().peers.alive(now).cloned().collect()
    }

    /// The largest number of partitions that anybody has; `own` is what the console was told.
    #[must_use]
    pub fn partitions(&self, own: u16, now: Instant) -> u16 {
        self.lock().peers.partitions(now).unwrap_or(own).max(own)
    }

    /// A tenant's queues; none if RabbitMQ hasn't told of them lately.
    #[must_use]
    pub fn tenant(&self, name: &str, now: Instant) -> Option<Tenant> {
        let known = self.lock();
        let measured = known.tenants.get(name).filter(|measured| now.duration_since(measured.at) < FRESH)?;
        let Measured { lengths, backlogs, empty_at, .. } = measured;
        Some(Tenant { lengths: *lengths, growth: growth(backlogs), empty_at: *empty_at })
    }

    fn heard(&self, announcement: Announcement, now: Instant) {
        self.lock().peers.record(announcement, now);
    }

    fn measured(&self, tenant: &str, lengths: Lengths, now: Instant) {
        let mut known = self.lock();
        let statuses = known.peers.alive(now).filter_map(|peer| peer.served()?.get(tenant));
        let in_hand: usize = statuses.map(|status| status.in_flight).sum();
        let backlog = lengths.waiting.unwrap_or(0) + u64::try_from(in_hand).unwrap_or(u64::MAX);
        let new = || Measured { at: now, lengths, backlogs: VecDeque::new(), empty_at: None };
        let measured = known.tenants.entry(tenant.to_owned()).or_insert_with(new);
        if now.duration_since(measured.at) > FRESH {
            // Nobody knows what was between.
            measured.backlogs.clear();
        }
        (measured.at, measured.lengths) = (now, lengths);
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

fn growth(backlogs: &VecDeque<(Instant, u64)>) -> Option<i64> {
    let ((began, before), (ended, after)) = (backlogs.front()?, backlogs.back()?);
    let number = |backlog: u64| i64::try_from(backlog).unwrap_or(i64::MAX);
    (ended.duration_since(*began) >= HISTORY).then(|| number(*after) - number(*before))
}

/// Follows RabbitMQ as long as the link exists.
pub async fn follow(seen: &Seen, link: &Link, tenants: &[String], partitions: u16) {
    let mut sessions = link.sessions();
    while let Some(session) = amqp::next_session(&mut sessions).await {
        let ended = tokio::select! {
            ended = listen(seen, &session) => ended,
            ended = measure(seen, &session, tenants, partitions) => ended,
            () = session.lost().cancelled() => Ok(()),
        };
        if let Err(error) = ended {
            warn!(error = chain(&error), "can't follow the state of workers and queues");
        }
        session.report_broken("a channel for status failed");
        session.lost().cancelled().await;
    }
}

async fn listen(seen: &Seen, session: &Session) -> Result<(), QueueError> {
    let mut announcements = timeout(ANSWER_TIMEOUT, status::subscribe(session)).await??;
    while let Some(delivery) = announcements.next().await {
        match serde_json::from_slice(&delivery?.data) {
            Ok(announcement) => seen.heard(announcement, Instant::now()),
            Err(error) => warn!(error = chain(&error), "an announcement can't be read"),
        }
    }
    Ok(())
}

async fn measure(
    seen: &Seen,
    session: &Session,
    tenants: &[String],
    partitions: u16,
) -> Result<(), QueueError> {
    let mut asking = Asking { session, channel: None };
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let partitions = seen.partitions(partitions, Instant::now());
        for tenant in tenants {
            let lengths = asking.lengths(tenant, partitions).await?;
            seen.measured(tenant, lengths, Instant::now());
        }
    }
}

/// Asks for the length of queues, on a channel that lasts until a queue is missing.
struct Asking<'a> {
    session: &'a Session,
    channel: Option<Channel>,
}

impl Asking<'_> {
    async fn lengths(&mut self, tenant: &str, partitions: u16) -> Result<Lengths, QueueError> {
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

    /// The length of a queue; none if there is no such queue.
    async fn length(&mut self, name: &str) -> Result<Option<u64>, QueueError> {
        sleep(QUESTION_PAUSE).await;
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => timeout(ANSWER_TIMEOUT, self.session.channel()).await??,
        };
        let length = queue::length_if_there(&channel, name).await?;
        if length.is_some() {
            self.channel = Some(channel);
        }
        Ok(length.map(u64::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(waiting: u64) -> Lengths {
        Lengths { waiting: Some(waiting), dead: Some(0), quarantined: None }
    }

    #[test]
    fn growth_is_known_after_a_minute() {
        let (seen, start) = (Seen::default(), Instant::now());
        let second = |n: u32| start + INTERVAL * n;
        for n in 0..60 {
            seen.measured("vip", lengths(u64::from(n)), second(n));
        }
        let before = seen.tenant("vip", second(59)).unwrap();
        assert_eq!((before.growth, before.empty_at), (None, Some(start)));
        for n in 60..100 {
            seen.measured("vip", lengths(60), second(n));
        }
        assert_eq!(seen.tenant("vip", second(99)).unwrap().growth, Some(21));
        assert_eq!(seen.tenant("vip", second(99) + FRESH), None, "news that is old is none");
        seen.measured("vip", lengths(7), second(200));
        assert_eq!(seen.tenant("vip", second(200)).unwrap().growth, None, "nobody knows what was between");
    }
}
