//! Which queue an event goes to: all events of a conversation go to one, so that one worker writes them.
//! Pure.

use crate::env::Env;
use crate::json::Scan;

/// Larger bodies go to the queue for large ones, of which a worker takes only a few at a time: so the memory
/// of all other queues is bounded by their prefetch counts. In bytes.
pub const LARGE_BODY: usize = 64 << 10;

/// Most partitions that a tenant can have. Workers look for those that an earlier setting left behind one by
/// one, since AMQP can't list queues.
pub const MAX_PARTITIONS: u16 = 64;

/// The offset basis and the prime of FNV-1a with 64 bits.
const FNV: (u64, u64) = (0xcbf2_9ce4_8422_2325, 0x0100_0000_01b3);

/// Reads `WEBHOOK_WORKERS`: the partitions of each tenant, so the number of batches that can be written at
/// the same time.
pub fn partitions(env: &mut Env) -> u16 {
    env.number("WEBHOOK_WORKERS")
}

/// One of a tenant's work queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkQueue {
    /// Shares the conversations with the other partitions.
    Partition(u16),
    /// For bodies over [`LARGE_BODY`], of any conversation.
    Large,
}

impl WorkQueue {
    /// Every queue of a tenant that has this many partitions.
    pub fn all(partitions: u16) -> impl Iterator<Item = Self> {
        (0..partitions).map(Self::Partition).chain([Self::Large])
    }

    /// The queue's name.
    #[must_use]
    pub fn name(self, tenant: &str) -> String {
        match self {
            Self::Partition(n) => format!("webhooks.{tenant}.{n}"),
            Self::Large => format!("webhooks.{tenant}.large"),
        }
    }

    /// The routing key that leads to this queue.
    #[must_use]
    pub fn routing_key(self, tenant: &str, event_type: &str) -> String {
        match self {
            Self::Partition(n) => format!("{tenant}.{n}.{event_type}"),
            Self::Large => format!("{tenant}.large.{event_type}"),
        }
    }
}

/// The conversation that an event belongs to, if it names one: the contact's phone, else its id, else the
/// message's contact id.
#[must_use]
pub fn chat_id(
    phone: Option<String>,
    contact_id: Option<String>,
    message_contact_id: Option<String>,
) -> Option<String> {
    phone.map(|phone| phone.trim().to_owned()).or(contact_id).or(message_contact_id)
}

/// The queue of an event.
#[must_use]
pub fn queue_of(chat_id: Option<&str>, event_key: &str, body_len: usize, partitions: u16) -> WorkQueue {
    if body_len > LARGE_BODY {
        return WorkQueue::Large;
    }
    let hash = fnv_1a(chat_id.unwrap_or(event_key).as_bytes());
    // Less than the number of partitions, so it fits.
    let n = u16::try_from(hash % u64::from(partitions.max(1))).unwrap_or_default();
    WorkQueue::Partition(n)
}

/// The queue of an event of which only key and body are known.
#[must_use]
pub fn queue_of_body(event_key: &str, body: &[u8], partitions: u16) -> WorkQueue {
    if body.len() > LARGE_BODY {
        return WorkQueue::Large;
    }
    let chat_id = Scan::of(body).ok().and_then(|scan| scan.chat_id());
    queue_of(chat_id.as_deref(), event_key, body.len(), partitions)
}

/// FNV-1a, written out, since every ingest and worker of every release must agree on it; the standard library
/// may change its hashes.
#[must_use]
pub fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(FNV.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chat(body: &str) -> Option<String> {
        Scan::of(body.as_bytes()).unwrap().chat_id()
    }

    #[test]
    fn the_chat_is_named_by_phone_then_contact_then_message() {
        assert_eq!(chat(r#"{"contact":{"id":1,"phone":" +155 "}}"#).as_deref(), Some("+155"));
        assert_eq!(chat(r#"{"contact":{"id":1,"phone":" "}}"#).as_deref(), Some("1"));
        assert_eq!(chat(r#"{"contact":{"id":null},"message":{"contactId":2.0}}"#).as_deref(), Some("2"));
        assert_eq!(chat(r#"{"contact":null,"message":{"contactId":"3"}}"#).as_deref(), Some("3"));
        assert_eq!(chat(r#"{"contact":{"phone":{}}}"#), None);
    }

    #[test]
    fn the_hash_is_the_published_one() {
        // From the test vectors of its authors.
        assert_eq!(fnv_1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv_1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_conversation_has_one_queue_and_many_share_them_evenly() {
        let mut counts = [0; 4];
        for n in 0..4000 {
            let chat = format!("+4915{n:07}");
            let queue = queue_of(Some(&chat), "a", 10, 4);
            assert_eq!(queue, queue_of(Some(&chat), "b", LARGE_BODY, 4), "whatever the event");
            let WorkQueue::Partition(n) = queue else { panic!("{queue:?}") };
            counts[usize::from(n)] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        assert_ne!(
            queue_of(None, "a", 1, 64),
            queue_of(None, "b", 1, 64),
            "the event key counts without a chat"
        );
    }

    #[test]
    fn large_bodies_have_a_queue_of_their_own() {
        assert_eq!(queue_of(Some("1"), "k", LARGE_BODY + 1, 4), WorkQueue::Large);
        let body = format!(r#"{{"contact":{{"id":1}},"text":"{}"}}"#, "x".repeat(LARGE_BODY));
        assert_eq!(queue_of_body("k", body.as_bytes(), 4), WorkQueue::Large);
        let small = br#"{"contact":{"id":1}}"#;
        assert_eq!(queue_of_body("k", small, 4), queue_of(Some("1"), "k", small.len(), 4));
    }

    #[test]
    fn names_and_routing_keys_are_those_of_the_contract() {
        assert_eq!(WorkQueue::Partition(3).name("vip"), "webhooks.vip.3");
        assert_eq!(WorkQueue::Large.name("vip"), "webhooks.vip.large");
        let of = |queue: WorkQueue| queue.routing_key("vip", "call.ended");
        assert_eq!(of(WorkQueue::Partition(0)), "vip.0.call.ended");
        assert_eq!(of(WorkQueue::Large), "vip.large.call.ended");
        let all: Vec<_> = WorkQueue::all(2).collect();
        assert_eq!(all, [WorkQueue::Partition(0), WorkQueue::Partition(1), WorkQueue::Large]);
    }

    proptest! {
        #[test]
        fn any_body_has_a_queue_within_the_partitions(body: Vec<u8>, partitions in 1..=MAX_PARTITIONS) {
            let queue = queue_of_body("k", &body, partitions);
            prop_assert!(matches!(queue, WorkQueue::Partition(n) if n < partitions), "{queue:?}");
        }
    }
}
