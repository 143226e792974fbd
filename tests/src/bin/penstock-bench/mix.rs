//! What an event is, by its number alone: its kind, its contact, its id. So a number is all that has to be
//! remembered of an event.

/// Kinds of events, and how many of a thousand are of this kind.
const SHARES: [(Kind, u64); 11] = [
    (Kind::Received, 550),
    (Kind::Sent, 300),
    (Kind::ContactUpdated, 30),
    (Kind::Tag, 25),
    (Kind::Assignee, 20),
    (Kind::Opened, 20),
    (Kind::Closed, 20),
    (Kind::ContactCreated, 10),
    (Kind::Lifecycle, 10),
    (Kind::Comment, 10),
    (Kind::Call, 5),
];

/// A kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Received,
    Sent,
    Comment,
    Opened,
    Closed,
    ContactCreated,
    ContactUpdated,
    Assignee,
    Tag,
    Lifecycle,
    Call,
}

/// Streams as URLs name them.
pub const STREAMS: [&str; 4] = ["incoming", "outgoing", "lifecycle", "internal-note"];

impl Kind {
    /// The kind of an event.
    pub fn of(n: u64) -> Self {
        let mut rest = scatter(n) % 1000;
        for (kind, share) in SHARES {
            if rest < share {
                return kind;
            }
            rest -= share;
        }
        Self::Received
    }

    /// Its name in the body.
    pub fn event_type(self) -> &'static str {
        match self {
            Self::Received => "message.received",
            Self::Sent => "message.sent",
            Self::Comment => "comment.created",
            Self::Opened => "conversation.opened",
            Self::Closed => "conversation.closed",
            Self::ContactCreated => "contact.created",
            Self::ContactUpdated => "contact.updated",
            Self::Assignee => "contact.assignee.updated",
            Self::Tag => "contact.tag.updated",
            Self::Lifecycle => "contact.lifecycle.updated",
            Self::Call => "call.ended",
        }
    }

    /// Where it is posted to, by its place in [`STREAMS`].
    pub fn stream(self) -> usize {
        match self {
            Self::Received => 0,
            Self::Sent => 1,
            Self::Comment => 3,
            _ => 2,
        }
    }

    /// Whether it counts as a message of its conversation.
    pub fn is_message(self) -> bool {
        matches!(self, Self::Received | Self::Sent)
    }
}

/// Ids of contacts begin here.
pub const CONTACT_IDS: u64 = 418_000_000;

/// Numbers as random as they look, and always the same: the mixing step of `SplitMix64`.
pub fn scatter(n: u64) -> u64 {
    let z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Which of so many contacts an event is about.
pub fn contact(n: u64, contacts: u64) -> u64 {
    scatter(n ^ 0x00c0_ffee) % contacts
}

/// The conversation of a contact.
pub fn chat_id(contact: u64) -> String {
    format!("+1555{contact:07}")
}

/// A UUID that begins at random, as those of respond.io do, and ends with the number.
pub fn event_id(n: u64) -> String {
    let h = scatter(!n);
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{n:012x}",
        h >> 32,
        (h >> 16) & 0xffff,
        (h >> 4) & 0xfff,
        h & 0xfff
    )
}

/// The number of an event by its id; none if it isn't an id of ours.
pub fn number(id: &str) -> Option<u64> {
    let n = u64::from_str_radix(id.get(24..)?, 16).ok()?;
    (event_id(n) == id).then_some(n)
}

/// The id of an event's message.
pub fn message_id(n: u64) -> u64 {
    1_750_000_000_000_000 + n * 211
}

/// The id of an event's call.
pub fn call_id(n: u64) -> String {
    format!("call-{n:010x}")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const MANY: u64 = 100_000;

    #[test]
    fn an_id_tells_the_number() {
        assert_eq!(number(&event_id(123_456)), Some(123_456));
        assert_eq!(number("feb22b81-7e2c-4f7d-a923-9543e1ef0268"), None);
        assert_eq!(number(&format!("{}~0123456789abcdef", event_id(7))), None);
        assert_eq!(number("x"), None);
    }

    #[test]
    fn ids_are_unique() {
        let ids: BTreeSet<_> = (0..MANY).map(event_id).collect();
        assert_eq!(ids.len() as u64, MANY);
    }

    #[test]
    fn kinds_come_in_their_shares() {
        let mut counts = BTreeMap::new();
        (0..MANY).for_each(|n| *counts.entry(Kind::of(n)).or_insert(0) += 1);
        assert_eq!(SHARES.iter().map(|(_, share)| share).sum::<u64>(), 1000);
        for (kind, share) in SHARES {
            let (counted, wanted) = (counts[&kind], share * MANY / 1000);
            assert!(counted > wanted * 8 / 10 && counted < wanted * 12 / 10, "{kind:?}: {counted}");
        }
    }

    #[test]
    fn contacts_are_all_used_about_as_often() {
        let mut counts = [0_u64; 10];
        (0..MANY).for_each(|n| counts[usize::try_from(contact(n, 10)).unwrap()] += 1);
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }
}
