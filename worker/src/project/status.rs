//! A message's statuses: all that deliveries have told, each (value, timestamp) once, in the order of their
//! timestamps.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use crate::json::Json;
use mongodb::bson::{Bson, RawArrayBuf, RawBson, RawBsonRef};

use super::record::Record;
use super::stamp::MERGE_FIELD;
use crate::decode::Event;
use crate::decode::moment;
use crate::project::convert;

/// The field.
const STATUS: &str = "status";
/// Where `_merge` has the statuses that only the API has told. A webhook with the same value replaces such a
/// status: the two may write its time differently.
const BACKFILLED: &str = "backfilled_status";

/// Adds what a delivery tells.
pub fn tell(message: &mut Record, event: &Event) {
    let told = event.member("message").and_then(|message| message.get(STATUS)).map(convert::value);
    let told = told.as_ref().map(RawBson::as_raw_bson_ref);
    let backfilled = backfilled(message);
    if backfilled.is_empty() && !event.is_backfilled() {
        let all = union(all_in(message.get(STATUS)).into_iter().chain(all_in(told)));
        message.set(STATUS, all);
        return;
    }
    let of_webhooks = all_in(message.get(STATUS)).into_iter();
    let of_webhooks =
        of_webhooks.filter(|status| !backfilled.iter().any(|known| known.as_raw_bson_ref() == *status));
    let (of_webhooks, of_backfills): (Vec<_>, Vec<_>) = if event.is_backfilled() {
        (of_webhooks.collect(), all_in(told))
    } else {
        (of_webhooks.chain(all_in(told)).collect(), Vec::new())
    };
    let values: BTreeSet<String> = of_webhooks.iter().map(|status| value_of(*status)).collect();
    let of_backfills = backfilled.iter().map(RawBson::as_raw_bson_ref).chain(of_backfills);
    let of_backfills = union(of_backfills.filter(|status| !values.contains(&value_of(*status))));
    let all = union(of_webhooks.into_iter().chain(all_in(Some(of_backfills.as_raw_bson_ref()))));
    message.set(STATUS, all);
    remember(message, &of_backfills);
}

/// Removes what deliveries have added.
pub fn forget(message: &mut Record) {
    message.set(STATUS, RawArrayBuf::new());
    if !backfilled(message).is_empty() {
        message.edit(MERGE_FIELD, |merge| merge.remove(BACKFILLED));
    }
}

fn remember(message: &mut Record, of_backfills: &RawBson) {
    if !all_in(Some(of_backfills.as_raw_bson_ref())).is_empty() {
        message.set_in(MERGE_FIELD, BACKFILLED, of_backfills);
    } else if !backfilled(message).is_empty() {
        message.edit(MERGE_FIELD, |merge| merge.remove(BACKFILLED));
    }
}

fn backfilled(message: &Record) -> Vec<RawBson> {
    let merge = message.document(MERGE_FIELD);
    let stored = merge.and_then(|merge| merge.get(BACKFILLED).ok().flatten());
    all_in(stored).into_iter().map(RawBson::from).collect()
}

fn all_in(told: Option<RawBsonRef<'_>>) -> Vec<RawBsonRef<'_>> {
    match told {
        Some(RawBsonRef::Array(list)) => list.into_iter().filter_map(Result::ok).collect(),
        Some(RawBsonRef::Null) | None => Vec::new(),
        Some(single) => vec![single],
    }
}

fn union<'a>(all: impl Iterator<Item = RawBsonRef<'a>>) -> RawBson {
    let mut union: BTreeMap<(Option<i64>, String, String), RawBsonRef<'_>> = BTreeMap::new();
    for status in all {
        let at = of(status, "timestamp").map(parsed);
        let unread = at.as_ref().map(unread).unwrap_or_default();
        let key = (at.as_ref().and_then(read_moment), value_of(status), unread);
        let entry = union.entry(key).or_insert(status);
        if said_more(status, *entry) == Ordering::Greater {
            *entry = status;
        }
    }
    RawBson::Array(union.into_values().collect())
}

fn of<'a>(status: RawBsonRef<'a>, name: &str) -> Option<RawBsonRef<'a>> {
    status.as_document()?.get(name).ok()?
}

fn value_of(status: RawBsonRef<'_>) -> String {
    parsed(of(status, "value").unwrap_or(status)).to_string()
}

fn parsed(value: RawBsonRef<'_>) -> Bson {
    value.try_into().unwrap_or(Bson::Null)
}

fn read_moment(at: &Bson) -> Option<i64> {
    match at {
        Bson::Int32(number) => moment::read(&Json::Number(number.to_string().into())),
        Bson::Int64(number) => moment::read(&Json::Number(number.to_string().into())),
        Bson::Double(number) => moment::read(&Json::Number(number.to_string().into())),
        Bson::String(text) => moment::read(&Json::Text(text.into())),
        _ => None,
    }
}

/// Tells timestamps apart that can't be read.
fn unread(at: &Bson) -> String {
    if read_moment(at).is_some() { String::new() } else { at.to_string() }
}

/// If two deliveries have the same status, any fixed choice is correct; the one that says more is useful.
fn said_more(a: RawBsonRef<'_>, b: RawBsonRef<'_>) -> Ordering {
    let (a, b) = (parsed(a).to_string(), parsed(b).to_string());
    a.len().cmp(&b.len()).then(a.cmp(&b))
}
