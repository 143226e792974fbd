//! When events become visible in MongoDB, by a change stream: what another application would see.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::StreamExt;
use hdrhistogram::Histogram;
use mongodb::bson::{Document, doc};
use penstock_tests::database::Database;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::mix;
use crate::tally::{Tally, enter, histogram};

type Seen = Arc<Mutex<HashMap<u64, Instant>>>;

/// Watches the ledger.
#[derive(Debug)]
pub struct Watch {
    seen: Seen,
    watcher: JoinHandle<anyhow::Result<()>>,
}

impl Watch {
    /// Starts watching.
    pub async fn start(database: &Database) -> anyhow::Result<Self> {
        // The body would be sent along otherwise.
        let pipeline = [
            doc! {"$match": {"operationType": "insert"}},
            doc! {"$project": {"operationType": 1, "documentKey": 1}},
        ];
        let ledger = database.0.collection::<Document>("webhook_events");
        let mut changes = ledger.watch().pipeline(pipeline).batch_size(1000).await?;
        let seen = Seen::default();
        let noted = seen.clone();
        let watcher = tokio::spawn(async move {
            while let Some(change) = changes.next().await {
                let (change, at) = (change?, Instant::now());
                let key = change.document_key.context("a change without a key")?;
                if let Some(n) = key.get_str("_id").ok().and_then(mix::number) {
                    noted.lock().unwrap_or_else(PoisonError::into_inner).insert(n, at);
                }
            }
            anyhow::Ok(())
        });
        Ok(Self { seen, watcher })
    }

    /// Times from the answer to being visible, once all that was received is, in microseconds.
    pub async fn ages(self, tally: &Tally, patience: Duration) -> anyhow::Result<Histogram<u64>> {
        let deadline = Instant::now() + patience;
        let number = || self.seen.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        while number() < tally.accepted() && Instant::now() < deadline && !self.watcher.is_finished() {
            sleep(Duration::from_millis(20)).await;
        }
        self.watcher.abort();
        let (seen, mut ages) = (self.seen.lock().unwrap_or_else(PoisonError::into_inner), histogram());
        for (n, answered) in tally.received.iter().filter(|(_, at)| *at >= tally.measured_from) {
            let seen = seen.get(n).with_context(|| format!("{} never became visible", mix::event_id(*n)))?;
            enter(&mut ages, seen.saturating_duration_since(*answered));
        }
        Ok(ages)
    }
}
