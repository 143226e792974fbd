//! The ceiling of storing: the driver alone writes the documents that the worker has written, in as large
//! transactions, and as many at the same time. It reads nothing, and decides nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::TryStreamExt;
use mongodb::bson::{DateTime, Document, doc};
use mongodb::options::{ReadConcern, WriteConcern};
use mongodb::{Database, IndexModel};
use penstock_tests::database::COLLECTIONS;
use tokio::task::JoinSet;

/// The worker's defaults.
const WRITERS: usize = 4;
const BATCH: usize = 200;
/// Events of a batch that write a conversation.
const CONVERSATIONS: usize = 182;

/// What the worker has written, cut into batches of the worker's size.
#[derive(Debug)]
pub struct Batches {
    batches: Vec<Batch>,
    indexes: Vec<(&'static str, Vec<IndexModel>)>,
    /// Number of events.
    pub events: u64,
}

/// What a transaction writes.
#[derive(Debug, Default)]
struct Batch {
    inserts: BTreeMap<&'static str, Vec<Document>>,
    /// Of conversations.
    updates: Vec<Document>,
}

impl Batches {
    /// Reads all that is there.
    pub async fn read(database: &Database) -> anyhow::Result<Self> {
        let (mut stored, mut indexes) = (BTreeMap::new(), Vec::new());
        for name in COLLECTIONS {
            let collection = database.collection::<Document>(name);
            indexes.push((name, collection.list_indexes().await?.try_collect().await?));
            stored.insert(name, collection.find(doc! {}).await?.try_collect::<Vec<_>>().await?);
        }
        let events = stored["webhook_events"].len();
        Ok(Self { batches: cut(stored, events.div_ceil(BATCH)), indexes, events: events as u64 })
    }

    /// Writes it all into an empty database, with the same indexes, and gives the time of the writing.
    pub async fn write(self, database: &Database) -> anyhow::Result<Duration> {
        for (collection, indexes) in self.indexes {
            for index in indexes.into_iter().filter(|index| !index.keys.contains_key("_id")) {
                database.collection::<Document>(collection).create_index(index).await?;
            }
        }
        let mut writers: [Vec<Batch>; WRITERS] = Default::default();
        for (place, batch) in self.batches.into_iter().enumerate() {
            writers[place % WRITERS].push(batch);
        }
        let (started, mut writing) = (Instant::now(), JoinSet::new());
        for batches in writers {
            writing.spawn(write(database.clone(), batches));
        }
        while let Some(done) = writing.join_next().await {
            done??;
        }
        Ok(started.elapsed())
    }
}

/// Spreads the documents evenly. Each batch also changes conversations that its writer has inserted before:
/// two writers never change the same one.
fn cut(stored: BTreeMap<&'static str, Vec<Document>>, number: usize) -> Vec<Batch> {
    let mut batches: Vec<Batch> = (0..number).map(|_| Batch::default()).collect();
    for (collection, documents) in stored {
        let length = documents.len();
        for (place, document) in documents.into_iter().enumerate() {
            batches[place * number / length].inserts.entry(collection).or_default().push(document);
        }
    }
    let mut known: [Vec<Document>; WRITERS] = Default::default();
    for (round, batch) in batches.iter_mut().enumerate() {
        let known = &mut known[round % WRITERS];
        let new = batch.inserts.get("conversations").cloned().unwrap_or_default();
        let changed = CONVERSATIONS.saturating_sub(new.len()).min(known.len());
        batch.updates = known[..changed].iter().map(|document| update(document, round)).collect();
        // Others come next time.
        known.rotate_left(changed);
        known.extend(new);
    }
    batches
}

/// A change as large as the worker's. The same value again would be no write at all, so each is another one.
fn update(document: &Document, round: usize) -> Document {
    let round = round as i64;
    let mut merge = document.get_document("_merge").cloned().unwrap_or_default();
    merge.insert("round", round);
    let at = DateTime::from_millis(round);
    let set = doc! {"updated_at": at, "message_count": round, "last_message_ts": at, "_merge": merge};
    doc! {"q": {"_id": document.get("_id")}, "u": {"$set": set}}
}

async fn write(database: Database, batches: Vec<Batch>) -> anyhow::Result<()> {
    for Batch { inserts, updates } in batches {
        let mut session = database.client().start_session().await?;
        let transaction = session.start_transaction().read_concern(ReadConcern::snapshot());
        transaction.write_concern(WriteConcern::majority()).await?;
        for (collection, documents) in inserts {
            let collection = database.collection::<Document>(collection);
            collection.insert_many(documents).ordered(false).session(&mut session).await?;
        }
        if !updates.is_empty() {
            let update = doc! {"update": "conversations", "updates": updates, "ordered": false};
            let reply = database.run_command(update).session(&mut session).await?;
            ensure!(!reply.contains_key("writeErrors"), "MongoDB refuses updates: {reply}");
        }
        session.commit_transaction().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_inserted_once_and_a_writer_changes_its_own_conversations() {
        let documents = |number| (0..number).map(|n| doc! {"_id": n}).collect::<Vec<_>>();
        let stored = BTreeMap::from([("conversations", documents(16)), ("webhook_events", documents(1600))]);
        let batches = cut(stored, 8);
        let inserted = |collection| batches.iter().map(move |batch| batch.inserts[collection].len());
        assert!(inserted("webhook_events").eq([200; 8]) && inserted("conversations").eq([2; 8]));
        assert!(batches.iter().map(|batch| batch.updates.len()).eq([0, 0, 0, 0, 2, 2, 2, 2]));
        assert_eq!(batches[5].updates[0].get_document("q").unwrap(), &doc! {"_id": 2});
    }
}
