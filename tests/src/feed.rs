//! Events that are published past ingest at a steady pace, each stamped with the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::broker::Broker;
use crate::poll;
use crate::stack::Place;

/// Events for one tenant, numbered from zero; the number is the event's key.
#[derive(Debug)]
pub struct Feed {
    publisher: JoinHandle<()>,
    published: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

/// How events are published.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// So often, or as soon as RabbitMQ has confirmed those before.
    pub every: Duration,
    /// So many message events at once.
    pub at_once: u64,
    /// About so many chats.
    pub chats: u64,
}

impl Feed {
    /// Starts publishing.
    pub async fn start(place: &Place, tenant: &'static str, pace: Pace) -> Self {
        let (published, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (broker, counter, told) =
            (Broker::connect(&place.amqp_url).await, published.clone(), stop.clone());
        let publisher = tokio::spawn(async move {
            let mut ticks = interval(pace.every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !told.load(Ordering::Relaxed) {
                ticks.tick().await;
                let n = counter.load(Ordering::Relaxed);
                let bodies: Vec<_> = (n..n + pace.at_once).map(|n| event(n, pace.chats)).collect();
                let publish = |body| broker.publish_event(tenant, "any", now_ms(), body);
                join_all(bodies.iter().map(|body| publish(body.as_bytes()))).await;
                counter.fetch_add(pace.at_once, Ordering::Relaxed);
            }
        });
        Self { publisher, published, stop }
    }

    /// How many events are published.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Waits until so many more events are published.
    pub async fn until_more(&self, events: u64) {
        let wanted = self.published() + events;
        poll::until("events are published", true, async || self.published() >= wanted).await;
    }

    /// Ends it, and tells how many events were published.
    pub async fn stop(&mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.publisher).await.expect("RabbitMQ takes all events");
        self.published.load(Ordering::Relaxed)
    }
}

fn event(n: u64, chats: u64) -> String {
    json!({"event_id": n.to_string(), "event_type": "message.received", "contact": {"id": n % chats},
        "message": {"messageId": n, "message": {"type": "text", "text": "a text of usual length"}}})
    .to_string()
}

fn now_ms() -> i64 {
    let since_1970 = SystemTime::UNIX_EPOCH.elapsed().expect("a clock that is right");
    i64::try_from(since_1970.as_millis()).expect("a date")
}
