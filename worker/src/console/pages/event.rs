//! An event: its body, and the documents that it led to.

use actix_web::http::StatusCode;
use askama::Template;
use mongodb::bson::Document;
use shared::telemetry::chain;
use tracing::info;

use super::aside::out_of_reach;
use super::{Page, problem};
use crate::commands::set_aside::Kind;
use crate::console::aside::Aside;
use crate::console::aside::item::Item;
use crate::console::fields::url;
use crate::console::pretty;
use crate::console::queries::{documents, ledger, millis, text};
use crate::console::reply::Reply;
use crate::console::request::Request;
use crate::console::words;
use crate::store::failure::Failure;

#[derive(Template)]
#[template(path = "event.html")]
struct Event {
    page: Page,
    key: String,
    kind: String,
    facts: Vec<(&'static str, String)>,
    chat: String,
    chat_url: String,
    body: Body,
    documents: Vec<Shown>,
    missing: Vec<(String, String)>,
    notice: String,
}

/// A body, as far as it may be shown.
pub struct Body {
    /// With a line for each member.
    pub pretty: String,
    /// As it was sent.
    pub raw: String,
    /// Whether there is more of it.
    pub is_cut: bool,
    /// The address of the whole body; empty if there is none.
    pub url: String,
    /// Whether bodies are shown at all.
    pub is_shown: bool,
}

impl Body {
    /// A body for a page.
    #[must_use]
    pub fn of(body: &str, is_shown: bool, url: String) -> Self {
        if !is_shown {
            return Self {
                pretty: String::new(),
                raw: String::new(),
                is_cut: false,
                url: String::new(),
                is_shown,
            };
        }
        let (raw, is_raw_cut) = pretty::beginning(body);
        let lines = pretty::json(raw);
        let (pretty, is_cut) = pretty::beginning(&lines);
        let is_cut = is_cut || is_raw_cut;
        Self { pretty: pretty.to_owned(), raw: raw.to_owned(), is_cut, url, is_shown }
    }
}

struct Shown {
    collection: String,
    id: String,
    text: String,
    /// Whether there is more of it.
    is_cut: bool,
}

/// An event that isn't in the ledger.
#[derive(Template)]
#[template(path = "absent.html")]
struct Absent {
    page: Page,
    key: String,
    /// Where it was found instead: what it is there, and the address.
    found: Vec<(&'static str, String, String)>,
    notices: Vec<String>,
}

/// The page.
pub async fn page(request: Request) -> Reply {
    let key = request.fields.get("key").to_owned();
    match found(&request, &key).await {
        Ok(Some((entry, led))) => Reply::page(&event(&request, &entry, led)),
        Ok(None) => absent(&request, key, Vec::new()).await,
        Err(failure) => {
            absent(&request, key, vec![format!("The ledger can't be asked: {}.", chain(&failure))]).await
        }
    }
}

type Found = (Document, Result<documents::Led, Failure>);

async fn found(request: &Request, key: &str) -> Result<Option<Found>, Failure> {
    let Some(pages) = request.pages() else { return Ok(None) };
    let store = pages.database.store().await?;
    let Some(entry) = ledger::get(store, key).await? else { return Ok(None) };
    let led = documents::of(store, &request.tenant, &entry).await;
    Ok(Some((entry, led)))
}

fn event(request: &Request, entry: &Document, led: Result<documents::Led, Failure>) -> Event {
    let (key, chat) = (text(entry, "_id"), text(entry, "chat_id"));
    let shows_bodies = request.console.settings.shows_bodies;
    let notice =
        led.as_ref().err().map(|failure| format!("Its documents can't be read: {}.", chain(failure)));
    let led = led.unwrap_or_default();
    let body_url = url(&request.path("event/body"), [("key", key.as_str())]);
    let shown = |(collection, document): (String, Document)| {
        let id = document.get("_id").map(|id| id.as_str().map_or_else(|| id.to_string(), str::to_owned));
        let text = if shows_bodies { pretty::document(document) } else { String::new() };
        let (beginning, is_cut) = pretty::beginning(&text);
        Shown { collection, id: id.unwrap_or_default(), text: beginning.to_owned(), is_cut }
    };
    Event {
        page: request.page(format!("Event {key}"), "events"),
        kind: text(entry, "event_type"),
        facts: facts(entry),
        chat_url: url(&request.path("conversation"), [("chat", chat.as_str())]),
        chat,
        body: Body::of(entry.get_str("body").unwrap_or_default(), shows_bodies, body_url),
        documents: led.found.into_iter().map(shown).collect(),
        missing: led.missing,
        notice: notice.unwrap_or_default(),
        key,
    }
}

fn facts(entry: &Document) -> Vec<(&'static str, String)> {
    let (received, stored) = (millis(entry, "received_at"), millis(entry, "stored_at"));
    let moment = |ms: Option<i64>| ms.map_or_else(|| words::NONE.to_owned(), words::moment);
    let took = received
        .zip(stored)
        .map_or_else(String::new, |(from, to)| format!(", {} later", words::between(from, to)));
    let all = [
        ("Received", format!("{} UTC", moment(received))),
        ("Stored", format!("{} UTC{took}", moment(stored))),
        ("Signature", text(entry, "signature")),
        ("Stream", text(entry, "stream")),
        ("SHA-256 of the body", text(entry, "body_sha256")),
        ("Trace id", text(entry, "trace_id")),
    ];
    all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// What isn't stored may have been set aside.
async fn absent(request: &Request, key: String, mut notices: Vec<String>) -> Reply {
    let mut found = Vec::new();
    let Some(pages) = request.pages() else {
        return problem(StatusCode::NOT_FOUND, "There is no such tenant.");
    };
    for (kind, part, what) in
        [(Kind::Dead, "dead", "a dead letter"), (Kind::Quarantine, "quarantine", "in quarantine")]
    {
        let aside = Aside { console: &request.console, tenant: &request.tenant, pages: &pages, kind };
        let is_it = |item: &Item, _: &_| item.about.key.as_deref() == Some(key.as_str());
        match aside.look(is_it).await {
            Ok(looked) => {
                if looked.items.is_empty() {
                    notices.extend(out_of_reach(kind, looked.reach));
                }
                found.extend(looked.items.into_iter().map(|item| {
                    let page = request.path(&format!("{part}/message"));
                    (what, item.about.reason, url(&page, [("id", item.id.as_str())]))
                }));
            }
            Err(error) => notices.push(format!("Whether it is {what} can't be seen: {}.", chain(&error))),
        }
    }
    let page = request.page(format!("Event {key}"), "events");
    Reply::page_with(StatusCode::NOT_FOUND, &Absent { page, key, found, notices })
}

/// The body as it was sent, to be saved.
pub async fn body(request: Request) -> Reply {
    let key = request.fields.get("key");
    if !request.console.settings.shows_bodies {
        return problem(StatusCode::FORBIDDEN, "Bodies are hidden here.");
    }
    match found(&request, key).await {
        Ok(Some((entry, _))) => {
            info!(tenant = request.tenant, event_key = key, by = request.operator.name, "saved a body");
            Reply::download(text(&entry, "body"))
        }
        Ok(None) => problem(StatusCode::NOT_FOUND, "There is no such event in the ledger."),
        Err(failure) => {
            problem(StatusCode::BAD_GATEWAY, &format!("MongoDB can't be asked: {}.", chain(&failure)))
        }
    }
}
