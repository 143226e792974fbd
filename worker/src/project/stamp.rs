//! Which event has the say over a part of a document.

use std::collections::BTreeSet;

use mongodb::bson::{DateTime, Document, doc};

use crate::decode::Event;

/// The field in which documents remember, per part, the stamp of the event that it comes from.
pub const MERGE_FIELD: &str = "_merge";

/// The place of an event in the order that decides between events, whatever order they arrive in: by
/// time, then by key, and between bodies that share a key by their hash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    at: DateTime,
    key: String,
    body: String,
}

impl Stamp {
    /// The stamp of an event.
    #[must_use]
    pub fn of(event: &Event) -> Self {
        Self {
            at: DateTime::from_millis(event.at_ms),
            key: event.key.clone(),
            body: event.digest.chars().take(super::ledger::VARIANT_DIGITS).collect(),
        }
    }

    fn read(stored: &Document) -> Option<Self> {
        Some(Self {
            at: *stored.get_datetime("at").ok()?,
            key: stored.get_str("key").ok()?.to_owned(),
            body: stored.get_str("body").ok()?.to_owned(),
        })
    }

    /// Whether `part` of this document has a stamp.
    #[must_use]
    pub fn is_on(document: &Document, part: &str) -> bool {
        Self::on(document, part).is_some()
    }

    /// Takes the stamps of these events off a document, so that they can be applied to it once more.
    pub fn forget(document: &mut Document, told_by: &BTreeSet<(&str, &str)>) {
        let Ok(parts) = document.get_document_mut(MERGE_FIELD) else { return };
        let ours = |stamp: &Self| told_by.contains(&(stamp.key.as_str(), stamp.body.as_str()));
        let forgotten: Vec<_> = parts
            .iter()
            .filter(|(_, stamp)| stamp.as_document().and_then(Self::read).as_ref().is_some_and(ours))
            .map(|(part, _)| part.clone())
            .collect();
        for part in forgotten {
            parts.remove(part);
        }
    }

    fn on(document: &Document, part: &str) -> Option<Self> {
        Self::read(document.get_document(MERGE_FIELD).ok()?.get_document(part).ok()?)
    }

    /// Claims a part of a document if this stamp is later than the one on it; says whether it was.
    #[must_use]
    pub fn claim_as_latest(&self, document: &mut Document, part: &str) -> bool {
        self.claim(document, part, |on_it| on_it < self)
    }

    /// Claims a part of a document if this stamp is earlier than the one on it; says whether it was.
    #[must_use]
    pub fn claim_as_earliest(&self, document: &mut Document, part: &str) -> bool {
        self.claim(document, part, |on_it| on_it > self)
    }

    fn claim(&self, document: &mut Document, part: &str, yields: impl FnOnce(&Self) -> bool) -> bool {
        let claimed = Self::on(document, part).as_ref().is_none_or(yields);
        if claimed {
            let stamp = doc! {"at": self.at, "key": &self.key, "body": &self.body};
            match document.get_document_mut(MERGE_FIELD) {
                Ok(parts) => drop(parts.insert(part, stamp)),
                Err(_) => drop(document.insert(MERGE_FIELD, doc! {part: stamp})),
            }
        }
        claimed
    }
}
