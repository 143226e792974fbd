//! respond.io's Developer API, as the vendor's own clients speak it: a real server, which misbehaves on
//! demand.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use actix_web::http::{Method, StatusCode};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

/// The token that it takes.
pub const TOKEN: &str = "t0ken.of-the-workspace";

/// What it does to a request instead of answering it.
#[derive(Clone, Copy, Debug)]
pub enum Mischief {
    /// 429, with a header `Retry-After` of this many seconds, or without.
    TooMany(Option<u64>),
    /// An answer of this status.
    Fails(u16),
    /// The connection is cut in mid answer.
    Cut,
    /// The answer is right, and says that no more requests are allowed for now.
    LastOfBudget,
}

/// What is wrong with a contact's messages, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// The contact is gone, though it is listed.
    Deleted,
    /// The first page comes again and again, each time with another cursor.
    Repeats,
    /// The second page leads back to itself.
    Loops,
    /// `next` is the bare cursor, and not a URL.
    BareCursor,
    /// It answers with 500, whenever it is asked for them.
    Fails,
}

/// The server, until it is dropped.
#[derive(Debug)]
pub struct RespondApi {
    /// For `RESPOND_API_URL`.
    pub url: String,
    state: Arc<Mutex<State>>,
    server: actix_web::dev::ServerHandle,
}

#[derive(Debug, Default)]
struct State {
    url: String,
    contacts: BTreeMap<u64, Value>,
    /// By contact and messageId.
    messages: BTreeMap<u64, BTreeMap<u64, Value>>,
    users: BTreeMap<u64, Value>,
    channels: BTreeMap<u64, Value>,
    mischiefs: VecDeque<Mischief>,
    habits: BTreeMap<u64, Habit>,
    requests: Vec<(Instant, String)>,
    /// Requests beyond this many wait.
    most: Option<usize>,
    /// How many requests for a further page of contacts it takes until one is refused; none, if it is 0.
    refuse_cursor: usize,
}

impl RespondApi {
    /// Starts one that has nothing yet.
    pub fn start() -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let data = web::Data::from(state.clone());
        let server =
            HttpServer::new(move || App::new().app_data(data.clone()).default_service(web::to(answer)))
                .workers(1)
                .disable_signals()
                .bind(("127.0.0.1", 0))
                .expect("a port");
        let url = format!("http://{}/v2", server.addrs()[0]);
        url.clone_into(&mut lock(&state).url);
        let server = server.run();
        let handle = server.handle();
        tokio::spawn(server);
        Self { url, state, server: handle }
    }

    /// Adds or changes a contact.
    pub fn put_contact(&self, contact: Value) {
        lock(&self.state).contacts.insert(id(&contact["id"]), contact);
    }

    /// Adds or changes a message of a contact. Its place is that of its messageId, the highest first, or the
    /// one given.
    pub fn put_message(&self, message: Value, place: Option<u64>) {
        let place = place.unwrap_or_else(|| id(&message["messageId"]));
        let contact = id(&message["contactId"]);
        lock(&self.state).messages.entry(contact).or_default().insert(place, message);
    }

    /// Adds a user of the workspace.
    pub fn put_user(&self, user: Value) {
        lock(&self.state).users.insert(id(&user["id"]), user);
    }

    /// Adds a channel of the workspace.
    pub fn put_channel(&self, channel: Value) {
        lock(&self.state).channels.insert(id(&channel["id"]), channel);
    }

    /// Has the next requests come to this.
    pub fn next(&self, mischiefs: &[Mischief]) {
        lock(&self.state).mischiefs.extend(mischiefs);
    }

    /// Gives a contact a habit.
    pub fn set_habit(&self, contact: u64, habit: Habit) {
        lock(&self.state).habits.insert(contact, habit);
    }

    /// Lets all requests after this many more wait, until [`RespondApi::let_go`].
    pub fn hold_after(&self, requests: usize) {
        let mut state = lock(&self.state);
        state.most = Some(state.requests.len() + requests);
    }

    /// From now on, doesn't know the cursor of the nth request for a page of contacts, and only that one.
    pub fn refuse_cursor(&self, nth: usize) {
        lock(&self.state).refuse_cursor = nth;
    }

    /// Answers what waits.
    pub fn let_go(&self) {
        lock(&self.state).most = None;
    }

    /// When each request came, and what for.
    pub fn requests(&self) -> Vec<(Instant, String)> {
        lock(&self.state).requests.clone()
    }
}

impl Drop for RespondApi {
    fn drop(&mut self) {
        drop(self.server.stop(false));
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("nobody panics")
}

fn id(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).expect("a number, or one in a text")
}

fn error(status: u16, message: &str) -> HttpResponse {
    let status = StatusCode::from_u16(status).expect("a status");
    HttpResponse::build(status).json(json!({"code": status.as_u16(), "message": message}))
}

async fn answer(state: web::Data<Mutex<State>>, request: HttpRequest, body: web::Bytes) -> HttpResponse {
    let number = {
        let mut state = lock(&state);
        state.requests.push((Instant::now(), request.path().to_owned()));
        state.requests.len()
    };
    while lock(&state).most.is_some_and(|most| number > most) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut state = lock(&state);
    let token = request.headers().get("authorization").and_then(|token| token.to_str().ok());
    if token != Some(&format!("Bearer {TOKEN}")) {
        return error(401, "Unauthorized");
    }
    match state.mischiefs.pop_front() {
        Some(Mischief::TooMany(retry_after)) => {
            let mut refused = error(429, "Too many requests");
            if let Some(seconds) = retry_after {
                refused.headers_mut().insert("retry-after".parse().expect("a name"), seconds.into());
            }
            refused
        }
        Some(Mischief::Fails(status)) => error(status, "It fails"),
        Some(Mischief::Cut) => {
            let pieces = [Ok(Bytes::from_static(b"{\"items\":[")), Err(io::Error::other("cut"))];
            HttpResponse::Ok().streaming(stream::iter(pieces))
        }
        Some(Mischief::LastOfBudget) => {
            let mut fine = state.answer(&request, &body);
            fine.headers_mut().insert("x-ratelimit-remaining".parse().expect("a name"), 0.into());
            fine
        }
        None => state.answer(&request, &body),
    }
}

impl State {
    fn answer(&mut self, request: &HttpRequest, body: &[u8]) -> HttpResponse {
        let path: Vec<&str> = request.path().trim_start_matches("/v2/").split('/').collect();
        let contact = |text: &str| text.strip_prefix("id:").and_then(|id| id.parse::<u64>().ok());
        match (request.method(), path.as_slice()) {
            (&Method::POST, ["contact", "list"]) => {
                if self.refuse_cursor > 0 && request.query_string().contains("cursorId=") {
                    self.refuse_cursor -= 1;
                    if self.refuse_cursor == 0 {
                        return error(400, "Unknown cursor");
                    }
                }
                let asked: Value = serde_json::from_slice(body).unwrap_or_default();
                if asked["filter"]["$and"].is_array() && asked["timezone"].is_string() {
                    self.page(request, self.contacts.iter(), None)
                } else {
                    error(400, "filter and timezone are required")
                }
            }
            (&Method::GET, ["space", "user"]) => self.page(request, self.users.iter(), None),
            (&Method::GET, ["space", "channel"]) => self.page(request, self.channels.iter(), None),
            (&Method::GET, ["contact", identifier]) => {
                match contact(identifier).and_then(|id| self.contacts.get(&id)) {
                    Some(contact) => HttpResponse::Ok().json(contact),
                    None => error(404, "Contact not found"),
                }
            }
            (&Method::GET, ["contact", identifier, "message", "list"]) => {
                let id = contact(identifier).filter(|id| self.contacts.contains_key(id));
                let habit = id.and_then(|id| self.habits.get(&id)).copied();
                let Some(id) = id.filter(|_| habit != Some(Habit::Deleted)) else {
                    return error(404, "Contact not found");
                };
                if habit == Some(Habit::Fails) {
                    return error(500, "It fails");
                }
                self.page(request, self.messages.get(&id).into_iter().flatten().rev(), habit)
            }
            _ => error(404, "Not found"),
        }
    }

    /// A page of a list. The cursor is the place of the last item on the page before.
    fn page<'a>(
        &self,
        request: &HttpRequest,
        all: impl Iterator<Item = (&'a u64, &'a Value)>,
        habit: Option<Habit>,
    ) -> HttpResponse {
        let query =
            web::Query::<BTreeMap<String, String>>::from_query(request.query_string()).expect("a query");
        let limit = query.get("limit").map_or(Some(10), |limit| limit.parse().ok());
        let Some(limit) = limit.filter(|limit| (1..=100).contains(limit)) else {
            return error(400, "limit must be from 1 to 100");
        };
        let after = query.get("cursorId").and_then(|cursor| cursor.parse::<u64>().ok());
        let mut left = all.skip_while(|(place, _)| {
            habit != Some(Habit::Repeats) && after.is_some_and(|after| after != **place)
        });
        if after.is_some() && habit != Some(Habit::Repeats) {
            left.next();
        }
        let items: Vec<(&u64, &Value)> = left.by_ref().take(limit).collect();
        let last = items.last().map(|(place, _)| **place);
        let next = match (habit, after) {
            (Some(Habit::Repeats), _) => Some(after.unwrap_or_default() + 1),
            (Some(Habit::Loops), Some(after)) => Some(after),
            _ => last.filter(|_| left.next().is_some()),
        };
        let next = next.map(|cursor| match habit {
            Some(Habit::BareCursor) => cursor.to_string(),
            _ => format!(
                "{}{}?limit={limit}&cursorId={cursor}",
                self.url,
                request.path().trim_start_matches("/v2")
            ),
        });
        let items: Vec<&Value> = items.into_iter().map(|(_, item)| item).collect();
        HttpResponse::Ok()
            .json(json!({"items": items, "pagination": {"next": next.unwrap_or_default(), "previous": ""}}))
    }
}
