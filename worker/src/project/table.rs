//! Documents of one collection, as stored and as they are to become.

use std::collections::BTreeMap;

use mongodb::bson::error::Result;
use mongodb::bson::raw::CStr;
use mongodb::bson::{DateTime, Document, RawBsonRef, RawDocument, RawDocumentBuf, cstr, doc, rawdoc};

/// Documents by `_id`.
#[derive(Clone, Debug, Default)]
pub struct Table(BTreeMap<String, Row>);

#[derive(Clone, Debug)]
struct Row {
    /// In bytes, which cost little to keep and to compare.
    stored: Option<RawDocumentBuf>,
    now: Document,
}

/// What has to be written to make the stored documents what they are to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Writes {
    /// New documents.
    pub inserts: Vec<RawDocumentBuf>,
    /// Statements for the command `update`, one per document.
    pub updates: Vec<RawDocumentBuf>,
}

impl Table {
    /// Takes in documents as they are stored. Fails if one of them is no BSON, as somebody's text that isn't UTF-8.
    pub fn load(&mut self, documents: impl IntoIterator<Item = RawDocumentBuf>) -> Result<()> {
        for stored in documents {
            let now = Document::try_from(&stored)?;
            if let Ok(id) = now.get_str("_id") {
                self.0.insert(id.to_owned(), Row { stored: Some(stored), now });
            }
        }
        Ok(())
    }

    /// The document of this id, if there is one.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Document> {
        self.0.get(id).map(|row| &row.now)
    }

    /// The document of this id, to be changed, if there is one.
    pub fn get_mut(&mut self, id: &str) -> Option<&mut Document> {
        self.0.get_mut(id).map(|row| &mut row.now)
    }

    /// The document of this id, to be changed; made with `new` if there is none.
    pub fn get_or_insert(&mut self, id: &str, new: impl FnOnce() -> Document) -> &mut Document {
        let row = self.0.entry(id.to_owned()).or_insert_with(|| {
            let mut now = doc! {"_id": id};
            now.extend(new());
            Row { stored: None, now }
        });
        &mut row.now
    }

    /// All documents.
    pub fn iter(&self) -> impl Iterator<Item = &Document> {
        self.0.values().map(|row| &row.now)
    }

    /// All documents, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Document> {
        self.0.values_mut().map(|row| &mut row.now)
    }

    /// What has to be written. Changed documents get `updated_at`, if that is given. Fails if a document is no BSON.
    pub fn into_writes(self, updated_at: Option<DateTime>) -> Result<Writes> {
        let mut writes = Writes::default();
        for (id, Row { stored, now }) in self.0 {
            let now = RawDocumentBuf::try_from(&now)?;
            match stored {
                None => writes.inserts.push(now),
                Some(stored) => writes.updates.extend(update(&id, &stored, &now, updated_at)?),
            }
        }
        Ok(writes)
    }
}

/// Fields that others have put into a document stay as they are.
fn update(
    id: &str,
    stored: &RawDocument,
    now: &RawDocument,
    updated_at: Option<DateTime>,
) -> Result<Option<RawDocumentBuf>> {
    let (before, after) = (fields(stored)?, fields(now)?);
    let same = |(name, value): &(&CStr, RawBsonRef<'_>)| before.iter().any(|(n, v)| n == name && v == value);
    let (mut set, mut unset) = (RawDocumentBuf::new(), RawDocumentBuf::new());
    for (name, value) in after.iter().filter(|field| !same(field)) {
        set.append(name, *value);
    }
    for (name, _) in before.iter().filter(|(name, _)| after.iter().all(|(n, _)| n != name)) {
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
    Ok(Some(rawdoc! {"q": {"_id": id}, "u": change}))
}

fn fields(document: &RawDocument) -> Result<Vec<(&CStr, RawBsonRef<'_>)>> {
    document.iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_written() {
        let mut table = Table::default();
        let stored = [doc! {"_id": "a", "x": 1, "theirs": 2, "old": 3}, doc! {"_id": "b", "x": 1}];
        table.load(stored.iter().map(|document| RawDocumentBuf::try_from(document).unwrap())).unwrap();
        let document = table.get_mut("a").unwrap();
        document.insert("x", "$y");
        document.remove("old");
        table.get_or_insert("c", || doc! {"z": 1});
        let writes = table.into_writes(None).unwrap();
        assert_eq!(writes.inserts, [rawdoc! {"_id": "c", "z": 1}]);
        let change = rawdoc! {"$set": {"x": "$y"}, "$unset": {"old": true}};
        assert_eq!(writes.updates, [rawdoc! {"q": {"_id": "a"}, "u": change}]);
    }
}
