//! The position of a backfill, from which the next run continues after a kill: a page of contacts, some of
//! which are done. Pure.

use std::collections::BTreeSet;

use mongodb::bson::{DateTime, Document, doc};
use serde::Serialize;

use super::plan::Span;

/// This many contacts that can't be read are named; the others are only counted.
pub const MAX_FAILURES: usize = 1000;

/// What a run has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Contacts that were read.
    pub contacts: u64,
    /// Messages that respond.io has of them in the span.
    pub messages: u64,
    /// Contacts that were missing, and are published.
    pub published_contacts: u64,
    /// Messages that were missing, and are published.
    pub published_messages: u64,
    /// Contacts that were deleted meanwhile.
    pub deleted: u64,
    /// Contacts that could not be read.
    pub failed: u64,
}

impl Counts {
    const NAMES: [&'static str; 6] =
        ["contacts", "messages", "published_contacts", "published_messages", "deleted", "failed"];

    fn values(&mut self) -> [&mut u64; 6] {
        let Self { contacts, messages, published_contacts, published_messages, deleted, failed } = self;
        [contacts, messages, published_contacts, published_messages, deleted, failed]
    }

    /// Contacts that are done, with any result.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.contacts + self.deleted + self.failed
    }

    /// Adds what was done besides.
    pub fn add(&mut self, mut other: Self) {
        for (sum, more) in self.values().into_iter().zip(other.values()) {
            *sum += *more;
        }
    }

    fn write(mut self) -> Document {
        let values = self.values().map(|value| i64::try_from(*value).unwrap_or(i64::MAX));
        Self::NAMES.into_iter().zip(values).map(|(name, value)| (name.to_owned(), value.into())).collect()
    }

    fn read(document: &Document) -> Self {
        let mut counts = Self::default();
        for (name, value) in Self::NAMES.into_iter().zip(counts.values()) {
            *value =
                document.get_i64(name).ok().and_then(|stored| u64::try_from(stored).ok()).unwrap_or_default();
        }
        counts
    }
}

/// The task of a run. Only a run with the same task continues an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The span, as it was asked for: without an end, it is the time of the start.
    pub since: Option<i64>,
    /// Its end, if one was asked for.
    pub until: Option<i64>,
    /// Tells lists of contacts apart; empty for all contacts.
    pub contacts: String,
}

impl Task {
    /// The task as it is kept.
    #[must_use]
    pub fn write(&self) -> Document {
        let date = |at: Option<i64>| at.map(DateTime::from_millis);
        doc! {"since": date(self.since), "until": date(self.until), "contacts": &self.contacts}
    }
}

/// Where a run is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The end of the span.
    pub until: i64,
    /// How many contacts there are, if they were counted.
    pub total: Option<u64>,
    /// The cursor of the page that is being worked on; none for the first.
    pub cursor: Option<String>,
    /// Ids of the contacts on it that are done.
    pub done: BTreeSet<String>,
    /// What was done so far.
    pub counts: Counts,
    /// Ids of contacts that could not be read, at most [`MAX_FAILURES`].
    pub failed: Vec<String>,
}

impl Place {
    /// The beginning of a run that starts now.
    #[must_use]
    pub fn beginning(task: &Task, now_ms: i64) -> Self {
        Self { until: task.until.map_or(now_ms, |until| until.min(now_ms)), ..Self::default() }
    }

    /// The span of the run.
    #[must_use]
    pub fn span(&self, task: &Task) -> Span {
        Span { since: task.since, until: self.until }
    }

    /// Records that a contact is done, with this result.
    pub fn finish(&mut self, id: String, counts: Counts) {
        if counts.failed > 0 && self.failed.len() < MAX_FAILURES {
            self.failed.push(id.clone());
        }
        self.done.insert(id);
        self.counts.add(counts);
    }

    /// The place as it is kept.
    #[must_use]
    pub fn write(&self) -> Document {
        let done: Vec<&str> = self.done.iter().map(String::as_str).collect();
        doc! {
            "until": DateTime::from_millis(self.until), "cursor": &self.cursor, "done": done,
            "total": self.total.map(|total| i64::try_from(total).unwrap_or(i64::MAX)), "counts": self.counts.write(),
            "failed": &self.failed,
        }
    }

    /// Reads a place that was kept.
    #[must_use]
    pub fn read(document: &Document) -> Option<Self> {
        let ids = |name: &str| {
            let ids = document.get_array(name).into_iter().flatten();
            ids.filter_map(|id| id.as_str().map(str::to_owned))
        };
        Some(Self {
            until: document.get_datetime("until").ok()?.timestamp_millis(),
            total: document.get_i64("total").ok().and_then(|total| u64::try_from(total).ok()),
            cursor: document.get_str("cursor").ok().map(str::to_owned),
            done: ids("done").collect(),
            counts: Counts::read(document.get_document("counts").ok()?),
            failed: ids("failed").collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_was_written() {
        let counts = Counts {
            contacts: 1,
            messages: 2,
            published_contacts: 3,
            published_messages: 4,
            deleted: 5,
            failed: 6,
        };
        let place = Place {
            until: 7,
            total: Some(8),
            cursor: Some("c".into()),
            done: ["a".to_owned(), "b".to_owned()].into(),
            counts,
            failed: vec!["b".to_owned()],
        };
        assert_eq!(Place::read(&place.write()), Some(place));
        let task = Task { since: Some(1), until: None, contacts: String::new() };
        let beginning = Place::beginning(&task, 9);
        assert_eq!((Place::read(&beginning.write()), beginning.until), (Some(beginning.clone()), 9));
        assert_eq!(Place::read(&doc! {}), None);
    }
}
