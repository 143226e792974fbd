//! Any two events: they become documents that MongoDB takes, the same ones in whatever order they come.

use mongodb::bson::{Bson, DateTime, Document, RawDocumentBuf};
use shared::event::Stream;
use worker::decode::{Envelope, Event};
use worker::project::record::Record;
use worker::project::table::{Table, Writes};
use worker::project::{Documents, Outcome};

use crate::{Choices, lines};

/// When the events may have been received, in milliseconds since 1970. Nobody checks what the header says.
const RECEIVED: [i64; 8] =
    [1_800_000_000_000, 1_800_000_000_001, 1_790_000_000_000, 1, 0, -1, i64::MIN, i64::MAX];
/// What documents may take for each byte of the bodies, and besides that: with ingest's limit for bodies they
/// stay below MongoDB's 16 MiB.
const GROWTH: usize = 12;
const OVERHEAD: usize = 4 << 10;
/// MongoDB refuses 180 levels.
const MAX_DEPTH: usize = 150;

/// A byte for each of two bodies that chooses stream and time, and the bodies, a line each. Worth breeding
/// from are pairs of events.
#[must_use]
pub fn target(input: &[u8]) -> bool {
    let Some((first, second)) = events(input) else { return false };
    check(&first, &second);
    true
}

fn events(input: &[u8]) -> Option<(Event, Event)> {
    let ([first_choices, second_choices], bodies) = input.split_first_chunk()?;
    let mut bodies = lines(bodies, 2);
    Some((event(*first_choices, bodies.next()?)?, event(*second_choices, bodies.next()?)?))
}

fn event(choices: u8, body: &[u8]) -> Option<Event> {
    let mut choices = Choices(choices);
    let stream = choices.among(Stream::ALL)?;
    let received_at_ms = choices.among(RECEIVED)?;
    Event::decode(body, Envelope { tenant: "t", stream, received_at_ms, signature: "unsigned" }).ok()
}

fn check(first: &Event, second: &Event) {
    let documents = in_one_batch([first, second]);
    check_inserts(&documents, first.body.len() + second.body.len());
    assert_same(&in_two_batches(first, second), &documents, "in two batches");

    let mut again = documents.clone();
    for event in [first, second] {
        assert_eq!(again.apply(event, now()), Outcome::Duplicate);
    }
    // Of two copies of a body the first has its say, whatever their stamps.
    if first.digest != second.digest {
        for event in [first, second] {
            again.effects(event, now());
        }
        assert_same(&in_two_batches(second, first), &documents, "in reverse");
    }
    assert_same(&again, &documents, "again");
}

fn in_one_batch(events: [&Event; 2]) -> Documents {
    let mut documents = Documents::default();
    for event in events {
        documents.apply(event, now());
    }
    documents
}

fn in_two_batches(first: &Event, second: &Event) -> Documents {
    let mut stored = Documents::default();
    assert_eq!(stored.apply(first, now()), Outcome::Stored);
    check_inserts(&stored, first.body.len());
    let mut documents = Documents::default();
    for (table, stored) in tables_mut(&mut documents).into_iter().zip(tables(&stored)) {
        assert!(table.load(writes(stored, None).inserts).is_ok());
    }
    documents.apply(second, now());
    for (table, stored) in tables(&documents).into_iter().zip(tables(&stored)) {
        check_updates(table, stored, first.body.len() + second.body.len());
    }
    documents
}

fn document(record: &Record) -> Document {
    decode(record.write())
}

fn decode(raw: RawDocumentBuf) -> Document {
    Document::try_from(raw).unwrap_or_else(|error| unreachable!("{error}"))
}

fn writes(table: &Table, updated_at: Option<DateTime>) -> Writes {
    table.clone().into_writes(updated_at).unwrap_or_else(|error| unreachable!("{error}"))
}

/// Inserts and updates, to be looked into.
fn written(table: &Table, updated_at: Option<DateTime>) -> (Vec<Document>, Vec<Document>) {
    let Writes { inserts, updates } = writes(table, updated_at);
    (inserts.into_iter().map(decode).collect(), updates.into_iter().map(decode).collect())
}

fn now() -> DateTime {
    DateTime::from_millis(RECEIVED[0])
}

fn tables(documents: &Documents) -> [&Table; 6] {
    let Documents { ledger, messages, conversations, contacts, notes, calls } = documents;
    [ledger, messages, conversations, contacts, notes, calls]
}

fn tables_mut(documents: &mut Documents) -> [&mut Table; 6] {
    let Documents { ledger, messages, conversations, contacts, notes, calls } = documents;
    [ledger, messages, conversations, contacts, notes, calls]
}

fn assert_same(documents: &Documents, others: &Documents, how: &str) {
    for (table, other) in tables(documents).into_iter().zip(tables(others)) {
        // Which comes first of a document's fields means nothing.
        let (ours, theirs) = (table.iter().map(document), other.iter().map(document));
        assert!(ours.eq(theirs), "{how}: {table:#?} instead of {other:#?}");
    }
}

fn check_inserts(documents: &Documents, length: usize) {
    for table in tables(documents) {
        let (inserts, updates) = written(table, None);
        assert!(inserts.iter().cloned().eq(table.iter().map(document)) && updates.is_empty());
        for document in &inserts {
            assert!(document.get_str("_id").is_ok(), "{document}");
            check_document(document, length);
        }
    }
}

/// What is written turns the stored documents into these.
fn check_updates(table: &Table, stored: &Table, length: usize) {
    let (inserts, updates) = written(table, Some(now()));
    for document in &inserts {
        check_document(document, length);
    }
    for statement in &updates {
        let id = statement.get_document("q").and_then(|query| query.get_str("_id")).unwrap_or_default();
        let mut changed = stored.get(id).map(document).unwrap_or_default();
        for (operator, fields) in statement.get_document("u").into_iter().flatten() {
            let fields = fields.as_document().into_iter().flatten();
            for (name, value) in fields {
                // MongoDB would take such a name for a path, or an operator.
                assert!(!name.is_empty() && !name.contains(['.', '$']) && name != "_id", "{statement}");
                match operator.as_str() {
                    "$set" => drop(changed.insert(name, value)),
                    "$unset" => drop(changed.remove(name)),
                    other => unreachable!("{other}"),
                }
            }
        }
        let mut expected = table.get(id).map(document).unwrap_or_default();
        for dated in [&mut changed, &mut expected] {
            dated.insert("updated_at", now());
        }
        assert_eq!(changed, expected);
        assert!(!changed.is_empty());
        check_document(&changed, length);
    }
}

/// MongoDB takes it.
fn check_document(document: &Document, length: usize) {
    for name in document.keys() {
        assert!(!name.is_empty() && !name.contains('.') && !name.starts_with('$'), "{name:?} in {document}");
    }
    assert!(depth(document) <= MAX_DEPTH);
    let written = document.to_vec().map(|bytes| bytes.len());
    assert!(
        written.as_ref().is_ok_and(|bytes| *bytes <= GROWTH * length + OVERHEAD),
        "{written:?} of {length}"
    );
}

/// Levels of documents and arrays. No name within has a NUL.
fn depth(document: &Document) -> usize {
    assert!(!document.keys().any(|name| name.contains('\0')), "{document}");
    1 + document.values().map(depth_of).max().unwrap_or_default()
}

fn depth_of(value: &Bson) -> usize {
    match value {
        Bson::Document(document) => depth(document),
        Bson::Array(list) => 1 + list.iter().map(depth_of).max().unwrap_or_default(),
        _ => 0,
    }
}
