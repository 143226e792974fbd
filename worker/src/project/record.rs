//! A document at hand.

use std::borrow::Cow;

use mongodb::bson::error::Result;
use mongodb::bson::raw::CStr;
use mongodb::bson::{RawArrayBuf, RawBson, RawBsonRef, RawDocument, RawDocumentBuf};

use crate::json::Object;
use crate::project::convert;

/// A document: its fields, in their order.
///
/// Values stay in BSON's own bytes until somebody looks into them: most are only taken in, compared and
/// written, and bytes make that cheap. A field is looked for one by one, since a document has some twenty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record(Vec<(Name, RawBson)>);

/// Mostly one of ours.
type Name = Cow<'static, str>;

impl Record {
    /// Reads a document's fields. Fails if it is no BSON.
    pub fn read(document: &RawDocument) -> Result<Self> {
        let read = document.iter().map(|field| {
            let (name, value) = field?;
            Ok((name.as_str().to_owned(), value.into()))
        });
        read.collect()
    }

    /// The document in BSON. A field whose name has a NUL is left out, since BSON has no place for it.
    #[must_use]
    pub fn write(&self) -> RawDocumentBuf {
        let mut document =
            convert::with_room(self.iter().map(|(name, value)| name.len() + size(value)).sum());
        for (name, value) in self.iter() {
            if let Ok(name) = <&CStr>::try_from(name) {
                document.append(name, value);
            }
        }
        document
    }

    /// All fields.
    pub fn iter(&self) -> impl Iterator<Item = (&str, RawBsonRef<'_>)> {
        self.0.iter().map(|(name, value)| (&**name, value.as_raw_bson_ref()))
    }

    /// The value of a field.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<RawBsonRef<'_>> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The value of a field, if it is a text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    /// The value of a field, if it is a date, in milliseconds since 1970.
    #[must_use]
    pub fn millis(&self, name: &str) -> Option<i64> {
        Some(self.get(name)?.as_datetime()?.timestamp_millis())
    }

    /// The value of a field, if it is a document.
    #[must_use]
    pub fn document(&self, name: &str) -> Option<&RawDocument> {
        self.get(name)?.as_document()
    }

    /// The elements of a field, if it is an array.
    #[must_use]
    pub fn list(&self, name: &str) -> Option<Vec<RawBsonRef<'_>>> {
        self.get(name)?.as_array()?.into_iter().collect::<std::result::Result<_, _>>().ok()
    }

    /// Gives a field a value.
    pub fn set(&mut self, name: impl Into<Name>, value: impl Into<RawBson>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }

    /// Gives these fields their values.
    pub fn extend(&mut self, others: Self) {
        for (name, value) in others.0 {
            self.set(name, value);
        }
    }

    /// Changes the document that is the value of a field. Anything else counts as an empty one.
    pub fn edit(&mut self, name: &'static str, change: impl FnOnce(&mut Self)) {
        let mut inner = self.document(name).and_then(|inner| Self::read(inner).ok()).unwrap_or_default();
        change(&mut inner);
        self.set(name, inner);
    }

    /// Gives fields the values that they have in another document, or none.
    pub fn reset(&mut self, fields: &[&'static str], other: &Self) {
        for name in fields {
            match other.get(name) {
                Some(value) => self.set(*name, value),
                None => self.remove(name),
            }
        }
    }

    /// Gives a field of the document that is the value of a field a value, and puts its fields in the order
    /// of their names. Anything else counts as an empty document.
    pub fn set_in(&mut self, name: &'static str, inner: &'static str, value: &RawBson) {
        let Ok(inner) = <&CStr>::try_from(inner) else { return };
        let known = self.document(name).into_iter().flatten().flatten();
        let mut fields: Vec<_> = known.filter(|(known, _)| *known != inner).collect();
        fields.push((inner, value.as_raw_bson_ref()));
        fields.sort_by_key(|(name, _)| name.as_str());
        let fields: RawDocumentBuf = fields.into_iter().collect();
        self.set(name, fields);
    }

    /// Adds the other fields that were sent, unchanged, behind the present ones.
    #[must_use]
    pub fn with_others(mut self, sent: &Object) -> Self {
        let own = self.0.len();
        if sent.keys().any(|name| self.get(name).is_none()) {
            for (name, value) in convert::object(sent).iter().flatten() {
                // Among our few only: a sender may have sent a hundred thousand others, each once.
                if self.0[..own].iter().all(|(known, _)| *known != name.as_str()) {
                    self.0.push((name.as_str().to_owned().into(), value.into()));
                }
            }
        }
        self
    }

    /// Adds a text to a field that is a sorted list of texts, once.
    pub fn add_sorted(&mut self, name: &'static str, text: &str) {
        // The bridge's oldest conversations may have one text instead of a list.
        let mut list = self.list(name).or_else(|| Some(vec![self.get(name)?])).unwrap_or_default();
        list.retain(|known| *known != RawBsonRef::Null);
        if list.iter().any(|known| known.as_str() == Some(text)) {
            return;
        }
        list.push(RawBsonRef::String(text));
        list.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        let list: RawArrayBuf = list.into_iter().collect();
        self.set(name, list);
    }

    /// Removes a field.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }

    /// Keeps only such fields.
    pub fn retain(&mut self, is_kept: impl Fn(&str, RawBsonRef<'_>) -> bool) {
        self.0.retain(|(name, value)| is_kept(name, value.as_raw_bson_ref()));
    }

    /// Puts fields in the order of their names, so that it doesn't show in which they came.
    pub fn sort(&mut self) {
        self.0.sort_by(|(a, _), (b, _)| a.cmp(b));
    }

    /// Puts `_id` before all other fields, as MongoDB does.
    pub fn identify(&mut self, id: &str) {
        self.remove("_id");
        self.0.insert(0, ("_id".into(), id.into()));
    }
}

/// Bytes that a value takes in a document, about.
fn size(value: RawBsonRef<'_>) -> usize {
    match value {
        RawBsonRef::String(text) => text.len() + 7,
        RawBsonRef::Document(document) => document.as_bytes().len() + 2,
        RawBsonRef::Array(array) => array.as_bytes().len() + 2,
        _ => 10,
    }
}

/// The names must differ.
impl<N: Into<Name>> FromIterator<(N, RawBson)> for Record {
    fn from_iter<T: IntoIterator<Item = (N, RawBson)>>(fields: T) -> Self {
        Self(fields.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }
}

/// The names must differ.
impl<const N: usize> From<[(&'static str, RawBson); N]> for Record {
    fn from(fields: [(&'static str, RawBson); N]) -> Self {
        fields.into_iter().collect()
    }
}

impl From<Record> for RawBson {
    fn from(record: Record) -> Self {
        record.write().into()
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::rawdoc;

    use super::*;

    #[test]
    fn a_document_is_read_changed_and_written() {
        let mut record = Record::read(&rawdoc! {"b": 1, "_id": "x", "a": {"c": "d"}}).unwrap();
        record.edit("a", |inner| inner.set("e", 2));
        record.edit("b", |inner| inner.set("f", true));
        record.set("g", 3);
        record.remove("nothing");
        record.identify("y");
        let expected = rawdoc! {"_id": "y", "b": {"f": true}, "a": {"c": "d", "e": 2}, "g": 3};
        assert_eq!(record.write(), expected);
    }
}
