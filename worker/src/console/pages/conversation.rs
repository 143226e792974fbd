//! A conversation, as a person reads it.

use actix_web::http::StatusCode;
use askama::Template;
use mongodb::bson::{Bson, Document};
use shared::telemetry::chain;

use super::{Page, problem};
use crate::console::fields::{Fields, url};
use crate::console::queries::{Place, chat, millis, text};
use crate::console::reply::Reply;
use crate::console::request::Request;
use crate::console::words;
use crate::store::Store;
use crate::store::failure::Failure;

/// Longest text shown of a message, in characters.
const MAX_TEXT: usize = 4000;

#[derive(Template)]
#[template(path = "conversation.html")]
struct Conversation {
    page: Page,
    fields: Fields,
    is_asked: bool,
    found: Option<Found>,
    notice: String,
}

struct Found {
    chat: String,
    name: String,
    facts: Vec<(&'static str, String)>,
    /// Address and chat id of other conversations that were meant.
    others: Vec<(String, String)>,
    lines: Vec<Line>,
    earlier: Option<String>,
    events: String,
}

/// A message or a note.
struct Line {
    kind: &'static str,
    who: String,
    at: String,
    at_ms: i64,
    text: String,
    status: String,
    url: String,
}

/// The page.
pub async fn page(request: Request) -> Reply {
    let Some(pages) = request.pages() else {
        return problem(StatusCode::NOT_FOUND, "There is no such tenant.");
    };
    let asked = request.fields.given("chat");
    let found = match &asked {
        Some(asked) => async { find(&request, pages.database.store().await?, asked).await }.await,
        None => Ok(None),
    };
    let notice = found.as_ref().err().map(|failure| format!("MongoDB did not answer: {}.", chain(failure)));
    let page = request.page(format!("Conversations of {}", request.tenant), "conversation");
    Reply::page(&Conversation {
        page,
        is_asked: asked.is_some() && notice.is_none(),
        found: found.ok().flatten(),
        notice: notice.unwrap_or_default(),
        fields: request.fields,
    })
}

async fn find(request: &Request, store: &Store, asked: &str) -> Result<Option<Found>, Failure> {
    let mut ids = chat::ids(store, asked).await?;
    if let Some(message) = chat::message(store, asked).await? {
        ids.push(text(&message, "chat_id"));
    }
    let mut conversations = chat::conversations(store, &ids).await?.into_iter();
    let Some(conversation) = conversations.next() else { return Ok(None) };
    let link = |id: String| (url(&request.path("conversation"), [("chat", id.as_str())]), id);
    let others = conversations.map(|other| link(text(&other, "_id"))).collect();
    let id = text(&conversation, "_id");
    let place = request.fields.given("before").as_deref().and_then(Place::parse);
    let (messages, earlier) = chat::messages(store, &id, place).await?;
    let shows_bodies = request.console.settings.shows_bodies;
    let mut lines: Vec<Line> = messages.iter().map(|message| line(request, message, shows_bodies)).collect();
    let since = lines.last().filter(|_| earlier.is_some()).map_or(i64::MIN, |line| line.at_ms);
    let until = place.map_or(i64::MAX, |place| place.at_ms);
    let notes = chat::notes(store, &id, (since, until)).await?;
    lines.extend(notes.iter().map(|note| note_line(request, note, shows_bodies)));
    lines.sort_by_key(|line| line.at_ms);
    let here = request.path("conversation");
    let earlier = earlier.map(|place| url(&here, [("chat", id.as_str()), ("before", &place.text())]));
    let events = url(&request.path("events"), [("contact", id.as_str())]);
    let name = if shows_bodies { name(&conversation) } else { String::new() };
    Ok(Some(Found { facts: facts(&conversation), chat: id, name, others, lines, earlier, events }))
}

fn name(conversation: &Document) -> String {
    let Ok(contact) = conversation.get_document("contact") else { return String::new() };
    format!("{} {}", text(contact, "firstName"), text(contact, "lastName")).trim().to_owned()
}

fn facts(conversation: &Document) -> Vec<(&'static str, String)> {
    let word = |field: &str| conversation.get(field).map(plain).unwrap_or_default();
    let last = millis(conversation, "last_message_ts").map(words::moment).unwrap_or_default();
    let all = [
        ("Status", word("status")),
        ("Messages", word("message_count")),
        ("Notes", word("internal_note_count")),
        ("Last message", last),
        ("Channels", word("channel")),
    ];
    all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// A value in a word.
fn plain(value: &Bson) -> String {
    match value {
        Bson::String(text) => text.clone(),
        Bson::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(", "),
        Bson::Null => String::new(),
        Bson::Document(document) => text(document, "value"),
        other => other.to_string(),
    }
}

fn line(request: &Request, message: &Document, shows_bodies: bool) -> Line {
    let at_ms = millis(message, "ts").unwrap_or_default();
    let is_incoming = text(message, "message_type") == "incoming";
    let who = sender(message);
    let key = text(message, "event_id");
    Line {
        kind: if is_incoming { "incoming" } else { "outgoing" },
        who: if shows_bodies { who } else { String::new() },
        at: words::moment(at_ms),
        at_ms,
        text: if shows_bodies { content(message) } else { format!("({})", text(message, "type")) },
        status: statuses(message),
        url: url(&request.path("event"), [("key", key.as_str())]),
    }
}

/// The name of who sent it: of a contact, or of a user.
fn sender(message: &Document) -> String {
    let told = message.get_document("sender_info").ok();
    let names = ["name", "firstName", "lastName"].into_iter();
    let names = names.filter_map(|name| Some(text(told?, name)).filter(|name| !name.is_empty()));
    let name = names.collect::<Vec<_>>().join(" ");
    if name.is_empty() { text(message, "sender") } else { name }
}

fn note_line(request: &Request, note: &Document, shows_bodies: bool) -> Line {
    let at_ms = millis(note, "created_at").unwrap_or_default();
    Line {
        kind: "note",
        who: String::new(),
        at: words::moment(at_ms),
        at_ms,
        text: if shows_bodies { cut(&text(note, "text")) } else { "(note)".to_owned() },
        status: String::new(),
        url: url(&request.path("event"), [("key", text(note, "_id").as_str())]),
    }
}

/// The content of a message: its text, else a description.
fn content(message: &Document) -> String {
    let raw = message.get_document("raw_message").ok();
    let field = |name: &str| raw.map(|raw| text(raw, name)).filter(|text| !text.is_empty());
    let said = ["text", "caption", "title", "subject", "filename"].into_iter().find_map(field);
    let attached = message.get_document("attachment").ok();
    let file = attached.map(|file| [text(file, "fileName"), text(file, "description")].join(" "));
    let kind = text(message, "type");
    let about = if kind == "text" { String::new() } else { format!("({kind}) ") };
    let said = said.or(file).unwrap_or_default();
    cut(&format!("{about}{said}"))
}

fn cut(text: &str) -> String {
    let mut cut: String = text.chars().take(MAX_TEXT).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

/// How far an outgoing message got, such as `sent, delivered, read`.
fn statuses(message: &Document) -> String {
    let Ok(statuses) = message.get_array("status") else { return String::new() };
    let said: Vec<String> = statuses.iter().map(plain).filter(|status| !status.is_empty()).collect();
    said.join(", ")
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn messages_say_what_a_person_reads() {
        for (message, expected) in [
            (doc! {"type": "text", "raw_message": {"text": "Hello"}}, "Hello"),
            (doc! {"type": "image", "raw_message": {"caption": "A table"}}, "(image) A table"),
            (
                doc! {"type": "attachment", "attachment": {"fileName": "a.pdf", "description": "it"}},
                "(attachment) a.pdf it",
            ),
            (doc! {"type": "unsupported"}, "(unsupported) "),
        ] {
            assert_eq!(content(&message), expected);
        }
        let message = doc! {"status": [{"value": "sent"}, {"value": "read"}, 7]};
        assert_eq!(statuses(&message), "sent, read, 7");
        assert_eq!(cut(&"é".repeat(MAX_TEXT + 1)).chars().count(), MAX_TEXT + 1);
    }
}
