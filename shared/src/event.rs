//! What an event is called: its key, its type, the stream it came on.

use sha2::{Digest, Sha256};

use crate::json;
use crate::verify::Form;

/// The event types that respond.io documents; metric labels use these or [`UNKNOWN`].
pub const KNOWN_TYPES: [&str; 11] = [
    "message.received",
    "message.sent",
    "comment.created",
    "conversation.opened",
    "conversation.closed",
    "contact.created",
    "contact.updated",
    "contact.assignee.updated",
    "contact.tag.updated",
    "contact.lifecycle.updated",
    "call.ended",
];

/// Stands for a missing, unknown or unusable event type.
pub const UNKNOWN: &str = "unknown";

/// The part of the URL behind the tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// `/webhook/{tenant}`: no stream named.
    Any,
    /// `/incoming`
    Incoming,
    /// `/outgoing`
    Outgoing,
    /// `/lifecycle`
    Lifecycle,
    /// `/internal-note`
    InternalNote,
}

impl Stream {
    /// Every stream.
    pub const ALL: [Stream; 5] =
        [Self::Any, Self::Incoming, Self::Outgoing, Self::Lifecycle, Self::InternalNote];

    /// The name used in URLs and in the header `stream`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Incoming => "incoming",
            Self::Outgoing => "outgoing",
            Self::Lifecycle => "lifecycle",
            Self::InternalNote => "internal-note",
        }
    }

    /// The stream of a message; an unknown name counts as [`Stream::Any`].
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        Self::ALL.into_iter().find(|stream| stream.name() == name).unwrap_or(Self::Any)
    }

    /// The stream of a URL; none if the name is unknown.
    #[must_use]
    pub fn from_path(segment: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| *stream != Self::Any && stream.name() == segment)
    }
}

/// The event type for routing keys and the property `type`: as sent, or [`UNKNOWN`] if it isn't fit for that.
#[must_use]
pub fn routable_type(event_type: Option<&str>) -> &str {
    let fits = |name: &&str| {
        (1..=100).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    event_type.filter(fits).unwrap_or(UNKNOWN)
}

/// The event type for metric labels: one of [`KNOWN_TYPES`] or [`UNKNOWN`].
#[must_use]
pub fn type_label(event_type: Option<&str>) -> &'static str {
    KNOWN_TYPES.into_iter().find(|known| event_type == Some(known)).unwrap_or(UNKNOWN)
}

/// The key under which an event counts once: its `event_id` if that is fit to be one, else the hash of
/// tenant and body. `signature` is how that was found good, see [`Form::name`].
#[must_use]
pub fn event_key(tenant: &str, event_id: Option<&str>, body: &[u8], signature: &str) -> String {
    let fits = |id: &&str| (1..=128).contains(&id.len()) && !id.chars().any(char::is_control);
    if let Some(id) = event_id.filter(fits) {
        return id.to_owned();
    }
    let hash = hash_body(Sha256::new().chain_update(tenant).chain_update(b"\n"), body, signature);
    format!("sha256:{}", hex::encode(hash.finalize()))
}

/// The hash that tells bodies apart, in hexadecimal. `signature` is how that was found good, see
/// [`Form::name`].
#[must_use]
pub fn body_digest(body: &[u8], signature: &str) -> String {
    hex::encode(hash_body(Sha256::new(), body, signature).finalize())
}

/// Hashes what was signed. If only the compact JSON was signed, anybody can write the body in another way
/// with the same compact JSON; that must not make another event.
fn hash_body(hash: Sha256, body: &[u8], signature: &str) -> Sha256 {
    if Form::is_reserialised(signature) {
        let mut compact = hash.clone();
        if json::compact(body, |piece| compact.update(piece)).is_ok() {
            return compact;
        }
    }
    hash.chain_update(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(body: &str) -> String {
        key_of(body, Form::Raw)
    }

    fn key_of(body: &str, form: Form) -> String {
        let event_id = json::Scan::of(body.as_bytes()).unwrap().event_id();
        event_key("faster", event_id.as_deref(), body.as_bytes(), form.name())
    }

    #[test]
    fn an_event_id_is_the_key() {
        assert_eq!(key(r#"{"event_id":"a b-1"}"#), "a b-1");
        let longest = "x".repeat(128);
        assert_eq!(key(&format!(r#"{{"event_id":"{longest}"}}"#)), longest);
    }

    #[test]
    fn without_a_usable_event_id_the_body_is_the_key() {
        let too_long = format!(r#"{{"event_id":"{}"}}"#, "x".repeat(129));
        for body in
            [r#"{"event_id":""}"#, r#"{"event_id":7}"#, r#"{"event_id":"a\u0007"}"#, r#"{"a":1}"#, &too_long]
        {
            assert!(key(body).starts_with("sha256:"), "{body}");
        }
        // printf 'faster\n{"a":1}' | sha256sum
        assert_eq!(
            key(r#"{"a":1}"#),
            "sha256:25bd2fe3135c26d3f7cf5b7e421b599b35fe30abbd47bfd576d9337bcc5be1f4"
        );
    }

    #[test]
    fn what_was_signed_is_hashed() {
        let (compact, another) = (r#"{"a":1}"#, "\u{feff}{\"\\u0061\" :1 }");
        for form in [Form::Reserialised, Form::ReserialisedDecodedKey] {
            assert_eq!(key_of(another, form), key(compact));
            let digest = |body: &str, form: Form| body_digest(body.as_bytes(), form.name());
            assert_eq!(digest(another, form), digest(compact, Form::Raw));
        }
        for form in [Form::Raw, Form::RawDecodedKey, Form::Unsigned, Form::Unchecked] {
            assert_ne!(key_of(another, form), key(compact));
        }
        assert_eq!(body_digest(b"{", "reserialised"), body_digest(b"{", "raw"), "no such form");
    }

    #[test]
    fn types_that_are_not_fit_for_routing_are_unknown() {
        assert_eq!(routable_type(Some("message.received")), "message.received");
        assert_eq!(routable_type(Some("brand_new.Type-2")), "brand_new.Type-2");
        let too_long = "a".repeat(101);
        for unfit in ["", "a b", "a#", "é", "a*", too_long.as_str()] {
            assert_eq!(routable_type(Some(unfit)), UNKNOWN, "{unfit}");
        }
        assert_eq!(routable_type(None), UNKNOWN);
        assert_eq!(type_label(Some("brand_new.Type-2")), UNKNOWN);
        assert_eq!(type_label(Some("call.ended")), "call.ended");
    }

    #[test]
    fn streams_are_named_by_urls() {
        assert_eq!(Stream::from_path("internal-note"), Some(Stream::InternalNote));
        assert_eq!(Stream::from_path("any"), None);
        assert_eq!(Stream::from_path("Incoming"), None);
        for stream in Stream::ALL {
            assert_eq!(Stream::from_name(stream.name()), stream);
        }
    }
}
