//! One attempt to write a batch: read what it concerns, apply it, write the difference, commit. All in one
//! snapshot.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mongodb::ClientSession;
use mongodb::bson::{DateTime, Document, RawArrayBuf, RawDocumentBuf, doc, rawdoc};
use mongodb::options::{ReadConcern, ReadPreference, SelectionCriteria, WriteConcern};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::{Store, UNFOLDED_BYTES, refused};
use crate::decode::Event;
use crate::project::rebuild::Shared;
use crate::project::table::{Change, Writes};
use crate::project::{Outcome, Wanted};

/// Longest pause before a commit whose outcome is unknown is sent again.
const COMMIT_PAUSE: Duration = Duration::from_millis(100);

/// Updates in one command, which must stay below 48 MB. A batch of a worker has hardly more.
const MAX_UPDATES: usize = 1000;

/// How long an attempt that missed its deadline may take to end: the next one would only wait for its locks.
/// One whose connection hangs never ends.
pub(super) const ABANDONED_TIMEOUT: Duration = Duration::from_secs(5);

/// What to do with a batch of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Apply those that are new, and enter them into the ledger.
    Apply,
    /// The same for events that are taken for new: documents that only one event has are inserted without
    /// being read. So this fails by a duplicate key if one was stored before.
    ApplyNew,
    /// Apply them all, though the ledger has them.
    Reapply,
    /// Compute the documents that they concern anew, see [`crate::project::Documents::rebuild`].
    Rebuild {
        /// The ledger has every event that was stored since then.
        horizon: DateTime,
    },
    /// Compute only those anew that belong to few events each, see
    /// [`crate::project::Documents::rebuild_own`].
    RebuildOwn {
        /// The ledger has every event that was stored since then.
        horizon: DateTime,
    },
    /// Compute only those anew that many events share, see [`crate::project::Documents::rebuild_shared`].
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

/// The result of an attempt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// The outcome of each event, if they were applied as new ones.
    pub outcomes: Vec<Outcome>,
    /// New documents.
    pub inserted: usize,
    /// Documents that have changed.
    pub updated: usize,
    /// In a dry run: what would change, by collection.
    pub changes: Vec<(String, Change)>,
    /// The conversations that were loaded, if they are yet to be counted.
    pub uncounted: BTreeSet<String>,
}

/// Does this work with these events in one transaction, or finds out what it would change. Fails after the
/// deadline of the store, whatever the server does.
pub async fn attempt(
    store: &Store,
    events: Arc<[Event]>,
    work: Work,
    dry_run: bool,
) -> Result<Written, Failure> {
    let large: usize = events.iter().filter(|event| event.is_large()).map(|event| event.body.len()).sum();
    // Before the deadline begins, and for no longer than the attempt: an event that always misses the
    // deadline must not keep the others out. An event that needs more than the limit gets all of it.
    let places = u32::try_from(large.min(UNFOLDED_BYTES)).unwrap_or(u32::MAX);
    let _unfolding = store.unfolding.acquire_many(places).await;
    let (abandoned, session) = (CancellationToken::new(), Arc::new(OnceLock::new()));
    // If nobody waits for the attempt any more, it ends itself.
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

/// Has the server end the session of an attempt that was abandoned, and with it the transaction and its
/// locks. They would stay for up to a minute, and delay all writers of the same documents.
async fn end_session(store: &Store, session: &OnceLock<Document>) {
    let Some(id) = session.get() else { return };
    let kill = doc! {"killSessions": [{"id": id.get("id")}]};
    // If it can't be ended, the server does so when the transaction's time is over.
    let _ = store.client.database("admin").run_command(kill).await;
}

/// Begins a transaction: it sees one snapshot, and what it commits survives an election.
pub(crate) async fn begin(session: &mut ClientSession) -> mongodb::error::Result<()> {
    session
        .start_transaction()
        .read_concern(ReadConcern::snapshot())
        .write_concern(WriteConcern::majority())
        .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
        .await
}

/// An attempt.
pub(super) struct Attempt {
    pub(super) store: Store,
    pub(super) events: Arc<[Event]>,
    pub(super) work: Work,
    /// Whether to abort in the end, for a dry run.
    dry_run: bool,
    /// Cancelled when nobody waits for it any more.
    abandoned: CancellationToken,
    /// The id of its session, once there is one.
    session: Arc<OnceLock<Document>>,
    /// Bytes of documents that were loaded so far.
    pub(super) loaded: AtomicUsize,
}

impl Attempt {
    async fn run(self) -> Result<Written, Failure> {
        let mut session = self.store.client.start_session().await?;
        let _ = self.session.set(session.id().clone());
        let written = match self.pass_fence(&mut session).await {
            Ok(erased_until) => self.write(&mut session, erased_until).await,
            Err(failure) => Err(failure),
        };
        match written {
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

    async fn write(
        &self,
        session: &mut ClientSession,
        erased_until: Option<DateTime>,
    ) -> Result<Written, Failure> {
        let mut events = self.unfolded();
        let (mut written, now) = (Written::default(), DateTime::now());
        let is_erased = self.erased(session, &events, erased_until).await?;
        if is_erased.contains(&true) {
            let mut is_erased = is_erased.iter();
            events.to_mut().retain(|_| is_erased.next() != Some(&true));
        }
        let mut documents = self.load(session, &events).await?;
        match &self.work {
            Work::Apply | Work::ApplyNew => {
                let mut outcomes = events.iter().map(|event| documents.apply(event, now));
                let outcome = |erased| if erased { Some(Outcome::Erased) } else { outcomes.next() };
                written.outcomes = is_erased.into_iter().filter_map(outcome).collect();
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
            // The outcome of the others is known once they are computed.
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

    async fn save(
        &self,
        session: &mut ClientSession,
        collection: &str,
        writes: Writes,
    ) -> Result<(), Failure> {
        if !writes.inserts.is_empty() {
            self.check_deadline()?;
            let documents = self.store.database.collection::<RawDocumentBuf>(collection);
            let inserted = documents.insert_many(writes.inserts).ordered(false).session(&mut *session).await;
            inserted.map_err(|error| Failure::of_insert(collection, error))?;
        }
        let mut updates = writes.updates.into_iter();
        while updates.len() > 0 {
            self.check_deadline()?;
            let some: RawArrayBuf = updates.by_ref().take(MAX_UPDATES).collect();
            let update = rawdoc! {"update": collection, "updates": some, "ordered": false};
            let reply = self.store.database.run_raw_command(update).session(&mut *session).await?;
            refused(collection, &reply)?;
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
    pub(super) fn check_deadline(&self) -> Result<(), Failure> {
        if self.abandoned.is_cancelled() { Err(Failure::TimedOut(self.store.deadline)) } else { Ok(()) }
    }
}
