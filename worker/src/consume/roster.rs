//! Which workers serve a tenant: follows the announcements of all workers, and tells each queue's task this
//! worker's priority for the queue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use shared::amqp::{self, Link};
use shared::partition::WorkQueue;
use shared::status::{self, Announcement, Peers};
use shared::telemetry::chain;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep, timeout};
use tracing::{debug, info, warn};

use super::intake::ANSWER_TIMEOUT;
use super::preference::{self, STEPPED_DOWN};
use crate::state::TenantState;

/// A change of the workers counts after this time: a worker that restarts is back by then.
const SETTLED: Duration = Duration::from_secs(5);
/// How often changes are looked for.
const TICK: Duration = Duration::from_millis(500);
/// Pause before the announcements are followed again.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_secs(1);
/// How long a worker that has stepped down has the lowest priority.
const STEP_DOWN: Duration = Duration::from_mins(10);
/// Another worker's success counts only if it is later than our first failure by this much: the operation may
/// have begun before.
const STEP_DOWN_MARGIN: Duration = Duration::from_secs(1);

/// How much this worker is to have a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preference {
    /// The consumer's priority.
    pub priority: i32,
    /// How often this worker has stepped down. When that changes, what is in hand is given back.
    pub step_downs: u32,
}

/// Who serves a tenant, and how many partitions it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Names of the workers of each tenant, sorted.
    workers: BTreeMap<String, Vec<String>>,
    /// The largest number of partitions that anybody announces.
    pub partitions: u16,
    /// Tenants for which this worker has stepped down, and how often.
    step_downs: BTreeMap<String, (u32, bool)>,
}

impl View {
    /// This worker's preference for a queue.
    #[must_use]
    pub fn preference(&self, me: &str, tenant: &str, queue: WorkQueue) -> Preference {
        let (step_downs, stepped_down) = self.step_downs.get(tenant).copied().unwrap_or_default();
        let workers = self.workers.get(tenant).map(Vec::as_slice).unwrap_or_default();
        let priority =
            if stepped_down { STEPPED_DOWN } else { preference::priority(me, workers, tenant, queue) };
        Preference { priority, step_downs }
    }
}

/// Follows who is there.
#[derive(Debug)]
pub struct Roster {
    me: String,
    tenants: BTreeMap<String, Arc<TenantState>>,
    peers: Peers,
    /// What has changed, and since when.
    pending: Option<(BTreeMap<String, Vec<String>>, Instant)>,
    stepped_down: BTreeMap<String, StepDown>,
    /// Tenants whose MongoDB has answered another worker while it failed for us.
    others_work: BTreeMap<String, OthersWork>,
    view: watch::Sender<View>,
}

/// MongoDB has answered another worker.
#[derive(Clone, Copy, Debug)]
struct OthersWork {
    /// When we heard of it first.
    heard_at: Instant,
    /// The outage of ours in which we did, by its first failure.
    outage: Instant,
}

/// A step down for a tenant.
#[derive(Clone, Copy, Debug)]
struct StepDown {
    count: u32,
    at: Instant,
    /// The outage that it belongs to, by its first failure.
    outage: Instant,
}

impl Roster {
    /// An empty roster: the worker acts as if alone until it has heard the others for a while. It takes no
    /// queue from them, since RabbitMQ changes to another consumer only for a higher priority.
    #[must_use]
    pub fn new(me: &str, tenants: BTreeMap<String, Arc<TenantState>>, partitions: u16) -> Self {
        let view = watch::Sender::new(View { partitions, ..View::default() });
        Self {
            me: me.to_owned(),
            tenants,
            peers: Peers::default(),
            pending: None,
            stepped_down: BTreeMap::new(),
            others_work: BTreeMap::new(),
            view,
        }
    }

    /// Follows its changes.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Follows the announcements for ever.
    pub async fn run(mut self, link: &Link) {
        let mut sessions = link.sessions();
        while let Some(session) = amqp::next_session(&mut sessions).await {
            match timeout(ANSWER_TIMEOUT, status::subscribe(&session)).await {
                Ok(Ok(mut announcements)) => {
                    let mut ticks = interval(TICK);
                    loop {
                        tokio::select! {
                            _ = ticks.tick() => self.look(Instant::now()),
                            delivery = announcements.next() => match delivery {
                                Some(Ok(delivery)) => self.record(&delivery.data),
                                _ => break,
                            },
                            () = session.lost().cancelled() => break,
                        }
                    }
                }
                Ok(Err(error)) => debug!(error = chain(&error), "can't follow the announcements"),
                Err(_) => session.report_broken("RabbitMQ didn't answer in time"),
            }
            sleep(RESUBSCRIBE_PAUSE).await;
        }
    }

    fn record(&mut self, body: &[u8]) {
        match serde_json::from_slice::<Announcement>(body) {
            Ok(announcement) => {
                self.step_down_if_others_work(&announcement, Instant::now());
                self.peers.record(announcement, Instant::now().into_std());
            }
            Err(error) => debug!(error = chain(&error), "an announcement can't be read"),
        }
    }

    /// Looks which workers are there now, and acts on changes that have lasted for a while.
    fn look(&mut self, now: Instant) {
        let alive: Vec<&Announcement> = self.peers.alive(now.into_std()).collect();
        // If our own announcements don't come back, others' may be missing, too.
        if !alive.iter().any(|peer| peer.name == self.me) {
            self.pending = None;
            return;
        }
        let partitions = alive.iter().map(|peer| peer.partitions).max().unwrap_or_default();
        let workers = workers(&alive);
        let is_settled = if workers == self.view.borrow().workers {
            self.pending = None;
            false
        } else {
            match &self.pending {
                Some((pending, since)) if *pending == workers => now.duration_since(*since) >= SETTLED,
                _ => {
                    self.pending = Some((workers.clone(), now));
                    false
                }
            }
        };
        let step_downs = self.step_downs(now);
        self.view.send_if_modified(|view| {
            let before = view.clone();
            view.partitions = view.partitions.max(partitions);
            view.step_downs = step_downs;
            if is_settled {
                view.workers = workers;
            }
            *view != before
        });
        if is_settled {
            self.pending = None;
            info!(workers = in_words(&self.view.borrow().workers), "sharing queues with these workers");
        }
    }

    fn step_downs(&self, now: Instant) -> BTreeMap<String, (u32, bool)> {
        let of = |down: &StepDown| (down.count, now.duration_since(down.at) < STEP_DOWN);
        self.stepped_down.iter().map(|(tenant, down)| (tenant.clone(), of(down))).collect()
    }

    /// Steps down, once an outage, if MongoDB still fails for us after it has answered another worker. After
    /// an outage that all workers had, one of them is the first that tries MongoDB again: so the others try
    /// before they judge.
    fn step_down_if_others_work(&mut self, announcement: &Announcement, now: Instant) {
        let Some(served) = announcement.served().filter(|_| announcement.name != self.me) else { return };
        for (tenant, state) in &self.tenants {
            let age = served.get(tenant).and_then(|status| status.success_age_ms);
            let succeeded = age.and_then(|age| now.checked_sub(Duration::from_millis(age)));
            let seen = state.breaker().seen();
            let (Some(succeeded), Some(outage), false) =
                (succeeded, seen.failing_since, state.breaker().is_closed())
            else {
                continue;
            };
            let before = self.stepped_down.get(tenant);
            if before.is_some_and(|down| down.outage == outage) || succeeded < outage + STEP_DOWN_MARGIN {
                continue;
            }
            let heard = self.others_work.get(tenant).filter(|others| others.outage == outage);
            let Some(OthersWork { heard_at, .. }) = heard.copied() else {
                self.others_work.insert(tenant.clone(), OthersWork { heard_at: now, outage });
                state.breaker().try_now();
                continue;
            };
            if seen.probed_in_vain_at.is_none_or(|began| began < heard_at) {
                continue;
            }
            let count = before.map_or(0, |down| down.count) + 1;
            self.stepped_down.insert(tenant.clone(), StepDown { count, at: now, outage });
            warn!(
                tenant,
                other = announcement.name,
                "MongoDB works for another worker, leaving the queues to it"
            );
        }
    }
}

fn workers(alive: &[&Announcement]) -> BTreeMap<String, Vec<String>> {
    let mut workers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // In the order of their names.
    for peer in alive {
        for tenant in peer.served().into_iter().flatten().map(|(tenant, _)| tenant) {
            workers.entry(tenant.clone()).or_default().push(peer.name.clone());
        }
    }
    workers
}

/// The workers of each tenant, for people.
fn in_words(workers: &BTreeMap<String, Vec<String>>) -> String {
    let of_tenant = |(tenant, names): (&String, &Vec<String>)| format!("{tenant}: {}", names.join(", "));
    workers.iter().map(of_tenant).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_names_workers_as_people_do() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let workers = [("faster".to_owned(), names(&["a-1", "b-2"])), ("vip".to_owned(), names(&["a-1"]))];
        assert_eq!(in_words(&workers.into()), "faster: a-1, b-2; vip: a-1");
    }
}
