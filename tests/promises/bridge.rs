//! The documents that the Flask bridge made of the samples, beside ours: the same fields, of the same types,
//! with the same values, but for the differences that are named here.

use std::collections::BTreeMap;

use mongodb::bson::{Bson, DateTime, Document};
use penstock_tests::database::Database;
use penstock_tests::http::post_received;
use penstock_tests::process::{Ingest, Worker};
use penstock_tests::stack::Place;
use shared::event::Stream;
use worker::decode::{Envelope, Event};
use worker::project::Documents;
use worker::project::table::Table;

use crate::documents::{RECEIVED_AT_MS, sample};

/// Fields that tell when something was written.
const TIMES_OF_WRITING: [&str; 4] =
    ["created_at", "updated_at", "last_internal_note_at", "lifecycle_history.0.timestamp"];

const NULL_NAME: &str = "a name that is null is left out, not written \"None\"";
const SECONDS: &str = "a timestamp in seconds is seconds, not milliseconds in 1970";
const EARLIEST: &str =
    "first_message_ts and channel_info are those of the earliest message, not of the first processed";
const NEVER_BACK: &str = "last_message_ts is the latest there has been, not that of the last processed";
const SORTED: &str = "channel is a set, and sorted";

/// Every field in which we differ on purpose, and why.
const DIFFERENCES: [(&str, &str, &str, &str); 11] = [
    ("conversations", "+15550100231", "last_message_ts", NEVER_BACK),
    ("conversations", "+447700900117", "last_message_ts", NEVER_BACK),
    ("conversations", "+447700900388", "last_message_ts", NEVER_BACK),
    ("conversations", "+447700900388", "channel.0", SORTED),
    ("conversations", "+447700900388", "channel.1", SORTED),
    ("conversations", "+447700900502", "first_message_ts", EARLIEST),
    ("conversations", "+447700900502", "last_message_ts", NEVER_BACK),
    ("conversations", "+447700900502", "channel_info.lastMessageTime", EARLIEST),
    ("conversations", "+447700900502", "channel_info.lastIncomingMessageTime", EARLIEST),
    ("messages", "1791968940152019", "sender_info.name", NULL_NAME),
    ("messages", "1792171860408767", "ts", SECONDS),
];
/// Fields of the bridge's documents that are compared: what is not a document or a list itself.
const COMPARED: usize = 889;

/// A collection's documents by `_id`.
pub type Collection = BTreeMap<String, Document>;

/// What was posted to the bridge, in order: the sample and the path. And what it stored.
pub struct Recorded {
    pub posted: Vec<(String, String)>,
    pub stored: BTreeMap<String, Collection>,
}

pub fn recorded() -> Recorded {
    let path = format!("{}/bridge/documents.json", env!("CARGO_MANIFEST_DIR"));
    let file: Document = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let posted = file.get_array("posted").unwrap().iter().map(|posted| {
        let text = |name| posted.as_document().unwrap().get_str(name).unwrap();
        (text("file").strip_suffix(".json").unwrap().to_owned(), text("path").to_owned())
    });
    let stored = file.get_document("documents").unwrap().iter().map(|(name, documents)| {
        let documents =
            documents.as_array().unwrap().iter().map(|document| document.as_document().unwrap().clone());
        (name.clone(), by_id(documents))
    });
    Recorded { posted: posted.collect(), stored: stored.collect() }
}

fn by_id(documents: impl Iterator<Item = Document>) -> Collection {
    documents.map(|document| (document.get_str("_id").unwrap().to_owned(), document)).collect()
}

/// Compares all fields, and says how many.
fn compare(theirs: &BTreeMap<String, Collection>, ours: &BTreeMap<String, Collection>) {
    let (mut compared, mut differences) = (0, Vec::new());
    for (name, documents) in theirs {
        for (id, document) in documents {
            let found = Bson::from(ours[name].get(id).unwrap_or_else(|| panic!("no {id} in {name}")).clone());
            let mut fields = Vec::new();
            compare_field("", &document.clone().into(), Some(&found), &mut fields);
            compared += fields.len();
            let differing = fields.into_iter().filter_map(|(path, difference)| Some((path, difference?)));
            differences
                .extend(differing.map(|(path, difference)| (name.clone(), id.clone(), path, difference)));
        }
    }
    let found: Vec<_> = differences.iter().map(|(name, id, path, _)| (&**name, &**id, &**path)).collect();
    let named: Vec<_> = DIFFERENCES.iter().map(|(name, id, path, _)| (*name, *id, *path)).collect();
    assert_eq!(found, named, "{differences:#?}");
    assert_eq!(compared, COMPARED);
}

/// Notes for each field within a value of the bridge's, whether ours differs, and how. Ours may have further
/// fields.
fn compare_field(path: &str, theirs: &Bson, ours: Option<&Bson>, fields: &mut Vec<(String, Option<String>)>) {
    let inner = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match (theirs, ours) {
        _ if TIMES_OF_WRITING.contains(&path) => {}
        (Bson::Document(theirs), Some(Bson::Document(ours))) => {
            for (name, value) in theirs {
                compare_field(&inner(name), value, ours.get(name), fields);
            }
            let shared: Vec<_> = ours.keys().filter(|name| theirs.contains_key(name)).collect();
            let order: Vec<_> = theirs.keys().filter(|name| ours.contains_key(name)).collect();
            if shared != order {
                fields.push((path.to_owned(), Some(format!("in the order {shared:?} instead of {order:?}"))));
            }
        }
        (Bson::Array(theirs), Some(Bson::Array(ours))) if theirs.len() == ours.len() => {
            for (position, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
                compare_field(&inner(&position.to_string()), theirs, Some(ours), fields);
            }
        }
        _ => {
            let is_same = Some(theirs) == ours;
            fields.push((path.to_owned(), (!is_same).then(|| format!("{ours:?} instead of {theirs:?}"))));
        }
    }
}

#[test]
fn events_become_the_documents_that_the_bridge_stored() {
    let recorded = recorded();
    let mut documents = Documents::default();
    for (second, (file, path)) in (0..).zip(&recorded.posted) {
        let stream = path.rsplit('/').next().and_then(Stream::from_path).unwrap_or(Stream::Any);
        let envelope = Envelope {
            tenant: "faster",
            stream,
            received_at_ms: RECEIVED_AT_MS + second,
            signature: "unsigned",
        };
        documents.apply(&Event::decode(&sample(file), envelope).unwrap(), DateTime::now());
    }
    let all = |table: &Table| by_id(table.iter().map(|record| Document::try_from(record.write()).unwrap()));
    let Documents { messages, conversations, contacts, notes, .. } = &documents;
    let ours = [
        ("messages", messages),
        ("conversations", conversations),
        ("contacts", contacts),
        ("internal_notes", notes),
    ];
    compare(&recorded.stored, &ours.map(|(name, table)| (name.to_owned(), all(table))).into());
}

#[tokio::test]
async fn webhooks_become_the_documents_that_the_bridge_stored() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    let recorded = recorded();
    for (file, path) in &recorded.posted {
        post_received(&ingest.path(path), sample(file)).await;
    }
    let database = Database::of(&place, "faster").await;
    database.until_stored(recorded.posted.len() as u64).await;
    let mut ours = BTreeMap::new();
    for name in recorded.stored.keys() {
        ours.insert(name.clone(), database.all(name).await);
    }
    compare(&recorded.stored, &ours);
    worker.process.stop().await;
    place.remove().await;
}
