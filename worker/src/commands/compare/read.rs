//! Reading two databases side by side, in pages, with deadlines.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::TryStreamExt;
use mongodb::Cursor;
use mongodb::bson::{DateTime, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use tokio::time::timeout;

use crate::commands::erase::documents::{SCAN_TIMEOUT, next};
use crate::store::failure::Failure;
use crate::store::{Names, Store};

/// Longest wait for an answer that an index leads to.
const DEADLINE: Duration = Duration::from_mins(1);
/// Most documents in a page.
const PAGE: usize = 1000;
/// A page ends when its documents have so many bytes.
const PAGE_BYTES: usize = 8 << 20;

/// A collection that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `messages`
    Messages,
    /// `conversations`
    Conversations,
    /// `contacts`
    Contacts,
    /// `internal_notes`
    Notes,
    /// `calls`
    Calls,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Messages, Self::Conversations, Self::Contacts, Self::Notes, Self::Calls];

    /// Its name in the contract.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Conversations => "conversations",
            Self::Contacts => "contacts",
            Self::Notes => "internal_notes",
            Self::Calls => "calls",
        }
    }

    /// Its name in a database.
    fn of(self, names: &Names) -> &str {
        match self {
            Self::Messages => &names.messages,
            Self::Conversations => &names.conversations,
            Self::Contacts => &names.contacts,
            Self::Notes => &names.notes,
            Self::Calls => &names.calls,
        }
    }

    /// The field that tells when a document was written last, as far as its collection tells that.
    fn written_at(self) -> &'static str {
        match self {
            Self::Conversations | Self::Contacts => "updated_at",
            Self::Messages | Self::Notes | Self::Calls => "created_at",
        }
    }
}

/// What is compared: what was written from then on, but not just now.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// From this moment on, if from any.
    pub since: Option<DateTime>,
    /// Before this moment.
    pub until: DateTime,
}

impl Span {
    fn filter(&self, kind: Kind) -> Document {
        self.since.map_or_else(Document::new, |since| doc! {kind.written_at(): {"$gte": since}})
    }

    /// Whether a document was written since it began.
    #[must_use]
    pub fn has(&self, kind: Kind, document: &RawDocument) -> bool {
        self.since.is_none_or(|since| date(document, kind.written_at()) >= Some(since))
    }

    /// Whether a document was written so late that the other database may not have it yet.
    #[must_use]
    pub fn is_too_new(&self, kind: Kind, document: &RawDocument) -> bool {
        date(document, kind.written_at()) >= Some(self.until)
    }

    /// Whether all events of a document were. A contact doesn't tell when it was written first.
    #[must_use]
    pub fn has_whole(&self, kind: Kind, document: &RawDocument) -> bool {
        self.since.is_none_or(|since| kind != Kind::Contacts && date(document, "created_at") >= Some(since))
    }
}

fn date(document: &RawDocument, name: &str) -> Option<DateTime> {
    document.get_datetime(name).ok()
}

/// What identifies a document in any database. The bridge has given messages without a messageId an `_id` of
/// MongoDB's.
#[must_use]
pub fn key(document: &RawDocument) -> String {
    match (document.get("_id"), document.get_str("event_id")) {
        (Ok(Some(RawBsonRef::String(id))), _) => id.to_owned(),
        (_, Ok(event_id)) => event_id.to_owned(),
        // Nothing of the other database.
        (id, Err(_)) => format!("{id:?}"),
    }
}

/// One of the two databases.
#[derive(Debug)]
pub struct Side {
    /// How it is called.
    pub name: String,
    store: Store,
    collections: Vec<String>,
}

impl Side {
    /// Looks which collections there are.
    pub async fn open(name: String, store: Store) -> Result<Self, Failure> {
        let listed = timeout(DEADLINE, store.database.list_collection_names().into_future()).await;
        let collections = listed.map_err(|_| Failure::TimedOut(DEADLINE))??;
        Ok(Self { name, store, collections })
    }

    /// Whether it has any collection of Penstock's or the bridge's.
    #[must_use]
    pub fn has_any(&self) -> bool {
        Kind::ALL.into_iter().any(|kind| self.has(kind.of(&self.store.names)))
    }

    /// Whether Penstock has never written here.
    #[must_use]
    pub fn is_the_bridges(&self) -> bool {
        !self.has(&self.store.names.ledger)
    }

    fn has(&self, collection: &str) -> bool {
        self.collections.iter().any(|known| known == collection)
    }

    /// Documents of a span.
    pub async fn documents(&self, kind: Kind, span: &Span) -> Result<Cursor<RawDocumentBuf>, Failure> {
        self.find(kind, span.filter(kind), SCAN_TIMEOUT).await
    }

    /// The documents that are known by one of these keys.
    pub async fn partners(&self, kind: Kind, keys: &[&String]) -> Result<Vec<RawDocumentBuf>, Failure> {
        let mut found = self.all(kind, doc! {"_id": {"$in": keys}}).await?;
        if kind == Kind::Messages {
            // There are few with such an `_id`, and the index on `_id` leads to them.
            found.extend(
                self.all(kind, doc! {"_id": {"$type": "objectId"}, "event_id": {"$in": keys}}).await?,
            );
        }
        Ok(found)
    }

    async fn all(&self, kind: Kind, filter: Document) -> Result<Vec<RawDocumentBuf>, Failure> {
        let found = self.find(kind, filter, DEADLINE).await?;
        timeout(DEADLINE, found.try_collect())
            .await
            .map_err(|_| Failure::TimedOut(DEADLINE))?
            .map_err(Into::into)
    }

    async fn find(
        &self,
        kind: Kind,
        filter: Document,
        limit: Duration,
    ) -> Result<Cursor<RawDocumentBuf>, Failure> {
        let collection = self.store.on_primary(kind.of(&self.store.names));
        let collection = collection.clone_with_type::<RawDocumentBuf>();
        let found = timeout(limit, collection.find(filter).into_future()).await;
        found.map_or(Err(Failure::TimedOut(limit)), |found| Ok(found?))
    }
}

/// The next documents, by key. Empty at the end.
pub async fn page(found: &mut Cursor<RawDocumentBuf>) -> Result<HashMap<String, RawDocumentBuf>, Failure> {
    let (mut page, mut bytes) = (HashMap::new(), 0);
    while page.len() < PAGE && bytes < PAGE_BYTES {
        let Some(document) = next(found).await? else { break };
        bytes += document.as_bytes().len();
        page.insert(key(&document), document);
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::oid::ObjectId;
    use mongodb::bson::rawdoc;

    use super::*;

    #[test]
    fn a_span_tells_documents_apart() {
        let at = DateTime::from_millis;
        let span = Span { since: Some(at(10)), until: at(20) };
        let all = Span { since: None, until: at(20) };
        let written = |millis| rawdoc! {"created_at": at(millis), "updated_at": at(millis)};
        for kind in Kind::ALL {
            assert_eq!([9, 10, 20].map(|millis| span.has(kind, &written(millis))), [false, true, true]);
            assert_eq!(
                [9, 19, 20].map(|millis| span.is_too_new(kind, &written(millis))),
                [false, false, true]
            );
            assert!(all.has(kind, &rawdoc! {}) && all.has_whole(kind, &rawdoc! {}));
            assert!(!span.has(kind, &rawdoc! {}) && !span.has_whole(kind, &rawdoc! {}));
        }
        let older = rawdoc! {"created_at": at(9), "updated_at": at(15)};
        assert!(span.has(Kind::Conversations, &older) && !span.has_whole(Kind::Conversations, &older));
    }

    #[test]
    fn a_message_without_a_name_is_known_by_its_event() {
        let id = ObjectId::from_bytes([7; 12]);
        assert_eq!(key(&rawdoc! {"_id": "1", "event_id": "e"}), "1");
        assert_eq!(key(&rawdoc! {"_id": id, "event_id": "e"}), "e");
        assert_ne!(key(&rawdoc! {"_id": id}), key(&rawdoc! {"_id": 7}));
    }
}
