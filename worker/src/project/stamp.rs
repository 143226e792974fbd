//! Which event decides about a part of a document.

use std::collections::BTreeSet;

use mongodb::bson::RawBsonRef;

use super::record::Record;
use crate::decode::Event;

/// Hexadecimal digits of a body's SHA-256 that name it beside others of the same key.
pub const VARIANT_DIGITS: usize = 16;

/// The stamps of backfilled events lie so far before those of webhooks, all of which are in the years 1970 to
/// 9999. In milliseconds.
const BEFORE_WEBHOOKS: i64 = 1_000_000_000_000_000;

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

    /// The stamp of an event. A backfilled one tells how things were when the API was read, whatever its own
    /// time is.
    #[must_use]
    pub fn of(event: &'a Event) -> Self {
        Self::at(if event.is_backfilled() { event.received_at_ms } else { event.at_ms }, event)
    }

    /// The stamp by which the earliest event is chosen.
    #[must_use]
    pub fn of_its_own_time(event: &'a Event) -> Self {
        Self::at(event.at_ms, event)
    }

    fn at(at_ms: i64, event: &'a Event) -> Self {
        let at = if event.is_backfilled() { at_ms.saturating_sub(BEFORE_WEBHOOKS) } else { at_ms };
        Self { at, key: &event.key, body: event.digest.get(..VARIANT_DIGITS).unwrap_or(&event.digest) }
    }

    /// Whether it is the stamp of a backfilled event.
    #[must_use]
    pub fn is_backfilled(&self) -> bool {
        self.at < 0 && *self != Self::EARLIEST
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

    /// Whether a webhook has set `part` of this record.
    #[must_use]
    pub(super) fn is_a_webhooks(record: &Record, part: &str) -> bool {
        Stamp::on(record, part).is_some_and(|stamp| !stamp.is_backfilled())
    }

    /// Whether a backfilled event has set `part` of this record.
    #[must_use]
    pub(super) fn is_a_backfills(record: &Record, part: &str) -> bool {
        Stamp::on(record, part).is_some_and(|stamp| stamp.is_backfilled())
    }

    /// Removes the stamps of these parts of a record.
    pub(super) fn remove(record: &mut Record, parts: &[&str]) {
        if parts.iter().any(|part| Stamp::is_on(record, part)) {
            record.edit(MERGE_FIELD, |merge| parts.iter().for_each(|part| merge.remove(part)));
        }
    }

    /// Removes the stamps of backfilled events from these parts of a record.
    pub(super) fn remove_backfilled(record: &mut Record, parts: &[&str]) {
        if parts.iter().any(|part| Stamp::is_a_backfills(record, part)) {
            let is_backfilled = |stamp: RawBsonRef<'_>| {
                stamp.as_str().and_then(Stamp::read).is_some_and(|stamp| stamp.is_backfilled())
            };
            record.edit(MERGE_FIELD, |merge| {
                merge.retain(|name, stamp| !(parts.contains(&name) && is_backfilled(stamp)));
            });
        }
    }

    /// Removes the stamps of these events from a record, so that they can be applied to it once more.
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

    /// Claims a part of a record if this stamp is earlier than the one on it, or if that is a backfilled
    /// event's and this one isn't; says whether it was.
    #[must_use]
    pub fn claim_as_earliest(&self, record: &mut Record, part: &'static str) -> bool {
        self.claim(record, part, |on_it| (on_it.is_backfilled(), on_it) > (self.is_backfilled(), *self))
    }

    fn claim(&self, record: &mut Record, part: &'static str, yields: impl FnOnce(Stamp<'_>) -> bool) -> bool {
        let claimed = Stamp::on(record, part).is_none_or(yields);
        if claimed {
            record.set_in(MERGE_FIELD, part, &self.text().into());
        }
        claimed
    }
}
