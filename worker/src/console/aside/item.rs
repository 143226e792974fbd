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

/// Which messages are meant.
#[derive(Debug)]
pub enum Chosen {
    /// These.
    Ids(BTreeSet<String>),
    /// All that fit, and were set aside by this time, in milliseconds since 1970: what comes while somebody
    /// reads the confirmation isn't meant.
    All {
        /// What has to fit.
        filter: Filter,
        /// By when.
        until_ms: i64,
    },
}

impl Chosen {
    /// Whether a message is meant, its body apart.
    #[must_use]
    pub fn takes(&self, item: &Item, now_ms: i64) -> bool {
        match self {
            Self::Ids(ids) => ids.contains(&item.id),
            Self::All { filter, until_ms } => {
                item.about.set_aside_at_ms.is_none_or(|at| at <= *until_ms)
                    && filter.takes(&item.about, now_ms)
            }
        }
    }

    /// Whether its body is about what is meant.
    #[must_use]
    pub fn is_about(&self, tenant: &str, message: &BasicGetMessage) -> bool {
        match self {
            Self::Ids(_) => true,
            Self::All { filter, .. } => filter.is_about(tenant, &message.properties, &message.data),
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

/// The text by which a form chooses a message. A dead letter and its twin are one; each quarantined webhook
/// is one of its own, also if somebody has sent the same again.
fn id(kind: Kind, about: &SetAside, body: &[u8]) -> String {
    let text = match (kind, &about.key) {
        (Kind::Dead, Some(key)) => format!("{key}\n"),
        _ => {
            let digest = event::body_digest(body, "");
            format!("{:?}\n{:?}\n{}\n{digest}", about.key, about.set_aside_at_ms, about.reason)
        }
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
        let evidence = |at, body| item(Kind::Quarantine, "k", at, body).id;
        assert_ne!(evidence(1, "{}"), evidence(2, "{}"));
        assert_ne!(evidence(1, "{}"), evidence(1, "[]"));
    }

    #[test]
    fn what_comes_after_the_count_is_not_meant() {
        let chosen =
            Chosen::All { filter: Filter { reason: vec!["stuck".into()], ..Filter::default() }, until_ms: 5 };
        let takes = |at| chosen.takes(&item(Kind::Dead, "k", at, ""), 9);
        assert!(takes(5) && !takes(6));
        let other = Item {
            about: SetAside { reason: "defect".into(), ..SetAside::default() },
            ..item(Kind::Dead, "k", 1, "")
        };
        assert!(!chosen.takes(&other, 9));
        let ids = Chosen::Ids([other.id.clone()].into());
        assert!(ids.takes(&other, 9) && !ids.takes(&item(Kind::Dead, "j", 1, ""), 9));
    }
}
