//! `contacts`: one document per contact id, written by contact events alone.

use mongodb::bson::{Bson, DateTime, Document, doc};
use shared::json::{Json, Object};

use super::table::Table;
use super::{Stamp, rebuild};
use crate::convert;
use crate::decode::{self, Event, Kind};

/// Fields of a contact that every snapshot has; `id` is text.
const NINE: [&str; 9] =
    ["id", "firstName", "lastName", "email", "phone", "language", "profilePic", "countryCode", "status"];
/// Fields of a contact that have a place of their own. Everything else is a custom field.
const OWN_PLACE: [&str; 5] = ["assignee", "tags", "lifecycle", "custom_fields", "created_at"];

/// The nine fields of a contact, null where it has none.
#[must_use]
pub fn nine_fields(contact: &Json) -> Document {
    NINE.iter()
        .map(|name| {
            let field = if *name == "id" { convert::id } else { convert::member };
            ((*name).to_owned(), field(Some(contact), name))
        })
        .collect()
}

/// The assignee, if the event speaks of one.
#[must_use]
pub fn assignee(contact: &Json) -> Option<Bson> {
    Some(decode::given(contact.get("assignee")?).map(convert::value).into())
}

/// The lifecycle, if the event sets one: a lifecycle event also to null, others only to something.
#[must_use]
pub fn lifecycle(event: &Event) -> Option<Bson> {
    let told = event.members.get("lifecycle").filter(|_| event.kind == Kind::Lifecycle);
    let in_snapshot = || event.contact()?.get("lifecycle").filter(|lifecycle| **lifecycle != Json::Null);
    told.or_else(in_snapshot).map(convert::value)
}

/// Parts of a contact, with their fields.
const PARTS: [(&str, &[&str]); 5] = [
    ("contact", &NINE),
    ("custom_fields", &["custom_fields"]),
    ("tags", &["tags"]),
    ("assignee", &["assignee"]),
    ("lifecycle", &["lifecycle"]),
];

/// Takes away what events have set and added, if all of them are at hand. Parts with a stamp stay.
pub fn forget(contact: &mut Document) {
    let new = empty(DateTime::MIN);
    for (part, fields) in PARTS {
        if !Stamp::is_on(contact, part) {
            rebuild::reset(contact, fields, &new);
        }
    }
    rebuild::reset(contact, &["lifecycle_history"], &new);
}

/// Applies a contact event.
pub fn apply(contacts: &mut Table, event: &Event, now: DateTime) {
    let (Some(sent), Some(id)) = (event.contact(), event.contact_id()) else { return };
    let contact = contacts.get_or_insert(&id, || empty(now));
    let stamp = Stamp::of(event);
    if stamp.claim_as_latest(contact, "contact") {
        contact.extend(nine_fields(sent));
    }
    if let Some(at) = sent.get("created_at").and_then(crate::moment::read)
        && stamp.claim_as_latest(contact, "created_at")
    {
        contact.insert("created_at", DateTime::from_millis(at));
    }
    if let Some(fields) = custom_fields(sent)
        && stamp.claim_as_latest(contact, "custom_fields")
    {
        contact.insert("custom_fields", fields);
    }
    if let Some(tags) = tags(sent)
        && stamp.claim_as_latest(contact, "tags")
    {
        contact.insert("tags", tags);
    }
    if let Some(assignee) = assignee(sent)
        && stamp.claim_as_latest(contact, "assignee")
    {
        contact.insert("assignee", assignee);
    }
    if let Some(lifecycle) = lifecycle(event)
        && stamp.claim_as_latest(contact, "lifecycle")
    {
        contact.insert("lifecycle", lifecycle);
    }
    if event.kind == Kind::Lifecycle {
        add_to_history(contact, event);
    }
}

fn empty(now: DateTime) -> Document {
    doc! {
        "tags": [],
        "lifecycle": Bson::Null,
        "assignee": Bson::Null,
        "custom_fields": [],
        "lifecycle_history": [],
        "created_at": now,
        "updated_at": now,
    }
}

/// The tags, if the event speaks of them; null is none at all.
fn tags(contact: &Json) -> Option<Bson> {
    match contact.get("tags")? {
        Json::Null => Some(Bson::Array(Vec::new())),
        tags @ Json::List(_) => Some(convert::value(tags)),
        _ => None,
    }
}

/// The custom fields, flat or listed, if the event has any: an event without them leaves them as they are,
/// since only some events carry them.
fn custom_fields(contact: &Json) -> Option<Bson> {
    let members = contact.object()?;
    let listed = members.get("custom_fields");
    let mut fields: Vec<(String, Bson)> = flat_fields(members);
    for field in listed.and_then(Json::list).unwrap_or_default() {
        if let Some(name) =
            field.get("name").and_then(|name| name.text().map(str::to_owned).or_else(|| name.id()))
        {
            fields.push((name, convert::member(Some(field), "value")));
        }
    }
    if let Some(object) = listed.and_then(Json::object) {
        fields.extend(object.iter().map(|(name, value)| (name.clone(), convert::value(value))));
    }
    let speaks = !fields.is_empty() || listed.and_then(Json::list).is_some();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    let fields = fields.into_iter().map(|(name, value)| Bson::Document(doc! {"name": name, "value": value}));
    speaks.then(|| Bson::Array(fields.collect()))
}

fn flat_fields(members: &Object) -> Vec<(String, Bson)> {
    let is_custom = |name: &str| !NINE.contains(&name) && !OWN_PLACE.contains(&name);
    let custom = members.iter().filter(|(name, _)| is_custom(name));
    custom.map(|(name, value)| (name.clone(), convert::value(value))).collect()
}

/// Adds a change of lifecycle, each event once. Of bodies that share an event id the first counts.
fn add_to_history(contact: &mut Document, event: &Event) {
    let change = doc! {
        "from": event.members.get("oldLifecycle").map(convert::value),
        "to": event.members.get("lifecycle").map(convert::value).or_else(|| lifecycle(event)),
        "timestamp": DateTime::from_millis(event.at_ms),
        "event_id": &event.key,
    };
    let mut history: Vec<Document> = contact
        .get_array("lifecycle_history")
        .map(|list| list.iter().filter_map(|entry| entry.as_document().cloned()).collect())
        .unwrap_or_default();
    let place = |entry: &Document| {
        let at = entry.get_datetime("timestamp").ok().copied();
        (at, entry.get_str("event_id").unwrap_or_default().to_owned(), entry.to_string())
    };
    match history.iter_mut().find(|entry| entry.get_str("event_id").ok() == Some(&event.key)) {
        Some(entry) if place(&change) < place(entry) => *entry = change,
        Some(_) => return,
        None => history.push(change),
    }
    history.sort_by_key(place);
    contact.insert("lifecycle_history", history);
}
