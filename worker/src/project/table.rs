//! Documents of one collection: as they are stored, and changed.

use std::collections::BTreeMap;

use mongodb::bson::error::Result;
use mongodb::bson::raw::CStr;
use mongodb::bson::{DateTime, RawBson, RawBsonRef, RawDocument, RawDocumentBuf, cstr, rawdoc};

use super::record::Record;
use crate::project::convert;

/// Documents by `_id`.
#[derive(Clone, Debug, Default)]
pub struct Table(BTreeMap<String, Row>);

#[derive(Clone, Debug)]
struct Row {
    stored: Option<RawDocumentBuf>,
    now: Record,
}

/// A document that is to change: the fields that do.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Its `_id`.
    pub id: RawBson,
    /// What they were; none if the document is new.
    pub before: Option<RawDocumentBuf>,
    /// What they become.
    pub after: RawDocumentBuf,
}

impl Row {
    fn change(&self) -> Result<Option<Change>> {
        let id = self.now.get("_id").map_or(RawBson::Null, Into::into);
        let Some(stored) = &self.stored else {
            return Ok(Some(Change { id, before: None, after: self.now.write() }));
        };
        let before = Record::read(stored)?;
        let changed = |from: &Record, to: &Record| -> RawDocumentBuf {
            let fields = from.iter().filter(|(name, value)| to.get(name) != Some(*value));
            let fields = fields.filter(|(name, _)| *name != "updated_at");
            fields.filter_map(|(name, value)| Some((<&CStr>::try_from(name).ok()?, value))).collect()
        };
        let (was, becomes) = (changed(&before, &self.now), changed(&self.now, &before));
        let is_changed = !(was.is_empty() && becomes.is_empty());
        Ok(is_changed.then_some(Change { id, before: Some(was), after: becomes }))
    }
}

/// What has to be written to turn the stored documents into these.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Writes {
    /// New documents.
    pub inserts: Vec<RawDocumentBuf>,
    /// Statements for the command `update`, one per document.
    pub updates: Vec<RawDocumentBuf>,
}

impl Table {
    /// Takes in documents as they are stored. Fails if one of them is no BSON.
    pub fn load(&mut self, documents: impl IntoIterator<Item = RawDocumentBuf>) -> Result<()> {
        for stored in documents {
            let now = Record::read(&stored)?;
            if let Some(id) = now.text("_id") {
                self.0.insert(id.to_owned(), Row { stored: Some(stored), now });
            }
        }
        Ok(())
    }

    /// Takes in messages that are known by their `event_id`, since MongoDB has given them their `_id`. Of
    /// several the first counts. Fails if one of them is no BSON.
    pub fn load_unnamed(&mut self, documents: impl IntoIterator<Item = RawDocumentBuf>) -> Result<()> {
        for stored in documents {
            let now = Record::read(&stored)?;
            if let Some(id) = now.text("event_id").filter(|_| now.text("_id").is_none()) {
                self.0.entry(id.to_owned()).or_insert(Row { stored: Some(stored), now });
            }
        }
        Ok(())
    }

    /// Whether the document with this `_id` is here.
    #[must_use]
    pub fn has(&self, id: RawBsonRef<'_>) -> bool {
        match id.as_str() {
            Some(id) => self.0.contains_key(id),
            None => self.iter().any(|known| known.get("_id") == Some(id)),
        }
    }

    /// The document of this id, if there is one.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Record> {
        self.0.get(id).map(|row| &row.now)
    }

    /// The document of this id, to be changed, if there is one.
    pub fn get_mut(&mut self, id: &str) -> Option<&mut Record> {
        self.0.get_mut(id).map(|row| &mut row.now)
    }

    /// The document of this id, to be changed; made with `new` if there is none.
    pub fn get_or_insert(&mut self, id: &str, new: impl FnOnce() -> Record) -> &mut Record {
        let row = self.0.entry(id.to_owned()).or_insert_with(|| {
            let mut now = new();
            now.identify(id);
            Row { stored: None, now }
        });
        &mut row.now
    }

    /// All documents.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.0.values().map(|row| &row.now)
    }

    /// All documents, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Record> {
        self.0.values_mut().map(|row| &mut row.now)
    }

    /// Those documents that are stored: their ids, as they are stored, and to be changed.
    pub fn iter_mut_with_stored(&mut self) -> impl Iterator<Item = (&str, &RawDocument, &mut Record)> {
        self.0.iter_mut().filter_map(|(id, row)| Some((id.as_str(), row.stored.as_deref()?, &mut row.now)))
    }

    /// Every change, with what the document was before. `updated_at` is left out.
    pub fn changes(&self) -> Result<Vec<Change>> {
        self.0.values().filter_map(|row| row.change().transpose()).collect()
    }

    /// What has to be written. Changed documents get `updated_at`, if that is given. Fails if a document is
    /// no BSON.
    pub fn into_writes(self, updated_at: Option<DateTime>) -> Result<Writes> {
        let mut writes = Writes::default();
        for Row { stored, now } in self.0.into_values() {
            match stored {
                None => writes.inserts.push(now.write()),
                Some(stored) => writes.updates.extend(update(&stored, &now, updated_at)?),
            }
        }
        Ok(writes)
    }
}

/// Fields that users have added to a document stay as they are.
fn update(
    stored: &RawDocument,
    now: &Record,
    updated_at: Option<DateTime>,
) -> Result<Option<RawDocumentBuf>> {
    let before: Vec<(&CStr, RawBsonRef<'_>)> = stored.iter().collect::<Result<_>>()?;
    let (mut set, mut unset) = (convert::with_room(stored.as_bytes().len()), RawDocumentBuf::new());
    for (place, (name, value)) in now.iter().enumerate() {
        // Mostly at the same place, so that is where to look first.
        let (earlier, later) = before.split_at(place.min(before.len()));
        let stored = later.iter().chain(earlier).find(|(known, _)| known.as_str() == name);
        let is_same = stored.is_some_and(|(_, stored)| *stored == value);
        // `updated_at` comes below, and must not come twice.
        if !is_same && (updated_at.is_none() || name != "updated_at") {
            set.append(<&CStr>::try_from(name)?, value);
        }
    }
    for (name, _) in before.iter().filter(|(name, _)| now.get(name.as_str()).is_none()) {
        unset.append(name, true);
    }
    if set.is_empty() && unset.is_empty() {
        return Ok(None);
    }
    if let Some(at) = updated_at {
        set.append(cstr!("updated_at"), at);
    }
    // Our names at the top level never hold a dot or a dollar, so that plain operators, unlike a pipeline,
    // take every value for what it is, a text like "$name" too.
    let mut change = RawDocumentBuf::new();
    if !set.is_empty() {
        change.append(cstr!("$set"), set);
    }
    if !unset.is_empty() {
        change.append(cstr!("$unset"), unset);
    }
    let id = stored.get("_id")?.unwrap_or(RawBsonRef::Null);
    Ok(Some(rawdoc! {"q": {"_id": RawBson::from(id)}, "u": change}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_written() {
        let mut table = Table::default();
        let stored = [rawdoc! {"_id": "a", "x": 1, "theirs": 2, "old": 3}, rawdoc! {"_id": "b", "x": 1}];
        table.load(stored).unwrap();
        let record = table.get_mut("a").unwrap();
        record.set("x", "$y");
        record.remove("old");
        table.get_or_insert("c", || Record::from([("z", 1.into())]));
        let writes = table.into_writes(None).unwrap();
        assert_eq!(writes.inserts, [rawdoc! {"_id": "c", "z": 1}]);
        let change = rawdoc! {"$set": {"x": "$y"}, "$unset": {"old": true}};
        assert_eq!(writes.updates, [rawdoc! {"q": {"_id": "a"}, "u": change}]);
    }
}
