//! `worker send`: posts webhooks as respond.io would, to test the whole way to MongoDB.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::time::Duration;

use clap::Args;
use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use shared::env::Env;
use shared::event::event_key;
use shared::json::Scan;
use shared::verify::{Form, Keys};
use tokio::time::{Instant, sleep};

use super::address::HttpAddress;
use super::http::{Http, HttpError};
use super::{CommandError, now_ms, printable, say};
use crate::console::queries::ledger;
use crate::settings::Settings;
use crate::store::Store;

/// Longest wait for an event to be stored, and the pause between two looks.
const STORED_TIMEOUT: Duration = Duration::from_mins(1);
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// The header that holds the signature, in the form that HTTP libraries want.
const SIGNATURE: &str = "x-webhook-signature";

/// What is built in, by event type.
const SAMPLES: [(&str, &str); 11] = [
    ("message.received", include_str!("../../../tests/payloads/message.received.text.json")),
    ("message.sent", include_str!("../../../tests/payloads/message.sent.user.json")),
    ("comment.created", include_str!("../../../tests/payloads/comment.created.json")),
    ("contact.created", include_str!("../../../tests/payloads/contact.created.json")),
    ("contact.updated", include_str!("../../../tests/payloads/contact.updated.json")),
    ("contact.assignee.updated", include_str!("../../../tests/payloads/contact.assignee.updated.json")),
    ("contact.tag.updated", include_str!("../../../tests/payloads/contact.tag.updated.add.json")),
    ("contact.lifecycle.updated", include_str!("../../../tests/payloads/contact.lifecycle.updated.json")),
    ("conversation.opened", include_str!("../../../tests/payloads/conversation.opened.json")),
    ("conversation.closed", include_str!("../../../tests/payloads/conversation.closed.json")),
    ("call.ended", include_str!("../../../tests/payloads/call.ended.json")),
];

/// What to send.
#[derive(Debug, Args)]
#[command(after_help = "Example: worker send --tenant faster --sample message.received --count 3 --wait")]
pub struct Arguments {
    /// The tenant; its first signing key signs, if it has one
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    /// An event type with a built-in sample, such as message.received; a file; or - for standard input
    #[arg(long, value_name = "TYPE|FILE|-")]
    sample: String,
    /// How many events to send; each has its own key
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    count: u32,
    /// Wait until each event is stored, and say where and after how long
    #[arg(long)]
    wait: bool,
    /// The address of ingest [default: http://127.0.0.1:PORT]
    #[arg(long, value_name = "URL", value_parser = HttpAddress::argument)]
    url: Option<HttpAddress>,
    /// Write JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// Why nothing can be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// There is nothing to send.
    #[error("there is neither a sample nor a file {0:?}; samples: {known}", known = SAMPLES.map(|(name, _)| name).join(", "))]
    NoSample(String),
    /// It can't be read.
    #[error("can't read {0}")]
    Unreadable(String, #[source] io::Error),
    /// It has no `event_id` that could differ.
    #[error("what isn't a JSON object can be sent once only, not --count times")]
    NoObject(#[source] serde_json::Error),
    /// It would be taken for arrived at once.
    #[error(
        "the event {0} is stored already, so --wait can't tell whether it arrives: give it another event_id"
    )]
    Known(String),
    /// ingest doesn't answer.
    #[error("can't post to {0}")]
    Http(String, #[source] HttpError),
}

/// The result of an event.
#[derive(Debug)]
struct Sent {
    key: String,
    status: u16,
    /// ingest's answer.
    answer: String,
    answered_ms: u128,
    /// The collection's full name, and the time from the request until it was there.
    stored: Option<(String, u128)>,
}

/// Runs the command.
pub async fn run(arguments: Arguments, mut env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let keys = Keys::read(&mut env, &arguments.tenant);
    let port = env.text_or_default("PORT");
    let settings = arguments.wait.then(|| Settings::read_from(&mut env));
    let store = match &env.finish(settings)? {
        Some(settings) => Some(open(settings, &arguments.tenant).await?),
        None => None,
    };
    let near = || HttpAddress {
        host: "127.0.0.1".to_owned(),
        port: port.parse().unwrap_or(8000),
        ..HttpAddress::default()
    };
    let address = arguments.url.clone().unwrap_or_else(near);
    let http = Http::new(address, HeaderMap::new()).map_err(failed("ingest"))?;
    let sending = Sending { arguments, http, keys, store };
    let sample = Sample::of(&sending.arguments.sample)?;
    let mut wrong = 0;
    for n in 0..sending.arguments.count {
        let body = sample.body(n, sending.arguments.count)?;
        let sent = sending.send(body).await?;
        wrong += u32::from(!sending.is_well(&sent));
        say(out, if sending.arguments.json { as_json(&sent).to_string() } else { line(&sent) })?;
    }
    match wrong {
        0 => Ok(()),
        _ => Err(CommandError::Incomplete(format!("{wrong} of {} did not arrive", sending.arguments.count))),
    }
}

async fn open(settings: &Settings, name: &str) -> Result<Store, CommandError> {
    let known = settings.tenants.iter().find(|known| known.name == name);
    let known = known.ok_or_else(|| CommandError::UnknownTenant(name.to_owned()))?;
    Ok(Store::open(known, settings).await?)
}

fn failed(what: &str) -> impl FnOnce(HttpError) -> SendError + use<> {
    let what = what.to_owned();
    |source| SendError::Http(what, source)
}

/// The body to send.
enum Sample {
    /// A sample: each copy gets its own ids and time.
    BuiltIn(&'static str),
    /// A body of the caller's, sent unchanged.
    Own(Vec<u8>),
}

impl Sample {
    fn of(name: &str) -> Result<Self, SendError> {
        if let Some((_, text)) = SAMPLES.iter().find(|(known, _)| *known == name) {
            return Ok(Self::BuiltIn(text));
        }
        let mut body = Vec::new();
        if name == "-" {
            let read = io::stdin().lock().read_to_end(&mut body);
            read.map_err(|source| SendError::Unreadable("standard input".to_owned(), source))?;
            return Ok(Self::Own(body));
        }
        match std::fs::read(name) {
            Ok(body) => Ok(Self::Own(body)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SendError::NoSample(name.to_owned()))
            }
            Err(error) => Err(SendError::Unreadable(name.to_owned(), error)),
        }
    }

    /// The nth body.
    fn body(&self, n: u32, count: u32) -> Result<Vec<u8>, SendError> {
        let text: &[u8] = match self {
            Self::Own(body) if count == 1 => return Ok(body.clone()),
            Self::Own(body) => body,
            Self::BuiltIn(text) => text.as_bytes(),
        };
        let mut event: serde_json::Map<String, Value> =
            serde_json::from_slice(text).map_err(SendError::NoObject)?;
        event.insert("event_id".to_owned(), format!("sent-{:016x}-{n}", fastrand::u64(..)).into());
        if let (Self::BuiltIn(_), Some(message)) =
            (self, event.get_mut("message").and_then(Value::as_object_mut))
        {
            // Ids of messages are microseconds.
            message.insert("messageId".to_owned(), (now_ms() * 1000 + i64::from(n % 1000)).into());
            message.insert("timestamp".to_owned(), now_ms().into());
        }
        Ok(Value::Object(event).to_string().into_bytes())
    }
}

struct Sending {
    arguments: Arguments,
    http: Http,
    keys: Keys,
    store: Option<Store>,
}

impl Sending {
    async fn send(&self, body: Vec<u8>) -> Result<Sent, CommandError> {
        let tenant = &self.arguments.tenant;
        let mut headers = HeaderMap::new();
        let signature = self.keys.sign(&body);
        if let Some(signature) =
            signature.as_ref().and_then(|signature| HeaderValue::try_from(signature).ok())
        {
            headers.insert(HeaderName::from_static(SIGNATURE), signature);
        }
        let form = if signature.is_some() { Form::Raw } else { Form::Unsigned };
        let id = Scan::of(&body).ok().and_then(|scan| scan.event_id().map(Cow::into_owned));
        let key = event_key(tenant, id.as_deref(), &body, form.name());
        if let Some(store) = &self.store
            && ledger::get(store, &key).await?.is_some()
        {
            return Err(SendError::Known(key).into());
        }
        let path = format!("/webhook/{tenant}");
        let started = Instant::now();
        let answer = self.http.post(&path, headers, Bytes::from(body)).await;
        let answer = answer.map_err(failed(&self.http.authority))?;
        let answered_ms = started.elapsed().as_millis();
        let mut sent = Sent {
            key,
            status: answer.status.as_u16(),
            answer: String::from_utf8_lossy(&answer.body).trim().to_owned(),
            answered_ms,
            stored: None,
        };
        if let Some(store) = self.store.as_ref().filter(|_| sent.is_received()) {
            sent.stored = until_stored(store, &sent.key, started).await?;
        }
        Ok(sent)
    }

    fn is_well(&self, sent: &Sent) -> bool {
        sent.is_received() && (self.store.is_none() || sent.stored.is_some())
    }
}

impl Sent {
    fn is_received(&self) -> bool {
        let answer: Option<Value> = serde_json::from_str(&self.answer).ok();
        self.status == 200 && answer.is_some_and(|answer| answer["status"] == "received")
    }
}

/// Where an event is stored and after how long; nothing, if that takes too long.
async fn until_stored(
    store: &Store,
    key: &str,
    started: Instant,
) -> Result<Option<(String, u128)>, CommandError> {
    while started.elapsed() < STORED_TIMEOUT {
        if ledger::get(store, key).await?.is_some() {
            let place = format!("{}.{}", store.database.name(), store.names.ledger);
            return Ok(Some((place, started.elapsed().as_millis())));
        }
        sleep(LOOK_PAUSE).await;
    }
    Ok(None)
}

fn line(sent: &Sent) -> String {
    let Sent { key, status, answer, answered_ms, stored } = sent;
    let stored =
        stored.as_ref().map_or(String::new(), |(place, ms)| format!("; stored in {place} after {ms} ms"));
    printable(&format!("{key}: {status} {answer} after {answered_ms} ms{stored}"))
}

fn as_json(sent: &Sent) -> Value {
    let Sent { key, status, answer, answered_ms, stored } = sent;
    json!({
        "key": key,
        "status": status,
        "answer": answer,
        "answered_after_ms": u64::try_from(*answered_ms).unwrap_or(u64::MAX),
        "stored_in": stored.as_ref().map(|(place, _)| place),
        "stored_after_ms": stored.as_ref().map(|(_, ms)| u64::try_from(*ms).unwrap_or(u64::MAX)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_events_of_the_type_that_names_them_and_differ() {
        for (name, text) in SAMPLES {
            let bodies = [0, 1].map(|n| Sample::BuiltIn(text).body(n, 1).unwrap());
            let ids = bodies.each_ref().map(|body| {
                let scan = Scan::of(body).unwrap();
                assert_eq!(scan.event_type().as_deref(), Some(name));
                scan.event_id().unwrap().into_owned()
            });
            assert_ne!(ids[0], ids[1]);
        }
    }

    #[test]
    fn what_is_somebodys_own_is_sent_as_it_is() {
        let own = Sample::Own(b"no JSON".to_vec());
        assert_eq!(own.body(0, 1).unwrap(), b"no JSON");
        assert!(own.body(0, 2).is_err());
        assert!(matches!(Sample::of("message.receivd"), Err(SendError::NoSample(_))));
    }
}
