//! Searches events.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use askama::Template;
use shared::event::KNOWN_TYPES;
use shared::telemetry::chain;
use tokio::time::timeout;

use super::{Page, moment, problem};
use crate::console::fields::{Fields, url};
use crate::console::queries::ledger::{self, Entry, Search};
use crate::console::queries::{PAGE, Place};
use crate::console::reply::Reply;
use crate::console::request::Request;
use crate::console::state::TenantPages;
use crate::console::words;
use crate::decode::BACKFILLED;

/// How long a search waits for the indexes that it needs.
const INDEX_TIMEOUT: Duration = Duration::from_secs(1);
/// The fields that also choose dead letters and quarantined webhooks.
const ELSEWHERE: [&str; 6] = ["key", "message", "contact", "type", "from", "to"];
/// The fields of the form.
const NAMES: [&str; 7] = ["key", "message", "contact", "type", "from", "to", "outcome"];

#[derive(Template)]
#[template(path = "events.html")]
struct Events {
    page: Page,
    fields: Fields,
    types: &'static [&'static str],
    rows: Vec<Row>,
    /// A notice instead of rows, or above them.
    notice: String,
    is_error: bool,
    next: Option<String>,
    first: Option<String>,
    dead: String,
    quarantine: String,
    most: usize,
}

struct Row {
    url: String,
    key: String,
    event_type: String,
    stored: String,
    took: String,
    chat: String,
    chat_url: String,
    outcome: &'static str,
}

/// The page.
pub async fn page(request: Request) -> Reply {
    let fields = &request.fields;
    let aside = |queue: &str| fields.url(&request.path(queue), &ELSEWHERE, &[]);
    // An event that isn't stored may be elsewhere.
    if let queue @ ("dead" | "quarantine") = fields.get("outcome") {
        return Reply::see(aside(queue));
    }
    let Some(pages) = request.pages() else {
        return problem(StatusCode::NOT_FOUND, "There is no such tenant.");
    };
    let found = found(&pages, fields).await;
    let is_error = found.is_err();
    let notice = found.as_ref().err().cloned().or_else(|| pages.database.missing_indexes());
    let (entries, next) = found.unwrap_or_default();
    let here = request.path("events");
    Reply::page(&Events {
        page: request.page(format!("Events of {}", request.tenant), "events"),
        types: &KNOWN_TYPES,
        rows: entries.into_iter().map(|entry| row(&request, entry)).collect(),
        notice: notice.unwrap_or_default(),
        is_error,
        next: next.map(|next| fields.url(&here, &NAMES, &[("before", &next.text())])),
        first: fields.given("before").map(|_| fields.url(&here, &NAMES, &[])),
        dead: aside("dead"),
        quarantine: aside("quarantine"),
        most: PAGE,
        fields: request.fields.clone(),
    })
}

/// What a form finds, or why it finds nothing.
async fn found(pages: &Arc<TenantPages>, fields: &Fields) -> Result<(Vec<Entry>, Option<Place>), String> {
    if pages.database.missing_indexes().is_some() {
        let pages = pages.clone();
        let made = tokio::spawn(async move { pages.database.make_indexes().await });
        // Mostly the indexes exist, or soon will.
        let _ = timeout(INDEX_TIMEOUT, made).await;
    }
    let search = search_for(fields)?;
    let has_indexes = pages.database.missing_indexes().is_none();
    let found = async { ledger::search(pages.database.store().await?, &search, has_indexes).await }.await;
    found.map_err(|failure| {
        pages.database.doubt_indexes();
        let why = chain(&failure);
        format!("MongoDB did not answer: {why}. Does a search by key, or within a shorter time, do?")
    })
}

fn search_for(fields: &Fields) -> Result<Search, String> {
    Ok(Search {
        key: fields.given("key"),
        message: fields.given("message"),
        contact: fields.given("contact"),
        event_type: fields.given("type"),
        from_ms: moment(fields, "from")?,
        to_ms: moment(fields, "to")?,
        place: fields.given("before").as_deref().and_then(Place::parse),
    })
}

fn row(request: &Request, entry: Entry) -> Row {
    let Entry { key, event_type, signature, chat, received_at_ms, stored_at_ms } = entry;
    Row {
        url: url(&request.path("event"), [("key", key.as_str())]),
        chat_url: url(&request.path("conversation"), [("chat", chat.as_str())]),
        stored: words::moment(stored_at_ms),
        took: words::between(received_at_ms, stored_at_ms),
        outcome: if signature == BACKFILLED { "backfilled" } else { "stored" },
        key,
        event_type,
        chat,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_becomes_a_search_or_is_told_what_is_wrong_with_it() {
        let fields = |pairs: &[(&str, &str)]| {
            Fields(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
        };
        let search =
            search_for(&fields(&[("key", " k "), ("from", "2026-10-12T08:15"), ("before", "5.2")])).unwrap();
        assert_eq!((search.key.as_deref(), search.from_ms), (Some("k"), Some(1_791_792_900_000)));
        assert_eq!(search.place, Some(Place { at_ms: 5, shown: 2 }));
        assert!(search_for(&fields(&[("to", "tomorrow")])).unwrap_err().contains("tomorrow"));
    }
}
