//! When events become visible in MongoDB, by a change stream: what another application would see.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::StreamExt;
use mongodb::bson::{Document, doc};
use penstock_tests::database::Database;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::event::{event_id, number};
use crate::load::Load;
use crate::stage::STORING;

/// Watches the ledger. That costs MongoDB a sixth more, so nothing else is measured meanwhile.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<HashMap<u64, Instant>>>,
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
        let seen = Arc::<Mutex<HashMap<_, _>>>::default();
        let visible = seen.clone();
        let watcher = tokio::spawn(async move {
            while let Some(change) = changes.next().await {
                let key = change?.document_key.context("a change without a key")?;
                if let Some(n) = key.get_str("_id").ok().and_then(number) {
                    visible.lock().unwrap_or_else(PoisonError::into_inner).insert(n, Instant::now());
                }
            }
            anyhow::Ok(())
        });
        Ok(Self { seen, watcher })
    }

    /// Times from the reply to being visible, of what was due after the beginning, once all is visible.
    pub async fn ages(self, load: &Load, beginning: Duration) -> anyhow::Result<Vec<Duration>> {
        let deadline = Instant::now() + STORING;
        let is_visible = || {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            load.sent.iter().all(|sent| sent.outcome.is_err() || seen.contains_key(&sent.n))
        };
        while !is_visible() && Instant::now() < deadline && !self.watcher.is_finished() {
            sleep(Duration::from_millis(20)).await;
        }
        self.watcher.abort();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |n: u64, answered: Instant| -> anyhow::Result<Duration> {
            let visible = seen.get(&n).with_context(|| format!("{} never became visible", event_id(n)))?;
            Ok(visible.saturating_duration_since(answered))
        };
        let measured = load.after(beginning).filter(|sent| sent.outcome.is_ok());
        measured.map(|sent| age(sent.n, sent.answered)).collect()
    }
}
