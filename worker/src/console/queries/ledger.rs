//! Searches the ledger.

use mongodb::bson::{Bson, DateTime, Document, doc};

use super::chat;
use super::{Find, PAGE, Place, millis, page_of, text};
use crate::store::failure::Failure;
use crate::store::{self, Store};

/// What is searched for: all that is given has to fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// The event key.
    pub key: Option<String>,
    /// The id of the message that an event makes or changes.
    pub message: Option<String>,
    /// A contact's id, phone or chat id.
    pub contact: Option<String>,
    /// The event type.
    pub event_type: Option<String>,
    /// Stored at this time or later, in milliseconds since 1970.
    pub from_ms: Option<i64>,
    /// Stored before this time.
    pub to_ms: Option<i64>,
    /// Where the page begins.
    pub place: Option<Place>,
}

/// An entry, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The event key.
    pub key: String,
    /// The event type; empty if it has none.
    pub event_type: String,
    /// How its signature was found good.
    pub signature: String,
    /// The conversation; empty if it has none, or is older than this field.
    pub chat: String,
    /// When it was received and stored, in milliseconds since 1970.
    pub received_at_ms: i64,
    /// When it was stored.
    pub stored_at_ms: i64,
}

/// The entries of a page, and where the next one begins.
pub async fn search(
    store: &Store,
    search: &Search,
    has_indexes: bool,
) -> Result<(Vec<Entry>, Option<Place>), Failure> {
    let chats = match &search.contact {
        Some(contact) => Some(chat::ids(store, contact).await?),
        None => None,
    };
    let found = find(search, chats.as_deref(), has_indexes).run(store, &store.names.ledger).await?;
    let (mut page, next) =
        page_of(found.iter().map(entry).collect(), |entry| entry.stored_at_ms, search.place);
    if let Some(id) = search.message.as_ref().filter(|_| search.place.is_none()) {
        // Entries of earlier releases don't name their message; the message knows the first of them.
        let own = chat::message(store, id).await?.map(|message| text(&message, "event_id"));
        if let Some(own) = own.filter(|own| page.iter().all(|entry| entry.key != *own)) {
            let first = Search { key: Some(own.clone()), message: None, ..search.clone() };
            let first = find(&first, chats.as_deref(), has_indexes).run(store, &store.names.ledger).await?;
            page.extend(first.iter().map(entry).filter(|entry| entry.key == own));
        }
    }
    Ok((page, next))
}

/// An entry in full.
pub async fn get(store: &Store, key: &str) -> Result<Option<Document>, Failure> {
    let found = Find::by_ids([&key.to_owned()]).run(store, &store.names.ledger).await?;
    Ok(found.into_iter().next())
}

/// The question for a page. Pure.
fn find(search: &Search, chats: Option<&[String]>, has_indexes: bool) -> Find {
    let Search { key, message, event_type, from_ms, to_ms, place, .. } = search;
    let mut filter = Document::new();
    if let Some(key) = key {
        // Other bodies of the same key stand beside it, behind a tilde.
        let beside = doc! {"$gt": format!("{key}~"), "$lt": format!("{key}\u{7f}")};
        filter.insert("$or", [doc! {"_id": key}, doc! {"_id": beside}]);
    }
    if let Some(chats) = chats {
        filter.insert("chat_id", doc! {"$in": chats});
    }
    if let Some(message) = message {
        filter.insert("message_id", message);
    }
    if let Some(event_type) = event_type {
        filter.insert("event_type", event_type);
    }
    let mut stored = Document::new();
    let mut bound = |name: &str, ms: i64| stored.insert(name, DateTime::from_millis(ms));
    from_ms.map(|from| bound("$gte", from));
    to_ms.map(|to| bound("$lt", to));
    place.map(|place| bound("$lte", place.at_ms));
    if !stored.is_empty() {
        filter.insert("stored_at", stored);
    }
    let index = match (key, message, chats, event_type) {
        (Some(_), ..) => Some(doc! {"_id": 1}),
        (_, Some(_), ..) if has_indexes => Some(store::by_message()),
        (.., Some(_), _) if has_indexes => Some(store::by_chat()),
        (.., Some(_)) if has_indexes => Some(store::by_type()),
        _ => None,
    };
    Find {
        filter,
        sort: doc! {"stored_at": -1},
        index,
        skip: place.map_or(0, |place| place.shown),
        limit: PAGE + 1,
        fields: listed(),
    }
}

/// The fields that a list shows: bodies are large.
fn listed() -> Document {
    let names = ["event_type", "signature", "chat_id", "received_at", "stored_at"];
    names.into_iter().map(|name| (name.to_owned(), Bson::Int32(1))).collect()
}

fn entry(document: &Document) -> Entry {
    Entry {
        key: text(document, "_id"),
        event_type: text(document, "event_type"),
        signature: text(document, "signature"),
        chat: text(document, "chat_id"),
        received_at_ms: millis(document, "received_at").unwrap_or_default(),
        stored_at_ms: millis(document, "stored_at").unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_given_has_to_fit() {
        let at = DateTime::from_millis;
        let search = Search {
            event_type: Some("call.ended".into()),
            from_ms: Some(1),
            to_ms: Some(9),
            place: Some(Place { at_ms: 7, shown: 3 }),
            ..Search::default()
        };
        let stored = doc! {"$gte": at(1), "$lt": at(9), "$lte": at(7)};
        let found = find(&search, Some(&["+155".to_owned()]), true);
        let expected = doc! {"chat_id": {"$in": ["+155"]}, "event_type": "call.ended", "stored_at": stored};
        assert_eq!((found.filter, found.skip, found.limit), (expected, 3, PAGE + 1));
        assert_eq!(find(&Search::default(), None, true).filter, doc! {});
    }

    #[test]
    fn each_search_follows_an_index() {
        let some = || Some("x".to_owned());
        let by_key = Search { key: some(), event_type: some(), ..Search::default() };
        let by_type = Search { event_type: some(), ..Search::default() };
        let by_message = Search { message: some(), event_type: some(), ..Search::default() };
        let (chats, by_chat) = (["x".to_owned()], Some(store::by_chat()));
        assert_eq!(find(&by_key, Some(&chats), false).index, Some(doc! {"_id": 1}));
        assert_eq!(find(&by_message, Some(&chats), true).index, Some(store::by_message()));
        assert_eq!(find(&by_type, Some(&chats), true).index, by_chat);
        assert_eq!(find(&by_type, None, true).index, Some(store::by_type()));
        assert_eq!(find(&by_type, Some(&chats), false).index, None, "it may not be there yet");
        assert_eq!(find(&Search::default(), None, true).index, None, "that of stored_at, by the order");
    }
}
