//! Documents of one collection, as stored and as they are to become.

use std::collections::BTreeMap;

use mongodb::bson::{Bson, DateTime, Document, doc};

/// Documents by `_id`.
#[derive(Clone, Debug, Default)]
pub struct Table(BTreeMap<String, Row>);

#[derive(Clone, Debug)]
struct Row {
    stored: Option<Document>,
    now: Document,
}

/// What has to be written to make the stored documents what they are to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Writes {
    /// New documents.
    pub inserts: Vec<Document>,
    /// Statements for the command `update`, one per document.
    pub updates: Vec<Document>,
}

impl Table {
    /// Takes in documents as they are stored.
    pub fn load(&mut self, documents: impl IntoIterator<Item = Document>) {
        for document in documents {
            if let Ok(id) = document.get_str("_id") {
                self.0.insert(id.to_owned(), Row { stored: Some(document.clone()), now: document });
            }
        }
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

    /// What has to be written. Changed documents get `updated_at`, if that is given.
    #[must_use]
    pub fn into_writes(self, updated_at: Option<DateTime>) -> Writes {
        let mut writes = Writes::default();
        for (id, row) in self.0 {
            match row.stored {
                None => writes.inserts.push(row.now),
                Some(stored) => writes.updates.extend(update(id, &stored, row.now, updated_at)),
            }
        }
        writes
    }
}

/// Fields that others have put into a document stay as they are.
fn update(id: String, stored: &Document, now: Document, updated_at: Option<DateTime>) -> Option<Document> {
    let gone = stored.keys().filter(|name| !now.contains_key(name));
    let unset: Document = gone.map(|name| (name.clone(), Bson::Boolean(true))).collect();
    let mut set: Document = now.into_iter().filter(|(name, value)| stored.get(name) != Some(value)).collect();
    if set.is_empty() && unset.is_empty() {
        return None;
    }
    if let Some(at) = updated_at {
        set.insert("updated_at", at);
    }
    // Our names at the top level never hold a dot or a dollar, so that plain operators, unlike a pipeline,
    // take every value for what it is, a text like "$name" too.
    let mut change = Document::new();
    if !set.is_empty() {
        change.insert("$set", set);
    }
    if !unset.is_empty() {
        change.insert("$unset", unset);
    }
    Some(doc! {"q": {"_id": id}, "u": change})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_written() {
        let mut table = Table::default();
        table.load([doc! {"_id": "a", "x": 1, "theirs": 2, "old": 3}, doc! {"_id": "b", "x": 1}]);
        let document = table.get_mut("a").unwrap();
        document.insert("x", "$y");
        document.remove("old");
        table.get_or_insert("c", || doc! {"z": 1});
        let writes = table.into_writes(None);
        assert_eq!(writes.inserts, [doc! {"_id": "c", "z": 1}]);
        let change = doc! {"$set": {"x": "$y"}, "$unset": {"old": true}};
        assert_eq!(writes.updates, [doc! {"q": {"_id": "a"}, "u": change}]);
    }
}
