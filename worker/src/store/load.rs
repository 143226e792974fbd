//! Reads what a batch concerns.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::{ClientSession, SessionCursor};

use super::failure::Failure;
use super::transaction::{Attempt, Work};
use crate::decode::Event;
use crate::project::neighbours::{self, Neighbours};
use crate::project::record::Record;
use crate::project::table::Table;
use crate::project::{Documents, Wanted, ledger};

/// Most bytes of documents that a batch of several events may load: one event may need more, a batch can be
/// halved.
const MAX_LOADED: usize = 64 << 20;

impl Attempt {
    pub(super) async fn load(
        &self,
        session: &mut ClientSession,
        events: &[Event],
    ) -> Result<Documents, Failure> {
        let (names, mut wanted) = (&self.store.names, Wanted::by(events));
        if self.work == Work::ApplyNew {
            wanted = wanted.of_new(events);
        }
        let mut documents = Documents::default();
        if let Work::RebuildShared { shared, .. } = &self.work {
            let Wanted { mut conversations, contacts, .. } = wanted;
            conversations.extend(shared.conversations.iter().cloned());
            wanted = Wanted { conversations, contacts, ..Wanted::default() };
        }
        if matches!(self.work, Work::Apply | Work::ApplyNew) {
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

    /// The neighbours in the conversations. There may be many, so they are counted while they are read.
    pub(super) async fn neighbours(
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

    /// Messages without messageId that the bridge stored, by `event_id`. There are few with such an `_id`,
    /// and the index on `_id` leads to them, so that no other index is needed.
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

    /// Everything that a cursor finds, up to the limit of a batch.
    async fn collect(
        &self,
        mut cursor: SessionCursor<RawDocumentBuf>,
        session: &mut ClientSession,
    ) -> Result<Vec<RawDocumentBuf>, Failure> {
        let mut found = Vec::new();
        let is_bounded =
            self.events.len() > 1 && matches!(self.work, Work::Apply | Work::ApplyNew | Work::Reapply);
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
}

fn fields(names: &[&str]) -> Document {
    names.iter().map(|name| ((*name).to_owned(), 1.into())).collect()
}
