//! Replays and drops: a count and a question first, then what came of each message.

use std::collections::BTreeSet;

use actix_web::http::StatusCode;
use askama::Template;
use lapin::message::BasicGetMessage;
use shared::telemetry::chain;
use tracing::info;

use super::aside::{Row, filter, out_of_reach, part, row, unseen};
use super::{Page, problem};
use crate::commands::now_ms;
use crate::commands::set_aside::{Action, Kind};
use crate::console::aside::change::Done;
use crate::console::aside::item::{Chosen, Item};
use crate::console::aside::{Aside, Looked};
use crate::console::reply::Reply;
use crate::console::request::Request;
use crate::console::words;

/// Messages that the question shows; the others it counts.
const SHOWN: usize = 50;

#[derive(Template)]
#[template(path = "confirm.html")]
struct Confirm {
    page: Page,
    part: &'static str,
    title: &'static str,
    action: &'static str,
    question: String,
    warning: &'static str,
    button: String,
    rows: Vec<Row>,
    left_out: usize,
    /// What is done, it is done with these, and with no other that is there by then.
    ids: Vec<String>,
    back: String,
}

#[derive(Template)]
#[template(path = "result.html")]
struct Outcome {
    page: Page,
    title: &'static str,
    summary: String,
    lines: Vec<Line>,
    notice: String,
    back: String,
}

struct Line {
    key: String,
    reason: String,
    event_type: String,
    outcome: String,
    is_done: bool,
}

/// Asks before dead letters are replayed or dropped.
pub async fn confirm_dead(request: Request) -> Reply {
    confirm(request, Kind::Dead).await
}

/// Asks before quarantined webhooks are replayed or dropped.
pub async fn confirm_quarantined(request: Request) -> Reply {
    confirm(request, Kind::Quarantine).await
}

/// Replays or drops dead letters.
pub async fn apply_dead(request: Request) -> Reply {
    apply(request, Kind::Dead).await
}

/// Replays or drops quarantined webhooks.
pub async fn apply_quarantined(request: Request) -> Reply {
    apply(request, Kind::Quarantine).await
}

/// What a form asks for: an action's name, what it is, and its verb in the past.
fn action(request: &Request, kind: Kind) -> Option<(&'static str, Action, &'static str)> {
    match (request.fields.get("action"), kind) {
        ("replay", Kind::Dead) => Some(("replay", Action::Replay { reverify: false }, "replayed")),
        ("replay", Kind::Quarantine) => Some(("replay", Action::Replay { reverify: true }, "replayed")),
        ("replay-unverified", Kind::Quarantine) => {
            Some(("replay-unverified", Action::Replay { reverify: false }, "replayed"))
        }
        ("drop", _) => Some(("drop", Action::Drop, "dropped")),
        _ => None,
    }
}

fn chosen(request: &Request) -> Result<Chosen, String> {
    if request.fields.get("scope") == "all" {
        return Ok(Chosen::All(filter(&request.fields)?));
    }
    let ids = ids(request);
    if ids.is_empty() { Err("Nothing is selected.".to_owned()) } else { Ok(Chosen::Ids(ids)) }
}

fn ids(request: &Request) -> BTreeSet<String> {
    request.fields.all("id").map(str::to_owned).collect()
}

async fn confirm(request: Request, kind: Kind) -> Reply {
    let (Some(pages), Some((name, action, _))) = (request.pages(), action(&request, kind)) else {
        return problem(StatusCode::BAD_REQUEST, "There is no such action.");
    };
    let chosen = match chosen(&request) {
        Ok(chosen) => chosen,
        Err(what) => return problem(StatusCode::BAD_REQUEST, &what),
    };
    let aside = Aside { console: &request.console, tenant: &request.tenant, pages: &pages, kind };
    let (tenant, now_ms) = (&request.tenant, now_ms());
    let takes = |item: &Item, message: &BasicGetMessage| chosen.takes(item, message, tenant, now_ms);
    match aside.look(takes).await {
        Ok(looked) if looked.items.is_empty() => {
            let gone = "None of these messages is there: somebody has replayed or dropped them.";
            problem(
                StatusCode::NOT_FOUND,
                &out_of_reach(kind, looked.reach).unwrap_or_else(|| gone.to_owned()),
            )
        }
        Ok(looked) => Reply::page(&question(&request, kind, (name, action), looked)),
        Err(error) => problem(StatusCode::BAD_GATEWAY, &unseen(&error)),
    }
}

fn question(request: &Request, kind: Kind, action: (&'static str, Action), looked: Looked) -> Confirm {
    let ((part, title), (name, action)) = (part(kind), action);
    let number = looked.fitting;
    let noun = if number == 1 { "message" } else { "messages" };
    let verb = if action == Action::Drop { "Drop" } else { "Replay" };
    let most = out_of_reach(kind, looked.reach).map(|what| format!(" {what}")).unwrap_or_default();
    let count = words::number(number as u64);
    Confirm {
        page: request.page(format!("{verb} {number} {noun} of {}", request.tenant), part),
        part,
        title,
        action: name,
        question: format!("{verb} {count} {noun} of {}?{most}", request.tenant),
        warning: warning(kind, action),
        button: format!("{verb} {count} {noun}"),
        ids: looked.items.iter().map(|item| item.id.clone()).collect(),
        left_out: looked.items.len().saturating_sub(SHOWN),
        rows: looked
            .items
            .into_iter()
            .take(SHOWN)
            .map(|item| row(request, part, item, request.console.settings.shows_bodies))
            .collect(),
        back: request.path(part),
    }
}

fn warning(kind: Kind, action: Action) -> &'static str {
    match (kind, action) {
        (_, Action::Drop) => "This can't be undone.",
        (Kind::Dead, _) => "They go to the workers again. What is refused again comes back here.",
        (Kind::Quarantine, Action::Replay { reverify: false }) => {
            "Nobody knows who has sent them: they go to the workers whether they are well signed or not."
        }
        (Kind::Quarantine, _) => {
            "Those that are well signed by today's keys go to the workers. The others stay."
        }
    }
}

async fn apply(request: Request, kind: Kind) -> Reply {
    let (Some(pages), Some((name, action, past))) = (request.pages(), action(&request, kind)) else {
        return problem(StatusCode::BAD_REQUEST, "There is no such action.");
    };
    let ids = ids(&request);
    if ids.is_empty() {
        return problem(StatusCode::BAD_REQUEST, "Nothing is selected.");
    }
    let aside = Aside { console: &request.console, tenant: &request.tenant, pages: &pages, kind };
    let (done, ended) = aside.change(action, &ids).await;
    let stay = done.iter().filter(|done| done.stays.is_some()).count();
    let (queue, by, number) = (kind.queue(&request.tenant), &request.operator.name, done.len() - stay);
    if action == Action::Drop {
        for Done { about, .. } in done.iter().filter(|done| done.stays.is_none()) {
            info!(queue, event_key = about.key, reason = about.reason, by, "dropped by an operator");
        }
    }
    let error = ended.as_ref().err().map(|error| chain(error));
    info!(action = name, queue, done = number, stay, error, by, "an operator's action");
    let seen: BTreeSet<&str> = done.iter().map(|done| done.id.as_str()).collect();
    let notice = match ended {
        Err(why) => format!("It ended before all was done, please look again: {}.", chain(&why)),
        Ok(_) if seen.len() == ids.len() => String::new(),
        Ok(reach) => match out_of_reach(kind, reach) {
            Some(what) => format!("Not all were seen. {what}"),
            None if done.is_empty() => {
                "These messages aren't there any more: somebody was faster.".to_owned()
            }
            None => "Some of these messages weren't there any more: somebody was faster.".to_owned(),
        },
    };
    Reply::page(&outcome(&request, kind, past, done, notice))
}

fn outcome(request: &Request, kind: Kind, past: &str, done: Vec<Done>, notice: String) -> Outcome {
    let (part, title) = part(kind);
    let stay = done.iter().filter(|done| done.stays.is_some()).count() as u64;
    let number = words::number(done.len() as u64 - stay);
    let rest = if stay == 0 { String::new() } else { format!(", {} stay", words::number(stay)) };
    Outcome {
        page: request.page(format!("{title} of {}: done", request.tenant), part),
        title,
        summary: format!("{number} {past}{rest}."),
        lines: done.into_iter().map(|done| line(past, done)).collect(),
        notice,
        back: request.path(part),
    }
}

fn line(past: &str, done: Done) -> Line {
    let Done { about, stays, .. } = done;
    Line {
        key: about.key.unwrap_or_else(|| words::NONE.to_owned()),
        reason: about.reason,
        event_type: about.event_type.unwrap_or_default(),
        is_done: stays.is_none(),
        outcome: stays.map_or_else(|| past.to_owned(), |why| format!("stays: {why}")),
    }
}
