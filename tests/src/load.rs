//! Clients that post events at a steady pace, and remember every answer.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::database::Database;
use crate::http::client;
use crate::poll;

/// Contacts that the events are about.
const CONTACTS: u64 = 50;

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    clients: JoinSet<Report>,
    target: Arc<Mutex<String>>,
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
}

/// What clients have seen.
#[derive(Debug, Default)]
pub struct Report {
    /// Numbers of the events that were answered 200 `received`.
    pub received: BTreeSet<u64>,
    /// Every other answer.
    pub otherwise: Vec<String>,
    /// How long each answer took.
    pub took: Vec<Duration>,
}

impl Load {
    /// Starts this many clients, each of which posts to `{url}/webhook/faster/incoming` once per `pace`, or
    /// whenever it was answered if that takes longer.
    pub fn start(url: &str, clients: u64, pace: Duration) -> Self {
        Self::start_with(url, clients, pace, None)
    }

    /// As [`Load::start`], with signatures made with this key.
    pub fn start_signed(url: &str, clients: u64, pace: Duration, key: &str) -> Self {
        Self::start_with(url, clients, pace, Some(key))
    }

    fn start_with(url: &str, clients: u64, pace: Duration, key: Option<&str>) -> Self {
        let mac = key.map(|key| Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("any key will do"));
        let (target, stop) = (Arc::new(Mutex::new(url.to_owned())), Arc::new(AtomicBool::new(false)));
        let (mut set, http, received) = (JoinSet::new(), client(), Arc::new(AtomicU64::new(0)));
        // No two loads of a test send the same events.
        static NEXT_MILLION: AtomicU64 = AtomicU64::new(0);
        let first = NEXT_MILLION.fetch_add(1, Ordering::Relaxed) * 1_000_000;
        for client in first..first + clients {
            let (http, target, stop, counter, mac) =
                (http.clone(), target.clone(), stop.clone(), received.clone(), mac.clone());
            set.spawn(async move {
                let (mut report, mut ticks) = (Report::default(), interval(pace));
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                for n in (client..).step_by(usize::try_from(clients).expect("a few")) {
                    ticks.tick().await;
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let url = format!("{}/webhook/faster/incoming", target.lock().expect("no panic"));
                    let sent = Instant::now();
                    let mut request = http.post(url).body(event(n));
                    if let Some(mac) = &mac {
                        let mac = mac.clone().chain_update(event(n)).finalize().into_bytes();
                        request = request.header("x-webhook-signature", STANDARD.encode(mac));
                    }
                    let answer = request.send().await;
                    report.took.push(sent.elapsed());
                    match answer {
                        Ok(answer) if answer.status() == 200 => {
                            let text = answer.text().await.unwrap_or_default();
                            if text.contains("received") {
                                report.received.insert(n);
                                counter.fetch_add(1, Ordering::Relaxed);
                            } else {
                                report.otherwise.push(text);
                            }
                        }
                        Ok(answer) => report.otherwise.push(answer.status().to_string()),
                        Err(error) => report.otherwise.push(format!("{error:?}")),
                    }
                }
                report
            });
        }
        Self { clients: set, target, stop, received }
    }

    /// Sends what comes next to another ingest, as a load balancer would.
    pub fn redirect(&self, url: &str) {
        url.clone_into(&mut self.target.lock().expect("no panic"));
    }

    /// Waits until this many more events were received.
    pub async fn until_more(&self, events: u64) {
        let wanted = self.received.load(Ordering::Relaxed) + events;
        poll::until("events are received", wanted, async || {
            self.received.load(Ordering::Relaxed).min(wanted)
        })
        .await;
    }

    /// As [`Load::until_more`], with a deadline of the caller's choice.
    pub async fn until_more_within(&self, events: u64, patience: Duration) {
        let wanted = self.received.load(Ordering::Relaxed) + events;
        let received = async || self.received.load(Ordering::Relaxed) >= wanted;
        poll::until_within("events are received", true, patience, received).await;
    }

    /// Ends the load.
    pub async fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Report::default();
        for report in self.clients.join_all().await {
            all.extend(report);
        }
        all
    }
}

impl Report {
    /// The time within which half of the answers came.
    pub fn median(&self) -> Duration {
        self.within(500)
    }

    /// The time within which this many of a thousand answers came.
    pub fn within(&self, per_mille: usize) -> Duration {
        self.took[(self.took.len() - 1) * per_mille / 1000]
    }

    /// Adds what other clients have seen.
    pub fn extend(&mut self, other: Self) {
        self.received.extend(other.received);
        self.otherwise.extend(other.otherwise);
        self.took.extend(other.took);
        self.took.sort();
    }

    /// A line for people.
    pub fn summary(&self, what: &str) -> String {
        let (median, p99, slowest) = (self.median(), self.within(990), self.within(1000));
        format!(
            "{what}: {} sent, {} not received, median {median:.1?}, p99 {p99:.1?}, slowest {slowest:.1?}",
            self.took.len(),
            self.otherwise.len()
        )
    }

    /// Waits until every event that was received is stored, and checks that each has counted once.
    pub async fn assert_stored_once(&self, database: &Database) {
        let stored = async || -> BTreeSet<u64> {
            database.ids("webhook_events").await.iter().map(|key| key.parse().expect("a number")).collect()
        };
        let missing = async || self.received.difference(&stored().await).copied().collect::<Vec<_>>();
        poll::until_within("nothing received is missing", vec![], Duration::from_secs(90), missing).await;
        // Those whose answer got lost on the way may be stored as well, and may still be on their way.
        let counts = async || {
            let (events, messages) =
                (database.count("webhook_events").await, database.count("messages").await);
            let counted = database.sum("conversations", "message_count").await.unsigned_abs();
            events == messages && messages == counted
        };
        poll::until("each message is counted once", true, counts).await;
    }
}

fn event(n: u64) -> String {
    json!({"event_id": n.to_string(), "event_type": "message.received", "contact": {"id": n % CONTACTS},
        "message": {"messageId": n, "message": {"type": "text", "text": "a text of usual length ".repeat(30)}}})
    .to_string()
}
