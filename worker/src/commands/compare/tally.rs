//! What was found in a collection, and how it is shown. Pure.

use std::collections::BTreeMap;

use mongodb::bson::{RawBsonRef, RawDocument};
use serde::Serialize;

use super::pair::Differences;
use super::read::Kind;
use crate::commands::printable;

/// Names of fields that are kept apart: documents may have any.
const MAX_FIELDS: usize = 100;
/// Where those beyond are counted.
const OTHER_FIELDS: &str = "other fields";

/// Some documents, with the first few by name.
#[derive(Debug, Default, Serialize)]
pub struct Found {
    /// How many.
    pub count: u64,
    /// Ids of the first of them. A conversation is named by its contact's id: its own is a phone number.
    pub examples: Vec<String>,
}

/// What was found in a collection.
#[derive(Debug, Default, Serialize)]
pub struct Tally {
    /// Its name.
    pub collection: &'static str,
    /// Whether it is compared: the bridge has no calls.
    pub is_compared: bool,
    /// Documents of the span in both databases, in order.
    pub documents: [u64; 2],
    /// Documents that only one of them has.
    pub missing: [Found; 2],
    /// Documents that differ in any field.
    pub different: u64,
    /// In which fields.
    pub fields: BTreeMap<String, Found>,
    /// Where Penstock differs from the bridge on purpose.
    pub documented: BTreeMap<String, Found>,
    /// Documents that were written just now, so that the other database may lack it.
    pub too_new: u64,
    #[serde(skip)]
    examples: usize,
}

impl Tally {
    /// Nothing yet.
    #[must_use]
    pub fn new(kind: Kind, is_compared: bool, examples: usize) -> Self {
        Self { collection: kind.name(), is_compared, examples, ..Self::default() }
    }

    /// Takes in a document that only one database has: the first or the second.
    pub fn add_missing(&mut self, place: usize, document: &RawDocument) {
        self.missing[place].add(shown_id(self.collection, document), self.examples);
    }

    /// Takes in a document that only Penstock makes.
    pub fn add_ours_alone(&mut self, document: &RawDocument) {
        let id = shown_id(self.collection, document);
        add(&mut self.documented, "made by notes and lifecycles".to_owned(), id, self.examples);
    }

    /// Takes in a document that both have.
    pub fn add_pair(&mut self, document: &RawDocument, differences: Differences) {
        let Differences { unexpected, documented } = differences;
        self.different += u64::from(!unexpected.is_empty());
        for (fields, names) in [(&mut self.fields, unexpected), (&mut self.documented, documented)] {
            for name in names {
                add(fields, name, shown_id(self.collection, document), self.examples);
            }
        }
    }

    /// Documents that one database lacks, or that differ without a reason.
    #[must_use]
    pub fn problems(&self) -> u64 {
        self.missing[0].count + self.missing[1].count + self.different
    }

    /// For people; the databases' names are given in order.
    #[must_use]
    pub fn lines(&self, names: [&str; 2]) -> Vec<String> {
        let Self { collection, documents, missing, different, too_new, .. } = self;
        if !self.is_compared {
            return vec![format!("{collection}: the bridge has none, not compared")];
        }
        let [first, second] = names;
        let head = format!(
            "{collection}: {first} {}, {second} {}; only in {first} {}, only in {second} {}, different {different}, too new {too_new}",
            documents[0], documents[1], missing[0].count, missing[1].count
        );
        let missing = names.into_iter().zip(missing);
        let missing = missing.map(|(name, found)| (format!("only in {name}"), found));
        let fields = self.fields.iter().map(|(name, found)| (format!("different {name}"), found));
        let documented =
            self.documented.iter().map(|(name, found)| (format!("as documented, {name}"), found));
        let details = missing.chain(fields).chain(documented).filter(|(_, found)| found.count > 0);
        let details = details.map(|(what, Found { count, examples })| {
            printable(&format!("  {what}: {count} ({})", examples.join(", ")))
        });
        std::iter::once(head).chain(details).collect()
    }
}

fn add(fields: &mut BTreeMap<String, Found>, name: String, id: String, examples: usize) {
    let is_room = fields.len() < MAX_FIELDS || fields.contains_key(&name);
    let name = if is_room { name } else { OTHER_FIELDS.to_owned() };
    fields.entry(name).or_default().add(id, examples);
}

impl Found {
    fn add(&mut self, id: String, examples: usize) {
        self.count += 1;
        if self.examples.len() < examples {
            self.examples.push(id);
        }
    }
}

/// How a document is named. No phone number.
fn shown_id(collection: &str, document: &RawDocument) -> String {
    let id = if collection == Kind::Conversations.name() {
        document.get_document("contact").ok().and_then(|contact| contact.get("id").ok().flatten())
    } else {
        document.get("_id").ok().flatten()
    };
    match id {
        Some(RawBsonRef::String(id)) => id.to_owned(),
        Some(RawBsonRef::Int32(id)) => id.to_string(),
        Some(RawBsonRef::Int64(id)) => id.to_string(),
        Some(RawBsonRef::ObjectId(id)) => id.to_hex(),
        _ => "without id".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::rawdoc;

    use super::*;

    fn differing(names: &[&str]) -> Differences {
        let unexpected = names.iter().map(|name| (*name).to_owned()).collect();
        Differences { unexpected, ..Differences::default() }
    }

    #[test]
    fn fields_are_counted_with_some_examples_and_no_phone() {
        let mut tally = Tally::new(Kind::Conversations, true, 2);
        for id in 1..=3 {
            let document = rawdoc! {"_id": format!("+1555{id}"), "contact": {"id": id}};
            tally.add_pair(&document, differing(&["assignee", "contact.email"]));
        }
        tally.add_missing(1, &rawdoc! {"_id": "+15554", "contact": {"id": "4"}});
        assert_eq!((tally.problems(), tally.different), (4, 3));
        let lines = tally.lines(["trial", "faster"]);
        let expected = [
            "conversations: trial 0, faster 0; only in trial 0, only in faster 1, different 3, too new 0",
            "  only in faster: 1 (4)",
            "  different assignee: 3 (1, 2)",
            "  different contact.email: 3 (1, 2)",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_number_of_fields_is_bounded() {
        let mut tally = Tally::new(Kind::Messages, true, 1);
        for n in 0..2 * MAX_FIELDS {
            tally.add_pair(&rawdoc! {"_id": "1"}, differing(&[&format!("field {n}")]));
        }
        assert_eq!(tally.fields.len(), MAX_FIELDS + 1);
        assert_eq!(tally.fields[OTHER_FIELDS].count, 100);
    }
}
