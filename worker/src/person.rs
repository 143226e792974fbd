//! The person that an event is about, and whether the event came before that person was erased. Pure.

use std::collections::BTreeSet;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::decode::{Event, Kind, moment};
use crate::json::{Json, Object};

/// Members under which bodies of unknown shape name a contact.
const CONTACT_IDS: [&str; 2] = ["contactId", "contact_id"];
/// Members that hold contacts in bodies of unknown shape.
const CONTACTS: [&str; 2] = ["contact", "contacts"];
/// Digits of a phone number, with the country's: no text with fewer or more is taken for one.
const PHONE_DIGITS: std::ops::RangeInclusive<usize> = 7..=15;
/// What phone numbers are written with, besides digits.
const PHONE_SIGNS: &str = "+-()./ ";
/// Most names that are read from a body of unknown shape.
const MAX_NAMES: usize = 1000;

/// What a person is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A contact's id, as text.
    Contact(String),
    /// A phone, in its normal form.
    Phone(String),
}

impl Name {
    /// A phone. It is known by its digits, however it is written; without any, it is the text.
    #[must_use]
    pub fn phone(written: &str) -> Option<Self> {
        let digits: String = written.chars().filter(char::is_ascii_digit).collect();
        let text = if digits.is_empty() { written.trim().to_owned() } else { digits };
        (!text.is_empty()).then_some(Self::Phone(text))
    }

    /// The hash that stands for it in a tombstone.
    #[must_use]
    pub fn hash(&self, key: &[u8]) -> String {
        let (kind, name) = match self {
            Self::Contact(id) => ("contact", id),
            Self::Phone(phone) => ("phone", phone),
        };
        // HMAC takes a key of any length.
        let Ok(mut hash) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
        hash.update(format!("{kind}\n{name}").as_bytes());
        hex::encode(hash.finalize().into_bytes())
    }
}

/// The names of the person that an event is about. If the usual fields name nobody, the whole body is
/// searched. The body must have been parsed, see [`Event::recall_members`].
#[must_use]
pub fn names(event: &Event) -> BTreeSet<Name> {
    let contact_of_message = event.member("message").and_then(|message| message.get("contactId")?.id());
    let phone = event.contact().and_then(|contact| contact.get("phone")?.id());
    let ids = [event.contact_id(), contact_of_message].into_iter().flatten().map(Name::Contact);
    let mut names: BTreeSet<Name> = ids.chain(phone.and_then(|phone| Name::phone(&phone))).collect();
    if names.is_empty() {
        search_members(&event.members, "", &mut names);
    }
    names
}

fn search_members(members: &Object, within: &str, names: &mut BTreeSet<Name>) {
    for (member, value) in members {
        search(value, member, within, names);
    }
}

fn search(value: &Json, member: &str, within: &str, names: &mut BTreeSet<Name>) {
    if names.len() >= MAX_NAMES {
        return;
    }
    match value {
        Json::Object(members) => search_members(members, member, names),
        Json::List(elements) => elements.iter().for_each(|each| search(each, member, within, names)),
        Json::Text(_) | Json::Number(_) => {
            let is_contact = CONTACT_IDS.contains(&member) || (member == "id" && CONTACTS.contains(&within));
            names.extend(value.id().filter(|_| is_contact).map(Name::Contact));
            let is_phone = member == "phone" || value.text().is_some_and(looks_like_a_phone);
            names.extend(value.id().filter(|_| is_phone).and_then(|phone| Name::phone(&phone)));
        }
        Json::Null | Json::Bool(_) => {}
    }
}

fn looks_like_a_phone(text: &str) -> bool {
    let is_written = |c: char| c.is_ascii_digit() || PHONE_SIGNS.contains(c);
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    PHONE_DIGITS.contains(&digits) && text.chars().all(is_written)
}

/// Whether a body that can't be read as an event has one of these names in it, as a whole number or, of
/// letters, anywhere.
#[must_use]
pub fn is_named_in(names: &BTreeSet<Name>, body: &[u8]) -> bool {
    let numbers: BTreeSet<&[u8]> = body.split(|byte| !byte.is_ascii_digit()).collect();
    names.iter().any(|name| {
        let (Name::Contact(text) | Name::Phone(text)) = name;
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        if is_number {
            return numbers.contains(text.as_bytes());
        }
        body.windows(text.len().max(1)).any(|part| part == text.as_bytes())
    })
}

/// The moment that decides whether an event came before an erasure, in milliseconds since 1970: when ingest
/// received it. A backfilled event was received when the API was read, so for it the moment is when the
/// message was sent, or the contact made.
#[must_use]
pub fn came_at(event: &Event) -> i64 {
    match event.kind {
        _ if !event.is_backfilled() => event.received_at_ms,
        Kind::Message(_) | Kind::Status(_) => event.at_ms.min(event.received_at_ms),
        _ => {
            let made_at = event.contact().and_then(|contact| moment::read(contact.get("created_at")?));
            made_at.unwrap_or(i64::MIN).min(event.received_at_ms)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::event::Stream;

    use super::*;
    use crate::decode::{BACKFILLED, Envelope};

    fn event(body: &str, signature: &str) -> Event {
        let envelope =
            Envelope { tenant: "t", stream: Stream::Any, received_at_ms: 1_800_000_000_000, signature };
        Event::decode(body.as_bytes(), envelope).unwrap()
    }

    fn contact(id: &str) -> Name {
        Name::Contact(id.to_owned())
    }

    fn phone(digits: &str) -> Name {
        Name::Phone(digits.to_owned())
    }

    #[test]
    fn an_event_is_about_its_contact_and_about_its_messages_contact() {
        for (body, expected) in [
            (
                r#"{"contact":{"id":7,"phone":" +49 (151) 2 "},"text":"+15551234567"}"#,
                vec![contact("7"), phone("491512")],
            ),
            (r#"{"contact":{"id":"a","phone":null}}"#, vec![contact("a")]),
            (r#"{"contact":{"phone":4915}}"#, vec![phone("4915")]),
            (r#"{"contact":{"phone":"anonymous "}}"#, vec![phone("anonymous")]),
            (r#"{"message":{"contactId":7.0}}"#, vec![contact("7")]),
            (r#"{"contact":{"id":8},"message":{"contactId":7}}"#, vec![contact("7"), contact("8")]),
        ] {
            assert_eq!(names(&event(body, "unsigned")), expected.into_iter().collect(), "{body}");
        }
    }

    #[test]
    fn in_an_event_that_names_nobody_names_are_looked_for_everywhere() {
        let body = r#"{"group":[{"contact_id":7},{"phone":"5"}],"contacts":[{"id":8,"name":"+1 (555) 123-4567"}],
            "id":9,"at":1800000000000,"text":"call 15551234568"}"#;
        let expected = [contact("7"), contact("8"), phone("5"), phone("15551234567")];
        assert_eq!(names(&event(body, "unsigned")), expected.into_iter().collect());
        let many: Vec<String> = (0..2000).map(|n| format!("\"1555{n:07}\"")).collect();
        assert_eq!(names(&event(&format!("{{\"a\":[{}]}}", many.join(",")), "unsigned")).len(), MAX_NAMES);
    }

    #[test]
    fn what_cannot_be_read_is_searched_for_whole_numbers() {
        let names = [contact("77"), contact("abc"), phone("4915")].into_iter().collect();
        let is_in = |body: &str| is_named_in(&names, body.as_bytes());
        assert!(is_in("{\"phone\":\"+4915") && is_in("id: 77}") && is_in("x abc") && is_in("77"));
        assert!(!is_in("49151") && !is_in("177") && !is_in("") && !is_in("4 915"));
    }

    #[test]
    fn a_webhook_came_when_it_was_received_and_a_backfill_when_it_was_sent() {
        let sent = r#"{"event_type":"message.received","message":{"timestamp":1790000000}}"#;
        let made = r#"{"event_type":"contact.created","contact":{"id":1,"created_at":1780000000}}"#;
        let unknown = r#"{"event_type":"contact.created","contact":{"id":1}}"#;
        for (body, backfilled) in [(sent, 1_790_000_000_000), (made, 1_780_000_000_000), (unknown, i64::MIN)]
        {
            assert_eq!(came_at(&event(body, "raw")), 1_800_000_000_000, "{body}");
            assert_eq!(came_at(&event(body, BACKFILLED)), backfilled, "{body}");
        }
    }

    #[test]
    fn a_hash_depends_on_the_key_the_kind_and_the_name() {
        // printf 'contact\n7' | openssl dgst -sha256 -hmac k
        let hash = contact("7").hash(b"k");
        assert_eq!(hash, "fd90ca20880de79e6d0825e1756ffca2189f90e05648266ab02d57b9caef31ff");
        for other in [contact("8").hash(b"k"), phone("7").hash(b"k"), contact("7").hash(b"l")] {
            assert_ne!(other, hash);
        }
    }

    proptest! {
        #[test]
        fn a_phone_is_the_same_however_it_is_written(digits in "[0-9]{1,15}", signs in "[-+() ./]{1,4}") {
            let written: Vec<String> = digits.chars().map(|digit| format!("{signs}{digit}")).collect();
            prop_assert_eq!(Name::phone(&written.concat()), Some(Name::Phone(digits)));
        }

        #[test]
        fn any_event_has_a_bounded_number_of_names(body in "\\PC*") {
            let json = serde_json::json!({"x": [body.clone(), {"contactId": body}]}).to_string();
            prop_assert!(names(&event(&json, "raw")).len() <= MAX_NAMES + 1);
        }
    }
}
