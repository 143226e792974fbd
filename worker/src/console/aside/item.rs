//! A set-aside message, and how a form chooses it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use lapin::message::BasicGetMessage;
use shared::event;

use super::Aside;
use crate::commands::set_aside::Kind;
use crate::commands::set_aside::message::{self, Filter, SetAside, Unfit};

/// A message that was set aside.
#[derive(Clone, Debug)]
pub struct Item {
    /// By what it is chosen.
    pub id: String,
    /// What is known of it.
    pub about: SetAside,
    /// Whether today's keys find it well signed.
    pub trust: Trust,
}

/// Whether a quarantined webhook is well signed by the keys that are set now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Its signature was judged when it was received.
    Judged,
    /// No key is set here.
    NoKeys,
    /// It is.
    Verifies,
    /// It isn't, or can't be used for another reason.
    Refused(Unfit),
}

/// One message in full.
#[derive(Debug)]
pub struct Whole {
    /// What is known of it.
    pub item: Item,
    /// Its headers.
    pub headers: BTreeMap<String, String>,
    /// Its body, as far as it is text.
    pub body: String,
}

/// Which messages a question is about. What it has counted is then chosen by ids: nothing that comes later,
/// and nothing that waits behind it.
#[derive(Debug)]
pub enum Chosen {
    /// These.
    Ids(BTreeSet<String>),
    /// All that fit.
    All(Filter),
}

impl Chosen {
    /// Whether a message is meant.
    #[must_use]
    pub fn takes(&self, item: &Item, message: &BasicGetMessage, tenant: &str, now_ms: i64) -> bool {
        match self {
            Self::Ids(ids) => ids.contains(&item.id),
            Self::All(filter) => {
                filter.takes(&item.about, now_ms)
                    && filter.is_about(tenant, &message.properties, &message.data)
            }
        }
    }
}

impl Item {
    /// A message of a queue.
    #[must_use]
    pub fn of(aside: &Aside<'_>, message: &BasicGetMessage) -> Self {
        let about = SetAside::of(aside.tenant, &message.properties, &message.data);
        Self { id: id(aside.kind, &about, &message.data), trust: trust(aside, message), about }
    }
}

fn trust(aside: &Aside<'_>, message: &BasicGetMessage) -> Trust {
    if aside.kind == Kind::Dead {
        return Trust::Judged;
    }
    let keys = &aside.pages.keys;
    match message::of_quarantined(aside.tenant, &message.properties, &message.data, Some(keys)) {
        Ok(_) => Trust::Verifies,
        Err(Unfit::Untrusted) if keys.is_empty() => Trust::NoKeys,
        Err(unfit) => Trust::Refused(unfit),
    }
}

/// Digits of the hash by which a message is chosen.
const ID_DIGITS: usize = 20;

/// The text by which a form chooses a message. A dead letter and its twin of the same bytes are one; each
/// quarantined webhook is one of its own, also if somebody has sent the same again.
fn id(kind: Kind, about: &SetAside, body: &[u8]) -> String {
    let digest = event::body_digest(body, "");
    let text = match (kind, &about.key) {
        (Kind::Dead, Some(key)) => format!("{key}\n{digest}"),
        _ => format!("{:?}\n{:?}\n{}\n{digest}", about.key, about.set_aside_at_ms, about.reason),
    };
    let digest = event::body_digest(text.as_bytes(), "");
    digest.get(..ID_DIGITS).unwrap_or(&digest).to_owned()
}

impl Whole {
    /// All of a message.
    #[must_use]
    pub fn of(item: Item, message: &BasicGetMessage) -> Self {
        let as_text = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        let headers = message::headers(&message.properties).into_iter();
        Self {
            item,
            headers: headers.map(|(name, value)| (name, as_text(value))).collect(),
            body: String::from_utf8_lossy(&message.data).into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: Kind, key: &str, at: i64, body: &str) -> Item {
        let about = SetAside {
            key: Some(key.into()),
            reason: "stuck".into(),
            set_aside_at_ms: Some(at),
            ..SetAside::default()
        };
        Item { id: id(kind, &about, body.as_bytes()), about, trust: Trust::Judged }
    }

    #[test]
    fn a_dead_letter_and_its_twin_are_one_and_quarantined_webhooks_are_not() {
        let dead = |key, at| item(Kind::Dead, key, at, "{}").id;
        assert_eq!(dead("k", 1), dead("k", 2));
        assert_ne!(dead("k", 1), dead("j", 1));
        assert_ne!(dead("k", 1), item(Kind::Dead, "k", 1, "[]").id, "another body is another event");
        let evidence = |at, body| item(Kind::Quarantine, "k", at, body).id;
        assert_ne!(evidence(1, "{}"), evidence(2, "{}"));
        assert_ne!(evidence(1, "{}"), evidence(1, "[]"));
    }
}
