//! The contact ids, phones and conversations of a person.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use mongodb::bson::{Bson, Document, doc};
use tokio::time::timeout;

use super::documents::SCAN_TIMEOUT;
use crate::commands::CommandError;
use crate::person::Name;
use crate::store::Store;
use crate::store::failure::Failure;

/// More contacts with the same phone are more than one person: it may stand for those that have none.
const MOST_NAMES: usize = 50;
/// Most documents that are searched for more ids and phones of a person.
const MOST_FOUND: i64 = 100;

/// A person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Ids of contacts, and phones.
    pub names: BTreeSet<Name>,
    /// Ids of conversations, as they are stored.
    pub chats: BTreeSet<String>,
}

impl Person {
    /// A person of whom this is known.
    #[must_use]
    pub fn of(given: &Name) -> Self {
        let mut person = Self { names: BTreeSet::new(), chats: BTreeSet::new() };
        person.add(given.clone());
        person
    }

    /// How many ids of contacts, and how many phones.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        (self.ids().count(), self.phones().count())
    }

    /// Looks for the contacts of the phones, the phones of the contacts, and the conversations of both, until
    /// there are no more.
    pub async fn complete(&mut self, store: &Store) -> Result<(), CommandError> {
        loop {
            let known = self.clone();
            let of_contact = doc! {"_id": 1, "phone": 1};
            for contact in find(store, &store.names.contacts, self.contacts(), of_contact).await? {
                self.add_contact(contact.get("_id"), contact.get("phone"));
            }
            let of_conversation = doc! {"_id": 1, "contact.id": 1, "contact.phone": 1};
            for found in
                find(store, &store.names.conversations, self.conversations(), of_conversation).await?
            {
                self.add_conversation(&found);
            }
            if self.names.len() > MOST_NAMES {
                return Err(CommandError::ManyPersons(self.names.len()));
            }
            if *self == known {
                return Ok(());
            }
        }
    }

    fn add(&mut self, name: Name) {
        match &name {
            Name::Contact(id) => self.chats.extend([id.clone()]),
            Name::Phone(phone) => self.chats.extend([phone.clone(), format!("+{phone}")]),
        }
        self.names.insert(name);
    }

    fn add_contact(&mut self, id: Option<&Bson>, phone: Option<&Bson>) {
        if let Some(id) = id.and_then(text) {
            self.add(Name::Contact(id));
        }
        if let Some(phone) = phone.and_then(text) {
            self.chats.insert(phone.trim().to_owned());
            if let Some(phone) = Name::phone(&phone) {
                self.add(phone);
            }
        }
    }

    fn add_conversation(&mut self, conversation: &Document) {
        if let Ok(contact) = conversation.get_document("contact") {
            self.add_contact(contact.get("id"), contact.get("phone"));
        }
        let Ok(id) = conversation.get_str("_id") else { return };
        self.chats.insert(id.to_owned());
        // A conversation is known by the phone, or else by the contact.
        if !self.names.contains(&Name::Contact(id.to_owned()))
            && let Some(phone) = Name::phone(id)
        {
            self.add(phone);
        }
    }

    /// Ids of contacts.
    pub fn ids(&self) -> impl Iterator<Item = &String> {
        self.names.iter().filter_map(|name| if let Name::Contact(id) = name { Some(id) } else { None })
    }

    fn phones(&self) -> impl Iterator<Item = &String> {
        self.names.iter().filter_map(|name| if let Name::Phone(phone) = name { Some(phone) } else { None })
    }

    /// The ids of contacts as messages and the like have them: as they were sent, so as a text or as a
    /// number.
    fn values(&self) -> Vec<Bson> {
        self.ids().flat_map(|id| [Some(id.as_str().into()), number(id)]).flatten().collect()
    }

    /// The person's documents in `contacts`.
    #[must_use]
    pub fn contacts(&self) -> Document {
        let mut either = vec![doc! {"_id": {"$in": self.ids().collect::<Vec<_>>()}}];
        either.extend(self.phones().flat_map(|phone| written("phone", phone)));
        doc! {"$or": either}
    }

    /// The person's documents in `conversations`.
    #[must_use]
    pub fn conversations(&self) -> Document {
        let mut either =
            vec![doc! {"_id": {"$in": self.chats()}}, doc! {"contact.id": {"$in": self.values()}}];
        either.extend(self.phones().flat_map(|phone| written("_id", phone)));
        doc! {"$or": either}
    }

    /// The person's documents in `messages`, `internal_notes` and `calls`.
    #[must_use]
    pub fn own_documents(&self) -> Document {
        doc! {"$or": [{"chat_id": {"$in": self.chats()}}, {"contact_id": {"$in": self.values()}}]}
    }

    /// The entries of the ledger that may be about the person: in their bodies, digits may be escaped, and
    /// phones written in any way. Each way is an expression of its own, which begins with a character: a text
    /// is searched for that many times faster than for alternatives.
    #[must_use]
    pub fn entries(&self) -> Document {
        let is_escaped = r"\\u00[2-7]".to_owned();
        let ids =
            self.ids().map(|id| if is_digits(id) { format!("(?<![0-9]){id}(?![0-9])") } else { escaped(id) });
        let phones = self
            .phones()
            .map(|phone| if is_digits(phone) { spaced(phone, "[^0-9]{0,4}") } else { escaped(phone) });
        let mut either = vec![doc! {"chat_id": {"$in": self.chats()}}];
        either.extend(ids.chain(phones).chain([is_escaped]).map(|any| doc! {"body": {"$regex": any}}));
        doc! {"$or": either}
    }

    fn chats(&self) -> Vec<&String> {
        self.chats.iter().collect()
    }
}

/// Where a field holds this phone, however it is written.
fn written(field: &str, phone: &str) -> Vec<Document> {
    let mut either = vec![doc! {field: phone}];
    if is_digits(phone) {
        either.extend(number(phone).map(|number| doc! {field: number}));
        either.push(doc! {field: {"$regex": format!("^[^0-9]*{}[^0-9]*$", spaced(phone, "[^0-9]*"))}});
    }
    either
}

fn spaced(digits: &str, between: &str) -> String {
    digits.chars().map(String::from).collect::<Vec<_>>().join(between)
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A text as a regular expression that takes nothing else.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_alphanumeric() { c.to_string() } else { format!("\\x{{{:x}}}", u32::from(c)) })
        .collect()
}

/// The number that is written so, and in no other way: `007` is a text, and no contact 7.
fn number(id: &str) -> Option<Bson> {
    let whole = id.parse().ok().map(Bson::Int64);
    let number =
        whole.or_else(|| id.parse().ok().filter(|number: &f64| number.is_finite()).map(Bson::Double))?;
    (number.to_string() == id).then_some(number)
}

fn text(value: &Bson) -> Option<String> {
    let text = match value {
        Bson::String(text) => text.clone(),
        Bson::Int32(number) => number.to_string(),
        Bson::Int64(number) => number.to_string(),
        Bson::Double(number) => number.to_string(),
        _ => return None,
    };
    (!text.trim().is_empty()).then_some(text)
}

async fn find(
    store: &Store,
    collection: &str,
    filter: Document,
    fields: Document,
) -> Result<Vec<Document>, Failure> {
    let collection = store.on_primary(collection);
    let find = collection.find(filter).projection(fields).limit(MOST_FOUND);
    let found = async { find.await?.try_collect().await };
    Ok(timeout(SCAN_TIMEOUT, found).await.map_err(|_| Failure::TimedOut(SCAN_TIMEOUT))??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_contact_and_a_conversation_tell_belongs_to_the_person() {
        let mut person = Person::of(&Name::Contact("7".to_owned()));
        person.add_contact(Some(&"8".into()), Some(&" +49 151 ".into()));
        person.add_conversation(&doc! {"_id": "+1555", "contact": {"id": 9_i32, "phone": null}});
        person.add_conversation(&doc! {"_id": "9"});
        assert_eq!(person.count(), (3, 2));
        let chats: Vec<&str> = person.chats.iter().map(String::as_str).collect();
        assert_eq!(chats, ["+1555", "+49 151", "+49151", "1555", "49151", "7", "8", "9"]);
    }

    #[test]
    fn ids_are_looked_for_as_text_and_as_number() {
        let values = |id: &str| Person::of(&Name::Contact(id.to_owned())).values();
        assert_eq!(values("7"), ["7".into(), Bson::Int64(7)]);
        assert_eq!(values("a7"), [Bson::from("a7")]);
        assert_eq!(values("-2.5"), ["-2.5".into(), Bson::Double(-2.5)]);
        for another in ["007", "+7", "1e3", "7.0", "NaN"] {
            assert_eq!(values(another), [Bson::from(another)]);
        }
    }

    #[test]
    fn other_than_letters_and_digits_mean_nothing_in_a_pattern() {
        assert_eq!(escaped("a.b*é"), r"a\x{2e}b\x{2a}é");
        assert_eq!(spaced("49", "-*"), "4-*9");
    }
}
