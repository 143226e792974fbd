//! Events in, documents out: the rules of the contract, and that no order of events shows in the result.

use std::collections::{BTreeMap, BTreeSet};

use mongodb::bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
use shared::event::Stream;

use super::record::Record;
use super::table::{Table, Writes};
use super::{Documents, Outcome, Wanted, ledger};
use crate::decode::{Envelope, Event};

mod backfill;
mod contacts;
mod conversations;
mod entries;
mod messages;
mod old;
mod order;
mod rebuild;

/// When ingest received the events of the examples, if they don't say otherwise.
const RECEIVED: i64 = 1_800_000_000_000;

/// An event posted to `/webhook/{tenant}`.
fn sent(body: &str) -> Event {
    sent_at(RECEIVED, body)
}

fn sent_at(received_at_ms: i64, body: &str) -> Event {
    arrived(Stream::Any, received_at_ms, body)
}

fn sent_to(stream: Stream, body: &str) -> Event {
    arrived(stream, RECEIVED, body)
}

fn arrived(stream: Stream, received_at_ms: i64, body: &str) -> Event {
    let envelope = Envelope { tenant: "t", stream, received_at_ms, signature: "unsigned" };
    Event::decode(body.as_bytes(), envelope).unwrap()
}

/// What these events leave behind: the same one by one, in reverse, in one batch, and all of them twice.
fn stored(events: &[Event]) -> Database {
    let database = one_by_one(events.iter());
    assert_eq!(one_by_one(events.iter().rev()).timeless(), database.timeless(), "in reverse");
    let mut at_once = Database::default();
    at_once.write(events);
    assert_eq!(at_once.timeless(), database.timeless(), "in one batch");
    let outcomes = at_once.write(events);
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Duplicate));
    assert_eq!(at_once.timeless(), database.timeless(), "twice");
    database
}

fn one_by_one<'a>(events: impl Iterator<Item = &'a Event>) -> Database {
    let mut database = Database::default();
    for event in events {
        database.write(std::slice::from_ref(event));
    }
    database
}

/// A tenant's database, in memory.
#[derive(Clone, Debug, Default, PartialEq)]
struct Database {
    ledger: Collection,
    messages: Collection,
    conversations: Collection,
    contacts: Collection,
    notes: Collection,
    calls: Collection,
    /// Increases with each batch, so that no two are written at the same time.
    clock: i64,
}

impl Database {
    /// Loads, applies and writes as the store does, and tells what became of each event.
    fn write(&mut self, batch: &[Event]) -> Vec<Outcome> {
        self.clock += 1;
        let now = DateTime::from_millis(RECEIVED + self.clock);
        let mut documents = self.load(batch);
        let outcomes = batch.iter().map(|event| documents.apply(event, now)).collect();
        self.save(&documents, now);
        outcomes
    }

    /// Does the same without a look whether the events are new; false if one of them isn't, and nothing has
    /// happened.
    fn write_as_new(&mut self, batch: &[Event]) -> bool {
        self.clock += 1;
        let now = DateTime::from_millis(RECEIVED + self.clock);
        let mut unknown = Self { conversations: self.conversations.clone(), ..Self::default() };
        unknown.contacts = self.contacts.clone();
        unknown.messages.0 =
            self.messages.0.clone().into_iter().filter(|(_, known)| is_unnamed(known)).collect();
        let mut documents = unknown.load(batch);
        self.ledger.find(&ledger::variants(&Table::default(), batch), None, &mut documents.ledger);
        for event in batch {
            documents.apply(event, now);
        }
        let are_new = self.take_inserts(&documents, now);
        if are_new {
            self.save(&documents, now);
        }
        are_new
    }

    fn take_inserts(&self, documents: &Documents, now: DateTime) -> bool {
        let Self { ledger, messages, conversations, contacts, notes, calls, .. } = self;
        let collections = [ledger, messages, conversations, contacts, notes, calls];
        collections.into_iter().zip(writes(documents, now)).all(|(collection, writes)| {
            let ids = writes.inserts.iter().map(|document| document.get_str("_id").unwrap());
            ids.into_iter().all(|id| !collection.0.contains_key(id))
        })
    }

    fn save(&mut self, documents: &Documents, now: DateTime) {
        let Self { ledger, messages, conversations, contacts, notes, calls, .. } = self;
        let collections = [ledger, messages, conversations, contacts, notes, calls];
        for (collection, writes) in collections.into_iter().zip(writes(documents, now)) {
            collection.save(writes);
        }
    }

    fn load(&self, batch: &[Event]) -> Documents {
        let wanted = Wanted::by(batch);
        let mut documents = Documents::default();
        self.ledger.find(&wanted.ledger, Some(&ledger::KNOWN_BY), &mut documents.ledger);
        let variants = ledger::variants(&documents.ledger, batch);
        self.ledger.find(&variants, None, &mut documents.ledger);
        self.messages.find(&wanted.messages, None, &mut documents.messages);
        let event_ids = &wanted.unnamed_messages;
        let is_wanted = |known: &&Document| known.get_str("event_id").is_ok_and(|id| event_ids.contains(id));
        let unnamed = self.messages.0.values().filter(|known| is_unnamed(known)).filter(is_wanted);
        documents.messages.load_unnamed(unnamed.map(raw)).unwrap();
        self.notes.find(&wanted.notes, None, &mut documents.notes);
        self.calls.find(&wanted.calls, None, &mut documents.calls);
        self.contacts.find(&wanted.contacts, None, &mut documents.contacts);
        let mut conversations = wanted.conversations;
        conversations.extend(documents.previous_conversations());
        self.conversations.find(&conversations, None, &mut documents.conversations);
        documents
    }

    /// Without what tells when it was written.
    fn timeless(&self) -> Self {
        let without = |collection: &Collection, names: &[&str]| {
            let mut collection = collection.clone();
            for document in collection.0.values_mut() {
                for name in names {
                    document.remove(name);
                }
            }
            collection
        };
        Self {
            ledger: without(&self.ledger, &["stored_at"]),
            messages: without(&self.messages, &["created_at"]),
            conversations: without(&self.conversations, &["created_at", "updated_at"]),
            contacts: without(&self.contacts, &["created_at", "updated_at"]),
            notes: self.notes.clone(),
            calls: without(&self.calls, &["created_at"]),
            clock: 0,
        }
    }
}

fn writes(documents: &Documents, now: DateTime) -> [Writes; 6] {
    [
        documents.ledger.clone().into_writes(None).unwrap(),
        documents.messages.clone().into_writes(None).unwrap(),
        documents.conversations.clone().into_writes(Some(now)).unwrap(),
        documents.contacts.clone().into_writes(Some(now)).unwrap(),
        documents.notes.clone().into_writes(None).unwrap(),
        documents.calls.clone().into_writes(None).unwrap(),
    ]
}

/// A collection that does what MongoDB would do, for the few things that are asked of it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Collection(BTreeMap<String, Document>);

impl Collection {
    fn ids(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// The value at this path, names joined by dots, of a document that must exist. `Undefined` if there is
    /// none.
    fn at(&self, id: &str, path: &str) -> Bson {
        let mut value = Bson::Document(self.0[id].clone());
        for name in path.split('.') {
            value = match (&value, name.parse::<usize>()) {
                (Bson::Document(document), _) => document.get(name).cloned(),
                (Bson::Array(list), Ok(position)) => list.get(position).cloned(),
                _ => None,
            }
            .unwrap_or(Bson::Undefined);
        }
        value
    }

    fn find(&self, ids: &BTreeSet<String>, fields: Option<&[&str]>, into: &mut Table) {
        let found = ids.iter().filter_map(|id| self.0.get(id)).map(|document| match fields {
            None => document.clone(),
            Some(fields) => {
                let is_kept = |name: &str| name == "_id" || fields.contains(&name);
                document.clone().into_iter().filter(|(name, _)| is_kept(name)).collect()
            }
        });
        into.load(found.map(|document| raw(&document))).unwrap();
    }

    fn save(&mut self, writes: Writes) {
        let decoded = |raw| Document::try_from(raw).unwrap();
        for document in writes.inserts.into_iter().map(decoded) {
            let id = document.get_str("_id").unwrap().to_owned();
            assert!(document.keys().all(|name| !name.starts_with('$')), "{document}");
            assert!(self.0.insert(id, document).is_none(), "E11000 duplicate key");
        }
        for statement in writes.updates.into_iter().map(decoded) {
            let id = key(statement.get_document("q").unwrap());
            let document = self.0.get_mut(&id).unwrap();
            for (operator, fields) in statement.get_document("u").unwrap() {
                let fields = fields.as_document().unwrap();
                // These would be paths and operators.
                assert!(fields.keys().all(|name| !name.contains(['.', '$']) && !name.is_empty()), "{fields}");
                match operator.as_str() {
                    "$set" => document.extend(fields.clone()),
                    "$unset" => fields.keys().for_each(|name| drop(document.remove(name))),
                    other => panic!("{other}"),
                }
            }
        }
    }
}

/// The key of a document in a [`Collection`].
fn key(document: &Document) -> String {
    document.get_str("_id").map_or_else(|_| document.get_object_id("_id").unwrap().to_hex(), str::to_owned)
}

/// Whether MongoDB has given the document its `_id`.
fn is_unnamed(document: &Document) -> bool {
    document.get_object_id("_id").is_ok()
}

fn raw(document: &Document) -> RawDocumentBuf {
    document.try_into().unwrap()
}

fn record(document: &Document) -> Record {
    Record::read(&raw(document)).unwrap()
}

fn date(at_ms: i64) -> Bson {
    Bson::DateTime(DateTime::from_millis(at_ms))
}

fn nine(given: Document) -> Document {
    let mut nine = doc! {
        "id": null, "firstName": null, "lastName": null, "email": null, "phone": null, "language": null,
        "profilePic": null, "countryCode": null, "status": null,
    };
    nine.extend(given);
    nine
}
