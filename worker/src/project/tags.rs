//! A contact's tags: those of the latest snapshot that has any, and what single events have added and removed
//! since.

use std::collections::BTreeSet;

use mongodb::bson::{RawArrayBuf, RawBson, RawBsonRef, RawDocument, RawDocumentBuf, rawdoc};

use super::record::Record;
use super::stamp::{MERGE_FIELD, Stamp};
use crate::decode::Event;
use crate::json::Json;
use crate::project::convert;

/// The field, and the part of the document that a snapshot claims.
const TAGS: &str = "tags";
/// Where `_merge` remembers the changes that are later than the snapshot, by tag.
const CHANGES: &str = "tag_changes";
/// The type of the events that may bring a single tag.
const TAG_UPDATED: &str = "contact.tag.updated";

/// The latest change of a tag.
struct Change {
    tag: String,
    /// Whether the tag was added. Otherwise it was removed.
    added: bool,
    /// The stamp of the event.
    by: String,
}

/// Applies what an event says of tags.
pub fn apply(contact: &mut Record, event: &Event, stamp: &Stamp<'_>) {
    if let Some(tags) = snapshot(event) {
        if stamp.claim_as_latest(contact, TAGS) {
            let mut changes = changes(contact);
            changes.retain(|change| change.stamp() > Some(*stamp));
            contact.set(TAGS, tags);
            update(contact, &changes);
        }
    } else if let Some(change) = single(event, stamp) {
        let mut changes = changes(contact);
        let known = changes.iter().find(|known| known.tag == change.tag).and_then(Change::stamp);
        if known.max(Stamp::on(contact, TAGS)) < Some(*stamp) {
            changes.retain(|known| known.tag != change.tag);
            changes.push(change);
            update(contact, &changes);
        }
    }
}

/// Forgets the changes of these events, so that they can be applied once more.
pub fn forget_changes(contact: &mut Record, told_by: &BTreeSet<(&str, &str)>) {
    let mut changes = changes(contact);
    if !changes.is_empty() {
        changes.retain(|change| change.stamp().is_none_or(|stamp| !told_by.contains(&stamp.event())));
        write(contact, &changes);
    }
}

/// Applies the remembered changes once more.
pub fn reapply_changes(contact: &mut Record) {
    let changes = changes(contact);
    update(contact, &changes);
}

/// The tags that a snapshot has; null is none at all.
fn snapshot(event: &Event) -> Option<RawBson> {
    match event.contact()?.get(TAGS)? {
        Json::Null if event.event_type.as_deref() != Some(TAG_UPDATED) => Some(RawArrayBuf::new().into()),
        tags @ Json::List(_) => Some(convert::value(tags)),
        _ => None,
    }
}

/// The tag that an event adds or removes.
fn single(event: &Event, stamp: &Stamp<'_>) -> Option<Change> {
    let tag = event.members.get("tag")?.text().filter(|tag| !tag.is_empty());
    let tag = tag.filter(|_| event.event_type.as_deref() == Some(TAG_UPDATED))?;
    let added = match event.members.get("action")?.text()? {
        "add" | "added" => true,
        "remove" | "removed" => false,
        _ => return None,
    };
    Some(Change { tag: tag.to_owned(), added, by: stamp.text() })
}

/// Makes these changes, and remembers them. A set has no order of its own: once there are changes, it is
/// sorted.
fn update(contact: &mut Record, changes: &[Change]) {
    write(contact, changes);
    if changes.is_empty() {
        return;
    }
    let known = contact.list(TAGS).or_else(|| Some(vec![contact.get(TAGS)?]));
    let (texts, others): (Vec<_>, Vec<_>) = known
        .unwrap_or_default()
        .into_iter()
        .filter(|tag| *tag != RawBsonRef::Null)
        .partition(|tag| tag.as_str().is_some());
    let mut texts: BTreeSet<&str> = texts.into_iter().filter_map(RawBsonRef::as_str).collect();
    for change in changes {
        if change.added {
            texts.insert(&change.tag);
        } else {
            texts.remove(&*change.tag);
        }
    }
    let tags: RawArrayBuf = others.into_iter().chain(texts.into_iter().map(RawBsonRef::String)).collect();
    contact.set(TAGS, tags);
}

fn changes(contact: &Record) -> Vec<Change> {
    let stored = contact.document(MERGE_FIELD).and_then(|merge| merge.get_array(CHANGES).ok());
    let stored = stored.into_iter().flatten().flatten();
    let read = stored.filter_map(|change| {
        let change = change.as_document()?;
        let text = |name: &str| change.get_str(name).ok().map(str::to_owned);
        Some(Change { tag: text("tag")?, added: change.get_bool("added").ok()?, by: text("by")? })
    });
    read.collect()
}

/// Remembers these changes.
fn write(contact: &mut Record, changes: &[Change]) {
    let is_known = |merge: &RawDocument| merge.get_array(CHANGES).is_ok();
    if !changes.is_empty() {
        let mut sorted: Vec<&Change> = changes.iter().collect();
        sorted.sort_by_key(|change| &change.tag);
        let list: RawArrayBuf = sorted.into_iter().map(Change::document).collect();
        contact.set_in(MERGE_FIELD, CHANGES, &list.into());
    } else if contact.document(MERGE_FIELD).is_some_and(is_known) {
        contact.edit(MERGE_FIELD, |merge| merge.remove(CHANGES));
    }
}

impl Change {
    fn document(&self) -> RawDocumentBuf {
        rawdoc! {"tag": self.tag.as_str(), "added": self.added, "by": self.by.as_str()}
    }

    fn stamp(&self) -> Option<Stamp<'_>> {
        Stamp::read(&self.by)
    }
}
