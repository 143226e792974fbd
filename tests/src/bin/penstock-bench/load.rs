//! The load generator: open loop (a constant rate, whatever the answers take) and closed loop.
//!
//! Load libraries don't fit: rlt measures from when a request starts, goose estimates what a stall hid, and
//! neither measures from when it should have started.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::client::HttpTarget;
use crate::event::{Event, Maker};
use crate::number::rate;
use crate::raw_publish::RawPublisher;

/// respond.io gives up after this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause of a closed loop after a refusal, so that a server that refuses doesn't keep a core busy.
const REFUSED: Duration = Duration::from_millis(10);
/// From the start of an open loop until the first event is due.
const LEAD: Duration = Duration::from_millis(5);
/// Linux wakes a sleeping thread this much late.
const TIMER_SLACK: Duration = Duration::from_micros(50);

/// Where events are sent.
#[derive(Clone, Debug)]
pub enum Target {
    /// A server with the bridge's endpoints.
    Http(Arc<HttpTarget>),
    /// RabbitMQ.
    Raw(Arc<RawPublisher>),
}

/// An event that was sent.
#[derive(Debug)]
pub struct Sent {
    /// Its number.
    pub n: u64,
    /// When it should have been sent.
    pub due: Instant,
    /// When it was answered.
    pub answered: Instant,
    /// Nothing if it was received, or what else was answered.
    pub outcome: Result<(), String>,
}

/// What a load has seen.
#[derive(Debug)]
pub struct Load {
    /// All events.
    pub sent: Vec<Sent>,
    /// Time from the first event to the last answer.
    pub took: Duration,
}

impl Sent {
    /// How long the answer took from when the event was due.
    pub fn reply_time(&self) -> Duration {
        self.answered - self.due
    }
}

impl Load {
    /// Number of events that were received.
    pub fn accepted(&self) -> u64 {
        self.sent.iter().filter(|sent| sent.outcome.is_ok()).count() as u64
    }

    /// Events received per second.
    pub fn rate(&self) -> f64 {
        rate(self.accepted(), self.took)
    }

    /// The events that were due after the beginning, in which everything is still cold.
    pub fn after(&self, beginning: Duration) -> impl Iterator<Item = &Sent> {
        let first = self.sent.iter().map(|sent| sent.due).min();
        self.sent.iter().filter(move |sent| first.is_some_and(|first| sent.due >= first + beginning))
    }

    /// What else was answered, and how often.
    pub fn oddities(&self) -> BTreeMap<String, u64> {
        let mut oddities = BTreeMap::new();
        for odd in self.sent.iter().filter_map(|sent| sent.outcome.as_ref().err()) {
            *oddities.entry(odd.clone()).or_default() += 1;
        }
        oddities
    }
}

/// Sends events to a target.
#[derive(Clone, Debug)]
pub struct Generator {
    /// Where events are sent.
    pub target: Target,
    /// Makes them.
    pub maker: Maker,
}

impl Generator {
    /// This many callers, each of which sends one event after the other, for this time or this many events.
    pub async fn closed(&self, callers: usize, time: Duration, events: u64) -> anyhow::Result<Load> {
        let (generator, taken) = (self.clone(), Arc::new(AtomicU64::new(0)));
        let is_over = move |started: Instant| {
            started.elapsed() >= time || taken.fetch_add(1, Ordering::Relaxed) >= events
        };
        on_own_thread(async move {
            let (started, mut calls) = (Instant::now(), JoinSet::new());
            for _ in 0..callers {
                let (generator, is_over) = (generator.clone(), is_over.clone());
                calls.spawn(generator.one_after_the_other(move || is_over(started)));
            }
            let sent = calls.join_all().await.into_iter().flatten().collect();
            Load { sent, took: started.elapsed() }
        })
        .await
    }

    async fn one_after_the_other(self, is_over: impl Fn() -> bool) -> Vec<Sent> {
        let mut all = Vec::new();
        while !is_over() {
            let sent = self.clone().send(Instant::now(), self.maker.make()).await;
            if sent.outcome.is_err() {
                tokio::time::sleep(REFUSED).await;
            }
            all.push(sent);
        }
        all
    }

    /// Events at a constant rate per second, however many are unanswered.
    pub async fn open(&self, rate: u64, time: Duration) -> anyhow::Result<Load> {
        let generator = self.clone();
        on_own_thread(async move {
            let (started, mut calls) = (Instant::now(), JoinSet::new());
            let (sender, mut due_events) = unbounded_channel();
            let maker = generator.maker.clone();
            // A thread, since tokio's timers round up to milliseconds: answers would look slower by up to
            // one.
            let pacer = spawn_blocking(move || release(rate, time, &maker, &sender));
            while let Some((due, event)) = due_events.recv().await {
                calls.spawn(generator.clone().send(due, event));
            }
            let sent = calls.join_all().await;
            let _ = pacer.await;
            Load { sent, took: started.elapsed() }
        })
        .await
    }

    async fn send(self, due: Instant, event: Event) -> Sent {
        let answer = timeout(PATIENCE, async {
            match &self.target {
                Target::Http(server) => server.post(&event).await,
                Target::Raw(rabbitmq) => rabbitmq.publish(&event).await,
            }
        });
        let outcome = match answer.await {
            Ok(answer) => answer.map_err(|error| format!("{error:#}")),
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        };
        Sent { n: event.n, due, answered: Instant::now(), outcome }
    }
}

/// Releases every event when it is due. Each is made before.
fn release(rate: u64, time: Duration, maker: &Maker, due_events: &UnboundedSender<(Instant, Event)>) {
    let start = Instant::now() + LEAD;
    for place in 0..time.as_millis() as u64 * rate / 1000 {
        // From its place, so that nothing adds up.
        let (due, event) = (start + Duration::from_nanos(place * 1_000_000_000 / rate), maker.make());
        wait_until(due);
        if due_events.send((due, event)).is_err() {
            return;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the moment itself is what is waited for")]
fn wait_until(due: Instant) {
    if let Some(time) = due.checked_duration_since(Instant::now() + TIMER_SLACK) {
        std::thread::sleep(time);
    }
    while Instant::now() < due {
        std::hint::spin_loop();
    }
}

/// With a runtime of its own: a request costs no change of thread, and nothing else delays it.
async fn on_own_thread<T: Send + 'static>(
    load: impl Future<Output = T> + Send + 'static,
) -> anyhow::Result<T> {
    let run = move || anyhow::Ok(Builder::new_current_thread().enable_all().build()?.block_on(load));
    spawn_blocking(run).await.context("the load generator failed")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_timed_from_when_events_were_due() {
        let after = |start: Instant, ms| start + Duration::from_millis(ms);
        let sent = |n, start, due, answered, outcome| Sent {
            n,
            due: after(start, due),
            answered: after(start, answered),
            outcome,
        };
        let start = Instant::now();
        let sent = vec![sent(1, start, 0, 1, Ok(())), sent(2, start, 10, 110, Err("503".into()))];
        let load = Load { sent, took: Duration::from_secs(1) };
        let measured = load.after(Duration::from_millis(10));
        assert!(measured.map(Sent::reply_time).eq([Duration::from_millis(100)]));
        assert_eq!((load.accepted(), load.oddities()), (1, BTreeMap::from([("503".to_owned(), 1)])));
    }
}
