//! `webhook_events`

use mongodb::bson::bson;
use shared::event::Stream;

use super::*;

fn digest(body: &str) -> String {
    shared::event::body_digest(body.as_bytes(), "unsigned")
}

#[test]
fn every_event_is_kept_with_its_bytes() {
    let body = "\u{feff} {\"event_id\":\"e\", \"event_type\":\"brand.new\",\"n\":1.50,\"n\":2e1}\n";
    let ledger = stored(&[sent_to(Stream::InternalNote, body)]).ledger;
    assert_eq!(ledger.ids(), ["e"]);
    assert_eq!(ledger.at("e", "body"), bson!(body));
    assert_eq!(ledger.at("e", "body_sha256"), bson!(digest(body)));
    assert_eq!(ledger.at("e", "event_type"), bson!("brand.new"));
    assert_eq!(ledger.at("e", "stream"), bson!("internal-note"));
    assert_eq!(ledger.at("e", "received_at"), date(RECEIVED));
    assert!(matches!(ledger.at("e", "stored_at"), Bson::DateTime(_)));
}

#[test]
fn an_event_without_id_has_the_hash_of_its_body_for_key() {
    let ledger = stored(&[sent(r#"{"test":true}"#), sent(r#"{"test":false}"#)]).ledger;
    assert_eq!(ledger.ids().len(), 2);
    assert!(ledger.ids().iter().all(|id| id.starts_with("sha256:")));
}

#[test]
fn same_key_other_body_stands_beside_in_the_ledger() {
    let bodies = [r#"{"event_id":"e","n":1}"#, r#"{"event_id":"e","n":2}"#, r#"{"event_id":"e","n":3}"#];
    let events: Vec<_> = (0..).zip(bodies).map(|(after, body)| sent_at(RECEIVED + after, body)).collect();
    let ledger = stored(&events).ledger;
    assert_eq!(ledger.ids().len(), 3);
    assert_eq!(ledger.at("e", "body"), bson!(bodies[0]));
    for body in &bodies[1..] {
        assert_eq!(ledger.at(&format!("e~{}", &digest(body)[..16]), "body"), bson!(*body));
    }
}

#[test]
fn same_key_other_body_is_projected_like_any_event() {
    let database = stored(&[
        sent(
            r#"{"event_id":"e","event_type":"message.received","contact":{"id":1},"message":{"messageId":1}}"#,
        ),
        sent(
            r#"{"event_id":"e","event_type":"message.received","contact":{"id":1},"message":{"messageId":2}}"#,
        ),
        sent(r#"{"event_id":"e","event_type":"contact.updated","contact":{"id":1,"firstName":"A"}}"#),
    ]);
    assert_eq!(database.conversations.at("1", "message_count"), bson!(2));
    assert_eq!(database.contacts.at("1", "firstName"), bson!("A"));
}

#[test]
fn a_redelivery_is_entered_once_and_tells_when_it_was_received_first() {
    let bodies = [r#"{"event_id":"e","n":1}"#, r#"{"event_id":"e","n":2}"#];
    let mut database = Database::default();
    for (after, body, outcome) in [
        (20, bodies[0], Outcome::Stored),
        (30, bodies[1], Outcome::Stored),
        (90, bodies[0], Outcome::Duplicate),
        (90, bodies[1], Outcome::Duplicate),
        (0, bodies[1], Outcome::Duplicate),
        (10, bodies[0], Outcome::Duplicate),
    ] {
        assert_eq!(database.write(&[sent_at(RECEIVED + after, body)]), [outcome], "{after}");
    }
    assert_eq!(database.ledger.ids().len(), 2);
    assert_eq!(database.ledger.at("e", "body"), bson!(bodies[0]));
    assert_eq!(database.ledger.at("e", "received_at"), date(RECEIVED + 10));
}

#[test]
fn what_the_ledger_has_forgotten_counts_once_all_the_same() {
    let events = [
        sent(
            r#"{"event_id":"m","event_type":"message.received","contact":{"id":1},"message":{"messageId":1}}"#,
        ),
        sent(r#"{"event_id":"n","event_type":"comment.created","contact":{"id":1}}"#),
        sent(
            r#"{"event_id":"l","event_type":"contact.lifecycle.updated","contact":{"id":1},"lifecycle":"x"}"#,
        ),
    ];
    let mut database = stored(&events);
    let before = database.clone();
    database.ledger = Collection::default();
    assert_eq!(database.write(&events), [Outcome::Stored; 3]);
    assert_eq!(database.timeless(), before.timeless());
}

#[test]
fn a_stream_that_makes_something_of_an_untyped_body_does_so_whatever_came_before() {
    let body = r#"{"event_id":"e","contact":{"id":1},"message":{"messageId":7}}"#;
    let database = stored(&[sent(body), sent_to(Stream::Incoming, body)]);
    assert_eq!(database.messages.ids(), ["7"]);
    assert_eq!(database.conversations.at("1", "message_count"), bson!(1));
    // From the ledger, the same documents can be made.
    assert_eq!(database.ledger.at("e", "stream"), bson!("incoming"));
    assert_eq!(database.ledger.ids(), ["e"]);
}

#[test]
fn a_path_that_makes_a_message_of_what_another_took_for_a_status_has_its_effects() {
    let body = r#"{"event_id":"e","contact":{"id":1},
        "message":{"messageId":7,"message":{"type":"text"},"status":[{"value":"sent"}]}}"#;
    let database = stored(&[sent(body), sent_to(Stream::Incoming, body)]);
    assert_eq!(database.messages.at("7", "type"), bson!("text"));
    assert_eq!(database.conversations.at("1", "message_count"), bson!(1));
    assert_eq!(database.ledger.at("e", "stream"), bson!("incoming"));
}
