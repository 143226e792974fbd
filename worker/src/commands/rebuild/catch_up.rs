//! What workers have stored while documents were computed anew.

use std::sync::atomic::Ordering;

use mongodb::bson::{DateTime, Document, doc};

use super::answer::Rebuilt;
use super::groups::DocumentSet;
use super::ledger::{MARGIN, Reading, before};
use super::{Done, Rebuild};
use crate::commands::progress;
use crate::project::{Wanted, ledger};
use crate::store::failure::Failure;
use crate::store::transaction::Work;

impl Rebuild {
    /// Applies what workers have stored since the ledger was read: all of it, or what concerns these documents.
    pub(super) async fn catch_up(
        &self,
        started: DateTime,
        documents: Option<&DocumentSet>,
        rebuilt: &mut Rebuilt,
    ) -> Result<(), Failure> {
        self.ended.store(false, Ordering::Relaxed);
        // With an end: otherwise it would follow busy workers for ever.
        let (from, to) = (before(started, MARGIN), DateTime::now().timestamp_millis() + 1000);
        let meanwhile = doc! {"stored_at": {"$gte": from, "$lt": DateTime::from_millis(to)}};
        let fields = documents.map_or(doc! {"_id": 1}, |_| ledger::fields_of_events());
        let mut entries = Reading(self.ledger(meanwhile, fields, None).await?);
        let is_meant = |entry: &Document| documents.is_none_or(|documents| self.concerns(entry, documents));
        let bar = progress("catching up", 0);
        let mut ids = Vec::new();
        loop {
            let entry = entries.next().await?;
            let is_last = entry.is_none();
            let entry = entry.filter(is_meant);
            ids.extend(entry.and_then(|entry| entry.get_str("_id").ok().map(str::to_owned)));
            if is_last || ids.len() >= self.settings.batch_size {
                bar.inc(ids.len() as u64);
                let single = std::mem::take(&mut ids).into_iter().map(|id| vec![id]).collect();
                let Done { failed, ended, .. } = self.batch(single, Work::Reapply).await;
                rebuilt.failed.extend(failed);
                if let Some(failure) = ended {
                    return Err(failure);
                }
            }
            if is_last {
                bar.finish_and_clear();
                return Ok(());
            }
        }
    }

    /// Whether an entry of the ledger concerns one of these documents.
    fn concerns(&self, entry: &Document, documents: &DocumentSet) -> bool {
        let event = ledger::event(&self.tenant, entry);
        event.is_some_and(|event| documents.has_any(&Wanted::by(&[event])))
    }
}
