//! Checks a tenant's MongoDB for indexes and settings that prevent storing events, and names them.

use futures_util::TryStreamExt;
use mongodb::IndexModel;
use mongodb::bson::Document;
use tracing::warn;

use crate::store::failure::{Failure, within};
use crate::store::{Names, Store, is_missing};

pub mod server;

/// Logs the warnings once.
pub async fn warn(tenant: &str, store: &Store) {
    match indexes_in_the_way(store).await {
        Ok(found) if found.is_empty() => {}
        Ok(found) => warn!(tenant, indexes = found.join("; "), "{INDEXES}"),
        Err(failure) => {
            let error = shared::telemetry::chain(&failure);
            warn!(tenant, error, "can't check the indexes");
        }
    }
    for warning in server::warnings(store).await {
        warn!(tenant, "{warning}");
    }
}

/// The same, for `--check`.
pub async fn warnings(store: &Store) -> Result<Vec<String>, Failure> {
    let indexes = indexes_in_the_way(store).await?.into_iter().map(|index| format!("{INDEXES}: {index}"));
    Ok(indexes.chain(server::warnings(store).await).collect())
}

/// What is wrong with indexes that make writes fail.
const INDEXES: &str =
    "indexes make writes fail: events that MongoDB refuses because of them are dead-lettered";

/// The indexes that make writes fail, each with the reason.
pub async fn indexes_in_the_way(store: &Store) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for collection in looked_at(&store.names) {
        let indexes = indexes(store, collection).await?;
        found.extend(indexes.iter().filter_map(|index| in_the_way(&store.names, collection, index)));
    }
    Ok(found)
}

/// The collections that may have such indexes.
fn looked_at(names: &Names) -> [&String; 4] {
    [&names.messages, &names.conversations, &names.contacts, &names.notes]
}

async fn indexes(store: &Store, collection: &str) -> Result<Vec<IndexModel>, Failure> {
    let collection = store.database.collection::<Document>(collection);
    let list = tokio::spawn(async move { collection.list_indexes().await?.try_collect().await });
    match within(store.deadline, list).await? {
        Err(error) if is_missing(&error) => Ok(Vec::new()),
        listed => Ok(listed?),
    }
}

/// Whether, and why, an index makes writes fail. Pure.
fn in_the_way(names: &Names, collection: &str, index: &IndexModel) -> Option<String> {
    let options = index.options.as_ref()?;
    let name = options.name.as_deref().unwrap_or_default();
    let reason = if is_on_event_id_alone(&index.keys)
        && options.unique == Some(true)
        && collection == names.messages
    {
        "it is unique, but one event may bring several messages, and some have no event_id"
    } else if is_text(&index.keys) && options.language_override.as_deref().unwrap_or(LANGUAGE) == LANGUAGE {
        "it takes the field language for the language of the text, and MongoDB refuses languages that it doesn't know; \
         make it with another language_override"
    } else {
        return None;
    };
    Some(format!("{name} of {collection}: {reason}"))
}

/// The field that names a text's language, unless the index has a `language_override`.
const LANGUAGE: &str = "language";

fn is_on_event_id_alone(keys: &Document) -> bool {
    keys.keys().eq(["event_id"])
}

fn is_text(keys: &Document) -> bool {
    keys.values().any(|kind| kind.as_str() == Some("text"))
}
