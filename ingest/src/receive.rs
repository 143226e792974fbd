//! Takes a request in and decides what it is: an event, evidence for the quarantine, or to be turned away.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{CONTENT_ENCODING, HeaderMap};
use actix_web::web;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use shared::event::{self, Stream};
use shared::json::{Scan, Unusable};
use shared::verify::{self, Form, Untrusted};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::settings::{Policy, Signing};

/// A body that isn't there by then never comes. With the time to publish and the time to spool (a second
/// each at most) a reply stays below respond.io's deadline of 5 seconds.
const BODY_TIMEOUT: Duration = Duration::from_millis(2500);
/// As much of a body that is over the limit is kept as evidence, in bytes.
const EVIDENCE_BYTES: usize = 64 << 10;
/// Bodies up to this size, nearly all, need not ask for memory: the number of connections bounds them. In bytes.
const SMALL_BODY_BYTES: usize = 16 << 10;
/// More of a body isn't even read, in bytes: it takes time from others, and no sender of webhooks has so much to say.
const MAX_SENT_BYTES: usize = 64 << 20;
/// What larger bodies may take beyond that at the same time, in KiB.
const LARGE_BODIES_KIB: usize = 64 << 10;

/// Why a request's body goes to the quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Not an event.
    Unusable(Unusable),
    /// Over the limit.
    TooLarge,
    /// Compressed, or the like.
    UnsupportedEncoding,
    /// Not signed.
    MissingSignature,
    /// Signed by somebody else.
    InvalidSignature,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::Unusable(Unusable::Empty),
        Self::Unusable(Unusable::Invalid),
        Self::Unusable(Unusable::NotAnObject),
        Self::Unusable(Unusable::TooDeep),
        Self::TooLarge,
        Self::UnsupportedEncoding,
        Self::MissingSignature,
        Self::InvalidSignature,
    ];

    /// The name that callers, operators and metrics see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unusable(Unusable::Empty) => "empty_body",
            Self::Unusable(Unusable::Invalid) => "invalid_json",
            Self::Unusable(Unusable::NotAnObject) => "not_an_object",
            Self::Unusable(Unusable::TooDeep) => "too_deep",
            Self::TooLarge => "body_too_large",
            Self::UnsupportedEncoding => "unsupported_encoding",
            Self::MissingSignature => "missing_signature",
            Self::InvalidSignature => "invalid_signature",
        }
    }
}

impl From<Untrusted> for Reason {
    fn from(untrusted: Untrusted) -> Self {
        match untrusted {
            Untrusted::Missing => Self::MissingSignature,
            Untrusted::Invalid => Self::InvalidSignature,
        }
    }
}

/// A request's body.
#[derive(Debug)]
pub struct Body {
    /// The bytes, or the first of them if there are more than allowed.
    pub bytes: Vec<u8>,
    /// Number of bytes sent.
    pub sent: usize,
    /// SHA-256 of what was sent, in hexadecimal, if that was more.
    pub digest: Option<String>,
    /// Its share of the memory for large bodies.
    pub memory: Vec<OwnedSemaphorePermit>,
}

/// Memory for bodies that are larger than most: those share so much between them.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Semaphore>);

impl Default for Memory {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LARGE_BODIES_KIB)))
    }
}

impl Memory {
    /// Takes what a body needs to grow to `bytes`, waiting for others to finish if need be.
    async fn grow(&self, taken: &mut Vec<OwnedSemaphorePermit>, bytes: usize) {
        let has: usize = taken.iter().map(OwnedSemaphorePermit::num_permits).sum();
        let needs = (bytes.saturating_sub(SMALL_BODY_BYTES) >> 10).saturating_sub(has);
        if let (Ok(needs @ 1..), true) = (u32::try_from(needs), has < LARGE_BODIES_KIB) {
            // It is never closed.
            taken.extend(self.0.clone().acquire_many_owned(needs).await.ok());
        }
    }
}

/// Reads a body, keeping at most `limit` bytes of it. None if the sender doesn't finish it.
pub async fn read_body(payload: &mut web::Payload, limit: usize, memory: &Memory) -> Option<Body> {
    let read = async {
        let mut body = Body { bytes: Vec::new(), sent: 0, digest: None, memory: Vec::new() };
        let mut hash: Option<Sha256> = None;
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.ok()?;
            body.sent += chunk.len();
            if body.sent <= limit {
                memory.grow(&mut body.memory, body.sent).await;
                body.bytes.extend_from_slice(&chunk);
            } else if body.sent > MAX_SENT_BYTES {
                return None;
            } else {
                hash.get_or_insert_with(|| Sha256::new().chain_update(&body.bytes)).update(&chunk);
                // The rest is read all the same: a sender that is cut off sees an error, not our 200.
                let missing = EVIDENCE_BYTES.saturating_sub(body.bytes.len()).min(chunk.len());
                body.bytes.extend_from_slice(&chunk[..missing]);
                body.bytes.truncate(EVIDENCE_BYTES);
            }
        }
        body.digest = hash.map(|hash| hex::encode(hash.finalize()));
        Some(body)
    };
    timeout(BODY_TIMEOUT, read).await.ok().flatten()
}

/// What a request turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An event, to be published for the workers.
    Accept(Named),
    /// Evidence, to be published for the operator.
    Quarantine(Named, Reason),
    /// Nothing to be kept.
    Reject(Reason),
}

/// What a message is called.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    /// The event key.
    pub key: String,
    /// The event type for routing.
    pub event_type: String,
    /// The conversation that it belongs to, if it names one.
    pub chat_id: Option<String>,
    /// How its signature was found good.
    pub signature: &'static str,
}

/// Stands in place of how a signature was found good, where it wasn't.
pub const UNTRUSTED: &str = "untrusted";

/// Decides what a request is. Pure.
#[must_use]
pub fn judge(tenant: &str, signing: &Signing, headers: &HeaderMap, body: &Body, limit: usize) -> Verdict {
    if body.sent > limit {
        // Only a part of what was signed is at hand.
        let (event_type, signature) = (event::UNKNOWN.to_owned(), Form::Unchecked.name());
        let key = event::event_key(tenant, None, &body.bytes, signature);
        let named = Named { key, event_type, chat_id: None, signature };
        return Verdict::Quarantine(named, Reason::TooLarge);
    }
    let scanned = scan(headers, &body.bytes);
    let trusted = match signature(signing, headers, &body.bytes) {
        Err(reason) if signing.policy == Policy::Reject => return Verdict::Reject(reason),
        trusted => trusted,
    };
    // Of a body that can't be used nothing is known.
    let found = scanned.unwrap_or_default();
    let named = |signature| Named {
        key: event::event_key(tenant, found.event_id().as_deref(), &body.bytes, signature),
        event_type: event::routable_type(found.event_type().as_deref()).to_owned(),
        chat_id: found.chat_id(),
        signature,
    };
    match (trusted, &scanned) {
        (Ok(form), Ok(_)) => Verdict::Accept(named(form.name())),
        (Ok(form), Err(reason)) => Verdict::Quarantine(named(form.name()), *reason),
        (Err(untrusted), _) => Verdict::Quarantine(named(UNTRUSTED), untrusted),
    }
}

fn scan<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<Scan<'a>, Reason> {
    let encoding = headers.get(CONTENT_ENCODING).map(|value| value.as_bytes().trim_ascii());
    if encoding.is_some_and(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity")) {
        return Err(Reason::UnsupportedEncoding);
    }
    Scan::of(body).map_err(Reason::Unusable)
}

fn signature(signing: &Signing, headers: &HeaderMap, body: &[u8]) -> Result<Form, Reason> {
    let signature = headers.get(verify::HEADER).map(actix_web::http::header::HeaderValue::as_bytes);
    if signing.policy == Policy::Off {
        return Ok(if signature.is_some() { Form::Unchecked } else { Form::Unsigned });
    }
    Ok(signing.keys.verify(signature, body)?.form)
}

/// The stream that a path's last segment names; none if there is no such stream.
#[must_use]
pub fn stream(segment: Option<&str>) -> Option<Stream> {
    segment.map_or(Some(Stream::Any), Stream::from_path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderValue;
    use proptest::prelude::*;

    fn judged(policy: Policy, body: &[u8], limit: usize) -> Verdict {
        let signing = Signing { policy, keys: ["key"].into_iter().collect() };
        let body = Body { bytes: body.to_vec(), sent: body.len(), digest: None, memory: Vec::new() };
        judge("faster", &signing, &HeaderMap::new(), &body, limit)
    }

    fn reason(verdict: &Verdict) -> Option<&'static str> {
        match verdict {
            Verdict::Accept(_) => None,
            Verdict::Quarantine(_, reason) | Verdict::Reject(reason) => Some(reason.name()),
        }
    }

    #[test]
    fn a_test_ping_is_an_event() {
        let verdict = judged(Policy::Off, br#"{"test":true}"#, 100);
        let Verdict::Accept(named) = verdict else { panic!("{verdict:?}") };
        assert_eq!(named.event_type, "unknown");
        assert!(named.key.starts_with("sha256:"));
    }

    #[test]
    fn bodies_that_cannot_be_used_are_quarantined() {
        for (body, expected) in [
            (&b""[..], "empty_body"),
            (b"{", "invalid_json"),
            (b"[]", "not_an_object"),
            (b"{\"a\":\"0123456789\"}", "body_too_large"),
        ] {
            assert_eq!(reason(&judged(Policy::Off, body, 10)), Some(expected));
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let signing = Signing { policy: Policy::Off, keys: [].into_iter().collect() };
        let body = Body { bytes: b"{}".to_vec(), sent: 2, digest: None, memory: Vec::new() };
        let verdict = judge("faster", &signing, &headers, &body, 10);
        assert_eq!(reason(&verdict), Some("unsupported_encoding"));
    }

    #[test]
    fn unsigned_webhooks_meet_the_policy() {
        let verdict = judged(Policy::Quarantine, b"{}", 10);
        assert!(matches!(verdict, Verdict::Quarantine(_, Reason::MissingSignature)));
        assert_eq!(judged(Policy::Reject, b"{}", 10), Verdict::Reject(Reason::MissingSignature));
        assert!(matches!(judged(Policy::Off, b"{}", 10), Verdict::Accept(_)));
        // It can't be told whether this is signed.
        assert!(matches!(judged(Policy::Reject, b"{\"a\":1}", 5), Verdict::Quarantine(_, Reason::TooLarge)));
    }

    #[test]
    fn a_stream_is_optional_but_must_exist() {
        assert_eq!(stream(None), Some(Stream::Any));
        assert_eq!(stream(Some("outgoing")), Some(Stream::Outgoing));
        assert_eq!(stream(Some("")), None);
        assert_eq!(stream(Some("any")), None);
    }

    proptest! {
        #[test]
        fn names_always_fit_the_protocol(body in "\\{\"event_(id|type)\":\"\\PC{0,200}\"\\}") {
            if let Verdict::Accept(named) = judged(Policy::Off, body.as_bytes(), 1 << 20) {
                prop_assert!(named.key.len() <= 128 && named.event_type.len() <= 100);
                prop_assert!(named.event_type.is_ascii());
            }
        }
    }
}
