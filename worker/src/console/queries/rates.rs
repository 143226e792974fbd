//! How many events are stored in a minute. Counted while somebody looks at the page, which shows the latest
//! numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mongodb::bson::{DateTime, Document, doc};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{DEADLINE, Find, millis};
use crate::commands::now_ms;
use crate::console::state::TenantPages;
use crate::store::Store;
use crate::store::failure::{Failure, within};

const MINUTE_MS: i64 = 60 * 1000;
const WEEK_MS: i64 = 7 * 24 * 60 * MINUTE_MS;
/// Older numbers are counted again.
const FRESH: Duration = Duration::from_secs(5);
/// How long a page waits for new numbers before it shows the latest ones.
const NEWS_TIMEOUT: Duration = Duration::from_millis(800);
/// More than this many in a minute are "at least this many": counting is bounded, too.
pub const MOST_COUNTED: i64 = 1_000_000;

/// What MongoDB has stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Events stored in the last minute.
    pub now: u64,
    /// Events stored in the same minute of last week; none if the ledger doesn't reach so far back.
    pub last_week: Option<u64>,
    /// When the event that was stored last had been received, in milliseconds since 1970.
    pub latest_received_at_ms: Option<i64>,
}

/// The latest numbers, and their age.
#[derive(Clone, Debug)]
pub struct Known {
    /// The latest answer; the reason if there was none.
    pub stored: Result<Stored, String>,
    /// When it came.
    pub at: Instant,
}

/// The rates of a tenant.
pub struct Rates {
    known: watch::Sender<Option<Known>>,
    is_asking: AtomicBool,
}

impl Default for Rates {
    fn default() -> Self {
        Self { known: watch::Sender::new(None), is_asking: AtomicBool::new(false) }
    }
}

/// A tenant's latest rates. Counts again if they are old, but doesn't wait long for that.
pub async fn known(pages: Arc<TenantPages>) -> Option<Known> {
    let mut known = pages.rates.known.subscribe();
    let is_fresh = |known: &Option<Known>| known.as_ref().is_some_and(|known| known.at.elapsed() < FRESH);
    if !is_fresh(&known.borrow()) {
        if !pages.rates.is_asking.swap(true, Ordering::AcqRel) {
            tokio::spawn(ask(pages.clone()));
        }
        let _ = timeout(NEWS_TIMEOUT, known.wait_for(is_fresh)).await;
    }
    known.borrow().clone()
}

async fn ask(pages: Arc<TenantPages>) {
    let stored = async { stored(pages.database.store().await?, now_ms()).await }.await;
    let stored = stored.map_err(|failure| failure.to_string());
    pages.rates.known.send_replace(Some(Known { stored, at: Instant::now() }));
    pages.rates.is_asking.store(false, Ordering::Release);
}

async fn stored(store: &Store, now_ms: i64) -> Result<Stored, Failure> {
    let (week_ago, oldest) = (now_ms - WEEK_MS, edge(store, 1).await?);
    let is_known =
        oldest.and_then(|oldest| millis(&oldest, "stored_at")).is_some_and(|oldest| oldest < week_ago);
    let last_week = if is_known { Some(count(store, week_ago).await?) } else { None };
    let latest = edge(store, -1).await?;
    Ok(Stored {
        now: count(store, now_ms).await?,
        last_week,
        latest_received_at_ms: latest.and_then(|latest| millis(&latest, "received_at")),
    })
}

/// The entry that was stored first, or last.
async fn edge(store: &Store, order: i32) -> Result<Option<Document>, Failure> {
    let fields = doc! {"received_at": 1, "stored_at": 1};
    let find = Find { sort: doc! {"stored_at": order}, limit: 1, fields, ..Find::default() };
    Ok(find.run(store, &store.names.ledger).await?.into_iter().next())
}

/// Events that were stored in the minute before this moment. By the index alone.
async fn count(store: &Store, until_ms: i64) -> Result<u64, Failure> {
    let (from, until) = (DateTime::from_millis(until_ms - MINUTE_MS), DateTime::from_millis(until_ms));
    let count = doc! {
        "count": &store.names.ledger,
        "query": {"stored_at": {"$gte": from, "$lt": until}},
        "limit": MOST_COUNTED,
        "maxTimeMS": i64::try_from(DEADLINE.as_millis()).unwrap_or(i64::MAX),
    };
    let database = store.database.clone();
    let reply = within(DEADLINE, tokio::spawn(async move { database.run_command(count).await })).await??;
    let number = reply.get_i32("n").map(i64::from).or_else(|_| reply.get_i64("n")).unwrap_or_default();
    Ok(u64::try_from(number).unwrap_or_default())
}
