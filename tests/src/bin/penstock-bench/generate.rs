//! The load generator: open loop (a constant rate, whatever the answers take) and closed loop (each connection one
//! event after the other).
//!
//! It has a thread of its own with a runtime of its own: a request then costs no changes of thread, and what else
//! the benchmark does doesn't delay it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};

use crate::client::{Answer, Client, Target};
use crate::event::{Event, Maker};
use crate::pace::{self, Pace, Shot};
use crate::tally::{Tally, Times};

/// Most connections of an open loop. If all are busy, events wait, and that counts.
const MAX_CONNECTIONS: usize = 256;
/// After the last event of an open loop was due, what still waits is given up.
const GRACE: Duration = Duration::from_secs(2);

/// Sends events to a server.
#[derive(Clone, Debug)]
pub struct Generator {
    target: Arc<Target>,
    maker: Maker,
    accepted: Arc<AtomicU64>,
}

/// When a closed loop ends: whichever comes first.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// After this time.
    pub time: Duration,
    /// After so many events.
    pub events: u64,
}

impl Limit {
    /// By time alone.
    pub fn time(time: Duration) -> Self {
        Self { time, events: u64::MAX }
    }
}

impl Generator {
    /// Sends what the maker makes to the target.
    pub fn new(target: Target, maker: Maker) -> Self {
        Self { target: Arc::new(target), maker, accepted: Arc::default() }
    }

    /// Events that were answered 200 `received` so far, by all loads of this generator.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// So many connections, each one event after the other. Gives what they have seen, and the time it took.
    pub async fn closed(&self, connections: usize, limit: Limit) -> anyhow::Result<(Tally, Duration)> {
        let generator = self.clone();
        on_own_thread(async move { generator.run_closed(connections, limit).await }).await
    }

    /// Events at a constant rate.
    pub async fn open(&self, pace: Pace) -> anyhow::Result<Tally> {
        let generator = self.clone();
        on_own_thread(async move { generator.run_open(pace).await }).await
    }

    async fn run_closed(self, connections: usize, limit: Limit) -> (Tally, Duration) {
        let (started, taken, mut clients) = (Instant::now(), Arc::new(AtomicU64::new(0)), JoinSet::new());
        for _ in 0..connections {
            clients.spawn(self.clone().one_after_the_other(started, limit, taken.clone()));
        }
        let mut all = Tally::new(started);
        for tally in clients.join_all().await {
            all.add(tally);
        }
        (all, started.elapsed())
    }

    async fn one_after_the_other(self, started: Instant, limit: Limit, taken: Arc<AtomicU64>) -> Tally {
        let (mut client, mut tally) = (Client::new(self.target.clone()), Tally::new(started));
        while started.elapsed() < limit.time && taken.fetch_add(1, Ordering::Relaxed) < limit.events {
            let event = self.maker.make();
            let (times, answer) = self.send(&mut client, &event, None).await;
            if let Answer::Odd(_) = answer {
                // Not to keep a core busy with a server that refuses.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tally.record(event.n, &times, answer);
        }
        tally
    }

    async fn send(&self, client: &mut Client, event: &Event, due: Option<Instant>) -> (Times, Answer) {
        let sent = Instant::now();
        let answer = client.post(event).await;
        if answer == Answer::Received {
            self.accepted.fetch_add(1, Ordering::Relaxed);
        }
        (Times { due: due.unwrap_or(sent), sent, answered: Instant::now() }, answer)
    }

    async fn run_open(self, pace: Pace) -> Tally {
        let (sender, shots) = mpsc::unbounded_channel();
        let start = Instant::now() + pace::LEAD;
        let maker = self.maker.clone();
        let pacer = spawn_blocking(move || pace::run(&pace, start, &maker, &sender));
        let mut tally = Tally::new(start + pace.warm);
        self.dispatch(shots, start + pace.total() + GRACE, &mut tally).await;
        let _ = pacer.await;
        tally
    }

    /// Gives each shot a connection as soon as there is one, until all are answered.
    async fn dispatch(&self, mut shots: mpsc::UnboundedReceiver<Shot>, end: Instant, tally: &mut Tally) {
        let (mut idle, mut under_way) = (Vec::new(), JoinSet::new());
        let too_late = tokio::time::sleep_until(end.into());
        tokio::pin!(too_late);
        loop {
            tokio::select! {
                biased;
                Some(done) = under_way.join_next() => take_back(done, &mut idle, tally),
                shot = shots.recv(), if under_way.len() < MAX_CONNECTIONS => {
                    let Some(shot) = shot else { break };
                    // The one used last is the warmest.
                    let client = idle.pop().unwrap_or_else(|| Client::new(self.target.clone()));
                    under_way.spawn(self.clone().fire(client, shot));
                }
                () = &mut too_late => break,
            }
        }
        shots.close();
        while let Ok(shot) = shots.try_recv() {
            tally.give_up(shot.due.elapsed());
        }
        while let Some(done) = under_way.join_next().await {
            take_back(done, &mut idle, tally);
        }
    }

    async fn fire(self, mut client: Client, shot: Shot) -> Done {
        let (times, answer) = self.send(&mut client, &shot.event, Some(shot.due)).await;
        Done { client, n: shot.event.n, times, answer }
    }
}

struct Done {
    client: Client,
    n: u64,
    times: Times,
    answer: Answer,
}

fn take_back(done: Result<Done, tokio::task::JoinError>, idle: &mut Vec<Client>, tally: &mut Tally) {
    if let Ok(Done { client, n, times, answer }) = done {
        idle.push(client);
        tally.record(n, &times, answer);
    }
}

async fn on_own_thread<T: Send + 'static>(
    load: impl Future<Output = T> + Send + 'static,
) -> anyhow::Result<T> {
    let run = move || anyhow::Ok(Builder::new_current_thread().enable_all().build()?.block_on(load));
    spawn_blocking(run).await.context("the load generator failed")?
}
