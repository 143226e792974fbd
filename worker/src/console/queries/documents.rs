//! The documents that an event led to.

use mongodb::bson::Document;

use super::{Find, text};
use crate::project::{Wanted, ledger};
use crate::store::Store;
use crate::store::failure::Failure;

/// The documents that an entry of the ledger concerns, with the collection of each; and ids of those that
/// aren't there.
pub async fn of(store: &Store, tenant: &str, entry: &Document) -> Result<Led, Failure> {
    let mut led = Led::default();
    let Some(event) = ledger::event(tenant, entry) else { return Ok(led) };
    let (names, wanted) = (&store.names, Wanted::by(&[event]));
    let Wanted { ledger: _, unnamed_messages: _, messages, conversations, contacts, notes, calls } = wanted;
    for (name, ids) in [
        (&names.messages, messages),
        (&names.conversations, conversations),
        (&names.contacts, contacts),
        (&names.notes, notes),
        (&names.calls, calls),
    ] {
        let found = Find::by_ids(&ids).run(store, name).await?;
        let is_found = |id: &String| found.iter().any(|document| text(document, "_id") == **id);
        led.missing.extend(ids.iter().filter(|id| !is_found(id)).map(|id| (name.clone(), id.clone())));
        led.found.extend(found.into_iter().map(|document| (name.clone(), document)));
    }
    Ok(led)
}

/// What an event led to.
#[derive(Debug, Default)]
pub struct Led {
    /// Documents, each with its collection.
    pub found: Vec<(String, Document)>,
    /// Collection and id of documents that aren't there.
    pub missing: Vec<(String, String)>,
}
