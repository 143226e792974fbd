//! What MongoDB has of the API's messages and contacts.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use crate::decode;
use crate::json::{Json, Object};
use futures_util::TryStreamExt;
use mongodb::Collection;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::error::Error;
use tokio::time::{Instant, sleep, timeout};

use super::event;
use super::plan::Message;
use crate::person::Name;
use crate::project::message;
use crate::project::record::Record;
use crate::store::Store;
use crate::store::failure::Failure;

/// Longest wait for an answer of MongoDB.
pub const DEADLINE: Duration = Duration::from_mins(1);
/// While MongoDB fails, the question is repeated for this long.
pub const RETRY_TIMEOUT: Duration = Duration::from_mins(2);
/// Pause before that.
pub const PAUSE: Duration = Duration::from_millis(500);
/// Most ids asked for at once.
const IDS: usize = 1000;

/// A stored message, as far as it is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Whether its content is known.
    pub has_content: bool,
    /// Its fields by which it is compared. None where the document doesn't tell.
    pub looks: Looks,
}

/// What a message looks like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looks {
    /// The type of its content.
    pub kind: Option<String>,
    /// Its text.
    pub text: Option<String>,
    /// Which way it went.
    pub direction: Option<String>,
}

impl Stored {
    fn of(document: &Record) -> Self {
        let text = |name: &str| document.text(name).map(str::to_owned);
        let content = document.document("raw_message");
        Self {
            has_content: message::has_content(document),
            looks: Looks {
                kind: text("type"),
                text: content.and_then(|content| content.get_str("text").ok()).map(str::to_owned),
                direction: text("message_type"),
            },
        }
    }
}

impl Looks {
    /// What the API's message looks like.
    #[must_use]
    pub fn of(item: &Object) -> Self {
        let content = item.get("message");
        let text = |name: &str| content.and_then(|content| content.get(name)?.text()).map(str::to_owned);
        let direction = if event::is_incoming(item) { "incoming" } else { "outgoing" };
        Self { kind: text("type"), text: text("text"), direction: Some(direction.to_owned()) }
    }

    /// The fields in which a stored message is different. A field that either side lacks isn't.
    #[must_use]
    pub fn differences(&self, stored: &Self) -> Vec<&'static str> {
        let differ = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
        let all = [
            ("type", differ(&self.kind, &stored.kind)),
            ("text", differ(&self.text, &stored.text)),
            ("direction", differ(&self.direction, &stored.direction)),
        ];
        all.into_iter().filter_map(|(name, is_different)| is_different.then_some(name)).collect()
    }
}

/// Whether MongoDB lacks a message of which it has this: all of it, or what it says.
#[must_use]
pub fn is_lacking(item: &Object, stored: Option<&Stored>) -> bool {
    // As the worker decides it.
    let content = item.get("message").and_then(decode::given);
    let has_content = content.is_some_and(|content| content.object().is_some());
    stored.is_none_or(|stored| has_content && !stored.has_content)
}

/// What MongoDB has of these messages, by id.
pub async fn messages(store: &Store, wanted: &[Message]) -> Result<HashMap<String, Stored>, Failure> {
    let ids: Vec<&str> = wanted.iter().map(|message| message.id.as_str()).collect();
    let fields = doc! {"_merge": 1, "type": 1, "message_type": 1, "raw_message.text": 1};
    let mut stored = HashMap::new();
    for document in find(store, &store.names.messages, &ids, fields).await? {
        let record = Record::read(&document).map_err(Error::from)?;
        if let Some(id) = record.text("_id") {
            stored.insert(id.to_owned(), Stored::of(&record));
        }
    }
    Ok(stored)
}

/// Which of these messages MongoDB has with their content.
pub async fn whole_messages(store: &Store, ids: &[&str]) -> Result<HashSet<String>, Failure> {
    let found = find(store, &store.names.messages, ids, doc! {"_merge": 1}).await?;
    let whole = found.iter().filter_map(|document| Record::read(document).ok());
    let whole = whole.filter(message::has_content);
    Ok(whole.filter_map(|record| record.text("_id").map(str::to_owned)).collect())
}

/// Which of these contacts MongoDB has.
pub async fn contacts(store: &Store, ids: &[&str]) -> Result<HashSet<String>, Failure> {
    let found = find(store, &store.names.contacts, ids, doc! {"_id": 1}).await?;
    Ok(found.iter().filter_map(|document| document.get_str("_id").ok().map(str::to_owned)).collect())
}

/// When a person of these names was erased, if one was.
pub async fn erased_at(store: &Store, names: &BTreeSet<Name>) -> Result<Option<i64>, Failure> {
    let started = Instant::now();
    loop {
        match within_deadline(store.erased_at(names)).await {
            Ok(erased_at) => return Ok(erased_at),
            Err(failure) => pause_after(failure, started).await?,
        }
    }
}

/// The id of a contact.
#[must_use]
pub fn contact_id(contact: &Object) -> Option<String> {
    contact.get("id").and_then(Json::id)
}

async fn find(
    store: &Store,
    collection: &str,
    ids: &[&str],
    fields: Document,
) -> Result<Vec<RawDocumentBuf>, Failure> {
    let collection = store.database.collection::<RawDocumentBuf>(collection);
    let mut all = Vec::new();
    for ids in ids.chunks(IDS) {
        let started = Instant::now();
        loop {
            match within_deadline(find_once(&collection, ids, &fields)).await {
                Ok(found) => break all.extend(found),
                Err(failure) => pause_after(failure, started).await?,
            }
        }
    }
    Ok(all)
}

async fn find_once(
    collection: &Collection<RawDocumentBuf>,
    ids: &[&str],
    fields: &Document,
) -> Result<Vec<RawDocumentBuf>, Failure> {
    let find = collection.find(doc! {"_id": {"$in": ids}}).projection(fields.clone());
    Ok(find.await?.try_collect().await?)
}

async fn within_deadline<T>(asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(DEADLINE, asked).await.unwrap_or(Err(Failure::TimedOut(DEADLINE)))
}

/// Waits before MongoDB is asked again, unless it has failed for too long.
async fn pause_after(failure: Failure, started: Instant) -> Result<(), Failure> {
    if started.elapsed() > RETRY_TIMEOUT {
        return Err(failure);
    }
    sleep(PAUSE).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::json;
    use mongodb::bson::rawdoc;

    use super::*;

    fn item(body: &str) -> Object {
        json::parse(body.as_bytes()).unwrap()
    }

    fn stored(document: &RawDocumentBuf) -> Stored {
        Stored::of(&Record::read(document).unwrap())
    }

    #[test]
    fn a_message_whose_content_is_unknown_is_lacking() {
        let (whole, bare) = (item(r#"{"message":{"type":"text"}}"#), item(r#"{"message":null,"status":[]}"#));
        let with_status = stored(&rawdoc! {"_merge": {"status_only": "1 a b"}});
        let with_content = stored(&rawdoc! {"_merge": {"message": "1 a b"}});
        let of_the_bridge = stored(&rawdoc! {"type": "text"});
        for nothing in [r#"{"message":{}}"#, r#"{"message":{"type":null}}"#] {
            assert!(!is_lacking(&item(nothing), Some(&with_status)), "{nothing}");
        }
        assert!(is_lacking(&whole, None) && is_lacking(&bare, None));
        assert!(is_lacking(&whole, Some(&with_status)) && !is_lacking(&bare, Some(&with_status)));
        assert!(!is_lacking(&whole, Some(&with_content)) && !is_lacking(&whole, Some(&of_the_bridge)));
    }

    #[test]
    fn type_text_and_direction_are_compared() {
        let told = Looks::of(&item(r#"{"traffic":"incoming","message":{"type":"text","text":"a"}}"#));
        let of = |document: &RawDocumentBuf| told.differences(&stored(document).looks);
        let same = rawdoc! {"type": "text", "message_type": "incoming", "raw_message": {"text": "a"}};
        assert!(of(&same).is_empty() && of(&rawdoc! {}).is_empty());
        let other = rawdoc! {"type": "image", "message_type": "outgoing", "raw_message": {"text": "b"}};
        assert_eq!(of(&other), ["type", "text", "direction"]);
    }
}
