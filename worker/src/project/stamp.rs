//! Which event has the say over a part of a document.

use std::collections::BTreeSet;

use super::record::Record;
use crate::decode::Event;

/// Hexadecimal digits of a body's SHA-256 that name it beside others of the same key.
pub const VARIANT_DIGITS: usize = 16;

/// The field in which documents remember, per part, the stamp of the event that it comes from.
pub const MERGE_FIELD: &str = "_merge";

/// The place of an event in the order that decides between events, whatever order they arrive in: by
/// time, then by key, and between bodies that share a key by their hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp<'a> {
    /// In milliseconds since 1970.
    at: i64,
    key: &'a str,
    body: &'a str,
}

impl<'a> Stamp<'a> {
    /// Before any event.
    pub(super) const EARLIEST: Self = Self { at: i64::MIN, key: "", body: "" };

    /// The stamp of an event.
    #[must_use]
    pub fn of(event: &'a Event) -> Self {
        let body = event.digest.get(..VARIANT_DIGITS).unwrap_or(&event.digest);
        Self { at: event.at_ms, key: &event.key, body }
    }

    /// What tells the event from others, whatever its time: that may be corrected later.
    #[must_use]
    pub fn event(&self) -> (&'a str, &'a str) {
        (self.key, self.body)
    }

    /// As it is stored: one text, since every conversation has several of them.
    pub(super) fn text(&self) -> String {
        format!("{} {} {}", self.at, self.body, self.key)
    }

    pub(super) fn read(stored: &'a str) -> Option<Self> {
        let (at, rest) = stored.split_once(' ')?;
        let (body, key) = rest.split_once(' ')?;
        Some(Self { at: at.parse().ok()?, key, body })
    }

    /// Whether `part` of this record has a stamp.
    #[must_use]
    pub fn is_on(record: &Record, part: &str) -> bool {
        Stamp::on(record, part).is_some()
    }

    /// Takes the stamps off these parts of a record.
    pub(super) fn remove(record: &mut Record, parts: &[&str]) {
        if parts.iter().any(|part| Stamp::is_on(record, part)) {
            record.edit(MERGE_FIELD, |merge| parts.iter().for_each(|part| merge.remove(part)));
        }
    }

    /// Takes the stamps of these events off a record, so that they can be applied to it once more.
    pub fn forget(record: &mut Record, told_by: &BTreeSet<(&str, &str)>) {
        let ours = |stamp: Stamp<'_>| told_by.contains(&stamp.event());
        if record.get(MERGE_FIELD).is_some() {
            record.edit(MERGE_FIELD, |parts| {
                parts.retain(|_, stamp| !stamp.as_str().and_then(Stamp::read).is_some_and(ours));
            });
        }
    }

    /// The stamp on `part` of a record.
    pub(super) fn on(record: &'a Record, part: &str) -> Option<Self> {
        Self::read(record.document(MERGE_FIELD)?.get_str(part).ok()?)
    }

    /// Claims a part of a record if this stamp is later than the one on it; says whether it was.
    #[must_use]
    pub fn claim_as_latest(&self, record: &mut Record, part: &'static str) -> bool {
        self.claim(record, part, |on_it| on_it < *self)
    }

    /// Claims a part of a record if this stamp is earlier than the one on it; says whether it was.
    #[must_use]
    pub fn claim_as_earliest(&self, record: &mut Record, part: &'static str) -> bool {
        self.claim(record, part, |on_it| on_it > *self)
    }

    fn claim(&self, record: &mut Record, part: &'static str, yields: impl FnOnce(Stamp<'_>) -> bool) -> bool {
        let claimed = Stamp::on(record, part).is_none_or(yields);
        if claimed {
            record.set_in(MERGE_FIELD, part, &self.text().into());
        }
        claimed
    }
}
