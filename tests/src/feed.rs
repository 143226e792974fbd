//! Events that are published past ingest at a steady pace, each stamped with the time.

use std::ops::Range;
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

/// An event is published so often, or as soon as RabbitMQ has confirmed the one before.
const EVERY: Duration = Duration::from_millis(20);
/// The chats of a feed.
pub const CHATS: u64 = 20;

impl Feed {
    /// Starts publishing.
    pub async fn start(place: &Place, tenant: &'static str) -> Self {
        let (published, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (broker, counter, told) =
            (Broker::connect(&place.amqp_url).await, published.clone(), stop.clone());
        let publisher = tokio::spawn(async move {
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !told.load(Ordering::Relaxed) {
                ticks.tick().await;
                let n = counter.load(Ordering::Relaxed);
                burst(&broker, tenant, n..n + 1, CHATS).await;
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { publisher, published, stop }
    }

    /// How many events are published.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Waits until this many more events are published.
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

/// Publishes message events of those numbers, all at once, in turn from each of this many chats, and waits
/// until RabbitMQ has them.
pub async fn burst(broker: &Broker, tenant: &str, numbers: Range<u64>, chats: u64) {
    let bodies: Vec<_> = numbers.map(|n| event(n, chats)).collect();
    let publish = |body| broker.publish_event(tenant, "any", now_ms(), body);
    join_all(bodies.iter().map(|body| publish(body.as_bytes()))).await;
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
