//! One attempt to write a batch: read what it concerns, apply it, write the difference, commit. All in one snapshot.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mongodb::bson::{DateTime, Document, RawArrayBuf, RawDocumentBuf, doc, rawdoc};
use mongodb::options::{ReadConcern, ReadPreference, SelectionCriteria, WriteConcern};
use mongodb::{ClientSession, SessionCursor};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::{Store, UNFOLDED_BYTES, refused};
use crate::decode::Event;
use crate::project::neighbours::{self, Neighbours};
use crate::project::rebuild::Shared;
use crate::project::record::Record;
use crate::project::table::{Change, Table, Writes};
use crate::project::{Documents, Outcome, Wanted, ledger};

/// Longest pause before a commit whose outcome is unknown is sent again.
const COMMIT_PAUSE: Duration = Duration::from_millis(100);

/// Updates in one command, which must stay below 48 MB. A batch of a worker has hardly more.
const MAX_UPDATES: usize = 1000;

/// Most bytes of documents that a batch of several events may load: one event may need more, a batch can be halved.
const MAX_LOADED: usize = 64 << 20;

/// How long an attempt that missed its deadline may take to end: the next one would only wait for its locks. One
/// whose connection hangs never ends.
pub(super) const ABANDONED_TIMEOUT: Duration = Duration::from_secs(5);

/// What to do with a batch of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Apply those that are new, and enter them into the ledger.
    Apply,
    /// Apply them all, though the ledger has them.
    Reapply,
    /// Compute the documents that they concern anew, see [`Documents::rebuild`].
    Rebuild {
        /// The ledger has every event that was stored since then.
        horizon: DateTime,
    },
    /// Compute only those anew that belong to few events each, see [`Documents::rebuild_own`].
    RebuildOwn {
        /// The ledger has every event that was stored since then.
        horizon: DateTime,
    },
    /// Compute only those anew that many events share, see [`Documents::rebuild_shared`].
    RebuildShared {
        /// The ledger has every event that was stored since then.
        horizon: DateTime,
        /// All of the events, and the conversations.
        shared: Arc<Shared>,
    },
}

impl Work {
    /// Whether conversations and contacts are only touched in passing.
    fn is_of_own(&self) -> bool {
        matches!(self, Self::RebuildOwn { .. })
    }
}

/// What came of an attempt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// What became of each event, if they were applied as new ones.
    pub outcomes: Vec<Outcome>,
    /// New documents.
    pub inserted: usize,
    /// Documents that have changed.
    pub updated: usize,
    /// What would change, by collection, if everything is left as it is.
    pub changes: Vec<(String, Change)>,
    /// The conversations that were loaded, if they are yet to be counted.
    pub uncounted: BTreeSet<String>,
}

/// Does this work with these events in one transaction; or finds out what it would do. Fails after the deadline of the
/// store, whatever the server does.
pub async fn attempt(
    store: &Store,
    events: Arc<[Event]>,
    work: Work,
    dry_run: bool,
) -> Result<Written, Failure> {
    let large: usize = events.iter().filter(|event| event.is_large()).map(|event| event.body.len()).sum();
    // Before the deadline begins, and for no longer than the attempt: an event that always misses the deadline
    // must not keep the others out. What needs more than there is gets all of it.
    let places = u32::try_from(large.min(UNFOLDED_BYTES)).unwrap_or(u32::MAX);
    let _unfolding = store.unfolding.acquire_many(places).await;
    let (abandoned, session) = (CancellationToken::new(), Arc::new(OnceLock::new()));
    // If nobody waits for it any more, it ends itself.
    let _guard = abandoned.clone().drop_guard();
    let running = Attempt {
        store: store.clone(),
        events,
        work,
        dry_run,
        abandoned: abandoned.clone(),
        session: session.clone(),
        loaded: AtomicUsize::new(0),
    };
    // A task of its own, since dropping the driver's futures half way would leave the session and its
    // locks behind, and since nothing in the driver has a deadline of its own.
    let mut running = tokio::spawn(running.run());
    if let Ok(ended) = timeout(store.deadline, &mut running).await {
        return ended?;
    }
    abandoned.cancel();
    let ended = async {
        end_session(store, &session).await;
        running.await
    };
    match timeout(ABANDONED_TIMEOUT, ended).await {
        Ok(Ok(Ok(written))) => Ok(written),
        Ok(Err(ended)) => Err(ended.into()),
        _ => Err(Failure::TimedOut(store.deadline)),
    }
}

/// Has the server end the session of an attempt that was abandoned, and with it the transaction and its locks. They
/// would stay for up to a minute, and hold up whoever writes the same documents.
async fn end_session(store: &Store, session: &OnceLock<Document>) {
    let Some(id) = session.get() else { return };
    let kill = doc! {"killSessions": [{"id": id.get("id")}]};
    // If it can't be ended, the server does so when the transaction's time is over.
    let _ = store.client.database("admin").run_command(kill).await;
}

/// An attempt.
struct Attempt {
    store: Store,
    events: Arc<[Event]>,
    work: Work,
    /// Whether to leave everything as it is in the end.
    dry_run: bool,
    /// Cancelled when nobody waits for it any more.
    abandoned: CancellationToken,
    /// The id of its session, once there is one.
    session: Arc<OnceLock<Document>>,
    /// Bytes of documents that were loaded so far.
    loaded: AtomicUsize,
}

impl Attempt {
    async fn run(self) -> Result<Written, Failure> {
        let mut session = self.store.client.start_session().await?;
        let _ = self.session.set(session.id().clone());
        session
            .start_transaction()
            .read_concern(ReadConcern::snapshot())
            .write_concern(WriteConcern::majority())
            .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
            .await?;
        match self.write(&mut session).await {
            Ok(written) if !self.dry_run => {
                self.commit(&mut session).await?;
                Ok(written)
            }
            ended => {
                // If it can't be aborted now, the server does so when the session or its time ends.
                let _ = session.abort_transaction().await;
                ended
            }
        }
    }

    async fn write(&self, session: &mut ClientSession) -> Result<Written, Failure> {
        let events = self.unfolded();
        let (mut written, now) = (Written::default(), DateTime::now());
        let mut documents = self.load(session, &events).await?;
        match &self.work {
            Work::Apply => {
                written.outcomes = events.iter().map(|event| documents.apply(event, now)).collect();
            }
            Work::Reapply => events.iter().for_each(|event| documents.effects(event, now)),
            Work::Rebuild { horizon } => {
                let mut chats = Wanted::by(&events).conversations;
                chats.extend(documents.previous_conversations());
                let neighbours = self.neighbours(session, &documents, chats).await?;
                documents.rebuild(&events, &neighbours, *horizon, now);
            }
            Work::RebuildOwn { horizon } => {
                documents.rebuild_own(&events, *horizon, now);
                let ids = documents.conversations.iter().filter_map(|conversation| conversation.text("_id"));
                written.uncounted = ids.map(str::to_owned).collect();
            }
            Work::RebuildShared { horizon, shared } => {
                let neighbours = self.neighbours(session, &documents, shared.conversations.clone()).await?;
                documents.rebuild_shared(&events, shared, &neighbours, *horizon, now);
            }
        }
        drop(events);
        let names = &self.store.names;
        for (name, table, updated_at) in [
            (&names.ledger, documents.ledger, None),
            (&names.messages, documents.messages, None),
            (&names.conversations, documents.conversations, Some(now)),
            (&names.contacts, documents.contacts, Some(now)),
            (&names.notes, documents.notes, None),
            (&names.calls, documents.calls, None),
        ] {
            // What becomes of the others is told once they are computed.
            let is_told = !self.work.is_of_own() || updated_at.is_none();
            if self.dry_run && is_told {
                let changes = table.changes()?.into_iter().map(|change| (name.clone(), change));
                written.changes.extend(changes);
            }
            let writes = table.into_writes(updated_at)?;
            if is_told {
                written.inserted += writes.inserts.len();
                written.updated += writes.updates.len();
            }
            if !self.dry_run {
                self.save(session, name, writes).await?;
            }
        }
        Ok(written)
    }

    /// The events with their bodies parsed. Those of large ones don't outlive this.
    fn unfolded(&self) -> Cow<'_, [Event]> {
        let mut events = Cow::Borrowed(&*self.events);
        if events.iter().any(Event::is_large) {
            events.to_mut().iter_mut().for_each(Event::recall_members);
        }
        events
    }

    async fn load(&self, session: &mut ClientSession, events: &[Event]) -> Result<Documents, Failure> {
        let (names, mut wanted) = (&self.store.names, Wanted::by(events));
        let mut documents = Documents::default();
        if let Work::RebuildShared { shared, .. } = &self.work {
            let Wanted { mut conversations, contacts, .. } = wanted;
            conversations.extend(shared.conversations.iter().cloned());
            wanted = Wanted { conversations, contacts, ..Wanted::default() };
        }
        if self.work == Work::Apply {
            let known_by = Some(fields(&ledger::KNOWN_BY));
            documents.ledger.load(self.find_ids(session, &names.ledger, &wanted.ledger, known_by).await?)?;
            let variants = ledger::variants(&documents.ledger, events);
            documents.ledger.load(self.find_ids(session, &names.ledger, &variants, None).await?)?;
        }
        documents.messages.load(self.find_ids(session, &names.messages, &wanted.messages, None).await?)?;
        documents.notes.load(self.find_ids(session, &names.notes, &wanted.notes, None).await?)?;
        documents.calls.load(self.find_ids(session, &names.calls, &wanted.calls, None).await?)?;
        if !wanted.unnamed_messages.is_empty() {
            documents.messages.load_unnamed(self.find_unnamed(session, &wanted.unnamed_messages).await?)?;
        }
        documents.contacts.load(self.find_ids(session, &names.contacts, &wanted.contacts, None).await?)?;
        let mut conversations = wanted.conversations;
        conversations.extend(documents.previous_conversations());
        let found = self.find_ids(session, &names.conversations, &conversations, None).await?;
        documents.conversations.load(found)?;
        Ok(documents)
    }

    /// What else is in the conversations. There may be much of it, so it is counted as it comes.
    async fn neighbours(
        &self,
        session: &mut ClientSession,
        documents: &Documents,
        chats: BTreeSet<String>,
    ) -> Result<Neighbours, Failure> {
        let in_chats = doc! {"chat_id": {"$in": chats.into_iter().collect::<Vec<_>>()}};
        let (names, mut neighbours) = (&self.store.names, Neighbours::default());
        let is_here = |table: &Table, found: &Record| found.get("_id").is_some_and(|id| table.has(id));

        self.check_deadline()?;
        let collection = self.store.database.collection::<RawDocumentBuf>(&names.messages);
        let messages = collection.find(in_chats.clone()).projection(fields(&neighbours::MESSAGES_COUNTED_BY));
        let mut messages = messages.session(&mut *session).await?;
        while let Some(message) = messages.next(session).await.transpose()? {
            let message = Record::read(&message)?;
            if !is_here(&documents.messages, &message) {
                neighbours.add_message(&message);
            }
        }
        self.check_deadline()?;
        let collection = self.store.database.collection::<RawDocumentBuf>(&names.notes);
        let notes = collection.find(in_chats).projection(fields(&neighbours::NOTES_COUNTED_BY));
        let mut notes = notes.session(&mut *session).await?;
        while let Some(note) = notes.next(session).await.transpose()? {
            let note = Record::read(&note)?;
            if !is_here(&documents.notes, &note) {
                neighbours.add_note(&note);
            }
        }
        Ok(neighbours)
    }

    /// Messages without messageId that the bridge stored, by `event_id`. There are few with such an `_id`, and the index on `_id`
    /// leads to them, so that no other index is needed.
    async fn find_unnamed(
        &self,
        session: &mut ClientSession,
        event_ids: &BTreeSet<String>,
    ) -> Result<Vec<RawDocumentBuf>, Failure> {
        self.check_deadline()?;
        let collection = self.store.database.collection::<RawDocumentBuf>(&self.store.names.messages);
        let event_ids: Vec<&String> = event_ids.iter().collect();
        let filter = doc! {"_id": {"$type": "objectId"}, "event_id": {"$in": event_ids}};
        let cursor = collection.find(filter).sort(doc! {"_id": 1}).session(&mut *session).await?;
        self.collect(cursor, session).await
    }

    async fn find_ids(
        &self,
        session: &mut ClientSession,
        collection: &str,
        ids: &BTreeSet<String>,
        fields: Option<Document>,
    ) -> Result<Vec<RawDocumentBuf>, Failure> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<&String> = ids.iter().collect();
        // One batch, so one round trip, unless the documents are larger than a reply may be.
        let batch_size = u32::try_from(ids.len()).unwrap_or(u32::MAX).saturating_add(1);
        self.check_deadline()?;
        let collection = self.store.database.collection::<RawDocumentBuf>(collection);
        let mut find = collection.find(doc! {"_id": {"$in": ids}}).batch_size(batch_size);
        if let Some(fields) = fields {
            find = find.projection(fields);
        }
        let cursor = find.session(&mut *session).await?;
        self.collect(cursor, session).await
    }

    /// All that a cursor finds, if a batch may have as much.
    async fn collect(
        &self,
        mut cursor: SessionCursor<RawDocumentBuf>,
        session: &mut ClientSession,
    ) -> Result<Vec<RawDocumentBuf>, Failure> {
        let mut found = Vec::new();
        let is_bounded = self.events.len() > 1 && matches!(self.work, Work::Apply | Work::Reapply);
        while let Some(document) = cursor.next(session).await.transpose()? {
            let bytes = document.as_bytes().len();
            let loaded = self.loaded.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if is_bounded && loaded > MAX_LOADED {
                return Err(Failure::TooMuch(MAX_LOADED));
            }
            found.push(document);
        }
        Ok(found)
    }

    async fn save(
        &self,
        session: &mut ClientSession,
        collection: &str,
        writes: Writes,
    ) -> Result<(), Failure> {
        if !writes.inserts.is_empty() {
            self.check_deadline()?;
            let collection = self.store.database.collection::<RawDocumentBuf>(collection);
            collection.insert_many(writes.inserts).ordered(false).session(&mut *session).await?;
        }
        let mut updates = writes.updates.into_iter();
        while updates.len() > 0 {
            self.check_deadline()?;
            let some: RawArrayBuf = updates.by_ref().take(MAX_UPDATES).collect();
            let update = rawdoc! {"update": collection, "updates": some, "ordered": false};
            let reply = self.store.database.run_raw_command(update).session(&mut *session).await?;
            refused(&reply)?;
        }
        Ok(())
    }

    async fn commit(&self, session: &mut ClientSession) -> Result<(), Failure> {
        loop {
            self.check_deadline()?;
            match session.commit_transaction().await {
                Err(error) if Failure::is_unknown_commit(&error) => {
                    sleep(COMMIT_PAUSE.mul_f64(fastrand::f64())).await;
                }
                other => return Ok(other?),
            }
        }
    }

    /// An abandoned attempt ends itself between two calls of the driver.
    fn check_deadline(&self) -> Result<(), Failure> {
        if self.abandoned.is_cancelled() { Err(Failure::TimedOut(self.store.deadline)) } else { Ok(()) }
    }
}

fn fields(names: &[&str]) -> Document {
    names.iter().map(|name| ((*name).to_owned(), 1.into())).collect()
}
