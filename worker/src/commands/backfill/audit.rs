//! `--dry-run`: what respond.io has, what MongoDB has of it, and what is missing or different. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use serde_json::{Value, json};
use shared::table::{self, Column, Table};

use super::event;
use super::known::{Looks, Stored, is_lacking};
use super::plan::Message;
use crate::commands::{printable, rfc3339};

/// This many missing and this many different messages are named; the others are only counted.
const MAX_NAMED: usize = 10_000;

/// Messages of a day that went one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// What respond.io has.
    pub respond_io: u64,
    /// What MongoDB has of them.
    pub mongodb: u64,
    /// What it lacks.
    pub missing: u64,
    /// What looks different there.
    pub different: u64,
}

/// A message that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Missing {
    id: String,
    contact: String,
    at_ms: i64,
    direction: &'static str,
}

/// A message that is different.
#[derive(Debug)]
struct Different {
    id: String,
    contact: String,
    fields: Vec<&'static str>,
}

/// What was found so far.
#[derive(Debug, Default)]
pub struct Audit {
    days: BTreeMap<(String, &'static str), Tally>,
    /// The first missing messages; a worker may still store them.
    missing: Vec<Missing>,
    different: Vec<Different>,
    missing_contacts: u64,
    /// The first of them.
    missing_contact_ids: Vec<String>,
}

impl Audit {
    /// Takes in messages of a contact, and what MongoDB has of them.
    pub fn add(&mut self, contact: &str, wanted: &[Message], stored: &HashMap<String, Stored>) {
        for message in wanted {
            let Message { id, at_ms, item } = message;
            let direction = if event::is_incoming(item) { "incoming" } else { "outgoing" };
            let tally = self.days.entry((day(*at_ms), direction)).or_default();
            tally.respond_io += 1;
            let (stored, contact) = (stored.get(id), contact.to_owned());
            if is_lacking(item, stored) {
                tally.missing += 1;
                if self.missing.len() < MAX_NAMED {
                    self.missing.push(Missing { id: id.clone(), contact, at_ms: *at_ms, direction });
                }
                continue;
            }
            tally.mongodb += 1;
            let fields = stored.map(|stored| Looks::of(item).differences(&stored.looks)).unwrap_or_default();
            if !fields.is_empty() {
                tally.different += 1;
                if self.different.len() < MAX_NAMED {
                    self.different.push(Different { id: id.clone(), contact, fields });
                }
            }
        }
    }

    /// Takes in contacts that are missing.
    pub fn add_contacts(&mut self, missing: impl Iterator<Item = String>) {
        for id in missing {
            self.missing_contacts += 1;
            if self.missing_contact_ids.len() < MAX_NAMED {
                self.missing_contact_ids.push(id);
            }
        }
    }

    /// Whether anything is missing.
    #[must_use]
    pub fn is_any_missing(&self) -> bool {
        !(self.missing.is_empty() && self.missing_contact_ids.is_empty())
    }

    /// Ids of the missing messages and contacts that a worker may still store.
    #[must_use]
    pub fn missing_ids(&self) -> (Vec<String>, Vec<String>) {
        (self.missing.iter().map(|missing| missing.id.clone()).collect(), self.missing_contact_ids.clone())
    }

    /// Contacts that MongoDB lacks.
    #[must_use]
    pub fn missing_contacts(&self) -> u64 {
        self.missing_contacts
    }

    /// Removes missing messages and contacts that have arrived meanwhile.
    pub fn arrived(&mut self, messages: &HashSet<String>, contacts: &HashSet<String>) {
        let named = self.missing_contact_ids.len();
        self.missing_contact_ids.retain(|id| !contacts.contains(id));
        self.missing_contacts -= (named - self.missing_contact_ids.len()) as u64;
        let missing = std::mem::take(&mut self.missing).into_iter();
        let (arrived, missing): (Vec<_>, Vec<_>) =
            missing.partition(|missing| messages.contains(&missing.id));
        self.missing = missing;
        for Missing { at_ms, direction, .. } in arrived {
            let tally = self.days.entry((day(at_ms), direction)).or_default();
            tally.missing -= 1;
            tally.mongodb += 1;
        }
    }

    /// Of all days and both directions.
    #[must_use]
    pub fn total(&self) -> Tally {
        self.days.values().fold(Tally::default(), |sum, tally| Tally {
            respond_io: sum.respond_io + tally.respond_io,
            mongodb: sum.mongodb + tally.mongodb,
            missing: sum.missing + tally.missing,
            different: sum.different + tally.different,
        })
    }

    /// A line for each day and direction, then for each message that is missing or different.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut table = Table::new(COLUMNS);
        let days = self.days.iter().map(|((day, direction), tally)| {
            let Tally { respond_io, mongodb, missing, different } = tally;
            let [respond_io, mongodb, missing, different] =
                [respond_io, mongodb, missing, different].map(ToString::to_string);
            table.row(&[day.as_str(), direction, &respond_io, &mongodb, &missing, &different])
        });
        let missing = self.missing.iter().map(|Missing { id, contact, at_ms, direction }| {
            printable(&format!(
                "missing: message {id} of contact {contact}, {direction}, {}",
                rfc3339(*at_ms)
            ))
        });
        let different = self.different.iter().map(|Different { id, contact, fields }| {
            printable(&format!("different: message {id} of contact {contact}: {}", fields.join(", ")))
        });
        let contacts = self.missing_contact_ids.iter().map(|id| printable(&format!("missing: contact {id}")));
        let lines: Vec<String> = days.chain(contacts).chain(missing).chain(different).collect();
        if lines.is_empty() { vec![table::NONE.to_owned()] } else { lines }
    }

    /// The same for programs, an object each.
    #[must_use]
    pub fn objects(&self) -> Vec<Value> {
        let days = self.days.iter().map(|((day, direction), tally)| {
            let mut object = json!(tally);
            object["day"] = day.as_str().into();
            object["direction"] = (*direction).into();
            object
        });
        let missing = self.missing.iter().map(|Missing { id, contact, at_ms, direction }| {
            json!({"missing": id, "contact": contact, "at": rfc3339(*at_ms), "direction": direction})
        });
        let different = self.different.iter();
        let different = different.map(
            |Different { id, contact, fields }| json!({"different": id, "contact": contact, "in": fields}),
        );
        let contacts = self.missing_contact_ids.iter().map(|id| json!({"missing_contact": id}));
        days.chain(contacts).chain(missing).chain(different).collect()
    }
}

const COLUMNS: [Column; 6] = [
    Column::text("DAY", 10),
    Column::text("DIRECTION", 9),
    Column::number("RESPOND.IO", 10),
    Column::number("MONGODB", 9),
    Column::number("MISSING", 9),
    Column::number("DIFFERENT", 9),
];

/// The day in UTC.
fn day(at_ms: i64) -> String {
    rfc3339(at_ms).chars().take_while(|c| *c != 'T').collect()
}

#[cfg(test)]
mod tests {
    use crate::json;

    use super::*;

    fn message(id: &str, at_ms: i64, traffic: &str) -> Message {
        let body = format!(r#"{{"traffic":"{traffic}","message":{{"type":"text","text":"a"}}}}"#);
        Message { id: id.into(), at_ms, item: json::parse(body.as_bytes()).unwrap() }
    }

    #[test]
    fn messages_are_counted_by_day_and_direction() {
        const DAY: i64 = 86_400_000;
        let wanted = [
            message("1", 20_000 * DAY, "incoming"),
            message("2", 20_000 * DAY, "incoming"),
            message("3", 20_001 * DAY - 1, "outgoing"),
            message("4", 20_001 * DAY, "incoming"),
        ];
        let whole = Stored { has_content: true, looks: Looks::of(&wanted[0].item) };
        let other = Looks { text: Some("b".into()), ..whole.looks.clone() };
        let stored = HashMap::from([
            ("1".to_owned(), whole.clone()),
            ("4".to_owned(), Stored { looks: other, ..whole.clone() }),
        ]);
        let mut audit = Audit::default();
        audit.add("c", &wanted, &stored);
        let days: Vec<_> =
            audit.days.iter().map(|((day, way), tally)| (day.as_str(), *way, tally.missing)).collect();
        assert_eq!(
            days,
            [("2024-10-04", "incoming", 1), ("2024-10-04", "outgoing", 1), ("2024-10-05", "incoming", 0)]
        );
        assert_eq!(audit.total(), Tally { respond_io: 4, mongodb: 2, missing: 2, different: 1 });
        assert_eq!(audit.lines().len(), 3 + 2 + 1);
        assert_eq!(audit.objects()[5], json!({"different": "4", "contact": "c", "in": ["text"]}));

        audit.add_contacts(["c".to_owned(), "d".to_owned()].into_iter());
        audit.arrived(&HashSet::from(["3".to_owned()]), &HashSet::from(["c".to_owned()]));
        assert_eq!(audit.total(), Tally { respond_io: 4, mongodb: 3, missing: 1, different: 1 });
        assert_eq!(audit.missing_ids(), (vec!["2".to_owned()], vec!["d".to_owned()]));
        assert_eq!((audit.missing_contacts(), audit.is_any_missing()), (1, true));
    }
}
