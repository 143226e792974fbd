//! What an event is follows from its number: its kind, contact and ids. Only numbers are remembered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::body;

/// A kind of event.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name in the body.
    pub event_type: &'static str,
    /// The path that it is posted to.
    pub stream: &'static str,
}

/// How many of a thousand are of a kind.
const SHARES: [(u64, &str, &str); 11] = [
    (550, "message.received", "incoming"),
    (300, "message.sent", "outgoing"),
    (30, "contact.updated", "lifecycle"),
    (25, "contact.tag.updated", "lifecycle"),
    (20, "contact.assignee.updated", "lifecycle"),
    (20, "conversation.opened", "lifecycle"),
    (20, "conversation.closed", "lifecycle"),
    (10, "contact.created", "lifecycle"),
    (10, "contact.lifecycle.updated", "lifecycle"),
    (10, "comment.created", "internal-note"),
    (5, "call.ended", "lifecycle"),
];

impl Kind {
    /// The kind of an event.
    pub fn of(n: u64) -> Self {
        let (place, mut end) = (scatter(n) % 1000, 0);
        let found = SHARES.iter().find(|(share, ..)| {
            end += share;
            place < end
        });
        let (_, event_type, stream) = *found.unwrap_or(&SHARES[0]);
        Self { event_type, stream }
    }

    /// Whether it counts as a message of its conversation.
    pub fn is_message(&self) -> bool {
        self.event_type.starts_with("message.")
    }
}

/// Numbers as random as they look, and always the same: the mixing step of `SplitMix64`.
pub fn scatter(n: u64) -> u64 {
    let z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Which of the contacts an event is about.
pub fn contact(n: u64, contacts: u64) -> u64 {
    scatter(n ^ 0x00c0_ffee) % contacts
}

/// The id of a contact.
pub fn contact_id(contact: u64) -> u64 {
    418_000_000 + contact
}

/// The conversation of a contact.
pub fn chat_id(contact: u64) -> String {
    format!("+1555{contact:07}")
}

/// A UUID that begins at random, as those of respond.io do, and ends with the number.
pub fn event_id(n: u64) -> String {
    let h = scatter(!n);
    let (a, b, c, d) = (h >> 32, (h >> 16) & 0xffff, (h >> 4) & 0xfff, h & 0xfff);
    format!("{a:08x}-{b:04x}-4{c:03x}-a{d:03x}-{n:012x}")
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

/// An event ready to be sent.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its number.
    pub n: u64,
    /// Its body.
    pub body: Bytes,
    /// What goes into `X-Webhook-Signature`.
    pub signature: Option<String>,
}

/// Makes events, one number after the other.
#[derive(Clone, Debug)]
pub struct Maker {
    next: Arc<AtomicU64>,
    contacts: u64,
    mac: Option<Hmac<Sha256>>,
}

impl Maker {
    /// Takes numbers from a counter that others may take from as well.
    pub fn new(next: Arc<AtomicU64>, contacts: u64, key: Option<&str>) -> Self {
        // HMAC takes keys of any length.
        let mac = key.and_then(|key| Hmac::new_from_slice(key.as_bytes()).ok());
        Self { next, contacts, mac }
    }

    /// The next event.
    pub fn make(&self) -> Event {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let body = body::body(n, contact(n, self.contacts));
        let sign =
            |mac: &Hmac<Sha256>| STANDARD.encode(mac.clone().chain_update(&body).finalize().into_bytes());
        Event { n, signature: self.mac.as_ref().map(sign), body: body.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const MANY: u64 = 100_000;

    #[test]
    fn an_id_is_unique_and_tells_the_number() {
        assert_eq!(number(&event_id(123_456)), Some(123_456));
        assert_eq!(number(&format!("{}~0123456789abcdef", event_id(7))), None);
        assert_eq!((number("feb22b81-7e2c-4f7d-a923-9543e1ef0268"), number("x")), (None, None));
        assert_eq!((0..MANY).map(event_id).collect::<BTreeSet<_>>().len() as u64, MANY);
    }

    #[test]
    fn kinds_come_in_their_shares() {
        assert_eq!(SHARES.iter().map(|(share, ..)| share).sum::<u64>(), 1000);
        let mut counts = BTreeMap::new();
        (0..MANY).for_each(|n| *counts.entry(Kind::of(n).event_type).or_insert(0) += 1);
        for (share, event_type, _) in SHARES {
            let (counted, wanted) = (counts[event_type], share * MANY / 1000);
            assert!(counted > wanted * 8 / 10 && counted < wanted * 12 / 10, "{event_type}: {counted}");
        }
    }
}
