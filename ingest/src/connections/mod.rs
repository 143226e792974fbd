//! The connections of the public port: how many there are, and how long each may keep us waiting.
//!
//! actix-web has a deadline only for the first head of a connection, and answers 408 even if no request has
//! begun. So a connection reports here what it waits for ([`Phase`]), and a task closes overdue connections
//! without a reply. If the number of connections is at its maximum, the next connection replaces the one that
//! has waited longest for its sender.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use prometheus::IntCounterVec;
use tokio::time::{MissedTickBehavior, interval};

mod guarded;
pub mod listen;

pub use guarded::Guarded;

/// Longest time for the head of a request to arrive, once it has begun.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for the body of a request that nobody reads, such as one to an unknown path. Bodies of
/// webhooks have a shorter deadline, after which they are answered 408.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for a sender to read a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// The end of a request's head, and of a chunked body.
pub const END_OF_HEAD: &[u8] = b"\r\n\r\n";
/// How often overdue connections are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// For the first byte of the sender's next request.
    Idle,
    /// For the rest of a request's head.
    Head,
    /// For the rest of a request's body.
    Body,
    /// For us: the request is here.
    Ours,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Idle, Self::Head, Self::Body, Self::Ours];

    fn from_number(number: u64) -> Self {
        Self::ALL.into_iter().find(|phase| *phase as u64 == number).unwrap_or(Self::Ours)
    }

    /// How long a connection may be in this phase.
    fn deadline(self, keep_alive: Duration) -> Option<Duration> {
        match self {
            Self::Idle => Some(keep_alive),
            Self::Head => Some(HEAD_TIMEOUT),
            Self::Body => Some(BODY_TIMEOUT),
            Self::Ours => None,
        }
    }
}

/// Why a connection is closed before its sender does so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// It was idle for `KEEP_ALIVE`.
    Idle,
    /// Its sender was too slow.
    Slow,
    /// Another one needed its place.
    Full,
}

impl Closed {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Idle, Self::Slow, Self::Full];

    /// The value of the metrics label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Slow => "slow",
            Self::Full => "full",
        }
    }
}

/// A connection, as far as others need to know it.
#[derive(Debug)]
pub struct Connection {
    opened: Instant,
    // The phase in the lowest two bits, and above them when it began, in milliseconds since the connection
    // was opened.
    phase: AtomicU64,
    // The last four bytes that came.
    tail: AtomicU32,
    // Whether more came than the request: the beginning of the next one.
    is_followed: AtomicBool,
    // When the sender stopped reading replies, in milliseconds since the connection was opened. 0 while it
    // reads them.
    stuck: AtomicU64,
    requests: AtomicU32,
    // Why it must close: the number of the reason in [`Closed::ALL`], counted from 1. 0 while it stays open.
    closing: AtomicU8,
    waker: AtomicWaker,
}

impl Connection {
    fn new(now: Instant) -> Self {
        Self {
            opened: now,
            phase: AtomicU64::new(Phase::Idle as u64),
            tail: AtomicU32::new(0),
            is_followed: AtomicBool::new(false),
            stuck: AtomicU64::new(0),
            requests: AtomicU32::new(0),
            closing: AtomicU8::new(0),
            waker: AtomicWaker::new(),
        }
    }

    /// A request has come, all but its body, if it has one. Returns how many have so far.
    pub fn begin(&self, has_body: bool) -> u32 {
        if has_body {
            self.enter(Phase::Body);
        } else {
            self.is_read(END_OF_HEAD);
        }
        self.requests.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The whole request is here, and ends with these bytes. Bytes behind them belong to the next request.
    pub fn is_read(&self, end: &[u8]) {
        let end = &end[end.len().saturating_sub(4)..];
        let is_followed = !self.tail.load(Ordering::Relaxed).to_be_bytes().ends_with(end);
        self.is_followed.store(is_followed, Ordering::Relaxed);
        self.enter(Phase::Ours);
    }

    /// The request is answered. If nobody has read its body, the connection still waits for the rest.
    pub fn end(&self) {
        if self.phase().0 != Phase::Body {
            let is_followed = self.is_followed.load(Ordering::Relaxed);
            self.enter(if is_followed { Phase::Head } else { Phase::Idle });
        }
    }

    /// More bytes came from the sender.
    fn came(&self, bytes: &[u8]) {
        let last = &bytes[bytes.len().saturating_sub(4)..];
        let tail =
            last.iter().fold(self.tail.load(Ordering::Relaxed), |tail, byte| tail << 8 | u32::from(*byte));
        self.tail.store(tail, Ordering::Relaxed);
        if self.closing.swap(0, Ordering::Relaxed) != 0 {
            // These bytes were there in time, and we read them late.
            self.enter(self.phase().0);
        }
        // Some senders put a line break behind a body.
        if self.phase().0 == Phase::Idle && bytes.iter().any(|byte| !b"\r\n".contains(byte)) {
            self.enter(Phase::Head);
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(self.age_ms() << 2 | phase as u64, Ordering::Relaxed);
    }

    /// The phase, and when it began.
    fn phase(&self) -> (Phase, Instant) {
        let packed = self.phase.load(Ordering::Relaxed);
        (Phase::from_number(packed & 3), self.opened + Duration::from_millis(packed >> 2))
    }

    /// Records whether the sender reads what ingest writes.
    fn takes(&self, is_taking: bool) {
        if is_taking {
            self.stuck.store(0, Ordering::Relaxed);
        } else {
            let since = self.age_ms().max(1);
            let _ = self.stuck.compare_exchange(0, since, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Why the connection is overdue, if it is.
    fn overdue(&self, keep_alive: Duration, now: Instant) -> Option<Closed> {
        let (phase, since) = self.phase();
        let waited = now.saturating_duration_since(since);
        if phase.deadline(keep_alive).is_some_and(|deadline| waited >= deadline) {
            return Some(if phase == Phase::Idle { Closed::Idle } else { Closed::Slow });
        }
        let stuck = self.stuck.load(Ordering::Relaxed);
        let waited = now.saturating_duration_since(self.opened + Duration::from_millis(stuck));
        (stuck > 0 && waited >= REPLY_TIMEOUT).then_some(Closed::Slow)
    }

    /// The reason why it must close; none while it stays open.
    fn closing(&self) -> Option<Closed> {
        Closed::ALL.get(usize::from(self.closing.load(Ordering::Relaxed)).checked_sub(1)?).copied()
    }

    /// Closes the connection without a reply, unless something has come meanwhile.
    fn close(&self, why: Closed) {
        let _ = self.closing.compare_exchange(0, why as u8 + 1, Ordering::Relaxed, Ordering::Relaxed);
        self.waker.wake();
    }
}

/// All connections of the public port.
#[derive(Debug)]
pub struct Connections {
    most: usize,
    keep_alive: Duration,
    closed: IntCounterVec,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
}

impl Connections {
    /// At most `most` connections, each idle for at most `keep_alive`. `closed` counts those that ingest
    /// closes, by reason.
    #[must_use]
    pub fn new(most: usize, keep_alive: Duration, closed: IntCounterVec) -> Self {
        Self { most, keep_alive, closed, open: Mutex::default(), next: AtomicU64::new(0) }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open().len()
    }

    /// How many there may be.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most
    }

    /// Accepts a new connection. If there are too many, closes the one that has waited longest for its
    /// sender; none if all wait for us.
    fn admit(&self, now: Instant) -> Option<(u64, Arc<Connection>)> {
        let mut open = self.open();
        if open.len() >= self.most {
            let waiting = open.values().filter(|connection| connection.closing().is_none());
            let waiting = waiting.map(|connection| (connection.phase(), connection));
            let longest =
                waiting.filter(|((phase, _), _)| *phase != Phase::Ours).min_by_key(|((_, at), _)| *at);
            let Some((_, longest)) = longest else {
                self.count_closed(Closed::Full);
                return None;
            };
            longest.close(Closed::Full);
        }
        let (id, connection) = (self.next.fetch_add(1, Ordering::Relaxed), Arc::new(Connection::new(now)));
        open.insert(id, connection.clone());
        Some((id, connection))
    }

    fn remove(&self, id: u64) {
        self.open().remove(&id);
    }

    /// Closes those that are overdue.
    fn sweep(&self, now: Instant) {
        for connection in self.open().values() {
            if let Some(why) = connection.overdue(self.keep_alive, now) {
                connection.close(why);
            }
        }
    }

    /// One was closed.
    fn count_closed(&self, why: Closed) {
        self.closed.with_label_values(&[why.name()]).inc();
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks for overdue connections, without end.
pub async fn sweep(connections: Arc<Connections>) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        connections.sweep(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Opts;

    const KEEP_ALIVE: Duration = Duration::from_mins(10);

    fn connections(most: usize) -> Connections {
        let closed = IntCounterVec::new(Opts::new("closed", "closed"), &["reason"]).unwrap();
        Connections::new(most, KEEP_ALIVE, closed)
    }

    #[test]
    fn what_waits_longest_for_its_sender_makes_room() {
        let (all, now) = (connections(3), Instant::now());
        let admitted =
            [2, 1, 0].map(|ago| all.admit(now.checked_sub(Duration::from_secs(ago)).unwrap()).unwrap().1);
        admitted[0].begin(false);
        assert!(all.admit(now).is_some());
        assert_eq!(
            admitted.each_ref().map(|connection| connection.closing()),
            [None, Some(Closed::Full), None]
        );
        // A connection whose request is being served is never closed.
        admitted[2].begin(true);
        admitted[2].is_read(b"{}");
        all.open()
            .retain(|_, connection| connection.closing().is_none() && connection.phase().0 == Phase::Ours);
        let busy = all.admit(now).unwrap().1;
        busy.begin(false);
        assert!(all.admit(now).is_none());
    }

    #[test]
    fn who_is_overdue_is_closed_unless_more_has_come() {
        let (all, now) = (connections(9), Instant::now());
        let [idle, head, body, ours, stuck] = [(); 5].map(|()| all.admit(now).unwrap().1);
        head.enter(Phase::Head);
        body.begin(true);
        // It is answered, and the rest of its body doesn't come.
        body.end();
        ours.came(END_OF_HEAD);
        ours.begin(false);
        stuck.takes(false);
        let closing = || [&idle, &head, &body, &ours, &stuck].map(|connection| connection.closing());
        all.sweep(now + HEAD_TIMEOUT / 2);
        assert_eq!(closing(), [None; 5]);
        all.sweep(Instant::now() + 2 * HEAD_TIMEOUT);
        assert_eq!(closing(), [None, Some(Closed::Slow), Some(Closed::Slow), None, Some(Closed::Slow)]);
        // What was there by then counts.
        head.came(b"host: x");
        assert_eq!((head.closing(), head.phase().0), (None, Phase::Head));
        all.sweep(now + KEEP_ALIVE);
        assert_eq!((idle.closing(), ours.closing()), (Some(Closed::Idle), None));
        ours.end();
        assert_eq!(ours.phase().0, Phase::Idle);
        all.sweep(Instant::now() + KEEP_ALIVE);
        assert_eq!(ours.closing(), Some(Closed::Idle));
    }

    #[test]
    fn what_came_behind_a_request_is_the_head_of_the_next() {
        for (came, end, phase) in [
            ("GET / HTTP/1.1\r\n\r\n", "\r\n\r\n", Phase::Idle),
            ("GET / HTTP/1.1\r\n\r\nGET /h", "\r\n\r\n", Phase::Head),
            ("content-length: 2\r\n\r\n{}", "{}", Phase::Idle),
            ("content-length: 2\r\n\r\n{}P", "{}", Phase::Head),
            ("content-length: 9\r\n\r\n{\"a\":\"b\"}", "{\"a\":\"b\"}", Phase::Idle),
        ] {
            let connection = Connection::new(Instant::now());
            connection.came(came.as_bytes());
            connection.begin(true);
            connection.is_read(end.as_bytes());
            connection.end();
            assert_eq!(connection.phase().0, phase, "{came:?}");
        }
    }
}
