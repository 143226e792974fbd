//! Queries to MongoDB. Each has an index, a bound on its result, and a deadline.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use futures_util::TryStreamExt;
use mongodb::action::Action;
use mongodb::bson::{Document, doc};
use mongodb::options::Hint;
use shared::telemetry::chain;
use tokio::sync::OnceCell;
use tracing::{info, warn};

use crate::settings::{Settings, Tenant};
use crate::store::Store;
use crate::store::failure::{Failure, within};

pub mod chat;
pub mod documents;
pub mod ledger;
pub mod rates;

/// Longest wait for an answer of MongoDB.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// Lines of a page.
pub const PAGE: usize = 50;
/// MongoDB counts what it leaves out, one by one. More aren't stored in one moment.
const MAX_SHOWN: u64 = 100_000;

/// A tenant's MongoDB, contacted when it is first asked.
pub struct Database {
    tenant: Tenant,
    settings: Settings,
    store: OnceCell<Store>,
    indexes: Mutex<Indexes>,
}

/// The indexes that searches need.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Indexes {
    Unknown,
    InTheMaking,
    Made,
    Failed(String),
}

impl Database {
    /// A tenant's MongoDB.
    #[must_use]
    pub fn new(tenant: Tenant, settings: Settings) -> Self {
        Self { tenant, settings, store: OnceCell::new(), indexes: Mutex::new(Indexes::Unknown) }
    }

    /// The database. May look up the server's name.
    pub async fn store(&self) -> Result<&Store, Failure> {
        self.store.get_or_try_init(|| Store::open(&self.tenant, &self.settings)).await
    }

    /// What a search says about missing indexes; nothing, if they exist.
    #[must_use]
    pub fn missing_indexes(&self) -> Option<String> {
        match self.indexes() {
            Indexes::Made => None,
            Indexes::Unknown | Indexes::InTheMaking => Some(
                "The indexes for searching are being made: until then, a search may find no end.".to_owned(),
            ),
            Indexes::Failed(why) => Some(format!(
                "The indexes for searching can't be made, so that a search may find no end: {why}"
            )),
        }
    }

    /// Makes the indexes that searches need, unless they exist or another request makes them. Takes long with
    /// many events.
    pub async fn make_indexes(&self) {
        {
            let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(*indexes, Indexes::InTheMaking | Indexes::Made) {
                return;
            }
            *indexes = Indexes::InTheMaking;
        }
        let made = async { self.store().await?.make_console_indexes().await }.await;
        let tenant = &self.tenant.name;
        let state = match made {
            Ok(()) => {
                info!(tenant, "the indexes for searches are ready");
                Indexes::Made
            }
            Err(failure) => {
                warn!(tenant, error = chain(&failure), "can't make the indexes for searches");
                Indexes::Failed(chain(&failure))
            }
        };
        *self.indexes.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Checks the indexes again: somebody may have dropped one. Those that are in the making aren't made a
    /// second time, which would only take a connection and wait for the first.
    pub fn doubt_indexes(&self) {
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        if *indexes != Indexes::InTheMaking {
            *indexes = Indexes::Unknown;
        }
    }

    fn indexes(&self) -> Indexes {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A question.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Find {
    /// Which documents.
    pub filter: Document,
    /// In which order.
    pub sort: Document,
    /// How many of them are left out first.
    pub skip: u64,
    /// The most that are wanted.
    pub limit: usize,
    /// Which fields of them; all, if it is empty.
    pub fields: Document,
    /// The keys of the index to use; whichever MongoDB takes, if there is none. With another one the order
    /// within a moment would be another, too.
    pub index: Option<Document>,
}

impl Find {
    /// Documents by their ids.
    #[must_use]
    pub fn by_ids<'a>(ids: impl IntoIterator<Item = &'a String>) -> Self {
        let ids: Vec<&String> = ids.into_iter().take(PAGE).collect();
        let limit = ids.len();
        Self { filter: doc! {"_id": {"$in": ids}}, limit, ..Self::default() }
    }

    /// What a collection answers.
    pub async fn run(self, store: &Store, collection: &str) -> Result<Vec<Document>, Failure> {
        let Self { filter, sort, skip, limit, fields, index } = self;
        if limit == 0 {
            return Ok(Vec::new());
        }
        let collection = store.database.collection::<Document>(collection);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let running = tokio::spawn(async move {
            let find = collection.find(filter).sort(sort).skip(skip).limit(limit).max_time(DEADLINE);
            let find = find.projection(fields).optional(index.map(Hint::Keys), mongodb::action::Find::hint);
            find.await?.try_collect::<Vec<Document>>().await
        });
        Ok(within(DEADLINE, running).await??)
    }
}

/// Where the next page begins: behind the shown events of this moment. Many events are stored in one moment;
/// the index has them in an order that doesn't change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The moment, in milliseconds since 1970.
    pub at_ms: i64,
    /// How many of this moment were shown.
    pub shown: u64,
}

impl Place {
    /// Reads what [`Place::text`] has written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (at_ms, shown) = text.split_once('.')?;
        let place = Self { at_ms: at_ms.parse().ok()?, shown: shown.parse().ok()? };
        (place.shown <= MAX_SHOWN).then_some(place)
    }

    /// For an address.
    #[must_use]
    pub fn text(self) -> String {
        format!("{}.{}", self.at_ms, self.shown)
    }

    /// The place behind these, which began at `from`.
    #[must_use]
    pub fn behind(times_ms: &[i64], from: Option<Self>) -> Option<Self> {
        let at_ms = *times_ms.last()?;
        let shown = times_ms.iter().rev().take_while(|time| **time == at_ms).count() as u64;
        let before = from.filter(|from| from.at_ms == at_ms).map_or(0, |from| from.shown);
        Some(Self { at_ms, shown: shown + before })
    }
}

/// A page of what was found, and where the next one begins. One more than a page was asked for.
pub fn page_of<T>(
    mut found: Vec<T>,
    time_ms: impl Fn(&T) -> i64,
    from: Option<Place>,
) -> (Vec<T>, Option<Place>) {
    let is_more = found.len() > PAGE;
    found.truncate(PAGE);
    let times: Vec<i64> = found.iter().map(time_ms).collect();
    let next = is_more.then(|| Place::behind(&times, from)).flatten();
    (found, next)
}

/// A date of a document, in milliseconds since 1970.
#[must_use]
pub fn millis(document: &Document, field: &str) -> Option<i64> {
    document.get_datetime(field).ok().map(|at| at.timestamp_millis())
}

/// A text of a document; empty if there is none.
#[must_use]
pub fn text(document: &Document, field: &str) -> String {
    document.get_str(field).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_without_gap_or_repetition() {
        // The latest first, many at the same moment.
        let all: Vec<i64> = (0..1000_i64).map(|n| (1000 - n) / 130).collect();
        let (mut seen, mut from) = (Vec::new(), None::<Place>);
        loop {
            let later = |time: &&i64| from.is_none_or(|from| **time <= from.at_ms);
            let skip = usize::try_from(from.map_or(0, |from| from.shown)).unwrap();
            let found: Vec<i64> = all.iter().filter(later).skip(skip).take(PAGE + 1).copied().collect();
            let (shown, next) = page_of(found, |time| *time, from);
            seen.extend(shown);
            let Some(next) = next else { break };
            from = Place::parse(&next.text());
            assert_eq!(from, Some(next));
        }
        assert_eq!(seen, all);
        for text in ["no place", "1", "1.-1", "1.100001"] {
            assert_eq!(Place::parse(text), None, "{text}");
        }
    }
}
