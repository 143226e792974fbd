//! Erased persons, and how a transaction knows about them.
//!
//! - `penstock_erased` has the tombstones: for each contact id and phone a keyed hash, and the moment before
//!   which everything that was received is gone.
//! - `penstock_erasure_key` has the key of these hashes, apart from them, so that it can be left out of a
//!   backup: with the tombstones alone nobody can try a list of phones.
//! - `penstock_fences`: every transaction that applies events changes one of these documents, drawn by lot,
//!   and an erasure changes all of them after it has written its tombstones. A transaction sees a snapshot,
//!   and it may insert documents where there are none: without a document that both change, it could store
//!   what it has read before the tombstones were there, after the erasure has looked for it. So it has either
//!   committed before the erasure looks, or it conflicts with it and begins again.
//!
//! The fence that a transaction changes tells when a person was last erased. Usually all events of the
//! transaction were received later, so that it reads nothing more.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_util::TryStreamExt;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Document, doc};
use mongodb::error::Error;
use mongodb::options::{CollectionOptions, ReadPreference, ReturnDocument, SelectionCriteria};
use mongodb::{ClientSession, Collection};

use super::failure::{Class, Failure, within};
use super::transaction::{self, Attempt};
use super::{Store, refused};
use crate::decode::Event;
use crate::person::{self, Name};

/// With this many fences, two transactions hardly draw the same one at the same time, even with 64
/// partitions.
const FENCES: i32 = 512;
/// A transaction draws again this many times, if another one holds its fence: that may be an open transaction
/// of a killed worker.
const DRAWS: usize = 5;
/// Longest time for all fences to be changed: transactions end after `transactionLifetimeLimitSeconds`, a
/// minute by default.
const FENCES_TIMEOUT: Duration = Duration::from_mins(3);
/// Longest wait for other answers of MongoDB.
const DEADLINE: Duration = Duration::from_mins(1);
/// Tombstones that are asked for at once.
const HASHES: usize = 10_000;
/// Bytes of the key.
const KEY_BYTES: usize = 32;
/// The `_id` of the key.
const KEY_ID: &str = "key";
/// `NamespaceExists`: there is such a collection already.
const NAMESPACE_EXISTS: i32 = 48;

const NO_KEY: &str = "penstock_erasure_key is empty, but persons were erased: bring the key back, or what was received before may be stored again";

impl Attempt {
    /// Begins the transaction by changing a fence. Returns when a person was last erased, if any was.
    pub(super) async fn pass_fence(&self, session: &mut ClientSession) -> Result<Option<DateTime>, Failure> {
        let mut draws = DRAWS;
        loop {
            self.check_deadline()?;
            transaction::begin(session).await?;
            draws -= 1;
            match self.store.change_fence(session).await.map_err(Failure::from) {
                Err(failure) if draws > 0 && failure.class(1) == Class::Conflict => {
                    session.abort_transaction().await?;
                }
                passed => return passed,
            }
        }
    }

    /// Which of these events were received before their person was erased.
    pub(super) async fn erased(
        &self,
        session: &mut ClientSession,
        events: &[Event],
        erased_until: Option<DateTime>,
    ) -> Result<Vec<bool>, Failure> {
        let may_be = |event: &Event| {
            erased_until.is_some_and(|until| person::came_at(event) < until.timestamp_millis())
        };
        if !events.iter().any(may_be) {
            return Ok(vec![false; events.len()]);
        }
        self.check_deadline()?;
        let key = self.store.key(&mut *session).await?.ok_or_else(|| Failure::Unfit(NO_KEY.to_owned()))?;
        let hashes = |event| person::names(event).iter().map(|name| name.hash(&key)).collect();
        let hashes: Vec<Vec<String>> =
            events.iter().map(|event| if may_be(event) { hashes(event) } else { Vec::new() }).collect();
        let all: BTreeSet<&String> = hashes.iter().flatten().collect();
        let mut tombstones = HashMap::new();
        for some in all.into_iter().collect::<Vec<_>>().chunks(HASHES) {
            self.check_deadline()?;
            tombstones.extend(self.store.tombstones(&mut *session, some).await?);
        }
        let is_erased = |(event, hashes): (&Event, Vec<String>)| {
            let erased_at = hashes.iter().filter_map(|hash| tombstones.get(hash)).max();
            erased_at.is_some_and(|at| person::came_at(event) < *at)
        };
        Ok(events.iter().zip(hashes).map(is_erased).collect())
    }
}

impl Store {
    /// Makes the collection of fences, unless it exists: a transaction should not make it. If fences were
    /// lost, as in a restore without them, writes into them again when a person was last erased.
    pub(super) async fn make_fences(&self) -> Result<(), Failure> {
        match self.administer(doc! {"create": &self.names.fences}).await {
            Err(failure) if failure.code() == Some(NAMESPACE_EXISTS) => {}
            made => made?,
        }
        let store = self.clone();
        let asked = tokio::spawn(async move { store.untold_erasure().await });
        match within(DEADLINE, asked).await?? {
            Some(at) => self.change_fences(at).await,
            None => Ok(()),
        }
    }

    /// When a person was last erased, if any was, and some fences don't tell.
    async fn untold_erasure(&self) -> Result<Option<DateTime>, Error> {
        let latest = self.on_primary(&self.names.erased).find_one(doc! {}).sort(doc! {"at": -1}).await?;
        let Some(at) = latest.and_then(|latest| latest.get_datetime("at").ok().copied()) else {
            return Ok(None);
        };
        let fences = self.on_primary(&self.names.fences);
        let told = fences.count_documents(doc! {"erased_at": {"$gte": at}}).await?;
        Ok((told < u64::from(FENCES.unsigned_abs())).then_some(at))
    }

    /// A collection as the primary has it, whatever the URI says.
    pub(crate) fn on_primary(&self, name: &str) -> Collection<Document> {
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        let options = CollectionOptions::builder().selection_criteria(primary).build();
        self.database.collection_with_options(name, options)
    }

    async fn change_fence(&self, session: &mut ClientSession) -> Result<Option<DateTime>, Error> {
        let fences = self.on_primary(&self.names.fences);
        let (fence, passed) = (doc! {"_id": fastrand::i32(0..FENCES)}, doc! {"$inc": {"passed": 1_i64}});
        let changed = fences.find_one_and_update(fence, passed).upsert(true);
        let changed = changed.return_document(ReturnDocument::After).session(session).await?;
        Ok(changed.and_then(|fence| fence.get_datetime("erased_at").ok().copied()))
    }

    async fn key(&self, session: &mut ClientSession) -> Result<Option<Vec<u8>>, Error> {
        let keys = self.on_primary(&self.names.erasure_key);
        Ok(keys.find_one(doc! {"_id": KEY_ID}).session(session).await?.as_ref().and_then(bytes))
    }

    async fn tombstones(
        &self,
        session: &mut ClientSession,
        hashes: &[&String],
    ) -> Result<HashMap<String, i64>, Error> {
        let tombstones = self.on_primary(&self.names.erased);
        let mut found = tombstones.find(doc! {"_id": {"$in": hashes}}).session(&mut *session).await?;
        found.stream(session).try_filter_map(async |found| Ok(tombstone(&found))).try_collect().await
    }

    /// From here on nothing about these names is stored that was received before; what was stored before can
    /// be found.
    pub async fn begin_erasure(&self, names: &BTreeSet<Name>, at: DateTime) -> Result<(), Failure> {
        let key = self.make_key().await?;
        let tombstones = names.iter().map(|name| (Bson::from(name.hash(&key)), doc! {"$max": {"at": at}}));
        self.upsert(&self.names.erased, tombstones.collect(), DEADLINE).await?;
        self.change_fences(at).await
    }

    /// After this, every transaction has either committed, or sees what was written before this.
    pub async fn change_fences(&self, at: DateTime) -> Result<(), Failure> {
        let change = doc! {"$max": {"erased_at": at}, "$inc": {"passed": 1_i64}};
        let fences = (0..FENCES).map(|fence| (Bson::from(fence), change.clone())).collect();
        self.upsert(&self.names.fences, fences, FENCES_TIMEOUT).await
    }

    /// When contacts or phones were erased, of those of these names that were.
    pub async fn erased_at(&self, names: &BTreeSet<Name>) -> Result<Option<i64>, Failure> {
        let mut session = self.client.start_session().await?;
        let Some(key) = self.key(&mut session).await? else { return Ok(None) };
        let hashes: Vec<String> = names.iter().map(|name| name.hash(&key)).collect();
        let hashes: Vec<&String> = hashes.iter().collect();
        Ok(self.tombstones(&mut session, &hashes).await?.into_values().max())
    }

    /// The key, made at the first erasure.
    async fn make_key(&self) -> Result<Vec<u8>, Failure> {
        let mut session = self.client.start_session().await?;
        if let Some(key) = self.key(&mut session).await? {
            return Ok(key);
        }
        let tombstones = self.on_primary(&self.names.erased);
        if tombstones.find_one(doc! {}).await?.is_some() {
            return Err(Failure::Unfit(NO_KEY.to_owned()));
        }
        let mut key = vec![0; KEY_BYTES];
        getrandom::fill(&mut key)
            .map_err(|_| Failure::Unfit("the system has no randomness for a key".to_owned()))?;
        let key = Binary { subtype: BinarySubtype::Generic, bytes: key };
        // Another erasure may have made it first.
        let made = doc! {"$setOnInsert": {"key": key, "made_at": DateTime::now()}};
        self.upsert(&self.names.erasure_key, vec![(KEY_ID.into(), made)], DEADLINE).await?;
        self.key(&mut session).await?.ok_or_else(|| Failure::Unfit(NO_KEY.to_owned()))
    }

    /// Changes documents one by one, each in its own time, or makes them. Waits for those that a transaction
    /// has changed.
    async fn upsert(
        &self,
        collection: &str,
        changes: Vec<(Bson, Document)>,
        deadline: Duration,
    ) -> Result<(), Failure> {
        let one = |(id, change)| doc! {"q": {"_id": id}, "u": change, "upsert": true};
        let updates: Vec<Document> = changes.into_iter().map(one).collect();
        let update = doc! {
            "update": collection, "updates": updates, "ordered": false, "writeConcern": {"w": "majority"},
        };
        let (database, collection) = (self.database.clone(), collection.to_owned());
        let updated = tokio::spawn(async move { database.run_command(update).await });
        let reply = within(deadline, updated).await??;
        refused(&collection, &reply)?;
        if reply.contains_key("writeConcernError") { Err(Failure::NoMajority) } else { Ok(()) }
    }
}

fn bytes(key: &Document) -> Option<Vec<u8>> {
    key.get_binary_generic("key").ok().cloned()
}

fn tombstone(found: &Document) -> Option<(String, i64)> {
    Some((found.get_str("_id").ok()?.to_owned(), found.get_datetime("at").ok()?.timestamp_millis()))
}
