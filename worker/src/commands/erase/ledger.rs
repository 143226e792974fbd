//! The events of a person in the ledger.

use mongodb::bson::{DateTime, Document, doc};

use super::documents::{BATCH, next};
use super::who::Person;
use super::{Erased, Erasure};
use crate::commands::rebuild::ledger::{MARGIN, before};
use crate::person;
use crate::project::ledger;
use crate::store::failure::Failure;

impl Erasure<'_> {
    /// Removes the entries of events that were received before this moment.
    pub(super) async fn entries(
        &self,
        person: &Person,
        at: DateTime,
        erased: &mut Erased,
    ) -> Result<(), Failure> {
        let name = &self.store.names.ledger;
        let mut found = self.find(name, person.entries(), fields()).await?;
        let (mut ids, mut is_last) = (Vec::new(), false);
        erased.removed.insert(name.clone(), 0);
        while !is_last {
            let entry = next(&mut found).await?;
            is_last = entry.is_none();
            let is_meant = |entry: &Document| self.came_at(entry, person).is_some_and(|came_at| came_at < at);
            ids.extend(entry.filter(is_meant).and_then(|mut entry| entry.remove("_id")));
            if is_last || ids.len() >= BATCH {
                self.delete(name, &std::mem::take(&mut ids), erased).await?;
            }
        }
        Ok(())
    }

    /// The ids of the entries of events that were received since then.
    pub(super) async fn later_entries(&self, person: &Person, at: DateTime) -> Result<Vec<String>, Failure> {
        let mut filter = person.entries();
        filter.insert("stored_at", doc! {"$gte": before(at, MARGIN)});
        let mut found = self.find(&self.store.names.ledger, filter, fields()).await?;
        let mut ids = Vec::new();
        while let Some(entry) = next(&mut found).await? {
            if self.came_at(&entry, person).is_some_and(|came_at| came_at >= at) {
                ids.extend(entry.get_str("_id").ok().map(str::to_owned));
            }
        }
        Ok(ids)
    }

    /// When an entry's event came, if it is about the person.
    fn came_at(&self, entry: &Document, person: &Person) -> Option<DateTime> {
        if let Some(event) = ledger::event(&self.tenant, entry) {
            let is_about = !person::names(&event).is_disjoint(&person.names);
            return is_about.then(|| DateTime::from_millis(person::came_at(&event)));
        }
        let is_in_chat = entry.get_str("chat_id").is_ok_and(|chat_id| person.chats.contains(chat_id));
        let is_about = is_in_chat
            || entry.get_str("body").is_ok_and(|body| person::is_named_in(&person.names, body.as_bytes()));
        is_about.then(|| entry.get_datetime("received_at").copied().unwrap_or(DateTime::MIN))
    }
}

fn fields() -> Document {
    let mut fields = ledger::fields_of_events();
    fields.insert("chat_id", 1);
    fields
}
