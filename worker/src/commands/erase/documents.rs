//! The documents of a person.

use std::time::Duration;

use futures_util::StreamExt;
use mongodb::Cursor;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{ReadConcern, WriteConcern};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::who::Person;
use super::{DEADLINE, Erased, Erasure};
use crate::store::failure::Failure;

/// Longest time for a collection to be searched without an index.
pub(in crate::commands) const SCAN_TIMEOUT: Duration = Duration::from_mins(30);
/// Documents that are removed at once.
pub(super) const BATCH: usize = 1000;

impl Erasure<'_> {
    /// Removes messages, notes and calls.
    pub(super) async fn own_documents(&self, person: &Person, erased: &mut Erased) -> Result<(), Failure> {
        let names = &self.store.names;
        for collection in [&names.messages, &names.notes, &names.calls] {
            self.documents(collection, person.own_documents(), erased).await?;
        }
        Ok(())
    }

    /// Removes conversations and contacts. The contacts tell which phones there are, so they are removed
    /// last.
    pub(super) async fn shared_documents(&self, person: &Person, erased: &mut Erased) -> Result<(), Failure> {
        let names = &self.store.names;
        self.documents(&names.conversations, person.conversations(), erased).await?;
        self.documents(&names.contacts, person.contacts(), erased).await
    }

    /// Removes the contacts from the progress of a backfill.
    pub(super) async fn progress(&self, person: &Person) -> Result<(), Failure> {
        if self.dry_run {
            return Ok(());
        }
        let is_one = doc! {"$in": person.ids().collect::<Vec<_>>()};
        let (done, failed) = ("place.done", "place.failed");
        let runs = self.store.on_primary(&self.store.names.backfill);
        let named = doc! {"$or": [{done: is_one.clone()}, {failed: is_one.clone()}]};
        let update = runs.update_many(named, doc! {"$pull": {done: is_one.clone(), failed: is_one}});
        let updated = timeout(DEADLINE, update.into_future()).await;
        updated.map_err(|_| Failure::TimedOut(DEADLINE))??;
        Ok(())
    }

    async fn documents(
        &self,
        collection: &str,
        filter: Document,
        erased: &mut Erased,
    ) -> Result<(), Failure> {
        let mut found = self.find(collection, filter, doc! {"_id": 1}).await?;
        let (mut ids, mut is_last) = (Vec::new(), false);
        erased.removed.insert(collection.to_owned(), 0);
        while !is_last {
            let document = next(&mut found).await?;
            is_last = document.is_none();
            ids.extend(document.and_then(|mut document| document.remove("_id")));
            if is_last || ids.len() >= BATCH {
                self.delete(collection, &std::mem::take(&mut ids), erased).await?;
            }
        }
        Ok(())
    }

    /// Removes documents by their ids, or only counts them.
    pub(super) async fn delete(
        &self,
        collection: &str,
        ids: &[Bson],
        erased: &mut Erased,
    ) -> Result<(), Failure> {
        let removed = if self.dry_run || ids.is_empty() {
            ids.len() as u64
        } else {
            let collection = self.store.on_primary(collection);
            let delete =
                collection.delete_many(doc! {"_id": {"$in": ids}}).write_concern(WriteConcern::majority());
            let deleted = timeout(DEADLINE, delete.into_future()).await;
            deleted.map_err(|_| Failure::TimedOut(DEADLINE))??.deleted_count
        };
        *erased.removed.entry(collection.to_owned()).or_default() += removed;
        Ok(())
    }

    /// Looks for documents, as most members of the replica set have them.
    pub(super) async fn find(
        &self,
        collection: &str,
        filter: Document,
        fields: Document,
    ) -> Result<Cursor<Document>, Failure> {
        let collection = self.store.on_primary(collection);
        let find = collection.find(filter).projection(fields).read_concern(ReadConcern::majority());
        let found = timeout(SCAN_TIMEOUT, find.into_future()).await;
        found.map_or(Err(Failure::TimedOut(SCAN_TIMEOUT)), |found| Ok(found?))
    }
}

/// The next document that was found.
pub(in crate::commands) async fn next<T: DeserializeOwned>(
    found: &mut Cursor<T>,
) -> Result<Option<T>, Failure> {
    let next = timeout(SCAN_TIMEOUT, found.next()).await.map_err(|_| Failure::TimedOut(SCAN_TIMEOUT))?;
    Ok(next.transpose()?)
}
