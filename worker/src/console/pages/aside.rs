//! Dead letters and quarantine: what is there.

use std::time::Duration;

use actix_web::http::StatusCode;
use askama::Template;
use lapin::message::BasicGetMessage;
use shared::env::parse_duration;
use shared::telemetry::chain;

use super::event::Body;
use super::{Page, moment, problem};
use crate::commands::now_ms;
use crate::commands::set_aside::Kind;
use crate::commands::set_aside::message::Filter;
use crate::commands::set_aside::queue::QueueError;
use crate::console::aside::item::{Item, Trust, Whole};
use crate::console::aside::{Aside, AsideError, Looked, Reach};
use crate::console::fields::{Fields, url};
use crate::console::queries::PAGE;
use crate::console::reply::Reply;
use crate::console::request::Request;
use crate::console::words;

/// The fields of the form.
pub const NAMES: [&str; 9] = ["key", "message", "contact", "reason", "type", "from", "to", "older", "newer"];

#[derive(Template)]
#[template(path = "aside.html")]
struct List {
    page: Page,
    title: &'static str,
    part: &'static str,
    is_dead: bool,
    fields: Fields,
    names: &'static [&'static str],
    rows: Vec<Row>,
    summary: String,
    notice: String,
    next: Option<String>,
    first: Option<String>,
}

/// A message, as lists show it.
pub struct Row {
    /// The text by which the form chooses it.
    pub id: String,
    /// The page that shows it.
    pub url: String,
    /// The event key; a dash if it has none.
    pub key: String,
    /// The event type.
    pub event_type: String,
    /// Why it was set aside.
    pub reason: String,
    /// What went wrong.
    pub error: String,
    /// When it was set aside.
    pub at: String,
    /// How large it is.
    pub size: String,
    /// Whether it is well signed.
    pub trust: String,
}

#[derive(Template)]
#[template(path = "message.html")]
struct Message {
    page: Page,
    part: &'static str,
    title: &'static str,
    is_dead: bool,
    row: Row,
    facts: Vec<(&'static str, String)>,
    headers: Vec<(String, String)>,
    body: Body,
}

/// The dead letters.
pub async fn dead(request: Request) -> Reply {
    list(request, Kind::Dead).await
}

/// The quarantine.
pub async fn quarantine(request: Request) -> Reply {
    list(request, Kind::Quarantine).await
}

/// A dead letter.
pub async fn dead_message(request: Request) -> Reply {
    message(request, Kind::Dead).await
}

/// A quarantined webhook.
pub async fn quarantined_message(request: Request) -> Reply {
    message(request, Kind::Quarantine).await
}

/// Path and title of a queue's pages.
#[must_use]
pub fn part(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Dead => ("dead", "Dead letters"),
        Kind::Quarantine => ("quarantine", "Quarantine"),
    }
}

async fn list(request: Request, kind: Kind) -> Reply {
    let Some(pages) = request.pages() else {
        return problem(StatusCode::NOT_FOUND, "There is no such tenant.");
    };
    let (part, title) = part(kind);
    let looked = match filter(&request.fields) {
        Ok(filter) => {
            let (tenant, now_ms) = (&request.tenant, now_ms());
            let aside = Aside { console: &request.console, tenant, pages: &pages, kind };
            let takes = |item: &Item, message: &BasicGetMessage| {
                filter.takes(&item.about, now_ms)
                    && filter.is_about(tenant, &message.properties, &message.data)
            };
            aside.look(takes).await.map_err(|error| unseen(&error))
        }
        Err(what) => Err(what),
    };
    let (looked, notice) = match looked {
        Ok(looked) => (looked, String::new()),
        Err(what) => (Looked::default(), what),
    };
    let skipped: usize = request.fields.get("skip").parse().unwrap_or(0);
    let here = request.path(part);
    let behind = skipped.saturating_add(PAGE);
    let next = (looked.items.len() > behind).then(|| behind.to_string());
    let shows_bodies = request.console.settings.shows_bodies;
    Reply::page(&List {
        page: request.page(format!("{title} of {}", request.tenant), part),
        title,
        part,
        is_dead: kind == Kind::Dead,
        names: &NAMES,
        summary: if notice.is_empty() { summary(kind, &looked) } else { String::new() },
        rows: looked
            .items
            .into_iter()
            .skip(skipped)
            .take(PAGE)
            .map(|item| row(&request, part, item, shows_bodies))
            .collect(),
        notice,
        next: next.map(|next| request.fields.url(&here, &NAMES, &[("skip", &next)])),
        first: (skipped > 0).then(|| request.fields.url(&here, &NAMES, &[])),
        fields: request.fields.clone(),
    })
}

/// What the page says if it can't look into a queue.
#[must_use]
pub fn unseen(error: &AsideError) -> String {
    let hint = match error {
        AsideError::NoQueue(_) | AsideError::Queue(QueueError::Busy(_)) => "",
        AsideError::Queue(_) | AsideError::Silent => " Events are safe there; nothing was changed.",
    };
    format!("{}.{hint}", chain(error))
}

/// What to say, and to do, if not all of a queue was seen.
#[must_use]
pub fn out_of_reach(kind: Kind, reach: Reach) -> Option<String> {
    let (part, _) = part(kind);
    let (seen, length) = (words::number(reach.looked_at as u64), words::number(reach.length.into()));
    (!reach.is_whole()).then(|| {
        format!("A page sees the oldest {seen} of {length} messages; `worker {part} list` sees all.")
    })
}

fn summary(kind: Kind, looked: &Looked) -> String {
    let number = |number: usize| words::number(number as u64);
    let (fit, length) = (number(looked.fitting), words::number(looked.reach.length.into()));
    // An event that was dead-lettered, replayed and dead-lettered again beside its old message.
    let events = match looked.items.len() {
        events if events < looked.fitting => format!(", of {} events", number(events)),
        _ => String::new(),
    };
    match out_of_reach(kind, looked.reach) {
        None => format!("{fit} of {length} messages{events}."),
        Some(what) => format!("{fit} messages{events}. {what}"),
    }
}

/// The filter of a form, or what is wrong with it.
pub fn filter(fields: &Fields) -> Result<Filter, String> {
    let age = |name: &str| match fields.given(name) {
        Some(text) => duration(&text).map(Some),
        None => Ok(None),
    };
    let words = |name: &str| fields.given(name).into_iter().collect();
    Ok(Filter {
        key: words("key"),
        reason: words("reason"),
        event_type: words("type"),
        message: fields.given("message"),
        contact: fields.given("contact"),
        since: moment(fields, "from")?,
        until: moment(fields, "to")?,
        older_than: age("older")?,
        newer_than: age("newer")?,
        limit: None,
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("{text:?} is no duration like 90s, 30m, 12h or 30d."))
}

/// A message for a list.
#[must_use]
pub fn row(request: &Request, part: &str, item: Item, shows_bodies: bool) -> Row {
    let Item { id, about, trust } = item;
    let bytes = about.body_bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(about.bytes as u64);
    Row {
        url: url(&request.path(&format!("{part}/message")), [("id", id.as_str())]),
        id,
        key: about.key.unwrap_or_else(|| words::NONE.to_owned()),
        event_type: about.event_type.unwrap_or_default(),
        reason: about.reason,
        // MongoDB's words may quote documents.
        error: about.error.filter(|_| shows_bodies).unwrap_or_default(),
        at: about.set_aside_at_ms.map_or_else(|| words::NONE.to_owned(), words::moment),
        size: words::bytes(bytes),
        trust: said(trust),
    }
}

fn said(trust: Trust) -> String {
    match trust {
        Trust::Judged => String::new(),
        Trust::NoKeys => "no keys are set".to_owned(),
        Trust::Verifies => "yes".to_owned(),
        Trust::Refused(unfit) => format!("no: {unfit}"),
    }
}

async fn message(request: Request, kind: Kind) -> Reply {
    let Some(pages) = request.pages() else {
        return problem(StatusCode::NOT_FOUND, "There is no such tenant.");
    };
    let aside = Aside { console: &request.console, tenant: &request.tenant, pages: &pages, kind };
    match aside.show(request.fields.get("id")).await {
        Ok((Some(whole), _)) => Reply::page(&shown(&request, kind, whole)),
        Ok((None, reach)) => {
            let gone = "This message isn't there any more: somebody has replayed or dropped it.";
            problem(StatusCode::NOT_FOUND, &out_of_reach(kind, reach).unwrap_or_else(|| gone.to_owned()))
        }
        Err(error) => problem(StatusCode::BAD_GATEWAY, &unseen(&error)),
    }
}

fn shown(request: &Request, kind: Kind, whole: Whole) -> Message {
    let (part, title) = part(kind);
    let Whole { item, headers, body } = whole;
    let shows_bodies = request.console.settings.shows_bodies;
    let about = item.about.clone();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| words::NONE.to_owned());
    let trace =
        headers.get("traceparent").and_then(|parent| shared::telemetry::trace_id(parent)).map(str::to_owned);
    let row = row(request, part, item, shows_bodies);
    let mut facts = vec![
        ("Reason", row.reason.clone()),
        ("Error", row.error.clone()),
        ("Set aside", row.at.clone()),
        ("Received", or_dash(about.received_at)),
        (
            "Delivered to workers",
            about.attempts.map_or_else(|| words::NONE.to_owned(), |n| format!("{n} times")),
        ),
        ("Size", row.size.clone()),
        ("Trace id", or_dash(trace)),
    ];
    if kind == Kind::Quarantine {
        facts.push(("Signed by today's keys", row.trust.clone()));
    }
    Message {
        page: request.page(format!("{title}: {}", row.key), part),
        part,
        title,
        is_dead: kind == Kind::Dead,
        row,
        facts: facts.into_iter().filter(|(_, value)| !value.is_empty()).collect(),
        headers: headers.into_iter().filter(|(name, _)| shows_bodies || name != "error").collect(),
        body: Body::of(&body, shows_bodies, String::new()),
    }
}
