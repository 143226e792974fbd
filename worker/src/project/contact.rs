//! `contacts`: one document per contact id, written by contact events alone.

use mongodb::bson::{DateTime, RawArrayBuf, RawBson, RawDocument, RawDocumentBuf, rawdoc};

use super::record::Record;
use super::stamp::Stamp;
use super::table::Table;
use super::{bridge, tags};
use crate::decode::{self, Event, Kind};
use crate::json::{Json, Object};
use crate::project::convert::{self, or_null};

/// Fields of a contact that every snapshot has.
const NINE: [&str; 9] =
    ["id", "firstName", "lastName", "email", "phone", "language", "profilePic", "countryCode", "status"];
/// Fields of a contact that have a place of their own. Everything else is a custom field.
const OWN_PLACE: [&str; 5] = ["assignee", "tags", "lifecycle", "custom_fields", "created_at"];

/// The nine fields of a contact, null where it has none.
#[must_use]
pub fn nine_fields(contact: Option<&Json>) -> Record {
    fields(contact, &NINE)
}

/// These fields of a contact, null where it has none.
#[must_use]
pub fn fields(contact: Option<&Json>, names: &[&'static str]) -> Record {
    let field = |name| if name == "id" { convert::id(contact, name) } else { convert::member(contact, name) };
    names.iter().map(|name| (*name, field(name))).collect()
}

/// The assignee, if the event has one.
#[must_use]
pub fn assignee(contact: &Json) -> Option<RawBson> {
    Some(or_null(decode::given(contact.get("assignee")?).map(convert::with_id)))
}

/// The lifecycle, if the event sets one: a lifecycle event also to null, others only to something.
#[must_use]
pub fn lifecycle(event: &Event) -> Option<RawBson> {
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

/// Removes what events have set and added, if all of them are at hand. Parts with a stamp stay.
pub fn forget(contact: &mut Record) {
    let new = empty(DateTime::MIN);
    for (part, fields) in PARTS {
        if !Stamp::is_on(contact, part) {
            contact.reset(fields, &new);
        }
    }
    tags::reapply_changes(contact);
    contact.reset(&["lifecycle_history"], &new);
}

/// Applies a contact event.
pub fn apply(contacts: &mut Table, event: &Event, now: DateTime) {
    let (Some(sent), Some(id)) = (event.contact(), event.contact_id()) else { return };
    let stored = contacts.get(&id);
    let (is_new, is_the_bridges) = (stored.is_none(), stored.is_some_and(bridge::wrote));
    let is_told_by_webhooks =
        is_the_bridges || stored.is_some_and(|stored| Stamp::is_a_webhooks(stored, "contact"));
    if event.is_backfilled() && is_told_by_webhooks {
        return;
    }
    let contact = contacts.get_or_insert(&id, || empty(now));
    if !event.is_backfilled() && Stamp::is_a_backfills(contact, "contact") {
        forget_backfilled(contact, now);
    }
    if is_the_bridges {
        bridge::remember(contact, &true.into());
    }
    let stamp = Stamp::of(event);
    if stamp.claim_as_latest(contact, "contact") {
        contact.extend(nine_fields(Some(sent)));
    }
    if let Some(at) = sent.get("created_at").and_then(decode::moment::read)
        && stamp.claim_as_latest(contact, "created_at")
    {
        contact.set("created_at", convert::date(at));
    }
    if let Some(fields) = custom_fields(sent)
        && stamp.claim_as_latest(contact, "custom_fields")
    {
        contact.set("custom_fields", fields);
    }
    tags::apply(contact, event, &stamp);
    if let Some(assignee) = assignee(sent)
        && stamp.claim_as_latest(contact, "assignee")
    {
        contact.set("assignee", assignee);
    }
    if let Some(lifecycle) = lifecycle(event)
        && stamp.claim_as_latest(contact, "lifecycle")
    {
        contact.set("lifecycle", lifecycle);
    }
    if event.kind == Kind::Lifecycle {
        add_to_history(contact, event);
    }
    if is_new {
        contact.sort();
    }
}

/// Removes what backfilled events have set: a webhook has the whole contact, so a field that it lacks is
/// empty. The date when the contact was made stays.
fn forget_backfilled(contact: &mut Record, now: DateTime) {
    let new = empty(now);
    for (part, fields) in PARTS {
        if Stamp::is_a_backfills(contact, part) {
            contact.reset(fields, &new);
        }
    }
    Stamp::remove_backfilled(
        contact,
        &["contact", "custom_fields", "tags", "assignee", "lifecycle", "created_at"],
    );
}

fn empty(now: DateTime) -> Record {
    let none = || RawBson::from(RawArrayBuf::new());
    Record::from([
        ("tags", none()),
        ("lifecycle", RawBson::Null),
        ("assignee", RawBson::Null),
        ("custom_fields", none()),
        ("lifecycle_history", none()),
        ("created_at", now.into()),
        ("updated_at", now.into()),
    ])
}

/// The custom fields, flat or listed, if the event has any: an event without them leaves them as they are,
/// since only some events carry them.
fn custom_fields(contact: &Json) -> Option<RawBson> {
    let members = contact.object()?;
    let listed = members.get("custom_fields");
    let mut fields: Vec<(String, RawBson)> = flat_fields(members);
    for field in listed.and_then(Json::list).unwrap_or_default() {
        if let Some(name) =
            field.get("name").and_then(|name| name.text().map(str::to_owned).or_else(|| name.id()))
        {
            fields.push((name, convert::member(Some(field), "value")));
        }
    }
    if let Some(object) = listed.and_then(Json::object) {
        fields.extend(object.iter().map(|(name, value)| (name.to_string(), convert::value(value))));
    }
    let speaks = !fields.is_empty() || listed.and_then(Json::list).is_some();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    let fields = fields.into_iter().map(|(name, value)| rawdoc! {"name": name, "value": value});
    speaks.then(|| RawBson::Array(fields.map(RawBson::from).collect()))
}

fn flat_fields(members: &Object) -> Vec<(String, RawBson)> {
    let is_custom = |name: &str| !NINE.contains(&name) && !OWN_PLACE.contains(&name);
    let custom = members.iter().filter(|(name, _)| is_custom(name));
    custom.map(|(name, value)| (name.to_string(), convert::value(value))).collect()
}

/// Adds a change of lifecycle, each event once. Of bodies that share an event id the first counts.
fn add_to_history(contact: &mut Record, event: &Event) {
    let to = event.members.get("lifecycle").map(convert::value).or_else(|| lifecycle(event));
    let change = Record::from([
        ("from", or_null(event.members.get("oldLifecycle").map(convert::value))),
        ("to", or_null(to)),
        ("timestamp", convert::date(event.at_ms)),
        ("event_id", event.key.as_str().into()),
    ]);
    let change = change.write();
    let mut history: Vec<RawDocumentBuf> = contact
        .list("lifecycle_history")
        .map(|list| list.iter().filter_map(|entry| Some(entry.as_document()?.to_owned())).collect())
        .unwrap_or_default();
    match history.iter_mut().find(|entry| entry.get_str("event_id").ok() == Some(&event.key)) {
        Some(entry) if place(&change) < place(entry) => *entry = change,
        Some(_) => return,
        None => history.push(change),
    }
    history.sort_by(|a, b| place(a).cmp(&place(b)));
    contact.set("lifecycle_history", history.into_iter().map(RawBson::from).collect::<RawArrayBuf>());
}

/// By time, then by event; then by anything that tells entries apart.
fn place(entry: &RawDocument) -> (Option<DateTime>, &str, &[u8]) {
    (entry.get_datetime("timestamp").ok(), entry.get_str("event_id").unwrap_or_default(), entry.as_bytes())
}
