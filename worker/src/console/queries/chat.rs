//! Conversations and their messages.

use mongodb::bson::{Bson, DateTime, Document, doc};

use super::{Find, PAGE, Place, millis, page_of, text};
use crate::store::Store;
use crate::store::failure::Failure;

/// What the page of a conversation shows of a message.
const MESSAGE_FIELDS: [&str; 9] = [
    "event_id",
    "message_type",
    "type",
    "ts",
    "status",
    "sender",
    "sender_info",
    "raw_message",
    "attachment",
];

/// A message, by its id.
pub async fn message(store: &Store, id: &str) -> Result<Option<Document>, Failure> {
    let fields = doc! {"chat_id": 1, "event_id": 1};
    let find = Find { fields, ..Find::by_ids([&id.to_owned()]) };
    Ok(find.run(store, &store.names.messages).await?.into_iter().next())
}

/// The conversations that somebody may mean by a contact's id, phone or chat id: the text itself, with and
/// without the plus of a phone, the phone of the contact, and the conversations of the contact.
pub async fn ids(store: &Store, meant: &str) -> Result<Vec<String>, Failure> {
    let mut ids = vec![meant.to_owned(), format!("+{meant}"), meant.trim_start_matches('+').to_owned()];
    let contact = Find { fields: doc! {"phone": 1}, ..Find::by_ids([&meant.to_owned()]) };
    let contacts = contact.run(store, &store.names.contacts).await?;
    ids.extend(contacts.iter().map(|contact| text(contact, "phone").trim().to_owned()));
    let conversations = of_contact(meant).run(store, &store.names.conversations).await?;
    ids.extend(conversations.iter().map(|conversation| text(conversation, "_id")));
    ids.retain(|id| !id.is_empty());
    ids.sort();
    ids.dedup();
    Ok(ids)
}

/// The conversations of a contact, whose id is a number or a text, as it was sent.
fn of_contact(id: &str) -> Find {
    let mut ids = vec![Bson::from(id)];
    ids.extend(id.parse::<i64>().ok().map(Bson::Int64));
    let filter = doc! {"contact.id": {"$in": ids}};
    Find { filter, limit: PAGE, fields: doc! {"_id": 1}, ..Find::default() }
}

/// The conversations with these ids, the one with the latest message first.
pub async fn conversations(store: &Store, ids: &[String]) -> Result<Vec<Document>, Failure> {
    let find = Find { sort: doc! {"last_message_ts": -1}, ..Find::by_ids(ids) };
    find.run(store, &store.names.conversations).await
}

/// Messages of a conversation, the latest first, and where the earlier ones begin. Those without content have
/// no time, and nothing to read.
pub async fn messages(
    store: &Store,
    chat: &str,
    place: Option<Place>,
) -> Result<(Vec<Document>, Option<Place>), Failure> {
    let latest = place.map_or(i64::MAX, |place| place.at_ms);
    let find = Find {
        filter: doc! {"chat_id": chat, "ts": {"$lte": DateTime::from_millis(latest)}},
        sort: doc! {"ts": -1},
        skip: place.map_or(0, |place| place.shown),
        limit: PAGE + 1,
        fields: MESSAGE_FIELDS.iter().map(|name| ((*name).to_owned(), Bson::Int32(1))).collect(),
        ..Find::default()
    };
    let found = find.run(store, &store.names.messages).await?;
    Ok(page_of(found, |message| millis(message, "ts").unwrap_or_default(), place))
}

/// Notes of a conversation that were stored within this time.
pub async fn notes(
    store: &Store,
    chat: &str,
    (from_ms, to_ms): (i64, i64),
) -> Result<Vec<Document>, Failure> {
    let within = doc! {"$gte": DateTime::from_millis(from_ms), "$lte": DateTime::from_millis(to_ms)};
    let find = Find {
        filter: doc! {"chat_id": chat, "created_at": within},
        sort: doc! {"created_at": -1},
        limit: PAGE,
        fields: doc! {"text": 1, "created_at": 1, "mentioned_user_emails": 1},
        ..Find::default()
    };
    find.run(store, &store.names.notes).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contact_is_found_by_its_id_as_number_and_as_text() {
        assert_eq!(of_contact("7").filter, doc! {"contact.id": {"$in": ["7", 7_i64]}});
        assert_eq!(of_contact("+7x").filter, doc! {"contact.id": {"$in": ["+7x"]}});
    }
}
