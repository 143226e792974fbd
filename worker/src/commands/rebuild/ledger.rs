//! Reading the ledger, with deadlines.

use std::time::Duration;

use futures_util::StreamExt;
use mongodb::Cursor;
use mongodb::bson::{DateTime, Document, doc};
use mongodb::options::{ReadConcern, ReadPreference, SelectionCriteria};
use tokio::time::timeout;

use super::{DEADLINE, LONGEST_RUN, PAGE, Rebuild};
use crate::decode::Event;
use crate::project::ledger;
use crate::store::failure::Failure;

/// Events stored shortly before the ledger was read may have been committed after it. Clocks differ, too.
pub(in crate::commands) const MARGIN: Duration = Duration::from_mins(10);

impl Rebuild {
    /// The ledger has every event that was stored since then, and will have it until this is done.
    pub(super) async fn horizon(&self, now: DateTime) -> Result<DateTime, Failure> {
        let by_time = doc! {"stored_at": 1};
        let oldest = self.ledger(doc! {}, by_time.clone(), Some(by_time)).await?;
        let oldest = Reading(oldest).next().await?;
        let oldest = oldest.and_then(|entry| entry.get_datetime("stored_at").ok().copied()).unwrap_or(now);
        let kept =
            self.store.retention().await?.map(|retention| before(now, retention.saturating_sub(LONGEST_RUN)));
        Ok(kept.map_or(oldest, |kept| oldest.max(kept)))
    }

    /// Reads events from the ledger. Some may have expired meanwhile.
    pub(super) async fn events(&self, ids: &[String]) -> Result<Vec<Event>, Failure> {
        Ok(self.entries(ids).await?.into_iter().map(|(_, event)| event).collect())
    }

    /// The same, with their `_id` in the ledger.
    pub(super) async fn entries(&self, ids: &[String]) -> Result<Vec<(String, Event)>, Failure> {
        let mut events = Vec::new();
        for ids in ids.chunks(PAGE) {
            let wanted = doc! {"_id": {"$in": ids}};
            let mut entries = Reading(self.ledger(wanted, ledger::fields_of_events(), None).await?);
            while let Some(entry) = entries.next().await? {
                let Some(mut event) = ledger::event(&self.tenant, &entry) else { continue };
                if event.is_large() {
                    event.shed_members();
                }
                events.push((entry.get_str("_id").unwrap_or_default().to_owned(), event));
            }
        }
        Ok(events)
    }

    pub(super) async fn ledger(
        &self,
        filter: Document,
        fields: Document,
        sort: Option<Document>,
    ) -> Result<Cursor<Document>, Failure> {
        let ledger = self.store.ledger();
        // Whatever the URI says: a secondary may not have yet what workers have just stored.
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        let find = ledger.find(filter).projection(fields).read_concern(ReadConcern::majority());
        let mut find = find.selection_criteria(primary);
        if let Some(sort) = sort {
            find = find.sort(sort).limit(1);
        }
        let found = timeout(DEADLINE, find.into_future()).await;
        found.map_or(Err(Failure::TimedOut(DEADLINE)), |found| Ok(found?))
    }
}

/// A moment so long before another.
pub(in crate::commands) fn before(at: DateTime, by: Duration) -> DateTime {
    let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    DateTime::from_millis(at.timestamp_millis().saturating_sub(by))
}

/// A cursor with a deadline.
pub(super) struct Reading(pub(super) Cursor<Document>);

impl Reading {
    pub(super) async fn next(&mut self) -> Result<Option<Document>, Failure> {
        let next = timeout(DEADLINE, self.0.next()).await.map_err(|_| Failure::TimedOut(DEADLINE))?;
        Ok(next.transpose()?)
    }
}
