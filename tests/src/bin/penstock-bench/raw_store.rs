//! The ceiling of storing: the driver alone, writing the very documents that the worker has written, in transactions as
//! large as the worker's, on as many lanes. It reads nothing, and decides nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::TryStreamExt;
use mongodb::bson::{DateTime, Document, RawDocumentBuf, doc};
use mongodb::options::{ReadConcern, WriteConcern};
use mongodb::{ClientSession, Database, IndexModel};
use tokio::task::JoinSet;

use crate::mix::{self, Kind};

/// The worker's defaults.
const LANES: usize = 4;
const BATCH: usize = 200;
/// The parts of a conversation that every message changes, beside the count.
const CHANGING: [&str; 2] = ["_merge", "last_message_ts"];

/// Documents of a collection by id.
type Stored = HashMap<String, Document>;

/// What the worker has written, cut into the worker's batches.
#[derive(Debug)]
pub struct Batches {
    lanes: Vec<Vec<Batch>>,
    indexes: Vec<(&'static str, Vec<IndexModel>)>,
    events: u64,
}

/// What a batch writes to each collection.
#[derive(Debug, Default)]
struct Batch(HashMap<&'static str, Writes>);

#[derive(Debug, Default)]
struct Writes {
    inserts: Vec<Document>,
    updates: Vec<Document>,
}

/// What a lane knows while it is cut into batches.
struct Lane {
    batches: Vec<Batch>,
    events: usize,
    /// Conversations and contacts that are there: what comes later changes them.
    known: HashSet<(&'static str, String)>,
    /// Those that the present batch has changed: it changes each once.
    touched: HashSet<(&'static str, String)>,
}

impl Batches {
    /// Reads all that is there. Events of so many contacts.
    pub async fn read(database: &Database, contacts: u64) -> anyhow::Result<Self> {
        let mut stored = HashMap::new();
        for collection in penstock_tests::database::COLLECTIONS {
            stored.insert(collection, by_id(database, collection).await?);
        }
        let mut numbers = Vec::new();
        for (id, entry) in &stored["webhook_events"] {
            numbers.push((entry.get_datetime("received_at")?.timestamp_millis(), number(id)?));
        }
        // As they came.
        numbers.sort_unstable();
        let mut lanes: Vec<Lane> = (0..LANES).map(|_| Lane::new()).collect();
        for (_, n) in &numbers {
            let contact = mix::contact(*n, contacts);
            let lane = usize::try_from(mix::scatter(contact) % LANES as u64)?;
            lanes[lane].take(*n, contact, &mut stored)?;
        }
        let mut indexes = Vec::new();
        for collection in penstock_tests::database::COLLECTIONS {
            let listed = database.collection::<Document>(collection).list_indexes().await;
            // A collection without any document may not exist.
            indexes.push((collection, listed?.try_collect().await?));
        }
        let lanes = lanes.into_iter().map(|lane| lane.batches).collect();
        Ok(Self { lanes, indexes, events: numbers.len() as u64 })
    }

    /// Number of events.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Writes it all into an empty database, with the same indexes, and gives the time of the writing.
    pub async fn write(self, database: &Database) -> anyhow::Result<Duration> {
        for (collection, indexes) in self.indexes {
            let others = indexes.into_iter().filter(|index| !index.keys.contains_key("_id"));
            for index in others {
                database.collection::<Document>(collection).create_index(index).await?;
            }
        }
        let (started, mut lanes) = (Instant::now(), JoinSet::new());
        for batches in self.lanes {
            lanes.spawn(write_lane(database.clone(), batches));
        }
        while let Some(done) = lanes.join_next().await {
            done??;
        }
        Ok(started.elapsed())
    }
}

fn number(id: &str) -> anyhow::Result<u64> {
    mix::number(id).with_context(|| format!("{id} is no event of ours"))
}

async fn by_id(database: &Database, collection: &str) -> anyhow::Result<Stored> {
    let found = database.collection::<RawDocumentBuf>(collection).find(doc! {}).await?;
    let documents = found.map_err(anyhow::Error::from);
    let keyed = documents.and_then(|raw| async move {
        let document: Document = raw.try_into()?;
        Ok((document.get_str("_id")?.to_owned(), document))
    });
    keyed.try_collect().await
}

impl Lane {
    fn new() -> Self {
        Self { batches: Vec::new(), events: 0, known: HashSet::new(), touched: HashSet::new() }
    }

    /// Adds what an event has left behind.
    fn take(
        &mut self,
        n: u64,
        contact: u64,
        stored: &mut HashMap<&'static str, Stored>,
    ) -> anyhow::Result<()> {
        if self.events.is_multiple_of(BATCH) {
            self.batches.push(Batch::default());
            self.touched.clear();
        }
        self.events += 1;
        let id = mix::event_id(n);
        self.insert("webhook_events", &id, stored);
        match Kind::of(n) {
            Kind::Received | Kind::Sent => self.insert("messages", &mix::message_id(n).to_string(), stored),
            Kind::Comment => self.insert("internal_notes", &id, stored),
            Kind::Call => self.insert("calls", &mix::call_id(n), stored),
            Kind::Opened | Kind::Closed => {}
            _ => self.touch("contacts", (mix::CONTACT_IDS + contact).to_string(), stored)?,
        }
        match Kind::of(n) {
            Kind::ContactCreated | Kind::ContactUpdated | Kind::Assignee | Kind::Tag | Kind::Call => Ok(()),
            _ => self.touch("conversations", mix::chat_id(contact), stored),
        }
    }

    fn writes(&mut self, collection: &'static str) -> &mut Writes {
        if self.batches.is_empty() {
            self.batches.push(Batch::default());
        }
        let last = self.batches.len() - 1;
        self.batches[last].0.entry(collection).or_default()
    }

    fn insert(&mut self, collection: &'static str, id: &str, stored: &mut HashMap<&'static str, Stored>) {
        let document = stored.get_mut(collection).and_then(|stored| stored.remove(id));
        self.writes(collection).inserts.extend(document);
    }

    /// A document that is there once, however many events change it.
    fn touch(
        &mut self,
        collection: &'static str,
        id: String,
        stored: &mut HashMap<&'static str, Stored>,
    ) -> anyhow::Result<()> {
        let key = (collection, id.clone());
        if !self.touched.insert(key.clone()) {
            return Ok(());
        }
        let Some(document) = stored.get(collection).and_then(|stored| stored.get(&id)) else {
            bail!("{id} is missing from {collection}");
        };
        if self.known.insert(key) {
            let document = document.clone();
            self.writes(collection).inserts.push(document);
        } else {
            let update = change(document, id, self.events);
            self.writes(collection).updates.push(update);
        }
        Ok(())
    }
}

/// A change as large as the worker's. The same value again would be no write at all, so each is another one.
fn change(document: &Document, id: String, round: usize) -> Document {
    let round = i64::try_from(round).unwrap_or_default();
    let mut set = doc! {"updated_at": DateTime::from_millis(round), "message_count": round};
    for name in CHANGING {
        let Some(mut value) = document.get(name).cloned() else { continue };
        match &mut value {
            mongodb::bson::Bson::Document(inner) => drop(inner.insert("round", round)),
            mongodb::bson::Bson::DateTime(at) => *at = DateTime::from_millis(at.timestamp_millis() + round),
            _ => {}
        }
        set.insert(name, value);
    }
    doc! {"q": {"_id": id}, "u": {"$set": set}, "upsert": true}
}

async fn write_lane(database: Database, batches: Vec<Batch>) -> anyhow::Result<()> {
    let client = database.client().clone();
    let database = Arc::new(database);
    for batch in batches {
        let mut session = client.start_session().await?;
        session
            .start_transaction()
            .read_concern(ReadConcern::snapshot())
            .write_concern(WriteConcern::majority())
            .await?;
        for (collection, writes) in batch.0 {
            save(&database, &mut session, collection, writes).await?;
        }
        session.commit_transaction().await?;
    }
    Ok(())
}

async fn save(
    database: &Database,
    session: &mut ClientSession,
    collection: &str,
    writes: Writes,
) -> anyhow::Result<()> {
    if !writes.inserts.is_empty() {
        let documents = database.collection::<Document>(collection);
        documents.insert_many(writes.inserts).ordered(false).session(&mut *session).await?;
    }
    if !writes.updates.is_empty() {
        let update = doc! {"update": collection, "updates": writes.updates, "ordered": false};
        let reply = database.run_command(update).session(&mut *session).await?;
        if reply.contains_key("writeErrors") {
            bail!("MongoDB refuses updates: {reply}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(numbers: &[u64]) -> HashMap<&'static str, Stored> {
        let document = |id: String| (id.clone(), doc! {"_id": id});
        let of = |id: fn(u64) -> String| numbers.iter().map(|n| document(id(*n))).collect();
        HashMap::from([
            ("webhook_events", of(mix::event_id)),
            ("messages", of(|n| mix::message_id(n).to_string())),
            ("conversations", HashMap::from([document(mix::chat_id(7))])),
        ])
    }

    #[test]
    fn a_conversation_is_inserted_once_and_changed_once_per_batch() {
        let numbers: Vec<u64> = (0..).filter(|n| Kind::of(*n).is_message()).take(2 * BATCH + 1).collect();
        let (mut lane, mut stored) = (Lane::new(), stored(&numbers));
        for n in &numbers {
            lane.take(*n, 7, &mut stored).unwrap();
        }
        let counts = |collection| -> Vec<_> {
            let writes = lane.batches.iter().map(|batch| &batch.0[collection]);
            writes.map(|writes| (writes.inserts.len(), writes.updates.len())).collect()
        };
        assert_eq!(counts("messages"), [(BATCH, 0), (BATCH, 0), (1, 0)]);
        assert_eq!(counts("conversations"), [(1, 0), (0, 1), (0, 1)]);
    }
}
